"""CIFAR-10 from wherever it lies, as uint8 tensors; a `DataError` names what is missing or broken, and what to do."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from helpers.common.files import DataError, listing, natural, peek, some
from helpers.common.hub import HubError, cached, fetch
from helpers.vit import cifar_readers as readers
from helpers.vit.image_set import CLASSES, ImageSet, tensors

HUB_ID = "uoft-cs/cifar10"
HUB_FILES = tuple(f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test"))
DOWNLOADS = Path("data")  # of what may be given, the one folder that is filled
BATCH_FOLDER = "cifar-10-batches-py"

LAYOUTS = {  # layout: (description, reader)
    "batches": (f"{BATCH_FOLDER}/ with data_batch_1 … data_batch_5 and test_batch", readers.read_batches),
    "archive": ("cifar-10-python.tar.gz", readers.read_batches),
    "npz": ("a NumPy .npz with x_train, y_train, x_test, y_test", readers.read_npz),
    "parquet": ("train*.parquet and test*.parquet with columns img (or image) and label", readers.read_parquet),
    "folders": ("train/<class>/*.png|jpg and test/<class>/*.png|jpg", readers.read_folders),
    "kaggle": ("train/<id>.png and trainLabels.csv (the Kaggle competition)", readers.read_kaggle),
}
LAYOUT_OF_FILE = dict.fromkeys((".tar.gz", ".tgz", ".tar"), "archive")
LAYOUT_OF_FILE |= dict.fromkeys((*readers.BATCHES, readers.META), "batches")
LAYOUT_OF_FILE |= {".npz": "npz", ".parquet": "parquet", "trainlabels.csv": "kaggle"}
DEPTH = 2
MAX_BRANCHES = 100  # a folder with more sub-folders than this is some other data set; do not walk all of it
Location = tuple[str, Path]  # a CIFAR-10 that was found: a key of LAYOUTS, and its folder or file


def load_images(
    data_root: str | Path | None = None, download: bool = True, default_roots: Sequence[str | Path] = ()
) -> ImageSet:
    """Find, fetch or make the images, and say on standard output what was skipped and why.

    data_root=None    each of `default_roots` in order, the Hugging Face hub's cache, a download into it, drawn shapes
    data_root="auto"  the same search, but the download must succeed
    data_root=path    this file or folder, or a `DataError`; only ./data is filled where it is empty or not there yet
    """
    if data_root and data_root != "auto":
        root = Path(data_root).expanduser()
        if download and root.resolve() == DOWNLOADS.resolve() and not root.is_file():
            # what an interrupted download left counts as nothing
            whole = all((root / name).is_file() for name in HUB_FILES)
            if not whole and {*chain(*peek(root))} <= {"plain_text"}:
                root = download_cifar10(root)
        return load_cifar10(root)

    broken = {None}  # roots may overlap: one warning for each copy is enough
    in_cache = [cached(HUB_ID, name, "dataset") for name in HUB_FILES]
    for root in (*default_roots, *([in_cache[0].parent] if all(in_cache) else [])):
        if (location := find_cifar10(root)) not in broken:
            try:
                return load_cifar10(root)
            except (DataError, OSError) as error:
                broken.add(location)
                print(f"Warning: the CIFAR-10 under {root} is skipped. {error}")
    try:
        if not download:
            raise DataError("download=False forbids it. Allow it, or give the path of a copy.")
        return load_cifar10(download_cifar10())
    except DataError as error:
        if data_root == "auto":
            searched = ", ".join(map(str, default_roots)) or "no folder"
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
        layout, path = location
        return LAYOUTS[layout][1](path)
    except DataError as error:
        other = next((other for other in candidates if other != location), None)
        step = f"try another copy, data_root={str(other[1])!r}" if other else "download it again"
        raise DataError(f"{error} Mend this copy, or {step}.") from error


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
            yield layout, root if layout in ("archive", "npz") else root.parent
        return
    level = [root]
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            yield from _layouts_in(folder, remarks)
            folders = peek(folder)[0]
            if len(folders) <= MAX_BRANCHES:
                below += [folders[name] for name in sorted(folders, key=natural)]
        level = below


def _layouts_in(folder: Path, remarks: list[str]) -> Iterator[Location]:
    """Yield the layouts whose top is exactly `folder`."""
    folders, files = peek(folder)
    if folder.name == BATCH_FOLDER or files.keys() & {*readers.BATCHES}:
        yield "batches", folder
    elif BATCH_FOLDER in folders:  # before an archive that lies beside it: faster to read
        yield "batches", folders[BATCH_FOLDER]

    for name in sorted(files):
        if re.fullmatch(r"cifar[-_]?10[-_]python.*\.(tar\.gz|tgz|tar)", name, re.IGNORECASE):
            yield "archive", files[name]
        elif name.lower().endswith(".npz"):
            named = re.search(r"cifar[-_ ]?10(?!\d)", name, re.IGNORECASE)  # then a broken one is an error
            if problem := None if named else readers.npz_problem(files[name]):
                remarks.append(problem)
            else:
                yield "npz", files[name]

    # tables and folders may be of any data set: a look at what is in them tells
    shards = [*chain(*readers.parquet_shards(folder).values())]
    if problem := readers.parquet_problem(shards[0]) if shards else None:
        remarks.append(problem)
    elif shards:
        yield "parquet", folder

    def has_classes(folder: Path) -> bool:
        return sum(name.lower() in CLASSES for name in peek(folder)[0]) >= 3

    if any(has_classes(path) for name, path in folders.items() if name.lower() in ("train", "test")):
        yield "folders", folder
    elif any(name.lower() == "trainlabels.csv" for name in files):
        yield "kaggle", folder
    elif has_classes(folder) and folder.name.lower() not in ("train", "test"):
        remarks.append(f"{folder} has class folders, but they are not inside train/ and test/")


def _nothing_found(root: Path, remarks: Sequence[str]) -> str:
    """The whole message for a `root` without CIFAR-10: what lies there, and what would be understood."""
    try:
        folders, files = listing(root)
        names = [f"{name}/" for name in sorted(folders, key=natural)] + sorted(files, key=natural)
        lies = f"holds no CIFAR-10; found there: {some(names, 12) or 'nothing'}"
    except FileNotFoundError:
        lies = f"does not exist (looked for from {Path.cwd()})"
    except OSError as error:
        lies = "is a file of no known kind" if root.is_file() else f"cannot be listed ({error.strerror})"
    looked = "".join(f" Looked at: {remark}." for remark in remarks[:5])
    known = "; ".join(text for text, _ in LAYOUTS.values())
    return (
        f"data_root={str(root)!r} {lies}.{looked} Understood, at most {DEPTH} folders deep: {known}. "
        'Give the path of one of these, or data_root="auto" to search and download.'
    )


def _synthetic() -> ImageSet:
    """Drawn shapes in CIFAR-10's place, announced by a banner."""
    from helpers.shapes.classes import SHAPES, make_shapes

    line = "=" * 100
    print(
        f"{line}\nTHIS IS NOT CIFAR-10. No copy was found: the images are ten drawn shapes (6,000 + 2,000, seed 0).\n"
        "The run shows that everything works; its accuracies say nothing about CIFAR-10.\n"
        f"For the real images: data_root=<path of a copy>, or data_root='auto' to download.\n{line}"
    )
    # test images far from the training seed, so that no other run's training set is this run's test set
    train, test = tensors(*make_shapes(6000, seed=0)), tensors(*make_shapes(2000, seed=1_000_003))
    notes = ("not CIFAR-10: drawn shapes, 32x32, as an offline stand-in",)
    source = "drawn by helpers/shapes/classes.py, seed 0"
    return ImageSet(*train, *test, tuple(SHAPES), "ten shapes (synthetic)", source, notes)


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
        return Split(self.images[:count], self.labels[:count])


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 `[N, 3, H, W]`, as `[3, 1, 1]`, of pixels from 0 to 1."""
    pixels = images.float() / 255
    return pixels.mean((0, 2, 3)).view(3, 1, 1), pixels.std((0, 2, 3)).view(3, 1, 1)


def hold_out(
    dataset: ImageSet, val_size: int, train_size: int | None, seed: int, device: torch.device
) -> tuple[Split, Split]:
    """Return (training, held out) on `device`: the training images shuffled by `seed`, `val_size` of them held out, and
    `train_size` of the rest (`None`: all of it). Raises `ValueError` when there are not so many."""
    total = len(dataset.train_labels)
    if val_size + (train_size or 2) > total:
        raise ValueError(
            f"val_size={val_size} and train_size={train_size}: there are {total:,} training images in all; set "
            f"train_size from 2 to {total - val_size:,}, or to None for all not held out"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    parts = order[val_size:][:train_size], order[:val_size]
    return tuple(Split(dataset.train_images[part].to(device), dataset.train_labels[part].to(device)) for part in parts)
