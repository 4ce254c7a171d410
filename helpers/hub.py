"""What the loaders share that read models of the Hugging Face hub's layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop; of one without a message its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
