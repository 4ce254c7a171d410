"""The names by which data sets are recognised: CIFAR-10's classes, and what splits, columns and files are called."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from helpers.common.files import peek

LAYOUTS = {  # what lies there, as errors and README.md say it
    "class folders": "`train/<class>/` and `test/<class>/` (or training, testing, val, valid, …), or `<class>/` alone, "
    "with images of any size and common kind; also `train/0_frog.png`",
    "official files": "`data_batch_1` … `data_batch_5` and `test_batch`, or CIFAR-100's `train` and `test`: in "
    "`cifar-10-batches-py/` and the like; pickled, `.bin` or `.mat`",
    "competition": "`trainLabels.csv` and `train/<id>.png` of the Kaggle competition",
    "arrays": "`.npz` or `.npy` with `x_train`, `y_train`, `x_test`, `y_test` (or train_images, trainX, …)",
    "tables": "`train*.parquet` and `test*.parquet`, or `.arrow`: the Hugging Face hub's, its cache, `save_to_disk`",
    "archive": "`.tar.gz`, `.tgz`, `.tar`, `.zip`, … of any of these, such as cifar-10-python.tar.gz",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OTHER_NAMES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile", "auto": "automobile"}
SOME_OF_CIFAR100 = {"aquarium_fish", "sweet_pepper", "willow_tree"}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
BESIDE_SPLIT = ("", "set", "images", "data", "seg")  # what else a split's folder may be called: training_set

# columns of a table and keys of an .npz, best first
IMAGES = ("img", "image", "images", "x", "data", "pixels", "pixel_values", "features")
LABELS = ("fine_label", "fine_labels", "label", "labels", "y", "target", "targets", "class", "coarse_label")
CLASS_NAMES = ("fine_label_names", "label_names", "class_names", "classes")

# the official files, by data set and split, with their endings
BATCHES = {
    "CIFAR-10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "CIFAR-100": {"train": ("train",), "test": ("test",)},
}
BATCH_ENDINGS = {"": "pickled batches", ".bin": "binary batches", ".mat": "MATLAB batches"}
METAS = ("batches.meta", "batches.meta.txt", "batches.meta.mat", "meta", "meta.mat", "fine_label_names.txt")
TABLES = (".parquet", ".arrow")
CIFAR10 = r"cifar[-_ ]?10(?!\d)"
ARCHIVE = r"\.(tar|tgz|tbz2?|txz|zip)\b"


def split_and_rest(name: str) -> tuple[str | None, str]:
    """("train", "images") of train_images and trainImages, (None, "images") of images."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
    words = re.sub(r"\b([xy])(train|test|val)\b", r"\1 \2", " ".join(words)).split()
    split = next((word for word in words if word in SPLITS), None)
    return SPLITS.get(split), "_".join(word for word in words if word != split)


def split_of(folder: Path) -> str | None:
    """The split that a folder's whole name says it holds."""
    split, rest = split_and_rest(folder.name)
    return split if rest in BESIDE_SPLIT else None


def split_folders(folder: Path) -> dict[str, Path]:
    """{split: sub-folder} of those that hold one."""
    found = [path for _, path in sorted(peek(folder)[0].items(), reverse=True)]
    return {split: path for path in found if (split := split_of(path))}


def batch_kind(files: Collection[str]) -> tuple[str, str] | None:
    """(data set, ending) of the official files among the names of a folder's `files`."""
    for dataset, splits in BATCHES.items():
        for ending in BATCH_ENDINGS:
            found = {name + ending for names in splits.values() for name in names} & {*files}
            # a file called train says little on its own
            if found and (dataset == "CIFAR-10" or len(found | ({*METAS} & {*files})) > 1):
                return dataset, ending
    return None


def cifar10_name(name: str) -> str:
    """CIFAR-10's name for a class: `automobile` for Car, 1_car and 001.automobile."""
    plain = re.sub(r"^\d+[ ._-]+", "", name.strip().casefold())
    return OTHER_NAMES.get(plain, plain)


def are_cifar10(names: Sequence[str]) -> bool:
    """Tell whether `names` are CIFAR-10's ten classes, in any order."""
    return sorted(map(cifar10_name, names)) == [*CLASSES]
