"""From a table of presets and a user's own settings to a configuration that holds together."""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from helpers.common import distributed, environment
from helpers.common.device import PRECISIONS, pick_compute, seed_everything
from helpers.common.images import ImageError, expand, find_images
from helpers.vit.data import fingerprint
from helpers.vit.image_set import ImageSet
from helpers.vit.run_folder import LAST, check_writable

Recipe = Mapping[str, Sequence[Any]]  # setting -> a value for each preset
# Settings that are the same in every preset: they say where and how, not what is trained.
OTHER_SETTINGS = (
    "data_root", "out_dir", "download", "seed", "resume", "init_weights", "checkpoint", "pictures", "all_gpus",
)  # fmt: skip
MEASURES = (  # what a stored model is built by
    "img_size", "patch_size", "patch_stride", "embed_dim", "depth", "num_heads", "mlp_ratio", "pool", "drop_path",
)  # fmt: skip
# With other values of these a run may be resumed.
MAY_CHANGE = {"preset", "given", "processes", "epochs", "max_minutes", "amp", "compile", "tta"}
MAY_CHANGE |= {*OTHER_SETTINGS} - {"seed"}


def collect(names: Mapping[str, Any], recipe: Recipe) -> SimpleNamespace:
    """Every setting among a notebook's global `names` (None where it is not there), to be edited before `start`; what
    was defined after the recipe is taken along, where papermill adds parameters: `start` finds misspelt ones."""
    later = list(names)[list(names).index("RECIPE") + 1 :]
    later = later[: later.index("cfg")] if "cfg" in later else later  # a cell that runs again finds all names
    known = ("preset", *recipe, *OTHER_SETTINGS, *(name for name in later if not name.startswith("_")))
    return SimpleNamespace(**{name: names.get(name) for name in known})


def start(cfg: SimpleNamespace, recipe: Recipe, presets: Sequence[str]) -> tuple[Any, ...]:
    """Join the processes of a torchrun, fill in the preset, check every setting, seed, and make the output folder.

    Returns the configuration, the device with its precision, the output folder, and a figure's caption. Raises
    `ValueError` for a setting that does not exist or cannot work.
    """
    device = distributed.start()
    gpu_memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0
    given = dict(vars(cfg))
    preset = "auto" if given["preset"] is None else given["preset"]
    given.pop("preset")
    cfg = make_config(recipe, presets, preset, given, distributed.broadcast(gpu_memory))
    check_config(cfg)
    # beside the files of a training, never over them
    cfg.out_dir = str(Path(cfg.out_dir or environment.default_out_dir()) / ("evaluation" if cfg.checkpoint else ""))
    compute = pick_compute(cfg.amp, device, cpu_bf16=True)
    compute = replace(compute, precision=distributed.broadcast(compute.precision))
    if (compute.device.type, compute.precision) == ("cpu", "fp16"):
        print('warning: amp="fp16" takes many times as long on a CPU: amp=True chooses what this one can do')
    seed_everything(cfg.seed)
    torch.set_float32_matmul_precision("high")
    check_writable(Path(cfg.out_dir))
    several = f"{distributed.size()} processes, each on {compute.name}, {compute.precision}"
    hardware = several if distributed.size() > 1 else str(compute)
    versions = environment.versions("torch", "torchvision", "timm", "numpy")
    print(f"{environment.where()}, {hardware}\npreset {cfg.preset}, output in {cfg.out_dir}\n{versions}")
    return cfg, compute, Path(cfg.out_dir), f"seed {cfg.seed}; {hardware}; torch {versions['torch']}"


