"""Trained tensors into models: all of them, or an error that says which do not fit."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from helpers.common.files import load_plain, reason


def load_pretrained(folder: Path, kind: str, expected: str, model_class: Any, *others: Any) -> list:
    """`[model, *others]` of classes of transformers from a folder; the model in float32, without gradients.
    `ValueError` for a folder that is not there, incomplete, broken or of another `model_type` than `kind`."""
    from transformers.utils import logging

    found = model_type(folder)
    if found != kind:
        problem = f"says model_type {found!r}" if found else "is missing, broken or without a model_type"
        raise ValueError(f"{folder / 'config.json'} {problem}. {expected}.")
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # they are in the report
    # without progress bars, advice and transformers' own report on the tensors
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded = [each.from_pretrained(folder, local_files_only=True) for each in others]
        model, report = model_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **options)
        wrong = _misfits(model, report, folder)
    except Exception as error:  # missing, truncated, not JSON: each library has its own types
        raise ValueError(f"{folder} cannot be loaded: {reason(error)}. {expected}.") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    if wrong:  # transformers would go on, with random numbers for what is missing
        count = f"{len(wrong)} tensors of the model are not as in its files"
        raise ValueError(f"{folder}: {count}: {min(wrong)}. {expected}.")
    return [model.eval().requires_grad_(False), *loaded]


def _misfits(model: nn.Module, report: dict, folder: Path) -> set[str]:
    """Names of the tensors that were not loaded as they are in the folder's files: transformers only warns of some, and
    some of its versions load one in the place of several that they take for shared, so numbers are compared, too."""
    state, modules = model.state_dict(), dict(model.named_modules(remove_duplicate=False))
    # transformers 4 lists names, 5 tuples of name and shapes
    names = {*report["missing_keys"]} | {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    # a module that the model has would work without them: another variant; whole modules of training are left in files
    names |= {key for key in report["unexpected_keys"] if key.rpartition(".")[0] in modules}
    names |= {
        key for key, value in stored(folder) if key in state and not torch.equal(state[key], value.to(state[key]))
    }
    # buffers that the code fills: which of them are in the files depends on the version
    return {key for key in names if not key.endswith(("relative_position_index", "position_ids"))}


def tensor_files(folder: Path) -> list[Path]:
    """The files of a folder that transformers takes a model's tensors from: one, or the parts that an index names."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path := folder / name).is_file():
            return [path]
        if (index := folder / f"{name}.index.json").is_file():
            return sorted(
                {folder / part for part in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
    return []


def stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of all that is in a folder's `tensor_files`, whatever its precision there."""
    for path in tensor_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                yield from ((key, file.get_tensor(key)) for key in sorted(file.keys()))
        else:
            yield from load_plain(path, "").items()


def load_checkpoint(path: Path, expected: str, mmap: bool = False) -> dict[str, Tensor]:
    """Tensors of a file `{"model": tensors}`, as both models' authors save them; {} of others. With `mmap` they are
    read when they are used."""
    content = load_plain(path, f". {expected}.", mmap)
    state = content.get("model") if isinstance(content, dict) else None
    return state if isinstance(state, dict) else {}


def fill(model: nn.Module, state: dict[str, Tensor], problem: str, expected: str) -> None:
    """Load `state` into `model`; unless all tensors fit, raise `ValueError` with the problem and the first of them."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # the first line says of which class
        names = textwrap.shorten(str(error).split("\n", 1)[1], 200, placeholder=" …").rstrip(".")
        raise ValueError(f"{problem}: {names}. {expected}.") from error


def model_type(folder: Path) -> str | None:
    """Which model the folder's config.json says it is; None where there is none, or one that cannot be read."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):  # not there, no JSON, a list
        return None


def title(folder: Path) -> str:
    """The folder's name; for one in the hub's cache, whose name is a number, the id that it was fetched by."""
    name = folder.parents[1].name if folder.parent.name == "snapshots" else folder.name
    return name.removeprefix("models--").replace("--", "/")
