"""Images of any common kind as RGB arrays, and the files that a path, a folder or a pattern means."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from helpers.common.files import natural, some

# HEIC is listed although Pillow alone does not read it: a photo is better refused with the reason than passed over.
KINDS = "jpg jpeg jpe jfif png webp gif tif tiff bmp ppm pgm pnm jp2 avif heic heif"
MAX_PIXELS = 250_000_000  # 750 MB as RGB; what claims to be larger is refused before it is decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, a third of this, would refuse stitched and scanned images


class ImageError(ValueError):
    """An image is missing or cannot be read; the message names the file and the next step."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as uint8 RGB `[H, W, 3]`, turned upright by its EXIF orientation; of several the first.

    What is transparent becomes white: the colour stored below full transparency is arbitrary, often black. Raises
    `ImageError` for a file that is missing, no image, damaged, or larger than `MAX_PIXELS`.
    """
    path = _expand(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width:,} x {image.height:,} pixels; {MAX_PIXELS:,} are the most"
                raise ImageError(f"{path} has {size}: make it smaller or cut it into pieces.")
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data: the picture is taken as it is stored
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        return _read_other(path)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more for a damaged file
        if reason := getattr(error, "strerror", None):
            message = f"cannot be opened ({reason}): give an image file; relative paths start at {Path.cwd()}."
        else:
            message = f"({path.stat().st_size:,} bytes) is truncated or damaged ({error}): copy or download it again."
        raise ImageError(f"{path} {message}") from error


def read_first(paths: Sequence[Path]) -> tuple[Path, np.ndarray]:
    """The first of the images that can be read: its path, and what `read_image` returns. `ImageError` if none can."""
    for path in paths:
        try:
            return path, read_image(path)
        except ImageError as error:
            last = error
    raise last if len(paths) == 1 else ImageError(f"none of the {len(paths)} images can be read; the last one: {last}")


def _expand(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 (the one of pathlib refuses names such as ~$draft.png)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # Pillow's convert() clips these at 255
        values = np.asarray(image)
        if image.mode == "I" and image.format == "PNG":  # how Pillow 10 reads 16-bit grayscale
            values = values.astype(np.uint16)
        return np.repeat(_to_uint8(values)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers of any type as uint8: 16 bits keep the high byte; 32 bits and floats are scaled from the first of 0 … 1
    (floats only), 0 … 255 and 0 … 65535 that holds them all, else from their minimum to their maximum; NaN is black."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    ranges = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    values, finite = values.astype(np.float32), np.isfinite(values)
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if low >= 0 and high <= ranges[-1]:
        low, high = 0, next(end for end in ranges if high <= end)
    values = (np.where(finite, values, low) - low) * (255 / ((high - low) or 1))
    return np.rint(np.nan_to_num(values)).clip(0, 255).astype(np.uint8)


def _read_other(path: Path) -> np.ndarray:
    """A layout of TIFF that Pillow does not know, colour in floats above all, through OpenCV; else `ImageError`."""
    content = np.fromfile(path, np.uint8)
    start = content[:16].tobytes()
    if start[:4] in (b"II*\0", b"MM\0*"):
        with contextlib.suppress(cv2.error, IndexError):
            values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)  # None, or BGR(A)
            if values is not None:
                values = values[..., [2, 1, 0, 3][: values.shape[2]]] if values.ndim == 3 else values
                return _to_rgb(Image.fromarray(_to_uint8(values)))
    hint = "convert HEIC and AVIF to JPEG" if start[4:8] == b"ftyp" else "it may be damaged or of another kind"
    raise ImageError(f"{path} is no image that can be read here (it starts with {start!r}): {hint}.")


def find_images(path: str | Path) -> list[Path]:
    """The image files that a file, a folder or a pattern (`*`, `?`, `[…]`, `**` for any depth) means, in natural order.

    A file is taken whatever its suffix; from folders and patterns those of `KINDS` that are not hidden. What exists
    under the very name of `path` comes before its meaning as a pattern. Raises `ImageError` when nothing is found.
    """
    if not str(path).strip():
        raise ImageError("the path of the image is empty: give a file, a folder or a pattern such as photos/*.jpg.")
    path = _expand(path)
    if path.is_file():
        return [path]
    is_folder = path.is_dir()
    is_pattern = not is_folder and glob.has_magic(str(path))
    folder = path if is_folder else path.parent
    pattern = str(path) if is_pattern else f"{glob.escape(str(folder))}/*"
    seen = sorted(glob.glob(pattern, recursive=True), key=natural)  # noqa: PTH207 (it skips hidden files)
    found = [Path(name) for name in seen if Path(name).suffix[1:].lower() in KINDS.split() and Path(name).is_file()]
    if found and (is_pattern or is_folder):
        return found
    what = "no image there" if is_pattern or is_folder else "no such file or folder"
    where = f"{'found' if is_pattern else folder.absolute()}: {some(seen) or 'nothing'}"
    advice = "an image, a folder that holds some, or a pattern (photos/**/* searches sub-folders too)"
    raise ImageError(f"{path}: {what}; {where}. Give {advice}. Suffixes: {KINDS}.")


def given_root(path: str | Path) -> Path:
    """The folder in which `find_images(path)` begins to look: a folder itself, a file's, or a pattern's fixed part."""
    path = _expand(path)
    if path.exists():
        return path if path.is_dir() else path.parent
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))


# What some file system does not take in a name; surrogates stand for bytes that are no text.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f<>:\"/\\|?*\ud800-\udfff]")
TOGETHER = ("coco.json", "yolo", "cutouts", "summary.csv")  # what is written for all images beside their folders


def output_names(paths: Sequence[str | Path]) -> list[str]:
    """One folder name per image, in order: its stem where no other image has it, else its name with the suffix, else
    that after its folder's name, else with a number; none is in `TOGETHER`, and no two differ only by case."""
    paths = [Path(path) for path in paths]
    names = [safe_name(path.stem) for path in paths]
    for parts in (1, 2):  # of the path that the next spelling takes in
        counts = Counter(map(_key, names))
        longer = [safe_name("_".join(path.absolute().parts[-parts:]).replace(".", "_")) for path in paths]
        names = [new if counts[_key(name)] > 1 else name for name, new in zip(names, longer, strict=True)]
    taken = set(TOGETHER)
    for i, name in enumerate(names):
        numbered = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names[i] = next(choice for choice in numbered if _key(choice) not in taken)
        taken.add(_key(names[i]))
    return names


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def safe_name(name: str, most: int = 180) -> str:
    """`name` as every file system takes it, of at most `most` bytes."""
    return _UNSAFE.sub("_", name).encode()[:most].decode(errors="ignore").strip(". ") or "_"
