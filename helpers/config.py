"""From a table of presets and a user's own settings to a configuration that holds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any


def make_config(
    recipe: Mapping[str, Sequence[Any]],
    presets: Sequence[str],
    preset: str,
    given: Mapping[str, Any],
    gpu_memory: float,
) -> SimpleNamespace:
    """One column of `recipe` (setting -> a value per preset), with those of `given` that are not None in its place.

    `preset="auto"`: the first without a GPU (`gpu_memory` is 0), the second below 24 GB of GPU memory, else the third.
    Raises `ValueError` for another preset.
    """
    if preset == "auto":
        preset = presets[0] if not gpu_memory else presets[1] if gpu_memory < 24 else presets[2]
    if preset not in presets:
        raise ValueError(f"preset={preset!r}: expected 'auto' or one of {', '.join(map(repr, presets))}")
    column = presets.index(preset)
    settings = {name: values[column] for name, values in recipe.items()}
    settings |= {name: value for name, value in given.items() if value is not None or name not in recipe}
    return SimpleNamespace(preset=preset, **settings)


def check_config(cfg: SimpleNamespace) -> None:
    """Raise `ValueError` naming a setting, its value and what it may be, before anything runs for hours.

    Paths become text in place, since a checkpoint that holds anything but tensors and plain values is not safe to load.
    """
    for name in ("data_root", "out_dir", "checkpoint"):
        if getattr(cfg, name, None) is not None:
            setattr(cfg, name, str(getattr(cfg, name)))
    whole = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "batch_size")
    for name in whole:
        value = getattr(cfg, name)
        _require(cfg, name, isinstance(value, int) and value > 0, "a whole number above 0")
    for name in ("epochs", "lr", "mlp_ratio"):
        _require(cfg, name, getattr(cfg, name) > 0, "a number above 0")
    for name in (
        "min_lr",
        "weight_decay",
        "warmup_epochs",
        "mix_off_epochs",
        "clip_grad",
        "mixup",
        "cutmix",
        "randaug_n",
        "val_size",
    ):
        _require(cfg, name, getattr(cfg, name) >= 0, "0 or more")
    for name in ("erase_prob", "drop_path", "label_smoothing", "ema_decay"):
        _require(
            cfg,
            name,
            0 <= getattr(cfg, name) < 1 or (name == "erase_prob" and cfg.erase_prob == 1),
            "from 0 to below 1",
        )
    stride = cfg.patch_size if cfg.patch_stride is None else cfg.patch_stride
    _require(cfg, "pool", cfg.pool in ("cls", "mean"), "'cls' or 'mean'")
    _require(cfg, "patch_stride", 1 <= stride <= cfg.patch_size, f"from 1 to patch_size ({cfg.patch_size}), or None")
    _require(cfg, "img_size", cfg.img_size >= cfg.patch_size, f"at least patch_size ({cfg.patch_size})")
    fits = stride < cfg.patch_size or cfg.img_size % cfg.patch_size == 0
    _require(cfg, "patch_size", fits, f"a divisor of img_size ({cfg.img_size}), or a patch_stride below it")
    _require(cfg, "embed_dim", cfg.embed_dim % cfg.num_heads == 0, f"a multiple of num_heads ({cfg.num_heads})")
    _require(cfg, "batch_size", cfg.batch_size % 2 == 0, "an even number, since MixUp and CutMix pair images")
    _require(cfg, "randaug_m", 0 <= cfg.randaug_m <= 10, "from 0 to 10")
    _require(cfg, "layer_decay", 0 < cfg.layer_decay <= 1, "above 0 and at most 1")
    _require(cfg, "tta", 0 <= cfg.tta <= 4, "a shift of 0 (off) to 4 pixels")
    _require(cfg, "max_minutes", cfg.max_minutes >= 0, "minutes above 0, or 0 for no limit")
    _require(cfg, "train_size", cfg.train_size is None or cfg.train_size >= 2, "at least 2 images, or None for all")


# Settings that a run may be resumed with other values of: they say where, how fast and how long, not what is trained.
MAY_CHANGE = {
    "data_root",
    "out_dir",
    "download",
    "resume",
    "checkpoint",
    "preset",
    "epochs",
    "max_minutes",
    "amp",
    "compile",
    "tta",
}


def check_resumable(cfg: SimpleNamespace, stored: Mapping[str, Any], path: object) -> None:
    """Raise `ValueError` naming every setting in which `cfg` differs from the `stored` one of the run to resume."""
    now = vars(cfg)
    differing = [name for name in sorted(now.keys() & stored.keys() - MAY_CHANGE) if now[name] != stored[name]]
    if differing:
        changes = ", ".join(f"{name}={stored[name]!r} (now {now[name]!r})" for name in differing)
        raise ValueError(f"{path} is of a run with {changes}: give the same values, or start anew with resume=False")


def _require(cfg: SimpleNamespace, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(cfg, name)!r}: expected {expected}")
