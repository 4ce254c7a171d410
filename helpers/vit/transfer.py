"""Weights of a file put into a ViT: all of them to test it, or those that fit to begin a training from."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.common import distributed
from helpers.common.files import load_plain, some

WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel and torch.compile


def load_all(model: nn.Module, weights: Mapping[str, Tensor], path: object) -> None:
    """Load `weights`, which have to be those of this model; raises `ValueError` with those that are not."""
    try:
        model.load_state_dict(_unwrapped(weights))
    except RuntimeError as error:  # its first line says that there are some, the next ones which
        raise ValueError(f"{path}: weights and config disagree: {str(error).splitlines()[1].strip()}") from error


@torch.no_grad()
def begin_from(run: Any, path: Path | str) -> None:
    """Let a fresh `run` begin with the weights in the file `path`: one of q1's checkpoints, or a state dict with timm's
    names. Positions of another grid are resampled; a head of other classes, and whatever has another shape, is left
    out, and said so. Raises `ValueError` where no block fits, or a weight is not finite."""
    advice = ": give the checkpoint of a ViT as init_weights"
    content = distributed.broadcast(load_plain(Path(path), advice) if distributed.is_main() else None)
    content = content if isinstance(content, dict) else {}
    weights = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), content)
    weights = _unwrapped({name: value for name, value in weights.items() if isinstance(value, Tensor)})
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(f"init_weights={str(path)!r}: weights are not finite: {some(bad)}")

    fitting = {}
    own, other_classes = run.model.state_dict(), list(content.get("classes", run.classes)) != list(run.classes)
    for name in own.keys() & weights.keys():
        value = weights[name].to(own[name])
        if name == "pos_embed" and value.ndim == 3:
            value = resample_positions(value, own[name].shape[1])
        if value.shape == own[name].shape and not (other_classes and name.startswith("head.")):
            fitting[name] = value
    if not any(name.startswith("blocks.") for name in fitting):
        first = "blocks.0.attn.qkv.weight"
        there, here = ([*each[first].shape] if first in each else "absent" for each in (weights, own))
        raise ValueError(f"init_weights={str(path)!r} fits nowhere: a first layer is {there} there, {here} here")

    for model in (run.model, run.ema):
        model.load_state_dict(fitting, strict=False)
    heads = content.get("config", {}).get("num_heads", run.cfg.num_heads)
    if heads != run.cfg.num_heads:
        print(f"warning: {path} has num_heads={heads}, this run {run.cfg.num_heads}: its attention will differ")
    fresh, unused = [name for name in own if name not in fitting], [name for name in weights if name not in own]
    print(f"begun from {path}: {len(fitting)} of {len(own)} weights taken, fresh: {some(fresh) or 'none'}")
    if unused:
        print(f"of no use here: {some(unused)}")


def resample_positions(positions: Tensor, tokens: int) -> Tensor:
    """Positions [1, n + G², D] for `tokens` = 1 + g², by antialiased bicubic interpolation of the grid, as timm's
    `resample_abs_pos_embed`; as they are where they fit already, or are no square and [CLS]."""
    before, after = (math.isqrt(count - 1) for count in (positions.shape[1], tokens))
    if before == after or before**2 + 1 != positions.shape[1]:
        return positions
    cls, grid = positions[:, :1], positions[:, 1:].float().unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (after, after), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, grid.flatten(2).mT.to(cls)], dim=1)


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names without the prefixes of wrappers."""
    return {WRAPPERS.sub("", name): value for name, value in weights.items()}
