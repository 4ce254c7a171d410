"""CIFAR-10 from wherever it lies, as uint8 tensors; a `DataError` names what is missing or broken, and what to do."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.common.files import DataError, listing, natural, peek, some
from helpers.common.hub import HubError, cached, fetch
from helpers.vit import cifar_folders, cifar_tables
from helpers.vit.cifar_tables import BATCHES
from helpers.vit.image_set import CLASSES, ImageSet, tensors

HUB_ID = "uoft-cs/cifar10"
HUB_FILES = tuple(f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test"))
DOWNLOADS = Path("data")  # of what may be given, the one folder that is filled

LAYOUTS = {  # layout: (description, reader)
    "batches": ("cifar-10-batches-py/ with data_batch_1 … data_batch_5 and test_batch", cifar_tables.read_batches),
    "archive": ("cifar-10-python.tar.gz", cifar_tables.read_archive),
    "npz": ("a NumPy .npz with x_train, y_train, x_test, y_test", cifar_tables.read_npz),
    "parquet": ("train*.parquet and test*.parquet with columns img (or image) and label", cifar_tables.read_parquet),
    "folders": ("train/<class>/*.png|jpg and test/<class>/*.png|jpg", cifar_folders.read_folders),
    "kaggle": ("train/<id>.png and trainLabels.csv (the Kaggle competition)", cifar_folders.read_kaggle),
}
LAYOUT_OF_FILE = {
    **dict.fromkeys((".tar.gz", ".tgz", ".tar"), "archive"),
    **dict.fromkeys((*BATCHES, cifar_tables.META), "batches"),
    ".npz": "npz",
    ".parquet": "parquet",
    "trainlabels.csv": "kaggle",
}
DOWNLOADS = Path("data")  # in the working directory
DEPTH = 2
MAX_BRANCHES = 100  # a folder with more sub-folders than this is some other data set; do not walk all of it


class Location(NamedTuple):
    """A CIFAR-10 that was found: `layout` is a key of `LAYOUTS`, `path` its folder or file."""

    layout: str
    path: Path


def load_images(
    data_root: str | Path | None = None, download: bool = True, default_roots: Sequence[str | Path] = ()
) -> ImageSet:
    """Find, fetch or make the images, and say on standard output what was skipped and why.

    data_root=None    each of `default_roots` in order, the Hugging Face hub's cache, a download into it, drawn shapes
    data_root="auto"  the same search, but the download must succeed
    data_root=path    this file or folder, or a DataError. Only where it is ./data itself, and empty or not there yet,
                      is CIFAR-10 downloaded into it: of any other path that is a typing error
    download=False    never uses the network

    Raises `DataError` when a given `data_root` holds no usable CIFAR-10, or when "auto" finds none and cannot fetch it:
    neither ever falls back to the shapes.
    """
    auto = data_root == "auto"
    if data_root and not auto:
        root = Path(data_root).expanduser()
        if download and root.resolve() == DOWNLOADS.resolve() and _may_be_filled(root):
            root = download_cifar10(root)
        return load_cifar10(root)

    broken: set[Location] = set()  # roots may overlap: one warning for each copy is enough
    for root in (*default_roots, *cached_cifar10()):
        location = find_cifar10(root)
        if location is None or location in broken:
            continue
        try:
            return load_cifar10(root)
        except DataError as error:
            broken.add(location)
            print(f"Warning: the CIFAR-10 under {root} is skipped. {error}")

    try:
        if not download:
            raise DataError("download=False forbids it. Allow it, or give the path of a copy.")
        return load_cifar10(download_cifar10())
    except DataError as error:
        if auto:
            searched = ", ".join(str(root) for root in default_roots) or "no folder"
            raise DataError(f'data_root="auto": no CIFAR-10 found (searched: {searched}). {error}') from error
        print(f"CIFAR-10 was not downloaded. {error}")
    return _synthetic()


def find_cifar10(root: str | Path) -> Location | None:
    """The nearest CIFAR-10 at `root` (a folder or a file) or up to two folders below it, by names and headers alone."""
    return next(_candidates(Path(root).expanduser(), []), None)


def load_cifar10(root: str | Path) -> ImageSet:
    """Read and check the CIFAR-10 that `find_cifar10` finds, all or a part of it; a `DataError` names the culprit."""
    root, remarks = Path(root).expanduser(), []
    candidates = _candidates(root, remarks)
    location = next(candidates, None)
    if location is None:
        raise DataError(_nothing_found(root, remarks))
    try:
        return LAYOUTS[location.layout][1](location.path)
    except OSError as error:  # every format error is a DataError by now: this is the disk or the permissions
        raise DataError(f"{error.filename or location.path}: cannot be read ({error.strerror or error}).") from error
    except DataError as error:
        other = next((other for other in candidates if other != location), None)
        step = f"try another copy, data_root={str(other.path)!r}" if other else "download it again"
        raise DataError(f"{error} Mend this copy, or {step}.") from error


def cached_cifar10() -> list[Path]:
    """Return the folder of CIFAR-10 in the Hugging Face hub's cache, if it is there."""
    files = [cached(HUB_ID, name, "dataset") for name in HUB_FILES]
    return [files[0].parent] if all(files) else []


