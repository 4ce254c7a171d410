"""Images of any common kind as RGB arrays, and the files that a path, a folder or a pattern means."""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from helpers.common.files import natural, some
from helpers.segment.pixels import to_uint8, tone_map

# HEIC and JPEG XL are listed although they need a package: a photo is better refused with the reason than passed over.
KINDS = (
    "jpg jpeg jpe jfif jif mpo png apng webp avif avifs heic heif hif jxl gif tif tiff bmp dib ppm pgm pbm pnm pfm "
    "jp2 j2k j2c jpc jpf jpx hdr psd tga ico cur icns pcx dds qoi sgi ras"
)
# Of these Pillow would read the thumbnail.
RAW = "3fr arw cr2 cr3 dng erf iiq kdc mef mrw nef nrw orf pef raf raw rw2 rwl srw x3f"
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


class ImageError(ValueError):
    """An image is missing or cannot be read; the message names the file and the next step."""


def read_image(path: str | Path, notes: list[str] | None = None) -> np.ndarray:
    """Read an image file as uint8 RGB `[H, W, 3]`, turned upright by its EXIF orientation; of several the first.

    What is transparent becomes white: the colour stored below full transparency is arbitrary, often black. Where
    numbers of more than 8 bits were brought into 0 … 255 by what the image holds, `notes` gets a sentence. Raises
    `ImageError` for a file that is missing, no image, damaged, or larger than `MAX_PIXELS`.
    """
    path, remarks = _expand(path), []
    try:
        with open_image(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width:,} x {image.height:,} pixels; {MAX_PIXELS:,} are the most"
                raise ImageError(f"{path} has {size}: make it smaller or cut it into pieces.")
            # known only before the pixels are loaded
            had_16_bits = image.mode == "RGB" and ";16" in str(image.tile)
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data: the picture is taken as it is stored
                ImageOps.exif_transpose(image, in_place=True)
            pixels = _widened(path, image, remarks) if had_16_bits else to_rgb(image, remarks)
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


def read_first(paths: Sequence[Path], notes: list[str] | None = None) -> tuple[Path, np.ndarray]:
    """The first of the images that can be read: its path, and what `read_image` returns. `ImageError` if none can."""
    for path in paths:
        try:
            return path, read_image(path, notes)
        except ImageError as error:
            last = error
    raise last if len(paths) == 1 else ImageError(f"none of the {len(paths)} images can be read; the last one: {last}")


def _expand(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 (the one of pathlib refuses names such as ~$draft.png)


def open_image(path: Path) -> Image.Image:
    """`Image.open` that knows what installed plugins read, and leaves videos and a camera's raw files alone."""
    if path.suffix[1:].lower() in RAW.split() and path.is_file():
        raise ImageError(f"{path} is a camera's raw file, which is not developed here: save it as JPEG or TIFF first.")
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            start = file.read(16)
        for pattern, _, module, _ in _PLUGINS:
            if re.match(pattern, start, re.DOTALL):
                with contextlib.suppress(ImportError):
                    plugin = importlib.import_module(module)
                    getattr(plugin, "register_heif_opener", lambda: None)()  # the others do that on import
                    return Image.open(path)
        raise
    if image.format == "MPEG":
        raise UnidentifiedImageError
    return image


def to_rgb(image: Image.Image, notes: list[str]) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # Pillow's convert() clips these at 255
        values = np.asarray(image)
        if image.mode == "I" and image.format == "PNG":  # how Pillow 10 reads 16-bit grayscale
            values = values.astype(np.uint16)
        return np.repeat(to_uint8(values, notes)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _widened(path: Path, image: Image.Image, notes: list[str]) -> np.ndarray:
    """Colour in 16 bits, of which Pillow keeps the high byte: too little where fewer bits are used."""
    high = to_rgb(image, notes)
    if 0 < 256 * int(high.max()) + 255 < 1 << 14:
        values = _decode(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
        # the same picture, and the same way up
        if values is not None and values.dtype == np.uint16 and np.array_equal(values >> 8, high):
            return to_uint8(values, notes)
    return high


def _decode(path: Path, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
    """An image as OpenCV reads it, RGB and alpha if any `[H, W, 3 or 4]`, of any type; None where it cannot."""
    with contextlib.suppress(cv2.error, KeyError):
        values = cv2.imdecode(np.fromfile(path, np.uint8), flags)
        if values is not None:
            values = np.atleast_3d(values)
            return np.ascontiguousarray(values[..., {1: [0, 0, 0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]])
    return None


def _read_other(path: Path, notes: list[str]) -> np.ndarray:
    """An image that Pillow does not know, as Radiance and colour in floats, through OpenCV; else `ImageError`."""
    with path.open("rb") as file:
        start = file.read(16)
    hint = "it may be damaged or of another kind"
    if re.match(_VIDEO, start, re.DOTALL):
        hint = "if it is a video, give it as VIDEO_PATH"
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


# Files that q2 writes, from its OUT_DIR or the folder of one image on.
# fmt: off
_OUTPUTS = (
    "mask.png", "instances.png", "overlay.png", "detections.json", "boxes.png", "masks.png", "clipseg.png",
    "result.png", "thresholds.png", "folder.png", "first_frame.png", "video_strip.png", "video_areas.png",
    "video_overlay.mp4", "video_overlay_preview.mp4", "tracks.json", "summary.csv", "coco.json", "cutouts/*.png",
    "examples/shapes*", "yolo/data.yaml", "yolo/images/*", "yolo/labels/*",
)
# fmt: on
_UNMENTIONED = ("thumbs.db", "desktop.ini", "icon\r")  # by their systems put into any folder


def find_images(path: str | Path, out: Path | None = None, notes: list[str] | None = None) -> list[Path]:
    """The image files that a file, a folder or a pattern (`*`, `?`, `[…]`, `**` for any depth) means, in natural order.

    A file is taken whatever its suffix; from folders and patterns those of `KINDS` that are not hidden, nor written by
    a run of q2 into `out` or elsewhere; `notes` gets a sentence on what was passed over. What exists under the very
    name of `path` comes before its meaning as a pattern. Raises `ImageError` when nothing is found.
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
    # what is there: images, other files, and images of an earlier run
    root, found, others, outputs = given_root(path), [], [], []
    written = _written(root, out)
    for file in map(Path, seen if is_pattern or is_folder else ()):
        if file.name.lower() not in _UNMENTIONED and file.is_file():
            is_image = file.suffix[1:].lower() in KINDS.split()
            if not written(file):
                (found if is_image else others).append(file)
            elif is_image:
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


def _written(root: Path, out: Path | None) -> Callable[[Path], bool]:
    """Return a function that tells whether a run of q2 wrote a file below `root`: one of `_OUTPUTS`, counted from
    `out` or from a folder with a detections.json, as every run and every image leaves. Without that a picture that
    somebody named mask.png is theirs; and within a folder such as cutouts, given as `root`, all are inputs."""

    @functools.cache
    def is_ours(folder: Path) -> bool:
        return (folder / "detections.json").is_file() or (out is not None and folder.resolve() == out.resolve())

    def written(file: Path) -> bool:
        relative = file.relative_to(root)
        folders = list(file.parents)[: len(relative.parts)]  # from its own up to `root`
        return any(
            is_ours(folder) and any(relative.match(one) for one in _OUTPUTS if one.count("/") == depth)
            for depth, folder in enumerate(folders[:3])
        )

    return written


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
