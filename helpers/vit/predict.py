"""Trained weights put to use: pictures of any kind are classified, and Kaggle's unlabelled test images."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.common.device import Compute, pick_compute
from helpers.common.files import load_plain, peek, write_csv
from helpers.common.images import ImageError, find_images, read_image
from helpers.common.threads import ahead
from helpers.vit import data, evaluate
from helpers.vit.image_set import fitted

BATCH = 256
SHOWN = 20  # pictures of which every answer is printed and drawn
TABLES = ("trainlabels.csv", "samplesubmission.csv")  # what the competition's folder has beside test/


class Answer(NamedTuple):
    """A picture as the model sees it, uint8 [3, S, S], and the probability of each class, float32 [classes]."""

    path: Path
    image: Tensor
    probabilities: Tensor


def read_picture(path: Path, size: int) -> Tensor:
    """Read a picture of any kind as uint8 RGB [3, size, size], as the training images were read: its shorter side
    resized to `size` and the middle cut out; one of 32 x 32 pixels stays so, which the model's input enlarges. Raises
    `ImageError`."""
    pixels = read_image(path)
    if pixels.shape[:2] != (32, 32):
        pixels = fitted(Image.fromarray(pixels), size)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def classify(
    source: str | Path, model: nn.Module, prepare: Callable[[Tensor], Tensor], compute: Compute, size: int
) -> Iterator[Answer]:
    """Yield an `Answer` for each picture of `source`, see `find_images`; those that cannot be read are skipped with a
    warning, and `ValueError` is raised where none can. `prepare` maps uint8 [B, 3, H, W] to the model's input."""
    paths, count = find_images(source), 0
    for group, images in _batches(paths, size, "classifying", lambda _, problem: print(f"warning: skipped: {problem}")):
        count += len(group)
        yield from map(Answer, group, images, evaluate.predict(model, images, prepare, compute)[0])
    if not count:
        raise ValueError(f"pictures={str(source)!r}: none of the {len(paths)} pictures could be read")


def tell(answers: Iterator[Answer], classes: Sequence[str], table: Path) -> list[Answer]:
    """Print the five surest classes of the first pictures, write the surest of every picture into `table`, and return
    the first ones, to be drawn."""
    first, rows = [], []
    for answer in answers:
        surest = answer.probabilities.topk(min(5, len(classes)))
        named = [(classes[k], 100 * p) for p, k in zip(*map(Tensor.tolist, surest), strict=True)]
        rows.append({"picture": answer.path, "label": named[0][0], "percent": f"{named[0][1]:.2f}"})
        if len(first) < SHOWN:
            first.append(answer)
            print(f"{answer.path}: " + ", ".join(f"{name} {percent:.1f} %" for name, percent in named))
    if len(rows) > len(first):
        print(f"and {len(rows) - len(first):,} more: all are in {table}")
    write_csv(rows, table)
    return first


def write_submission(
    table: Path, roots: Sequence[str | Path], classes: Sequence[str], guess: Callable[[Tensor], Tensor], size: int
) -> bool:
    """Write Kaggle's submission.csv (id, label) where one of `roots` holds the competition's unlabelled test images;
    they are read in batches. `guess` maps uint8 [B, 3, H, W] to probabilities [views, B, classes]. An image that cannot
    be read gets the first class, with a warning. Returns whether there were such images."""
    folder = find_competition(roots)
    if folder is None:
        return False
    ids = [entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".png")]
    ids = sorted(filter(str.isdecimal, ids), key=int)
    label = dict.fromkeys(ids, classes[0])

    def unseen(path: Path, problem: str) -> None:
        print(f"warning: {path} gets the label {classes[0]!r} unseen: {problem}")

    for group, images in _batches([folder / f"{number}.png" for number in ids], size, "submission.csv", unseen):
        guesses = guess(images=images).mean(0).argmax(-1).tolist()
        label |= {path.stem: classes[k] for path, k in zip(group, guesses, strict=True)}
    write_csv([{"id": number, "label": label[number]} for number in ids], table)
    print(f"{table}: the labels of {len(ids):,} images in {folder}")
    return True


def find_competition(roots: Sequence[str | Path]) -> Path | None:
    """The folder of unlabelled test images, `<id>.png`, of Kaggle's competition, at most two folders below a root."""
    for root in map(Path, roots):
        for folder in data.folders_below(root.parent if root.is_file() else root):
            test = folder / "test"
            if any(name.lower() in TABLES for name in peek(folder)[1]) and test.is_dir():
                test = test / "test" if (test / "test").is_dir() else test  # as some tools unpack test.7z
                if any(entry.name[:1].isdecimal() for entry in itertools.islice(os.scandir(test), 10)):
                    return test
    return None


def load(path: str | Path) -> tuple[nn.Module, Callable[[Tensor], Tensor], Compute, int, tuple[str, ...]]:
    """Read a best_vit_cifar10.pth for use outside the notebook: timm's ViT with its weights, what `classify` takes
    beside it, and the classes' names. Raises `ValueError` for overlapping patches, which timm's ViT has not."""
    from timm.models.vision_transformer import VisionTransformer

    best = load_plain(Path(path), "")
    c, compute = best["config"], pick_compute(False)
    if (c["patch_stride"] or c["patch_size"]) != c["patch_size"]:
        raise ValueError(f"{path} has overlapping patches: use it in q1.ipynb, with checkpoint= and pictures=")
    model = VisionTransformer(
        **{name: c[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")},
        num_classes=len(best["classes"]),
        global_pool="avg" if c["pool"] == "mean" else "token",
        fc_norm=False,
    )
    model.load_state_dict(best["model"])
    scale = [best[name].to(compute.device) for name in ("mean", "std")]
    prepare = partial(_normalise, size=c["img_size"], scale=scale)
    return model.to(compute.device).eval(), prepare, compute, c["img_size"], tuple(best["classes"])


def _normalise(images: Tensor, size: int, scale: Sequence[Tensor]) -> Tensor:
    """As the notebook's `normalise`: uint8 [B, 3, H, W] -> float32 [B, 3, size, size]."""
    x = (images.float() / 255 - scale[0]) / scale[1]
    return x if x.shape[-2:] == (size, size) else F.interpolate(x, (size, size), mode="bicubic", align_corners=False)


def _batches(
    paths: Sequence[Path], size: int, title: str, skip: Callable[[Path, str], object]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield (paths, uint8 [B, 3, S, S]), in order, at most `BATCH` pictures at a time; `skip(path, why)` is called for
    one that cannot be read."""

    def attempt(path: Path) -> tuple[Path, Any]:
        try:
            return path, read_picture(path, size)
        except ImageError as error:
            return path, str(error)

    bar = tqdm(total=len(paths), desc=title, unit="img", disable=len(paths) <= BATCH)
    read_pictures = ahead(attempt, paths, threads=16, most=BATCH)
    with bar:
        while results := [*itertools.islice(read_pictures, BATCH)]:
            for path, problem in [entry for entry in results if isinstance(entry[1], str)]:
                skip(path, problem)
            read = [entry for entry in results if isinstance(entry[1], Tensor)]
            for _, group in itertools.groupby(read, key=lambda entry: entry[1].shape):
                group_paths, images = zip(*group, strict=True)
                yield [*group_paths], torch.stack(images)
            bar.update(len(results))