def download_cifar10(folder: Path | None = None) -> Path:
    """Fetch CIFAR-10's Parquet files into `folder`, or else the hub's cache, and return the folder they are in."""
    try:
        return fetch(HUB_ID, HUB_FILES, "dataset", folder) / "plain_text"
    except HubError as error:
        raise DataError(f"{error} Or download {HUB_ID} elsewhere and attach it or give its path.") from error


def _candidates(root: Path, remarks: list[str]) -> Iterator[Location]:
    """Yield what looks like CIFAR-10 at or below `root`, nearest first; `remarks` collects near misses."""
    if os.path.isfile(root):  # noqa: PTH113 (Path.is_file raises where looking is not allowed)
        layout = next((layout for end, layout in LAYOUT_OF_FILE.items() if root.name.lower().endswith(end)), None)
        if layout:
            yield Location(layout, root if layout in ("archive", "npz") else root.parent)
        return
    level = [root]
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            folders, files = peek(folder)
            yield from _layouts_in(folder, folders, files, remarks)
            if len(folders) <= MAX_BRANCHES:
                below += [folders[name] for name in sorted(folders, key=natural)]
        level = below


def _layouts_in(
    folder: Path, folders: dict[str, Path], files: dict[str, Path], remarks: list[str]
) -> Iterator[Location]:
    """Yield the layouts whose top is exactly `folder`."""
    if folder.name == "cifar-10-batches-py" or any(name in files for name in BATCHES):
        yield Location("batches", folder)
    elif "cifar-10-batches-py" in folders:  # before an archive that lies beside it: faster to read
        yield Location("batches", folders["cifar-10-batches-py"])

    for name in sorted(files):
        if re.fullmatch(r"cifar[-_]?10[-_]python.*\.(tar\.gz|tgz|tar)", name, re.IGNORECASE):
            yield Location("archive", files[name])

    for name in sorted(name for name in files if name.lower().endswith(".npz")):
        named = re.search(r"cifar[-_ ]?10(?!\d)", name, re.IGNORECASE)
        if not named and (problem := cifar_tables.npz_problem(files[name])):
            remarks.append(problem)
        else:
            yield Location("npz", files[name])

    shards = [shard for split in cifar_tables.parquet_shards(folder).values() for shard in split]
    if shards and (problem := cifar_tables.parquet_problem(shards[0])):
        remarks.append(problem)
    elif shards:
        yield Location("parquet", folder)

    def has_classes(names: Iterable[str]) -> bool:
        return sum(name.lower() in CLASSES for name in names) >= 3

    splits = [path for name, path in folders.items() if name.lower() in ("train", "test")]
    if any(has_classes(peek(split)[0]) for split in splits):
        yield Location("folders", folder)
    elif any(name.lower() == "trainlabels.csv" for name in files):
        yield Location("kaggle", folder)
    elif has_classes(folders) and folder.name.lower() not in ("train", "test"):
        remarks.append(f"{folder} has class folders, but they are not inside train/ and test/")


