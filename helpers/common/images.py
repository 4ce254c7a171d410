"""Images of any common kind as RGB arrays, and the files that a path, a folder or a pattern means."""

from __future__ import annotations

import contextlib
import glob
import importlib
import io
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from helpers.common.files import natural, some
from helpers.common.pixels import to_uint8, tone_map

# HEIC and JPEG XL are listed although they need a package: a photo is better refused with the reason than passed over.
KINDS = (
    "jpg jpeg jpe jfif jif mpo png apng webp avif avifs heic heif hif jxl gif tif tiff bmp dib ppm pgm pbm pnm pfm "
    "jp2 j2k j2c jpc jpf jpx hdr psd tga ico cur icns pcx dds qoi sgi ras"
)
_KINDS = frozenset(KINDS.split())
# Of these Pillow would read the thumbnail.
RAW = "3fr arw cr2 cr3 dng erf iiq kdc mef mrw nef nrw orf pef raf raw rw2 rwl srw x3f"
_RAW = frozenset(RAW.split())
MAX_PIXELS = 250_000_000  # 750 MB as RGB; what claims to be larger is refused before it is decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, a third of this, would refuse stitched and scanned images

# Kinds that Pillow does not read alone: how a file begins, the name, the module that adds it, and that one's package.
_PLUGINS = (
    (rb"....ftyp(avif|avis)", "AVIF", "pillow_avif", "pillow-avif-plugin"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC", "pillow_heif", "pillow-heif"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
)
_VIDEO = rb"....(ftyp|moov|mdat|wide|free|skip)|RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV|0&\xb2u|G@"
_HDR = b"#?"  # Radiance
_UNMENTIONED = ("thumbs.db", "desktop.ini", "icon\r")  # by their systems put into any folder


class ImageError(ValueError):
    """An image is missing or cannot be read; the message names the file and the next step."""


def read_image(path: str | Path, notes: list[str] | None = None) -> np.ndarray:
    """Read an image file as uint8 RGB `[H, W, 3]`, turned upright by its EXIF orientation; of several the first.

    What is transparent becomes white: the colour stored below full transparency is arbitrary, often black. Where
    numbers of more than 8 bits were brought into 0 … 255 by what the image holds, `notes` gets a sentence. Raises
    `ImageError` for a file that is missing, no image, damaged, or larger than `MAX_PIXELS`.
    """
    path, remarks = expand(path), []
    try:
        with open_image(path) as image:
            # known only before the pixels are loaded
            had_16_bits = image.mode == "RGB" and ";16" in str(image.tile)
            pixels = to_upright_rgb(image, remarks)
            if had_16_bits:
                pixels = _widened(path, pixels, remarks)
    except ImageError:
        raise
    except UnidentifiedImageError:
        pixels = _read_other(path, remarks)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more for a damaged file
        if reason := getattr(error, "strerror", None):
            message = f"cannot be opened ({reason}): give an image file; relative paths start at {Path.cwd()}."
        else:
            message = f"({path.stat().st_size:,} bytes) is truncated or damaged ({error}): copy or download it again."
        raise ImageError(f"{path} {message}") from error
    if notes is not None:
        notes += [f"{path.name}: {remark}" for remark in remarks]
    return pixels


def expand(path: str | Path) -> Path:
    """The path with `~` as the home folder, where it means that."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (the one of pathlib refuses names such as ~$draft.png)


def is_image(path: str | Path) -> bool:
    """Tell whether a file is an image, by its name."""
    return os.path.splitext(path)[1][1:].lower() in _KINDS  # noqa: PTH122 (asked of 60,000 files; pathlib is slow)


def open_image(file: Path | io.BytesIO) -> Image.Image:
    """`Image.open` that knows what installed plugins read, and refuses what is too large, videos, a camera's raw files,
    and PostScript, for which Pillow would start another program."""
    path = file if isinstance(file, Path) else None
    if path and path.suffix[1:].lower() in _RAW and path.is_file():
        raise ImageError(f"{path} is a camera's raw file, which is not developed here: save it as JPEG or TIFF first.")
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        start = _start(file)
        for pattern, _, module, _ in _PLUGINS:
            if re.match(pattern, start, re.DOTALL):
                with contextlib.suppress(ImportError):
                    plugin = importlib.import_module(module)
                    getattr(plugin, "register_heif_opener", lambda: None)()  # the others do that on import
                    return Image.open(file)
        raise
    if image.format in ("MPEG", "EPS"):
        raise UnidentifiedImageError
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width:,} x {image.height:,} pixels; {MAX_PIXELS:,} are the most"
        raise ImageError(f"{path or 'the image'} has {size}: make it smaller or cut it into pieces.")
    return image


def _start(file: Path | io.BytesIO) -> bytes:
    """The bytes by which kinds are told."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:16]
    with file.open("rb") as opened:
        return opened.read(16)


def to_upright_rgb(image: Image.Image, notes: list[str]) -> np.ndarray:
    """`to_rgb` of an opened image, turned as its EXIF orientation says."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data: the picture is taken as it is stored
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image, notes)


def to_rgb(image: Image.Image, notes: list[str]) -> np.ndarray:
    """The pixels of an opened image as uint8 RGB `[H, W, 3]`, white where it is transparent."""
    if image.mode.startswith(("I", "F")):  # Pillow's convert() clips these at 255
        values = np.asarray(image)
        if image.mode == "I" and image.format == "PNG":  # how Pillow 10 reads 16-bit grayscale
            values = values.astype(np.uint16)
        return np.repeat(to_uint8(values, notes)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _widened(path: Path, high: np.ndarray, notes: list[str]) -> np.ndarray:
    """Colour in 16 bits, of which Pillow keeps the `high` byte: too little where fewer bits are used."""
    if 0 < 256 * int(high.max()) + 255 < 1 << 14:
        values = _decode(path, flags=3)  # any depth, in colour
        # the same picture, and the same way up
        if values is not None and values.dtype == np.uint16 and np.array_equal(values >> 8, high):
            return to_uint8(values, notes)
    return high


def _decode(path: Path, flags: int = -1) -> np.ndarray | None:
    """An image as OpenCV reads it, RGB and alpha if any `[H, W, 3 or 4]`, of any type; None where it cannot."""
    try:
        import cv2  # here, since few images need it
    except ImportError:
        return None
    with contextlib.suppress(cv2.error, KeyError):
        values = cv2.imdecode(np.fromfile(path, np.uint8), flags)
        if values is not None:
            values = np.atleast_3d(values)
            return np.ascontiguousarray(values[..., {1: [0, 0, 0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]])
    return None


def _read_other(path: Path, notes: list[str]) -> np.ndarray:
    """An image that Pillow does not know, as Radiance and colour in floats, through OpenCV; else `ImageError`."""
    start, hint = _start(path), "it may be damaged or of another kind"
    if re.match(_VIDEO, start, re.DOTALL):
        hint = "if it is a video, give it as VIDEO_PATH to q2"
    for pattern, kind, _, package in _PLUGINS:
        if re.match(pattern, start, re.DOTALL):
            hint = f"if it is whole, pip install {package}, or convert {kind} to JPEG"
    # a video may be too large to be read at once
    values = None if "VIDEO" in hint else _decode(path)
    if values is None:
        raise ImageError(f"{path} is no image that can be read here (it starts with {start!r}): {hint}.")
    if start.startswith(_HDR):
        return tone_map(values, notes)
    return to_rgb(Image.fromarray(to_uint8(values, notes)), notes)


def find_images(
    path: str | Path, notes: list[str] | None = None, is_written: Callable[[Path], bool] = lambda file: False
) -> list[Path]:
    """The image files that a file, a folder or a pattern (`*`, `?`, `[…]`, `**` for any depth) means, in natural order.

    A file is taken whatever its suffix; from folders and patterns those of `KINDS` that are not hidden, nor the
    project's own by `is_written`; `notes` gets a sentence on what was passed over. What exists under the very name of
    `path` comes before its meaning as a pattern. Raises `ImageError` when nothing is found.
    """
    if not str(path).strip():
        raise ImageError("the path of the image is empty: give a file, a folder or a pattern such as photos/*.jpg.")
    path = expand(path)
    if path.is_file():
        return [path]
    is_folder = path.is_dir()
    is_pattern = not is_folder and glob.has_magic(str(path))
    folder = path if is_folder else path.parent
    pattern = str(path) if is_pattern else f"{glob.escape(str(folder))}/*"
    seen = sorted(glob.glob(pattern, recursive=True), key=natural)  # noqa: PTH207 (it skips hidden files)
    # what is there: images, other files, and images of an earlier run
    root, found, others, outputs = given_root(path), [], [], []
    for file in map(Path, seen if is_pattern or is_folder else ()):
        if file.name.lower() not in _UNMENTIONED and file.is_file():
            if not is_written(file):
                (found if is_image(file) else others).append(file)
            elif is_image(file):
                outputs.append(file)
    # either some images, with a word on the rest, or an error that names what is there instead
    if found:
        told = [f"passed over in {root}: {some([file.relative_to(root) for file in others])}"] if others else []
        if outputs:
            names = [file.relative_to(root) for file in outputs]
            told.append(f"passed over in {root}, as files that a run writes: {some(names, 3)}")
        if notes is not None:
            notes += told
        return found
    what = "no image there" if is_pattern or is_folder else "no such file or folder"
    what += " but what a run writes, which is taken only one by one" if outputs else ""
    where = f"{'found' if is_pattern else folder.absolute()}: {some(seen) or 'nothing'}"
    advice = "an image, a folder that holds some, or a pattern (photos/**/* searches sub-folders too)"
    raise ImageError(f"{path}: {what}; {where}. Give {advice}. Suffixes: {KINDS}.")


def given_root(path: str | Path) -> Path:
    """The folder in which `find_images(path)` begins to look: a folder itself, a file's, or a pattern's fixed part."""
    path = expand(path)
    if path.exists():
        return path if path.is_dir() else path.parent
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
