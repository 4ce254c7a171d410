"""Images found wherever they lie, as uint8 tensors; a `DataError` names what is missing or broken, and what to do."""

import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from helpers.common.files import DataError, natural, peek, some
from helpers.common.hub import HubError, cached, fetch
from helpers.common.images import expand
from helpers.vit import array_files, image_files, layouts
from helpers.vit.archives import is_archive, outside, unpacked
from helpers.vit.image_set import ImageSet, Reading, assemble, tensors

HUB_ID = "uoft-cs/cifar10"
HUB_FILES = tuple(f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test"))
DOWNLOADS = Path("data")  # of what may be given, the one folder that is filled
DEPTH = 2
MAX_BRANCHES = 100  # a folder with more sub-folders than this is some other data set; do not walk all of it


class NothingFoundError(DataError):
    """There are no images at `root`; the message says what lies there, and what would be understood."""

    def __init__(self, root: Path, remarks: Sequence[str]):
        self.remarks = remarks  # near misses
        folders, files = peek(root)
        names = [f"{name}/" for name in sorted(folders, key=natural)] + sorted(files, key=natural)
        lies = f"holds no labelled images; found there: {some(names, 12) or 'nothing that can be listed'}"
        if root.is_file():
            lies = "is a file of no known kind"
        elif not root.exists():
            lies = f"does not exist (looked for from {Path.cwd()})"
        looked = "".join(f" Looked at: {remark}." for remark in remarks[:5])
        known = "; ".join(layouts.LAYOUTS.values()).replace("`", "")
        super().__init__(
            f"data_root={str(root)!r} {lies}.{looked} Understood, at most {DEPTH} folders deep: {known}. "
            'Give the path of one of these, or data_root="auto" to search for CIFAR-10 and download it.'
        )


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
        root = Path(data_root)
        if download and root.resolve() == DOWNLOADS.resolve():
            # what an interrupted download left counts as nothing
            whole = all((root / name).is_file() for name in HUB_FILES)
            if not whole and {*chain(*peek(root))} <= {"plain_text"}:
                root = download_cifar10(root)
        return read_images(root, img_size, training)

    in_cache = [cached(HUB_ID, name, "dataset") for name in HUB_FILES]
    seen, broken = [], set()  # roots may overlap: one warning for each copy is enough
    for root in (*default_roots, *([in_cache[0].parent] if all(in_cache) else [])):
        try:
            return _find(Path(root), img_size, training, broken)
        except NothingFoundError as error:
            seen += error.remarks
    not_taken = f"Seen, and not taken (data_root=<path> takes any classes): {'; '.join(seen[:8])}. " if seen else ""
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


def read_images(root: str | Path, img_size: int = 32, training: bool = True) -> ImageSet:
    """Read and check the nearest images at `root`, a folder or a file, or up to two folders below; a `DataError` names
    the culprit."""
    try:
        return _find(expand(root), img_size, training)
    except NothingFoundError:
        raise
    except (DataError, OSError) as error:
        raise DataError(f"{error} Mend this copy, download it again, or give the path of another.") from error


def download_cifar10(folder: Path | None = None) -> Path:
    """Fetch CIFAR-10's Parquet files into `folder`, or else the hub's cache, and return the folder they are in."""
    try:
        return fetch(HUB_ID, HUB_FILES, "dataset", folder) / "plain_text"
    except HubError as error:
        raise DataError(f"{error} Or download {HUB_ID} elsewhere and attach it or give its path.") from error


def _find(root: Path, img_size: int, training: bool, broken: set[str] | None = None) -> ImageSet:
    """The nearest images at or below `root`. In a search, where `broken` collects what it warned of, they are
    CIFAR-10's, and what is broken is passed over; else that raises `DataError` or `OSError`."""
    remarks: list[str] = []
    for reader, path in _places(root):
        try:
            found = _read(reader, path, img_size, training, broken)
        except (DataError, OSError) as error:
            if broken is None:
                raise
            found = ""
            if str(error) not in broken:
                print(f"Warning: a copy of CIFAR-10 is skipped. {error}")
                broken.add(str(error))
        if isinstance(found, ImageSet):
            return found
        remarks += [found] if found else []
    raise NothingFoundError(root, remarks)


def _read(
    reader: Callable | None, path: Path, img_size: int, training: bool, broken: set[str] | None
) -> ImageSet | str | None:
    """The images in one place, see `_find`, or why there are none to be taken."""
    own = broken is None
    if not reader and not own and not _is_named_cifar10(path):
        return f"{path}, an archive"
    if not reader:
        with unpacked(path) as folder:
            found = _find(folder, img_size, training, broken)
        return replace(found, source=outside(found.source, folder, path))
    found = reader(path, own)
    if not isinstance(found, Reading):
        return found
    names = found.class_names()
    if own or layouts.are_cifar10(names or layouts.CLASSES):
        return assemble(found, img_size, training)
    return f"{path}, whose classes are {some(names, 10)}"


def _places(root: Path) -> Iterator[tuple[Callable | None, Path]]:
    """Yield (reader, or None for an archive; file or folder) for all that may hold images at or below `root`."""
    arrays, images = array_files.read_arrays, image_files.read_images
    if os.path.isfile(root):  # noqa: PTH113 (Path.is_file raises where looking is not allowed)
        ending, split = root.suffix.lower(), layouts.split_and_rest(root.stem)[0]
        if ending in (".npz", ".npy") or (ending in layouts.TABLES and not split):
            yield arrays, root
        elif ending in layouts.TABLES or layouts.batch_kind([root.name, *layouts.METAS]):
            yield arrays, root.parent
        elif is_archive(root):
            yield None, root
        return
    archives = []
    for folder in folders_below(root):
        yield arrays, folder
        files = peek(folder)[1]
        names = sorted(files, key=natural)
        yield from ((arrays, files[name]) for name in names if name.lower().endswith(".npz"))
        # one file stands for all .npy
        yield from ((arrays, files[name]) for name in [n for n in names if n.lower().endswith(".npy")][:1])
        yield images, folder
        packed = [files[name] for name in names if re.search(f"{layouts.ARCHIVE}|^cifar", name, re.IGNORECASE)]
        archives += filter(is_archive, packed)
    # last, since what lies unpacked is faster to read
    yield from ((None, path) for path in sorted(archives, key=lambda path: not _is_named_cifar10(path)))


def _is_named_cifar10(path: Path) -> bool:
    return bool(re.search(layouts.CIFAR10, path.name, re.IGNORECASE))


def folders_below(root: Path) -> Iterator[Path]:
    """Yield `root` and the folders below it, level by level."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield from level
        below = [peek(folder)[0] for folder in level]
        level = [
            _only(folders[name])
            for folders in below
            if len(folders) <= MAX_BRANCHES
            for name in sorted(folders, key=natural)
        ]


def _only(folder: Path) -> Path:
    """`folder`, or what it merely wraps: a snapshot of a repository of the hub, or the one folder that it holds."""
    folders, files = peek(folder)
    if "snapshots" in folders:
        return _only(folders["snapshots"])
    wraps = len(folders) == 1 and not files and not layouts.split_folders(folder)
    return _only(next(iter(folders.values()))) if wraps else folder


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
    source = "drawn by helpers/shapes/classes.py"
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

    def first(self, count: int) -> "Split":
        return Split(self.images[:count], self.labels[:count])


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 `[N, 3, H, W]`, as `[3, 1, 1]`, of pixels from 0 to 1."""
    pixels = images.float() / 255
    return pixels.mean((0, 2, 3)).view(3, 1, 1), pixels.std((0, 2, 3)).view(3, 1, 1)


def hold_out(
    dataset: ImageSet, val_size: int, train_size: int | None, seed: int, device: torch.device
) -> tuple[Split, Split]:
    """Return (training, held out) on `device`: the training images shuffled by `seed`, `val_size` of them held out, and
    `train_size` of the rest (`None`, or more than there are: all of it)."""
    order = torch.randperm(len(dataset.train_labels), generator=torch.Generator().manual_seed(seed))
    parts = order[val_size:][:train_size], order[:val_size]
    return tuple(Split(dataset.train_images[part].to(device), dataset.train_labels[part].to(device)) for part in parts)
