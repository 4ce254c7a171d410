"""Images that q2 is given: all but what it wrote itself; and how the results of each are named."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from helpers.common import images
from helpers.common.images import ImageError, given_root, read_image


def read_first(paths: Sequence[Path], notes: list[str] | None = None) -> tuple[Path, np.ndarray]:
    """The first of the images that can be read: its path, and what `read_image` returns. `ImageError` if none can."""
    for path in paths:
        try:
            return path, read_image(path, notes)
        except ImageError as error:
            last = error
    raise last if len(paths) == 1 else ImageError(f"none of the {len(paths)} images can be read; the last one: {last}")


# Files that q2 writes, from its OUT_DIR or the folder of one image on.
# fmt: off
_OUTPUTS = (
    "mask.png", "instances.png", "overlay.png", "detections.json", "boxes.png", "masks.png", "clipseg.png",
    "result.png", "thresholds.png", "folder.png", "first_frame.png", "video_strip.png", "video_areas.png",
    "video_overlay.mp4", "video_overlay_preview.mp4", "tracks.json", "summary.csv", "coco.json", "cutouts/*.png",
    "examples/shapes*", "yolo/data.yaml", "yolo/images/*", "yolo/labels/*",
)
# fmt: on


def find_images(path: str | Path, out: Path | None = None, notes: list[str] | None = None) -> list[Path]:
    """`helpers.common.images.find_images`, without what a run of q2 wrote into `out` or elsewhere."""
    return images.find_images(path, notes, _written(given_root(path), out))


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
