"""Images found wherever they lie, as uint8 tensors; a `DataError` names what is missing or broken, and what to do."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from helpers.common.files import DataError, listing, natural, peek, some
from helpers.common.hub import HubError, cached, fetch
from helpers.vit import array_files, image_files
from helpers.vit.archives import is_archive, outside, unpacked
from helpers.vit.image_set import ImageSet, Reading, assemble, tensors
from helpers.vit.layouts import (
    ARCHIVE,
    BATCH_FOLDER,
    CIFAR10,
    LABEL_TABLES,
    LAYOUTS,
    METAS,
    TABLES,
    are_cifar10,
    batch_kind,
    split_and_rest,
)

HUB_ID = "uoft-cs/cifar10"
HUB_FILES = tuple(f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test"))
DOWNLOADS = Path("data")  # of what may be given, the one folder that is filled
READERS = {"arrays": array_files.read_arrays, "images": image_files.read_images}
DEPTH = 2
MAX_BRANCHES = 100  # a folder with more sub-folders than this is some other data set; do not walk all of it


def load_images(
    data_root: str | Path | None = None,
    download: bool = True,
    default_roots: Sequence[str | Path] = (),
    img_size: int = 32,
    training: bool = True,
) -> ImageSet:
    """Find, fetch or make the images, and say on standard output what was skipped and why.

    data_root=None    CIFAR-10 in one of `default_roots`, the Hugging Face hub's cache, a download into it, drawn shapes
    data_root="auto"  the same search, but the download must succeed
    data_root=path    this file or folder, whatever its classes, or a `DataError`; only ./data is filled where it is
                      empty or not there yet

    Images that are not all 32x32 are made `img_size` pixels wide and high. Without `training` no training images are
    needed, and none returned unless some of them are the test set.
    """
    if data_root is not None and data_root != "auto":
        if not str(data_root).strip():
            raise DataError(f"data_root={data_root!r} is empty (an unset variable?): give a path, 'auto' or None.")
        root = Path(data_root).expanduser()
        if download and root.resolve() == DOWNLOADS.resolve() and not root.is_file():
            # what an interrupted download left counts as nothing
            whole = all((root / name).is_file() for name in HUB_FILES)
            if not whole and {*chain(*peek(root))} <= {"plain_text"}:
                root = download_cifar10(root)
        return read_images(root, img_size, training)

    in_cache = [cached(HUB_ID, name, "dataset") for name in HUB_FILES]
    roots = [Path(root).expanduser() for root in (*default_roots, *([in_cache[0].parent] if all(in_cache) else []))]
    seen: list[str] = []
    if found := _search(roots, seen, training):
        return found
    not_taken = f"Seen, and not taken: {'; '.join(seen[:8])}. " if seen else ""
    try:
        if not download:
            raise DataError("download=False forbids it. Allow it, or give the path of a copy.")
        return read_images(download_cifar10(), img_size, training)
    except DataError as error:
        if data_root == "auto":
            searched = ", ".join(map(str, default_roots)) or "no folder"
            said = f'data_root="auto": no CIFAR-10 found (searched: {searched}). {not_taken}{error}'
            raise DataError(said) from error
        print(f"{not_taken}CIFAR-10 was not downloaded. {error}")
    return _synthetic()


def _search(roots: Sequence[Path], seen: list[str], training: bool) -> ImageSet | None:
    """The first CIFAR-10 in `roots`; `seen` collects what was not taken."""
    tried = set()  # roots may overlap: one warning for each copy is enough
    for root in roots:
        for path, found in _readings(root, seen, own=False):
            if path not in tried:
                tried.add(path)
                try:
                    return _finish(path, found, 32, training, own=False)
                except (DataError, OSError) as error:
                    print(f"Warning: the CIFAR-10 under {root} is skipped. {error}")
    return None


def read_images(root: str | Path, img_size: int = 32, training: bool = True) -> ImageSet:
    """Read and check the nearest images at `root` (a folder or a file) or up to two folders below it; a `DataError`
    names the culprit."""
    root, remarks = Path(root).expanduser(), []
    readings = _readings(root, remarks)
    path, found = next(readings, (None, None))
    if path is None:
        raise DataError(_nothing_found(root, remarks))
    try:
        return _finish(path, found, img_size, training)
    except DataError as error:
        other = next((other for other, reading in readings if not isinstance(reading, Exception)), None)
        step = f"try another copy, data_root={str(other)!r}" if other else "download it again"
        raise DataError(f"{error} Mend this copy, or {step}.") from error


def _finish(path: Path, found: Reading | DataError | None, img_size: int, training: bool, own: bool = True) -> ImageSet:
    """The images of what was found at `path`: a reading, an error, or for an archive nothing yet."""
    if isinstance(found, DataError):
        raise found
    if found:
        return assemble(found, img_size, training)
    with unpacked(path) as folder:
        remarks: list[str] = []
        inside = next(((place, found) for place, found in _readings(folder, remarks, own) if found), None)
        if not inside:
            raise DataError(_nothing_found(folder, remarks))
        images = _finish(*inside, img_size, training)
    return replace(images, source=outside(images.source, folder, path))


def download_cifar10(folder: Path | None = None) -> Path:
    """Fetch CIFAR-10's Parquet files into `folder`, or else the hub's cache, and return the folder they are in."""
    try:
        return fetch(HUB_ID, HUB_FILES, "dataset", folder) / "plain_text"
    except HubError as error:
        raise DataError(f"{error} Or download {HUB_ID} elsewhere and attach it or give its path.") from error


def _readings(root: Path, remarks: list[str], own: bool = True) -> Iterator[tuple[Path, Reading | DataError | None]]:
    """Yield what is at or below `root`, nearest first, with its path: a reading, why there is none, or None for an
    archive. `remarks` collects near misses, and unless `own` classes will do what is not CIFAR-10."""
    taken: list[Path] = []
    for layout, path in _places(root, own):
        if layout == "archive":
            yield path, None
        elif not any(folder in path.parents for folder in taken):
            try:
                found = READERS[layout](path)
            except (DataError, OSError) as error:
                found = error
            if isinstance(found, Reading):
                taken += [path] if layout == "images" else []  # folders of its splits are no data sets of their own
                if not own and not are_cifar10(found.class_names()):
                    found = (
                        f"{path}, whose classes are {some(found.class_names(), 10)}; data_root={str(path)!r} takes it"
                    )
            if isinstance(found, str):
                remarks.append(found)
            elif found:
                yield path, found


def _places(root: Path, own: bool) -> Iterator[tuple[str, Path]]:
    """Yield (reader or "archive", folder or file) where images may be: at `root`, and in the folders below."""
    if os.path.isfile(root):  # noqa: PTH113 (Path.is_file raises where looking is not allowed)
        ending, known = root.suffix.lower(), batch_kind(Path(), [root.name, *METAS]) or root.name in METAS
        if ending in (".npz", ".npy", *TABLES) or known:
            yield "arrays", root.parent if known or (ending in TABLES and split_and_rest(root.stem)[0]) else root
        elif root.name.lower() in LABEL_TABLES:
            yield "images", root.parent
        elif is_archive(root):
            yield "archive", root
        return
    level, archives = [root], []
    for _ in range(DEPTH + 1):
        for folder in level:
            yield from _places_in(folder, archives)
        below = [(peek(folder)[0], folder) for folder in level]
        level = [_only(path) for folders, _ in below if len(folders) <= MAX_BRANCHES for path in folders.values()]
        level.sort(key=lambda path: natural(str(path)))
    yield from archives if own else ()


def _places_in(folder: Path, archives: list[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """Yield what may be read at exactly `folder`; archives of unknown names are kept for later."""
    folders, files = peek(folder)
    for place in (folder, *(folders[name] for name in sorted(folders) if re.fullmatch(BATCH_FOLDER, name))):
        if batch_kind(place, peek(place)[1]):  # before an archive that lies beside it: faster to read
            yield "arrays", place
    for name in sorted(files, key=natural):
        cifar10 = re.search(CIFAR10, name, re.IGNORECASE)
        if re.search(ARCHIVE, name, re.IGNORECASE) or (cifar10 and is_archive(files[name])):
            if cifar10:
                yield "archive", files[name]
            else:
                archives.append(("archive", files[name]))
    arrays = [files[name] for name in sorted(files) if name.lower().endswith(".npz")]
    arrays += [files[name] for name in sorted(files) if name.lower().endswith(".npy")][:1]  # one stands for all
    yield from (("arrays", path) for path in arrays + [folder] * bool(array_files.table_files(folder)[0]))
    yield "images", folder


def _only(folder: Path) -> Path:
    """`folder`, or what it merely wraps: the newest snapshot of a repository of the hub, the one folder in it."""
    while True:
        folders, files = peek(folder)
        if "snapshots" in folders:
            folders = dict([max(peek(folders["snapshots"])[0].items(), key=lambda item: item[1].stat().st_mtime)])
        elif len(folders) != 1 or files:
            return folder
        folder = next(iter(folders.values()))


def _nothing_found(root: Path, remarks: Sequence[str]) -> str:
    """The whole message for a `root` without images: what lies there, and what would be understood."""
    try:
        folders, files = listing(root)
        names = [f"{name}/" for name in sorted(folders, key=natural)] + sorted(files, key=natural)
        lies = f"holds no labelled images; found there: {some(names, 12) or 'nothing'}"
    except FileNotFoundError:
        lies = f"does not exist (looked for from {Path.cwd()})"
    except OSError as error:
        lies = "is a file of no known kind" if root.is_file() else f"cannot be listed ({error.strerror})"
    looked = "".join(f" Looked at: {remark}." for remark in remarks[:5])
    known = "; ".join(LAYOUTS.values()).replace("`", "")
    return (
        f"data_root={str(root)!r} {lies}.{looked} Understood, at most {DEPTH} folders deep: {known}. "
        'Give the path of one of these, or data_root="auto" to search for CIFAR-10 and download it.'
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
