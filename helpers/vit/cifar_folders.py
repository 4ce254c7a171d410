"""CIFAR-10 as image files: in class folders, and as the Kaggle competition has them."""

from __future__ import annotations

import csv
from pathlib import Path

from helpers.common.files import DataError, listing, natural, some
from helpers.vit.image_set import CLASSES, ImageSet, Table, assemble


def _images_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """(PNG and JPEG files, other files) directly in `folder`, in natural order."""
    images, others = [], []
    for path in sorted(listing(folder)[1].values(), key=lambda path: natural(path.name)):
        (images if path.suffix.lower() in (".png", ".jpg", ".jpeg") else others).append(path)
    return images, others


def _lower(paths: dict[str, Path]) -> dict[str, Path]:
    return {name.lower(): path for name, path in paths.items()}


def read_folders(root: Path) -> ImageSet:
    splits = _lower(listing(root)[0])
    tables, left_out = {}, []
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(f"{root}: no {split}/ folder beside the other one.")
        folders = _lower(listing(splits[split])[0])
        missing = [f"missing {name}" for name in CLASSES if name not in folders]
        unknown = [f"unknown {path.name}" for name, path in folders.items() if name not in CLASSES]
        if missing or unknown:
            wrong = some(missing + sorted(unknown), 15)
            raise DataError(f"{splits[split]}: class folders {wrong}. Expected exactly: {', '.join(CLASSES)}.")
        tables[split] = []
        for label, name in enumerate(CLASSES):
            images, others = _images_in(folders[name])
            if not images:
                raise DataError(f"{folders[name]}: no PNG or JPEG file in this class folder.")
            tables[split].append(Table(images, [label] * len(images), str(folders[name])))
            left_out += others
    return assemble(tables, root, "class folders", left_out)


def read_kaggle(root: Path) -> ImageSet:
    folders, files = map(_lower, listing(root))
    table, train = files.get("trainlabels.csv"), folders.get("train")
    if table is None:
        raise DataError(f"{root}: no trainLabels.csv beside train/.")
    if train is None:
        packed = next((path for name, path in files.items() if name.startswith("train.")), None)
        step = f"Unpack {packed.name} (pip install py7zr; py7zr x {packed})" if packed else "Put the images there"
        raise DataError(f"{root}: {table.name}, but no train/ folder beside it. {step}.")
    if not _images_in(train)[0] and "train" in listing(train)[0]:
        train = train / "train"  # some tools unpack train.7z into train/train
    label_of = _read_label_table(table)
    images, others = _images_in(train)
    path_of = {path.stem: path for path in images}
    for problem, culprits in (
        ("are missing", [f"{i}.png" for i in label_of if i not in path_of]),
        ("have no row", [path.name for path in images if path.stem not in label_of]),
        ("are twice there", [path.name for path in images if path_of[path.stem] != path]),
    ):
        if culprits:
            count = f"{len(culprits):,} of the {max(len(images), len(label_of)):,} images"
            listed = some(sorted(culprits, key=natural))
            raise DataError(f"{train}: {count} {problem}, compared with {table.name}: {listed}.")
    labels = [label_of[path.stem] for path in images]
    return assemble({"train": [Table(images, labels, str(table))]}, root, "Kaggle competition", others)


def _read_label_table(table: Path) -> dict[str, int]:
    """{id: label} of trainLabels.csv."""
    label_of: dict[str, int] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames = [column.strip().lower() for column in reader.fieldnames or ()]
            if not {"id", "label"} <= set(columns):
                raise DataError(f"{table}: the first line is {columns}, expected the columns id and label.")
            for row in reader:
                key, name = (row["id"] or "").strip().removesuffix(".png"), (row["label"] or "").strip().lower()
                if name not in CLASSES:
                    raise DataError(f"{table}, line {reader.line_num}: label {row['label']!r} is none of {CLASSES}.")
                if not key or key in label_of:
                    raise DataError(f"{table}, line {reader.line_num}: id {row['id']!r} is empty or there twice.")
                label_of[key] = CLASSES.index(name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no readable CSV ({error}).") from error
    if not label_of:
        raise DataError(f"{table}: no rows.")
    return label_of
