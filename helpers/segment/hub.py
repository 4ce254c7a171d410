"""Small helpers for folders in the layout of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from helpers.common.hub import reason as reason


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without its progress bars, its advice and its report on a checkpoint's tensors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def model_type(folder: Path) -> str | None:
    """Which model the folder's config.json says it is; None where there is none, or one that cannot be read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("model_type") if isinstance(content, dict) else None


def title(folder: Path) -> str:
    """The folder's name; for one in the hub's cache, whose name is a number, the id that it was fetched by."""
    name = folder.parents[1].name if folder.parent.name == "snapshots" else folder.name
    return name.removeprefix("models--").replace("--", "/")