def _nothing_found(root: Path, remarks: Sequence[str]) -> str:
    """The whole message for a `root` without CIFAR-10: what lies there, and what would be understood."""
    try:
        folders, files = listing(root)
        names = [f"{name}/" for name in sorted(folders, key=natural)] + sorted(files, key=natural)
        lies = f"holds no CIFAR-10; found there: {some(names, 12) or 'nothing'}"
    except FileNotFoundError:
        lies = f"does not exist (looked for from {Path.cwd()})"
    except NotADirectoryError:
        lies = "is a file of no known kind"
    except OSError as error:
        lies = f"cannot be listed ({error.strerror}): check its permissions"
    looked = "".join(f" Looked at: {remark}." for remark in remarks[:5])
    known = "; ".join(text for text, _ in LAYOUTS.values())
    return (
        f"data_root={str(root)!r} {lies}.{looked} Understood, at most {DEPTH} folders deep: {known}. "
        'Give the path of one of these, or data_root="auto" to search and download.'
    )


def _may_be_filled(root: Path) -> bool:
    """True where a download may go: no such path (and not the name of a data file), or an empty folder."""
    if os.access(root, os.R_OK) and root.is_dir():  # what an interrupted download left counts as nothing
        return {*chain(*peek(root))} <= {"plain_text"} and not all((root / name).is_file() for name in HUB_FILES)
    return not os.access(root, os.F_OK) and not root.name.lower().endswith((*LAYOUT_OF_FILE, ".csv"))


def _synthetic() -> ImageSet:
    """Drawn shapes in CIFAR-10's place, announced by a banner."""
    from helpers.shapes.classes import SHAPES, make_shapes

    n_train, n_test, seed, line = 6000, 2000, 0, "=" * 100
    print(
        f"{line}\nTHIS IS NOT CIFAR-10. No copy was found: the images are ten drawn shapes ({n_train:,} + {n_test:,}, "
        f"seed {seed}).\nThe run shows that everything works; its accuracies say nothing about CIFAR-10.\n"
        f"For the real images: data_root=<path of a copy>, or data_root='auto' to download.\n{line}"
    )
    # test images far from the training seed, so that no other run's training set is this run's test set
    parts = tensors(*make_shapes(n_train, seed=seed)), tensors(*make_shapes(n_test, seed=seed + 1_000_003))
    source = f"drawn by helpers/shapes/classes.py, seed {seed}"
    notes = ("not CIFAR-10: drawn shapes, 32x32, as an offline stand-in",)
    return ImageSet(*parts[0], *parts[1], tuple(SHAPES), "ten shapes (synthetic)", source, notes)


def fingerprint(dataset: ImageSet) -> str:
    """Eight hexadecimal digits of the training images in their order, which decides which of them are held out."""
    return f"{zlib.crc32(dataset.train_images.numpy()):08x}"


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, 3, H, W]` and their labels int64 `[N]`, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first `count` of them."""
        return Split(self.images[:count], self.labels[:count])


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 `[N, 3, H, W]`, as `[3, 1, 1]`, of pixels from 0 to 1."""
    pixels = images.float() / 255
    return pixels.mean((0, 2, 3)).view(3, 1, 1), pixels.std((0, 2, 3)).view(3, 1, 1)


def hold_out(
    dataset: ImageSet, val_size: int, train_size: int | None, seed: int, device: torch.device
) -> tuple[Split, Split]:
    """Shuffle the training images by `seed`, hold `val_size` out, keep `train_size` of the rest (`None`: all of it).

    Returns (training, held out) on `device`. Raises `ValueError` when there are not so many images.
    """
    total = len(dataset.train_labels)
    if val_size + (train_size or 2) > total:
        raise ValueError(
            f"val_size={val_size} and train_size={train_size}: there are {total:,} training images in all; set "
            f"train_size from 2 to {total - val_size:,}, or to None for all not held out"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    parts = order[val_size:][:train_size], order[:val_size]
    return tuple(Split(dataset.train_images[part].to(device), dataset.train_labels[part].to(device)) for part in parts)