def fit_to_images(cfg: SimpleNamespace, dataset: ImageSet) -> None:
    """Bring `cfg`, in place, to what can be done with these images, note which they are, and say how many."""
    total, to_test = len(dataset.train_labels), f"{len(dataset.test_labels):,} to test on"
    if not total:  # of a data set with test images alone a checkpoint is tested
        print(f"no images to train on, {to_test}")
        return
    if cfg.val_size > total // 5:
        cfg.val_size = total // 5
        print(f"val_size={cfg.val_size}, since at most a fifth of the training images is held out")
    if cfg.preset == "quick" and "synthetic" in dataset.name and "max_minutes" not in cfg.given:
        cfg.max_minutes = min(cfg.max_minutes, 2)
        print(f"max_minutes={cfg.max_minutes}: drawn shapes are learnt sooner")
    used = min(cfg.train_size or total, total - cfg.val_size)
    cfg.batch_size = min(cfg.batch_size, used // 2 * 2)
    distributed.check_batch_size(cfg.batch_size)
    cfg.processes = distributed.size()
    # a resumed run must have the same
    counts = f"{used} + {cfg.val_size} of {len(dataset.classes)} classes"
    cfg.images = f"{dataset.name}: {counts}, checksum {fingerprint(dataset)}"
    distributed.check_same(cfg.images, "images")
    print(f"{used:,} images to train on, {cfg.val_size:,} held out, {to_test}")
    in_epoch = used // cfg.batch_size
    if not cfg.checkpoint and in_epoch * cfg.epochs < FEW_STEPS:
        few = f"{in_epoch * cfg.epochs:,.0f} steps of {cfg.batch_size} images are few to learn from"
        print(f"{few}: epochs={math.ceil(FEW_STEPS / in_epoch)} would make {FEW_STEPS}")


def make_config(
    recipe: Recipe, presets: Sequence[str], preset: str, given: Mapping[str, Any], gpu_memory: float
) -> SimpleNamespace:
    """One column of `recipe`, with those of `given` that are not None in its place.

    `preset="auto"`: the first without a GPU (`gpu_memory` is 0), the second below 24 GB of GPU memory, else the third.
    """
    known = (*recipe, *OTHER_SETTINGS)
    for name in [name for name in given if name not in known]:
        likely = ["lr"] if re.match("l.*rate", name) else difflib.get_close_matches(name, known, 1)
        near = "".join(f": did you mean {other!r}?" for other in likely)
        raise ValueError(f"{name!r} is no setting{near}")
    if preset == "auto":
        preset = presets[0] if not gpu_memory else presets[1] if gpu_memory < 24 else presets[2]
    if preset not in presets:
        raise ValueError(f"preset={preset!r}: expected 'auto' or one of {', '.join(map(repr, presets))}")
    settings = {name: values[presets.index(preset)] for name, values in recipe.items()}
    settings |= {name: value for name, value in given.items() if value is not None or name not in recipe}
    return SimpleNamespace(preset=preset, given=[name for name in given if given[name] is not None], **settings)


FEW_STEPS = 500  # below this, even easy classes are hardly learnt
ABOVE_0, BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
NUMBERS = (  # settings, their kind, least and largest value, and the same in words
    ("img_size patch_size embed_dim depth num_heads batch_size", Integral, 1, math.inf, "a whole number above 0"),
    ("patch_stride", Integral, 1, math.inf, "a whole number above 0, or None"),
    ("train_size", Integral, 2, math.inf, "a whole number, at least 2, or None"),
    ("randaug_n val_size", Integral, 0, math.inf, "a whole number, 0 or more"),
    ("tta", Integral, 0, 4, "a shift of 0 (off) to 4 pixels"),
    ("seed", Integral, 0, 2**32 - 1, "a whole number from 0 to 4,294,967,295"),
    ("epochs lr mlp_ratio", Real, ABOVE_0, math.inf, "a finite number above 0"),
    ("weight_decay warmup_epochs mix_off_epochs clip_grad mixup cutmix min_lr", Real, 0, math.inf, "0 or more"),
    ("drop_path label_smoothing ema_decay", Real, 0, BELOW_1, "from 0 to below 1"),
    ("erase_prob", Real, 0, 1, "from 0 to 1"),
    ("randaug_m", Real, 0, 10, "from 0 to 10"),
    ("layer_decay", Real, ABOVE_0, 1, "above 0 and at most 1"),
    ("max_minutes", Real, 0, math.inf, "minutes above 0, or 0 for no limit"),
)


FLAGS = "download compile all_gpus mimetic"  # True or False; amp and resume may be more
PATHS = "data_root out_dir init_weights checkpoint pictures"


def check_config(cfg: SimpleNamespace) -> None:
    """Raise `ValueError` naming a setting, its value and what it may be, before anything runs for hours; paths become
    text in place, since a checkpoint that holds anything but tensors and plain values is not safe to load."""

    def require(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(cfg, name)!r}: expected {expected}")

    for names, kind, least, largest, expected in NUMBERS:
        for name in names.split():
            value = getattr(cfg, name)
            optional = value is None and name in ("patch_stride", "train_size")
            number = isinstance(value, kind) and value is not True and abs(value) < math.inf
            require(name, optional or (number and least <= value <= largest), expected)
    for name in FLAGS.split():
        require(name, _is_flag(getattr(cfg, name)), "True or False, without quotation marks")
    require("amp", _is_flag(cfg.amp) or cfg.amp in (*PRECISIONS,), f"True, False or one of {', '.join(PRECISIONS)}")
    for name in PATHS.split():
        value = getattr(cfg, name)
        require(name, value is None or (isinstance(value, str | os.PathLike) and str(value).strip()), "a path, or None")
        if value is not None:
            setattr(cfg, name, os.path.expanduser(value))  # noqa: PTH111 ("./data" stays as it is)
    _check_files(cfg, require)
    # what depends on another setting
    stride = cfg.patch_stride or cfg.patch_size
    require("pool", cfg.pool in ("cls", "mean"), "'cls' or 'mean'")
    require("min_lr", cfg.min_lr <= cfg.lr, f"from 0 to lr ({cfg.lr})")
    require("patch_stride", stride <= cfg.patch_size, f"from 1 to patch_size ({cfg.patch_size}), or None")
    require("img_size", cfg.img_size >= cfg.patch_size, f"at least patch_size ({cfg.patch_size})")
    fits = stride < cfg.patch_size or cfg.img_size % cfg.patch_size == 0
    require("patch_size", fits, f"a divisor of img_size ({cfg.img_size}), or a patch_stride below it")
    require("embed_dim", cfg.embed_dim % cfg.num_heads == 0, f"a multiple of num_heads ({cfg.num_heads})")
    require("batch_size", cfg.batch_size % 2 == 0, "an even number, since MixUp and CutMix pair images")


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, Integral) and value in (0, 1))


