"""Images of any common kind as RGB arrays, and the files that a path, a folder or a pattern means."""

from __future__ import annotations

import contextlib
import glob
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from helpers.common.files import listing, natural, peek, some

# HEIC is listed although Pillow alone does not read it: a photo is better refused with the reason than passed over.
KINDS = "jpg jpeg jpe jfif png webp gif tif tiff bmp ppm pgm pnm jp2 avif heic heif"
MAX_PIXELS = 250_000_000  # 750 MB as RGB; what claims to be larger is refused before it is decoded
# Pillow's own limit, a third of this, would refuse stitched and scanned images. It is one setting for the process.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class ImageError(ValueError):
    """An image is missing or cannot be read; the message names the file and the next step."""


# --- One image -----------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as uint8 RGB `[H, W, 3]`, turned upright by its EXIF orientation.

    Of an animation or a multi-page file the first picture is read. What is transparent becomes white, as on the pages
    that such images are made for: the colour stored below full transparency is arbitrary, often black. 16-bit values
    keep their high byte. 32-bit and float values are taken as 0 … 1 (floats only), 0 … 255 or 0 … 65535, whichever is
    the smallest range that holds them all; values outside these are stretched from their minimum to their maximum, and
    what is not a number is black.

    Raises `ImageError` for a file that is missing, no image, damaged, or larger than `MAX_PIXELS`.
    """
    path = _expand(path)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image: give a file in it.")
        if not path.exists():
            raise ImageError(f"{path}: no such file; check the spelling, relative paths start at {Path.cwd()}.")
        if not path.is_file():
            raise ImageError(f"{path} is a device or a pipe, not an image file: give a file.")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes): copy or download it again.")
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ImageError(f"{path} may not be read ({error.strerror}): change its permissions or copy it.") from error

    try:
        with Image.open(path) as image:
            _require_size(path, *image.size)
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data: the picture is taken as it is stored
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if start[:4] in (b"II*\0", b"MM\0*"):
            return _read_tiff(path)
        hint = "convert HEIC and AVIF" if start[4:8] == b"ftyp" else "it may be damaged or of another kind"
        raise ImageError(
            f"{path} is no image that can be read here (it starts with {start!r}): {hint}; JPEG and PNG always work."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large ({error}): at most {MAX_PIXELS:,} pixels are read, scale it.") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory: make it smaller.") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more for a damaged file
        size = path.stat().st_size
        raise ImageError(
            f"{path} ({size:,} bytes) is truncated or damaged ({error}): copy or download it again."
        ) from error


def read_first(paths: Sequence[Path]) -> tuple[Path, np.ndarray]:
    """The first of the images that can be read: its path, and what `read_image` returns. `ImageError` if none can."""
    for path in paths:
        try:
            return path, read_image(path)
        except ImageError as error:
            last = error
    raise last if len(paths) == 1 else ImageError(f"none of the {len(paths)} images can be read; the last one: {last}")


def _expand(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~name" of nobody: a name like any other
        return Path(path)


def _require_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path} has {width:,} x {height:,} = {width * height:,} pixels, more than the {MAX_PIXELS:,} that are "
            "read: make it smaller or cut it into pieces."
        )


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # Pillow's convert() clips these at 255
        values = np.asarray(image)
        if image.mode == "I" and image.format == "PNG":  # how older versions of Pillow read 16-bit grayscale
            values = values.astype(np.uint16)
        return np.repeat(_to_uint8(values)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        return np.array(page)
    return np.array(image.convert("RGB"))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers of any type as uint8 of the same shape, by the ranges that `read_image` states."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    ranges = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))
    if low >= 0 and high <= ranges[-1]:
        low, high = 0, next(end for end in ranges if high <= end)
    values[~finite] = low
    values -= low
    values *= 255 / ((high - low) or 1)
    return np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)


def _read_tiff(path: Path) -> np.ndarray:
    """Layouts of TIFF that Pillow does not know, colour in floats above all, through OpenCV."""
    try:
        with path.open("rb") as file:  # OpenCV decodes first and tells the size after
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        _require_size(path, tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH])
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except ImageError:
        raise
    except Exception:  # a damaged directory raises what it likes, cv2.error among others
        values = None
    if values is None:
        raise ImageError(f"{path} is a TIFF that is damaged or of a rare kind: save it as PNG.")
    values = _to_uint8(values)
    if values.ndim == 3:
        values = cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA if values.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return _to_rgb(Image.fromarray(values))


# --- Which images --------------------------------------------------------------------------------------------------


def find_images(path: str | Path) -> list[Path]:
    """The image files that `path` means, in natural order (2.png before 10.png).

    A file is taken whatever its suffix. A folder gives the images directly in it, not those in its sub-folders; a
    pattern (`*`, `?`, `[…]`, and `**` for any depth) gives the images among its matches. Both go by
    the suffix (`KINDS`, in any case) and pass over hidden files. What exists under the very name of `path` comes before
    its meaning as a pattern; `~` is the home folder.

    Raises `ImageError` when nothing is found.
    """
    if not str(path).strip():
        raise ImageError("the path of the image is empty: give a file, a folder or a pattern such as photos/*.jpg.")
    path = _expand(path)
    try:
        if path.is_dir():
            folders, files = listing(path)
            found = [file for file in files.values() if _is_image(file)]
            seen = sorted(files, key=natural) + [f"{name}/" for name in sorted(folders, key=natural)]
            where, hint = "directly in it", f'"{path / "**" / "*"}" searches sub-folders too' if folders else ""
        elif path.exists():
            return [path]
        elif any(sign in str(path) for sign in "*?["):
            seen = sorted(glob.glob(str(path), recursive=True), key=natural)  # noqa: PTH207 (it skips hidden files)
            found = [Path(name) for name in seen if _is_image(Path(name))]
            where, hint = "among its matches", "upper and lower case differ in a pattern"
        else:
            seen = sorted((name for part in peek(path.parent) for name in part), key=natural)
            within = f"{path.parent.absolute()} holds {some(seen) or 'nothing'}" if path.parent.is_dir() else ""
            raise ImageError(
                f"{path}: no such file or folder; {within or f'there is no folder {path.parent.absolute()} either'}. "
                "Check the spelling."
            )
    except OSError as error:
        raise ImageError(f"{path} may not be read ({error.strerror}): change its permissions or copy it.") from error
    if not found:
        raise ImageError(
            f"{path}: no image {where} (found: {some(seen) or 'nothing'}); looked for the suffixes {KINDS}"
            f"{hint and '; '}{hint}."
        )
    return sorted(found, key=lambda file: natural(str(file)))


def given_root(path: str | Path) -> Path:
    """The folder in which `find_images(path)` begins to look: a folder itself, a file's, or a pattern's fixed part."""
    path = _expand(path)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    return Path(*itertools.takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts))


def _is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in KINDS.split() and path.is_file()


# --- Where the results of each image go ----------------------------------------------------------------------------

# What some file system does not take in a name; surrogates stand for bytes that are no text.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f<>:\"/\\|?*\ud800-\udfff]")
TOGETHER = ("coco.json", "yolo", "cutouts", "summary.csv")  # what is written for all images beside their folders
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, as Windows sees them


def output_names(paths: Sequence[str | Path]) -> list[str]:
    """One folder name per image, in order: its stem where no other image has it, else its name with the suffix, else
    that after its folder's name, and a number as the last resort. None is one of `TOGETHER`.

    No two are equal where upper and lower case or the forms of an accented letter are not told apart, and each can be
    a folder on Linux, macOS and Windows.
    """
    paths = [Path(path) for path in paths]
    spellings = [
        [safe_name(path.stem) for path in paths],
        [safe_name(path.name.replace(".", "_")) for path in paths],
        [safe_name(f"{path.absolute().parent.name}_{path.name}".replace(".", "_")) for path in paths],
    ]
    counts = [Counter(map(_key, names)) for names in spellings]
    result, taken = [], set(TOGETHER)
    for choices in zip(*spellings, strict=True):
        unique = [name for name, count in zip(choices, counts, strict=True) if count[_key(name)] == 1]
        base = name = (unique or choices[-1:])[0]
        number = 1
        while _key(name) in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(_key(name))
        result.append(name)
    return result


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def safe_name(name: str, most: int = 180) -> str:
    """`name` as every file system takes it, of at most `most` bytes."""
    name = _UNSAFE.sub("_", name).encode()[:most].decode(errors="ignore").strip(". ")  # file systems take 255 bytes
    if not name or _RESERVED.fullmatch(name):
        name += "_"
    return name
