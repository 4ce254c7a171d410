"""Trained tensors into models: all of them, or an error that says which do not fit."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from helpers.common.hub import reason


def load_pretrained(folder: Path, model_types: Sequence[str], expected: str, model_class: Any, *others: Any) -> list:
    """`[model, *others]` of classes of transformers from a folder; the model in float32, without gradients.

    Nothing in the files is executed. Raises `ValueError`, whose message ends in `expected`, for a folder that is not
    there, incomplete, broken or another model's.
    """
    kind = model_type(folder)
    if kind not in model_types:
        problem = f"says model_type {kind!r}" if kind else "is missing, broken or without a model_type"
        raise ValueError(f"{folder / 'config.json'} {problem}. {expected}.")
    try:
        with quiet_transformers():
            loaded = [each.from_pretrained(folder, local_files_only=True) for each in others]
            model, report = model_class.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
            )
            wrong = _misfits(model, report, folder)
    except Exception as error:  # missing, truncated, not JSON: each library has its own types
        raise ValueError(f"{folder} cannot be loaded: {reason(error)}. {expected}.") from error
    if wrong:  # transformers would go on, with random numbers for what is missing
        raise ValueError(
            f"{folder}: {len(wrong)} tensors of the model are not as in its files: {min(wrong)}. {expected}."
        )
    return [model.eval().requires_grad_(False), *loaded]


def _misfits(model: nn.Module, report: dict, folder: Path) -> set[str]:
    """Names of the tensors that were not loaded as they are in the folder's files.

    transformers only warns of tensors that it leaves out, and some of its versions load one in the place of several
    that they take for shared; so the numbers are compared, too, where a name has stayed the same.
    """
    state, modules = model.state_dict(), dict(model.named_modules())
    # transformers 4 lists names, 5 tuples of name and shapes
    names = {*report["missing_keys"]} | {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    # a module that the model has would work without them: another variant; whole modules of training are left in files
    names |= {key for key in report["unexpected_keys"] if key.rpartition(".")[0] in modules}
    single = folder / "model.safetensors"
    for path in [single] if single.is_file() else folder.glob("model-*.safetensors"):
        with safe_open(path, "pt") as file:
            shared = state.keys() & set(file.keys())
            names |= {key for key in shared if not torch.equal(state[key], file.get_tensor(key).to(state[key].dtype))}
    # buffers that the code fills: which of them are in the files depends on the version
    return {key for key in names if not key.endswith(("relative_position_index", "position_ids"))}


def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load `state` into `model`; raises `ValueError` that names the first tensors, unless all of them fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # the first line says of which class
        raise ValueError(textwrap.shorten(str(error).split("\n", 1)[1], 200, placeholder=" …").rstrip(".")) from error


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
