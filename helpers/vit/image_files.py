"""Data sets kept as image files: in folders by class, with the class in their names, or as in the competition."""

import csv
import unicodedata
from collections import Counter
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from helpers.common.files import DataError, natural, peek, some
from helpers.common.images import is_image
from helpers.vit import layouts
from helpers.vit.image_set import Reading, Table


def _images_in(folder: Path) -> list[Path]:
    """The image files directly in `folder`, in natural order."""
    files = peek(folder)[1]
    return [files[name] for name in sorted(filter(is_image, files), key=natural)]


def _inner(folder: Path) -> Path:
    """`folder`, or the only folder that is in it where no images are: some tools unpack train.7z into train/train."""
    while len((found := peek(folder))[0]) == 1 and not any(map(is_image, found[1])):
        folder = next(iter(found[0].values()))
    return folder


def _class_tables(folder: Path, without: Collection[Path] = ()) -> list[Table]:
    """A table for each class folder, or of all images where their names tell."""
    folders, tables = peek(folder)[0], []
    for name in sorted(folders, key=natural):
        images = [] if folders[name] in without else _images_in(_inner(folders[name]))
        label = unicodedata.normalize("NFC", name).strip()  # a Mac decomposes letters
        tables += [Table(images, [label] * len(images), str(folders[name]))] if images else []
    if len(tables) > 1:
        return tables
    # 0_frog.png, where frog is one of the classes
    images = _images_in(folder)
    listed = peek(folder.parent)[1].get("labels.txt")
    known = {*(listed.read_text(errors="replace").split() if listed else layouts.CLASSES)}
    labels = [path.stem.partition("_")[2] for path in images]
    return [Table(images, labels, str(folder))] if labels and known.issuperset(labels) else []


def read_images(root: Path, own: bool = True) -> Reading | str | None:
    """Read the class folders or the competition's files in `root`; text says what images lie there instead. Unless
    `own` classes will do, folders of others are not looked through: there may be a million images in them."""
    named = layouts.split_folders(root)
    places = {split: _inner(path) for split, path in named.items()}
    inside = peek(next(iter(places.values()), root))[0]
    if not own and len(inside) > 1 and not layouts.are_cifar10(inside):
        any_images = any(_images_in(path) for path in islice(inside.values(), 3))
        return f"{root}, whose class folders are {some(sorted(inside), 10)}" if any_images else None
    found = {split: _class_tables(path) for split, path in places.items()}
    if not any(found.values()):
        if reading := _read_competition(root):
            return reading
        found = {layouts.split_of(root) or "train": _class_tables(root, named.values())}
    if any(found.values()):
        used = {image for tables in found.values() for table in tables for image in table.images}
        beside = [path for folder in {image.parent for image in used} for path in peek(folder)[1].values()]
        left_out = sorted(path.name for path in beside if path not in used)
        return Reading(root, "class folders", found, (), left_out)
    flat = next((path for path in places.values() if _images_in(path)), None)
    step = "for the Kaggle competition, copy trainLabels.csv beside it"
    return f"{flat}, whose images no folder, name or table gives a class ({step})" if flat else None


def _read_competition(root: Path) -> Reading | None:
    """Read the images for which a trainLabels.csv in `root` has labels; None where there is no such table."""
    folders, files = ({name.lower(): path for name, path in found.items()} for found in peek(root))
    table, folder = files.get("trainlabels.csv"), folders.get("train", root)
    if not table:
        return None
    images = _images_in(_inner(folder))
    if not images:
        step = "Give a folder that has both"
        if packed := files.get("train.7z"):  # nothing can be written where Kaggle puts it
            step = f"mkdir cifar10; pip install py7zr; py7zr x {packed} cifar10; cp {table} cifar10"
            step = f"Unpack {packed.name} into a folder of yours, with the table: {step}; data_root='cifar10'"
        raise DataError(f"{root}: {table.name}, but no train/ folder with images beside it. {step}.")
    label_of = _read_labels(table)
    if unpaired := sorted({path.stem for path in images} ^ label_of.keys(), key=natural):
        count = f"{len(unpaired):,} of the {max(len(images), len(label_of)):,} images"
        names = some([f"{stem}.png" for stem in unpaired])
        raise DataError(f"{count} have no file in {folder}, or no row in {table}: {names}.")
    labelled = Table(images, [label_of[path.stem] for path in images], str(table))
    return Reading(root, "Kaggle competition", {"train": [labelled]}, layouts.CLASSES)


def _read_labels(table: Path) -> dict[str, str]:
    """{id: class} of a trainLabels.csv."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            names = [name.strip().lower() for name in next(csv.reader(file), ())]
            if not {"id", "label"} <= {*names}:
                raise DataError(f"{table}: the first line is {some(names)}, expected columns id and label.")
            rows = [(row["id"].strip(), row["label"].strip()) for row in csv.DictReader(file, names, restval="")]
            if twice := [one for one, count in Counter(one for one, _ in rows).items() if count > 1]:
                raise DataError(f"{table}: ids that are there twice: {some(twice)}.")
            return dict(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no readable CSV ({error}).") from error