def _check_files(cfg: SimpleNamespace, require: Callable[[str, bool, str], None]) -> None:
    """What `resume`, `init_weights` and `pictures` name is there, on the machine of the process that reads it; `resume`
    becomes a flag or the path of a last.pth."""
    main, here = distributed.is_main(), f"looked for from {Path.cwd()}"
    if _is_flag(cfg.resume):
        cfg.resume = bool(cfg.resume)
    else:
        expected = f"True or False, without quotation marks, or the path of a {LAST} ({here})"
        require("resume", isinstance(cfg.resume, str | os.PathLike) and str(cfg.resume).strip(), expected)
        path = expand(cfg.resume)
        path = path / LAST if path.is_dir() else path
        require("resume", path.is_file() or not main, f"{expected}: there is no such file")
        cfg.resume = str(path)
    if cfg.init_weights and main:
        require("init_weights", Path(cfg.init_weights).is_file(), f"a checkpoint ({here})")
    if cfg.pictures and main:
        try:
            find_images(cfg.pictures)
        except ImageError as error:
            raise ValueError(f"pictures={cfg.pictures!r}: {error}") from error


def check_resumable(cfg: SimpleNamespace, stored: Mapping[str, Any], path: object) -> None:
    """Raise `ValueError` naming every setting in which `cfg` differs from the `stored` one of the run to resume."""
    now = vars(cfg)
    differing = [name for name in sorted(now.keys() & stored.keys() - MAY_CHANGE) if now[name] != stored[name]]
    if differing:
        changes = ", ".join(f"{name}={stored[name]!r} (now {now[name]!r})" for name in differing)
        give = f"give the same values, and the data_root it began with ({stored.get('data_root')!r} there)"
        raise ValueError(f"{path} is of a run with {changes}: {give}, or start anew with resume=False")
