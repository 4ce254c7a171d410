"""helpers/vit/data.py: every layout, every kind of damage, the search and the split, on small image sets."""

import csv
import functools
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from helpers.shapes import classes
from helpers.vit.data import DataError, ImageSet, hold_out, load_images, read_images
from helpers.vit.layouts import CLASSES
from test_notebooks import SHORT, TINY, papermill

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RNG = np.random.default_rng(7)
# 12 training and 3 test images of each class, one class after the other, as class folders give them
TRAIN_X = RNG.integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
TRAIN_Y = np.repeat(np.arange(10), 12)
TEST_X = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
TEST_Y = np.repeat(np.arange(10), 3)


# ------------------------------------------------------------------------------------------------------ writing layouts


def png(pixels, mode="RGB", size=None):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).convert(mode)
    (image.resize(size) if size else image).save(buffer, "PNG")
    return buffer.getvalue()


def write_folders(root):
    for split, x, y in (("train", TRAIN_X, TRAIN_Y), ("test", TEST_X, TEST_Y)):
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):  # 0.png … 119.png: 10.png comes after 9.png
            path = root / split / NAMES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
    return root


def python2_pickle(x, y):
    """The opcodes that Python 2 and numpy 1 wrote: all text is `str` (SHORT_BINSTRING, BINSTRING)."""

    def text(raw):
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + len(raw).to_bytes(4, "little") + raw

    def integer(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    def listed(items):
        return b"](" + b"".join(items) + b"e"

    raw = x.transpose(0, 3, 1, 2).tobytes()
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + integer(0) + integer(1) + b"tR("
    dtype += integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + integer(0) + b"t" + text(b"b") + b"tR("
    array += integer(1) + b"(" + integer(len(x)) + integer(3072) + b"t" + dtype + b"\x89" + text(raw) + b"tb"
    items = text(b"labels") + listed(integer(int(label)) for label in y) + text(b"data") + array
    names = text(b"filenames") + listed(text(b"image_%d.png" % i) for i in range(len(x)))
    return b"\x80\x02}(" + items + names + b"u."


def python3_pickle(x, y, protocol=4, key=str):
    content = {"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1).copy(), "labels": y.tolist(), "batch_label": "one"}
    return pickle.dumps({k if key is str else k.encode(): v for k, v in content.items()}, protocol=protocol)


def write_batches(root, dump=python2_pickle, order=None):
    """Five training batches of 24 images and a test batch; the training images in the order given."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    order = np.arange(120) if order is None else order
    for k in range(5):
        part = order[k * 24 : (k + 1) * 24]
        (folder / f"data_batch_{k + 1}").write_bytes(dump(TRAIN_X[part], TRAIN_Y[part]))
    (folder / "test_batch").write_bytes(dump(TEST_X, TEST_Y))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol=2))
    return root


def write_archive(root):
    batches = write_batches(root / "unpacked")
    archive = root / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(batches)
    return root


def write_kaggle(root):
    """Ids are shuffled over the classes and start at 1; the test images have no labels."""
    order = list(range(120))
    random.Random(3).shuffle(order)
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    rows = [("id", "label")]
    for number, i in enumerate(order, 1):
        (root / "train" / f"{number}.png").write_bytes(png(TRAIN_X[i]))
        rows.append((number, NAMES[TRAIN_Y[i]]))
    for number, pixels in enumerate(TEST_X, 1):
        (root / "test" / f"{number}.png").write_bytes(png(pixels))
    with (root / "trainLabels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def write_npz(root, channels_first=False, column=False, **changed):
    def split(x, y):
        return (x.transpose(0, 3, 1, 2) if channels_first else x), (y[:, None] if column else y)

    (x_train, y_train), (x_test, y_test) = split(TRAIN_X, TRAIN_Y), split(TEST_X, TEST_Y)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, **changed}
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "cifar10.npz", **{key: value for key, value in arrays.items() if value is not None})
    return root


def write_parquet(root, column="img", as_dict=True, shards=2):
    root.mkdir(parents=True, exist_ok=True)
    for split, x, y, n in (("train", TRAIN_X, TRAIN_Y, shards), ("test", TEST_X, TEST_Y, 1)):
        for k, part in enumerate(np.array_split(np.arange(len(x)), n)):
            images = [{"bytes": png(x[i]), "path": None} if as_dict else png(x[i]) for i in part]
            table = pa.table({column: images, "label": y[part]})
            pq.write_table(table, root / f"{split}-{k:05d}-of-{n:05d}.parquet")
    return root


SPLITS = (("train", TRAIN_X, TRAIN_Y), ("test", TEST_X, TEST_Y))


def rows(x):
    """[N, 3072], red before green before blue, as the official files have them."""
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def write_other_batches(root, ending):
    """The official page's other two downloads."""
    root.mkdir(parents=True)
    parts = [(f"data_batch_{k + 1}", TRAIN_X[k * 24 :][:24], TRAIN_Y[k * 24 :][:24]) for k in range(5)]
    for name, x, y in [*parts, ("test_batch", TEST_X, TEST_Y)]:
        if ending == ".bin":
            (root / f"{name}.bin").write_bytes(np.c_[y.astype(np.uint8), rows(x)].tobytes())
        else:
            savemat(root / f"{name}.mat", {"data": rows(x), "labels": y[:, None].astype(np.uint8)})
    if ending == ".bin":
        (root / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    else:
        names = np.array(NAMES, object)[:, None]
        savemat(root / "batches.meta.mat", {"label_names": names})


def write_renamed(root, split=None, name=None, ending=".png"):
    """Class folders; `split` and `name` rename their folders."""
    for part, x, y in SPLITS:
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            folder = root / (split or {}).get(part, part) / (name(label) if name else NAMES[label])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}{ending}", **({"lossless": True} if ending == ".webp" else {}))


def write_flat(root):
    """pjreddie's cifar.tgz."""
    (root / "cifar").mkdir(parents=True)
    (root / "cifar" / "labels.txt").write_text("\n".join(NAMES))
    for split, x, y in SPLITS:
        (root / "cifar" / split).mkdir()
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            (root / "cifar" / split / f"{i}_{NAMES[label]}.png").write_bytes(png(pixels))


def write_packed(write, name, to=None):
    """What `write` writes, as one archive."""

    def packed(root):
        write(root / "unpacked")
        kind = "zip" if name.endswith("zip") else "gztar"
        made = shutil.make_archive(str(root.parent / "made"), kind, root / "unpacked")
        shutil.rmtree(root / "unpacked")
        Path(made).rename(root / name)

    return packed


def write_arrays(root, **arrays):
    root.mkdir(parents=True)
    np.savez(root / "data.npz", **arrays)


def write_keys(*keys):
    return lambda root: write_arrays(root, **dict(zip(keys, (TRAIN_X, TRAIN_Y, TEST_X, TEST_Y), strict=True)))


def write_changed(change_x=lambda x: x, change_y=lambda y: y):
    return lambda root: write_npz(
        root, x_train=change_x(TRAIN_X), y_train=change_y(TRAIN_Y), x_test=change_x(TEST_X), y_test=change_y(TEST_Y)
    )


def write_npy(root):
    root.mkdir(parents=True)
    for split, x, y in SPLITS:
        np.save(root / f"x_{split}.npy", x)
        np.save(root / f"y_{split}.npy", y)


def write_tables(
    image="img", label="label", of_image=None, of_label=int, names="{}-00000-of-00001.parquet", **metadata
):
    def write(root):
        for split, x, y in SPLITS:
            images = [of_image(pixels) if of_image else {"bytes": png(pixels), "path": None} for pixels in x]
            table = pa.table({"other": [0] * len(x), image: images, label: [of_label(k) for k in y]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)} if metadata else None)
            path = root / names.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".parquet":
                pq.write_table(table, path)
            else:  # save_to_disk writes streams
                with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table)

    return write


def check(images, train_x=TRAIN_X, train_y=TRAIN_Y, test_x=TEST_X, test_y=TEST_Y):
    """Pixel for pixel, and as the contract has it."""
    for x, y, want_x, want_y in (
        (images.train_images, images.train_labels, train_x, train_y),
        (images.test_images, images.test_labels, test_x, test_y),
    ):
        assert x.dtype == torch.uint8 and y.dtype == torch.int64 and x.is_contiguous()
        assert x.shape == (len(want_x), 3, 32, 32)
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), want_x)
        assert np.array_equal(y.numpy(), want_y)
    assert images.classes == CLASSES == tuple(NAMES)
    assert images.name == "CIFAR-10"


LAYOUTS = {
    "batches": write_batches,
    "archive": write_archive,
    "folders": write_folders,
    "npz": write_npz,
    "parquet": write_parquet,
}
HF_NAMES = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
HUB = "datasets--uoft-cs--cifar10/snapshots/abc/plain_text/{}-00000-of-00001.parquet"
OTHER_LAYOUTS = {
    "binary": lambda root: write_other_batches(root / "cifar-10-batches-bin", ".bin"),
    "MATLAB": lambda root: write_other_batches(root / "cifar-10-batches-mat", ".mat"),
    "binary archive": write_packed(lambda root: write_other_batches(root, ".bin"), "cifar-10-binary.tar.gz"),
    "downloaded twice": write_packed(write_batches, "cifar-10-python.tar (1).gz"),
    "Keras' archive": write_packed(write_batches, "cifar-10-batches-py.tar.gz"),
    "without ending": write_packed(write_batches, "cifar-10-batches-py"),
    "Keras 3": lambda root: write_batches(root / "cifar-10-batches-py-target"),
    "fastai's archive": write_packed(lambda root: write_renamed(root / "cifar10"), "cifar10.tgz"),
    "zipped batches": write_packed(write_batches, "archive.zip"),
    "zipped folders": write_packed(write_renamed, "cifar.zip"),
    "zipped npz": write_packed(write_npz, "data.zip"),
    "pjreddie": write_flat,
    "pjreddie's archive": write_packed(write_flat, "cifar.tgz"),
    "capitals": lambda root: write_renamed(root, {"train": "Train", "test": "TEST"}, lambda k: NAMES[k].upper()),
    "training, testing": lambda root: write_renamed(root, {"train": "Training Set", "test": "testing"}),
    "train, val": lambda root: write_renamed(root, {"test": "val"}),
    "car and plane": lambda root: write_renamed(root, name=lambda k: {0: "plane", 1: "car"}.get(k, NAMES[k])),
    "numbered": lambda root: write_renamed(root, name=lambda k: f"{k}_{NAMES[k]}"),
    "numbered from 1": lambda root: write_renamed(root, name=lambda k: f"{k + 1:03}.{NAMES[k]}"),
    "images inside": lambda root: write_renamed(root, name=lambda k: f"{NAMES[k]}/images"),
    "BMP": lambda root: write_renamed(root, ending=".bmp"),
    "TIFF": lambda root: write_renamed(root, ending=".TIF"),
    "WebP": lambda root: write_renamed(root, ending=".webp"),
    "X_train": write_keys("X_train", "Y_train", "X_test", "Y_test"),
    "train_images": write_keys("train_images", "train_labels", "test_images", "test_labels"),
    "trainX": write_keys("trainX", "trainY", "testX", "testY"),
    ".npy": write_npy,
    "float to 1": write_changed(lambda x: (x / 255).astype(np.float32)),
    "float to 255": write_changed(lambda x: x.astype(np.float64), lambda y: y.astype(np.float32)),
    "one-hot": write_changed(change_y=lambda y: np.eye(10)[y]),
    "rows": write_changed(rows),
    "labels": write_tables(label="labels"),
    "Image, Label": write_tables("Image", "Label", png),
    "named": write_tables(of_label=lambda k: NAMES[k]),
    "names recorded": write_tables(**HF_NAMES),
    "validation": lambda root: (
        write_tables()(root),
        (root / "test-00000-of-00001.parquet").rename(root / "validation.parquet"),
    ),
    "save_to_disk": write_tables(names="{}/data-00000-of-00001.arrow", **HF_NAMES),
    "cached arrow": write_tables(names="plain_text/0.0.0/abc/cifar10-{}.arrow"),
    "the hub's cache": write_tables(names=HUB),
    "a hub": write_tables(names=f"hub/{HUB}"),
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_every_other_way_in_which_it_lies_about_is_read_pixel_for_pixel(tmp_path, layout):
    OTHER_LAYOUTS[layout](tmp_path / "d")
    found = read_images(tmp_path / "d")
    order, test = (torch.argsort(labels, stable=True) for labels in (found.train_labels, found.test_labels))
    parts = (found.train_images[order], found.train_labels[order], found.test_images[test], found.test_labels[test])
    check(
        replace(found, **dict(zip(("train_images", "train_labels", "test_images", "test_labels"), parts, strict=True)))
    )
    assert not found.held_out and tempfile.gettempdir() not in found.source.replace(str(tmp_path), "")


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("below", ["", "one", "one/two"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_found_at_any_depth_and_read_pixel_for_pixel(tmp_path, layout, below):
    LAYOUTS[layout](tmp_path / below)
    images = read_images(str(tmp_path))
    check(images)
    assert str(tmp_path) in images.source
    assert any("120 of 50,000" in note and "30 of 10,000" in note for note in images.notes)


@pytest.mark.parametrize("below", ["", "one/two"])
def test_the_competition_gets_a_held_out_test_set(tmp_path, below):
    write_kaggle(tmp_path / below)
    images, again = read_images(tmp_path), read_images(tmp_path)
    # stratified: 12 // 5 of each class, never in both sets, and none of the unlabelled test images
    assert images.train_labels.bincount().tolist() == [10] * 10
    assert images.test_labels.bincount().tolist() == [2] * 10
    label_of = {x.tobytes(): int(y) for x, y in zip(TRAIN_X, TRAIN_Y, strict=True)}
    x = torch.cat([images.train_images, images.test_images]).permute(0, 2, 3, 1).contiguous().numpy()
    y = torch.cat([images.train_labels, images.test_labels]).tolist()
    assert {pixels.tobytes(): label for pixels, label in zip(x, y, strict=True)} == label_of
    assert torch.equal(images.test_images, again.test_images)
    assert any("no test images with labels: 20 of 120" in note for note in images.notes)


@pytest.mark.parametrize("given", ["cifar-10-batches-py", "cifar-10-batches-py/data_batch_2"])
def test_the_batches_folder_or_a_file_in_it_may_be_given(tmp_path, given):
    write_batches(tmp_path)
    check(read_images(tmp_path / given))


def test_a_renamed_folder_and_files_of_other_names_may_be_given(tmp_path):
    write_batches(tmp_path)
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "renamed")
    check(read_images(tmp_path))
    (write_archive(tmp_path / "a") / "cifar-10-python.tar.gz").rename(tmp_path / "a" / "x.tgz")
    check(read_images(tmp_path / "a" / "x.tgz"))
    (write_npz(tmp_path / "n") / "cifar10.npz").rename(tmp_path / "n" / "x.npz")
    check(read_images(tmp_path / "n"))
    check(read_images(write_parquet(tmp_path / "p") / "test-00000-of-00001.parquet"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str, bytes])
def test_batches_pickled_again_by_python_3(tmp_path, protocol, key):
    check(read_images(write_batches(tmp_path, functools.partial(python3_pickle, protocol=protocol, key=key))))


@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_batches_pickled_by_numpy_1_and_numpy_2(tmp_path, core):
    def dump(x, y):  # protocol 3 writes module names as plain lines, which can be replaced
        raw = python3_pickle(x, y, protocol=3).replace(b"numpy._core.", b"numpy.core.")
        assert raw.count(b"cnumpy.core.") == 1
        return raw.replace(b"cnumpy.core.", b"c" + core)

    check(read_images(write_batches(tmp_path, dump)))


def test_labels_and_pixels_of_other_plain_types(tmp_path):
    def dump(x, y):  # a Fortran-ordered array, labels as numpy scalars
        images = np.asfortranarray(x.transpose(0, 3, 1, 2).reshape(len(x), -1))
        return pickle.dumps({"data": images, "labels": list(y.astype(np.int64))}, protocol=4)

    check(read_images(write_batches(tmp_path / "scalars", dump)))

    def dump_array(x, y):
        return pickle.dumps({"data": x.transpose(0, 3, 1, 2).copy(), "labels": y.astype(">i4")}, protocol=2)

    check(read_images(write_batches(tmp_path / "arrays", dump_array)))


def test_images_keep_the_order_of_the_batches(tmp_path):
    order = np.random.default_rng(1).permutation(120)
    check(read_images(write_batches(tmp_path, order=order)), TRAIN_X[order], TRAIN_Y[order])


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_npz_in_either_channel_order(tmp_path, channels_first, column):
    check(read_images(write_npz(tmp_path, channels_first, column)))


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_parquet_columns_and_shards(tmp_path, column, as_dict, shards):
    check(read_images(write_parquet(tmp_path, column, as_dict, shards)))


def test_jpeg_grey_palette_and_alpha_become_rgb(tmp_path):
    write_folders(tmp_path)
    folder = tmp_path / "train" / "airplane"
    grey, palette, jpeg = (np.asarray(Image.fromarray(TRAIN_X[i])) for i in (0, 1, 2))
    (folder / "0.png").write_bytes(png(grey, "L"))
    (folder / "1.png").write_bytes(png(palette, "P"))
    (folder / "2.png").unlink()
    Image.fromarray(jpeg).save(folder / "2.JPG", "JPEG")
    (folder / "3.png").write_bytes(png(TRAIN_X[3], "RGBA"))
    images = read_images(tmp_path)
    want = TRAIN_X.copy()
    for i, name in enumerate(["0.png", "1.png", "2.JPG"]):
        with Image.open(folder / name) as image:
            want[i] = np.asarray(image.convert("RGB"))
    check(images, train_x=want)
    assert np.array_equal(images.train_images[0, 0], images.train_images[0, 2])
    assert any("1 of 150 image files are JPEG" in note for note in images.notes)


def test_more_than_8_bits_are_brought_into_8_and_transparency_is_white(tmp_path):
    write_folders(tmp_path)
    folder, grey = tmp_path / "train" / "airplane", TRAIN_X[0, ..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "0.png")
    Image.fromarray(np.linspace(0, 4095, 1024).astype(np.uint16).reshape(32, 32)).save(folder / "1.png")
    Image.new("RGBA", (32, 32)).save(folder / "2.png")
    images = read_images(tmp_path)
    assert all(np.array_equal(images.train_images[0, k], grey) for k in range(3))
    assert images.train_images[1].flatten()[[0, 1023]].tolist() == [0, 255] and images.train_images[2].min() == 255
    assert any("1 images have more than 8 bits" in note for note in images.notes)


def test_class_folders_of_any_case_and_stray_files(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "cat").rename(tmp_path / "train" / "CAT_")
    (tmp_path / "train" / "CAT_").rename(tmp_path / "train" / "Cat")
    for stray in (".DS_Store", "train/.DS_Store", "train/Cat/.hidden.png", "train/Cat/Thumbs.db"):
        (tmp_path / stray).write_bytes(b"x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "Cat" / "readme.txt").write_text("x")
    images = read_images(tmp_path)
    check(images)
    assert any("readme.txt" in note for note in images.notes)  # nothing is left out in silence


@pytest.mark.parametrize(("write", "layout"), [(write_folders, "class folders"), (write_kaggle, "Kaggle competition")])
def test_the_source_names_the_kind_of_the_image_files(tmp_path, write, layout):
    files = sorted(write(tmp_path).rglob("*.png"))
    assert read_images(tmp_path).source == f"{tmp_path} ({layout}, PNG)"

    def as_jpeg(path):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), "JPEG")
        path.unlink()

    as_jpeg(next(path for path in files if "train" in path.parts))
    assert read_images(tmp_path).source == f"{tmp_path} ({layout}, JPEG and PNG)"
    for path in tmp_path.rglob("*.png"):
        as_jpeg(path)
    assert read_images(tmp_path).source == f"{tmp_path} ({layout}, JPEG)"


def test_an_unbalanced_part_is_fine(tmp_path):
    write_folders(tmp_path)
    for i in range(11):
        (tmp_path / "train" / "airplane" / f"{i}.png").unlink()
    assert read_images(tmp_path).train_labels.bincount().tolist() == [1] + [12] * 9


# --------------------------------------------------------------------------------------------------------------- damage


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def expect(root, *words):
    """`root` is refused with a message that has all the words; the message is returned."""
    with pytest.raises(DataError) as caught:
        read_images(root)
    message = str(caught.value)
    for word in words:
        assert str(word) in message, message
    assert "object at 0x" not in message  # no addresses in what a person reads
    return message


@pytest.mark.parametrize("keep", [0, 0.01, 0.6, 0.999])
def test_a_truncated_batch_is_named(tmp_path, keep):
    write_batches(tmp_path)
    cut(tmp_path / "cifar-10-batches-py" / "data_batch_3", keep)
    expect(tmp_path, "data_batch_3", "truncated", "again")


def test_a_batch_of_noise_is_named(tmp_path):
    write_batches(tmp_path)
    for seed in range(5):
        noise = np.random.default_rng(seed).integers(0, 256, 5000, dtype=np.uint8).tobytes()
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(noise)
        expect(tmp_path, "test_batch")


def test_missing_batches_are_named(tmp_path):
    write_batches(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    message = expect(tmp_path, "data_batch_2, test_batch missing")
    assert "data_batch_3 missing" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0] * 23}, ["24 images", "23 labels"]),
        ({"labels": [0] * 20 + [10, 1, 2, 3]}, ["label 10", "image 20"]),
        ({"labels": [0] * 20 + [-1, 1, 2, 3]}, ["label -1", "image 20"]),
        ({"labels": [0.5] * 24}, ["float64"]),
        ({"labels": None}, ["no labels"]),
        ({"data": None}, ["no images"]),
        ({"data": np.zeros((24, 784), np.uint8)}, ["784"]),
        ({"data": np.full((24, 3072), -1, np.float32)}, ["float32", "from -1 to -1"]),
        ({"data": "pixels"}, ["<U6", "no 32x32 colour images"]),
        ({"labels": None, "names": [1] * 24}, ["no labels", "names"]),
    ],
)
def test_a_batch_with_wrong_content_is_named(tmp_path, change, words):
    write_batches(tmp_path)
    content = {"data": np.full((24, 3072), 9, np.uint8), "labels": [0] * 24, **change}
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(pickle.dumps(content))
    expect(tmp_path, "data_batch_4", *words)


def test_the_order_of_the_classes_is_the_meta_files(tmp_path):
    write_batches(tmp_path)
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": [*NAMES[1:], "airplane"]}))
    check(read_images(tmp_path), train_y=(TRAIN_Y + 1) % 10, test_y=(TEST_Y + 1) % 10)
    meta.unlink()  # the order of the classes is known without it
    check(read_images(tmp_path))


class Call:
    """Pickles as a call of `function(*arguments)`, which loading would make."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("inside", ["top", "data", "labels"])
def test_nothing_in_a_pickle_is_executed(tmp_path, protocol, inside):
    write_archive(tmp_path / "archive")
    write_batches(tmp_path / "batches")
    touched = tmp_path / "touched"
    for call in (
        Call(os.system, f"touch {touched}"),
        Call(eval, f"open({str(touched)!r}, 'w')"),
        Call(Path(touched).touch),
        Call(np.save, str(touched), 1),
        Call(np.lib.format.open_memmap, str(touched), "w+", "u1", (1,)),
    ):
        content = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 0, 0]}
        raw = pickle.dumps(call if inside == "top" else {**content, inside: call}, protocol=protocol)
        (tmp_path / "batches" / "cifar-10-batches-py" / "data_batch_1").write_bytes(raw)
        expect(tmp_path / "batches", "data_batch_1", "executed")
        with tarfile.open(tmp_path / "archive" / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "batches" / "cifar-10-batches-py", "cifar-10-batches-py")
        expect(tmp_path / "archive", "data_batch_1", "executed")
        assert not list(tmp_path.glob("touched*"))


def test_arrays_of_anything_but_numbers_are_refused(tmp_path):
    """The elements of an array of objects are addresses, which a pickle could make up."""
    write_batches(tmp_path)
    for array in (np.array([{}, 1], object), np.array(["a", "b"]), np.zeros(2, [("x", "u1")])):
        raw = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": array})
        (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(raw)
        expect(tmp_path, "data_batch_1", "an array of type", "executed")


@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_a_truncated_archive_is_named(tmp_path, keep):
    write_archive(tmp_path)
    cut(tmp_path / "cifar-10-python.tar.gz", keep)
    expect(tmp_path, "cifar-10-python.tar.gz", "truncated", "again")


def test_an_archive_that_is_a_web_page_or_lacks_a_batch(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_text("<html>503 Service Unavailable</html>" * 100)
    expect(tmp_path, "cifar-10-python.tar.gz", "3,600 bytes")
    write_batches(tmp_path / "b")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "b" / "cifar-10-batches-py" / "data_batch_1", "cifar-10-batches-py/data_batch_1")
    expect(archive, "data_batch_2", "test_batch", "missing")


def test_class_folders_that_differ_between_the_splits_are_named(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "automobile").rename(tmp_path / "train" / "lion")
    expect(tmp_path, tmp_path / "test" / "automobile", "label automobile is none of the classes airplane, bird")
    (tmp_path / "train" / "lion").rename(tmp_path / "train" / "automobile")
    shutil.copytree(tmp_path / "test" / "cat", tmp_path / "test" / "lion")
    expect(tmp_path, tmp_path / "test" / "lion", "none of the classes")


def test_an_empty_class_folder_is_named(tmp_path):
    write_folders(tmp_path)
    for path in (tmp_path / "test" / "frog").iterdir():
        path.unlink()
    expect(tmp_path, tmp_path, "the test set", "none of class frog")


def test_an_empty_class_in_the_batches_is_named(tmp_path):
    order = np.arange(120)
    order[TRAIN_Y == 6] = 0  # every frog becomes the first airplane
    expect(write_batches(tmp_path, order=order), "the train set", "frog")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["no readable image"]),
        (b"not an image", ["no readable image"]),
        (png(TRAIN_X[0])[:1500], ["truncated. 1 of "]),
    ],
)
def test_a_corrupt_image_is_named(tmp_path, content, words):
    write_folders(tmp_path / "f")
    culprit = tmp_path / "f" / "train" / "ship" / "100.png"
    assert culprit.is_file()
    culprit.write_bytes(content)
    message = expect(tmp_path / "f", culprit, *words)
    assert "101.png" not in message
    write_kaggle(tmp_path / "k")
    (tmp_path / "k" / "train" / "77.png").write_bytes(content)
    expect(tmp_path / "k", "77.png", *words)


def test_several_corrupt_images_are_counted(tmp_path):
    write_folders(tmp_path)
    for i in range(12):
        (tmp_path / "train" / "airplane" / f"{i}.png").write_bytes(b"x")
    expect(tmp_path, "airplane/0.png", "airplane/4.png", "7 more", "12 of 150")


def test_the_label_table_is_checked(tmp_path):
    write_kaggle(tmp_path)
    table = tmp_path / "trainLabels.csv"
    intact = table.read_text()
    lines = intact.splitlines()
    for text, words in [
        ("\n".join(lines[:-1]), ["120.png", "1 of the 120"]),  # an image without a row
        (intact + "121,cat\n", ["121.png", "1 of the 121"]),  # a row without an image
        (intact + "7,cat\n", ["ids that are there twice: 7"]),
        (intact.replace(f"\n5,{lines[5].split(',')[1]}\n", "\n5,lion\n"), ["label lion is none of the classes airpl"]),
        ("number,name\n1,cat\n", ["number", "id and label"]),
        ("id,label\n", ["1.png", "120 of the 120"]),
        ("", ["id and label"]),
    ]:
        table.write_text(text)
        expect(tmp_path, table.name, *words)
    table.write_bytes(b"id,label\n\xff\xfe\x00,cat\n")
    expect(tmp_path, table.name, "CSV")
    table.write_text(intact)
    (tmp_path / "train" / "33.png").unlink()
    expect(tmp_path, "33.png", tmp_path / "train")


def test_a_packed_competition_says_what_to_do(tmp_path):
    (tmp_path / "trainLabels.csv").write_text("id,label\n1,cat\n")
    (tmp_path / "train.7z").write_bytes(b"7z")
    expect(tmp_path, "Unpack train.7z")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_train": None}, ["no labels, but x_train, x_test, y_test"]),
        ({"x_train": np.zeros((120, 28, 28), np.uint8)}, ["x_train", "[120, 28, 28]"]),
        ({"x_test": TEST_X.astype(np.float32) / 255 - 0.5}, ["x_test", "float32", "from -0.5 to 0.5"]),
        ({"x_test": TEST_X.astype(np.int32) * 2}, ["x_test", "int32"]),
        ({"y_test": TEST_Y[:-1]}, ["y_test", "30 images", "29 labels"]),
        ({"y_train": TRAIN_Y + 1}, ["y_train", "label 10", "image 108", "counted from 1"]),
        ({"y_train": TRAIN_Y * 11}, ["label 11", "CIFAR-100"]),
        ({"y_train": TRAIN_Y.astype(object)}, ["pickled objects"]),
        ({"y_train": np.eye(10)[TRAIN_Y] * 0.5}, ["y_train", "[120, 10]"]),
        ({"x_train": TRAIN_X * 0}, ["x_train are all 0"]),
        ({"x_train": TRAIN_X % 2}, ["divided by 255 before"]),
    ],
)
def test_an_npz_with_wrong_content_is_named(tmp_path, change, words):
    expect(write_npz(tmp_path, **change), "cifar10.npz", *words)


def test_a_truncated_npz_is_named_whatever_its_name(tmp_path):
    path = write_npz(tmp_path) / "cifar10.npz"
    cut(path)
    expect(tmp_path, "cifar10.npz", "truncated")
    path.rename(tmp_path / "x.npz")
    expect(tmp_path, "x.npz", "truncated")


def test_another_data_set_in_npz_is_not_taken_for_cifar10(tmp_path):
    digits = np.zeros((20, 28, 28), np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=digits, y_train=np.arange(20), x_test=digits, y_test=np.arange(20))
    expect(tmp_path, "mnist.npz", "28", "cifar-10-python.tar.gz")
    check(read_images(write_npz(tmp_path / "deeper").parent))


def test_a_broken_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path)
    culprit = tmp_path / "train-00001-of-00002.parquet"
    intact = culprit.read_bytes()
    cut(culprit)
    expect(tmp_path, culprit.name, "truncated")
    culprit.unlink()
    expect(tmp_path, "1 of the 2 files of train")
    culprit.write_bytes(intact)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    assert read_images(tmp_path).held_out


def test_parquet_with_wrong_content_is_named(tmp_path):
    write_parquet(tmp_path)
    culprit = tmp_path / "train-00001-of-00002.parquet"
    good = [png(x) for x in TRAIN_X[60:]]
    for images, labels, words in [
        ([*good[:5], b"broken", *good[6:]], TRAIN_Y[60:], ["row 5", "PNG"]),
        (good, TRAIN_Y[60:] + 3, ["label 10", "image 24"]),
        ([*good[:-1], None], TRAIN_Y[60:], ["row 59"]),
        ([[1, 2]] * 60, TRAIN_Y[60:], ["row 0", "list"]),
        (good, [None, *TRAIN_Y[61:].tolist()], ["float64"]),
        (good, [[1, 2]] * 60, ["int64 [60, 2]"]),
    ]:
        pq.write_table(pa.table({"img": images, "label": labels}), culprit)
        expect(tmp_path, culprit.name, *words)
    pq.write_table(pa.table([good, TRAIN_Y[60:], TRAIN_Y[60:]], ["img", "label", "label"]), culprit)
    expect(tmp_path, culprit.name, '"label" exists 2 times')
    pq.write_table(
        pa.table({"img": good, "caption": ["a cat"] * 60}), culprit.with_name("train-00000-of-00002.parquet")
    )
    expect(tmp_path, "no labels, but img, caption")


def test_empty_tables_are_no_images(tmp_path):
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
            tmp_path / f"{split}.parquet",
        )
    expect(tmp_path, "no images")


def test_more_images_than_cifar10_has_are_refused(tmp_path):
    images = np.broadcast_to(TEST_X[:1], (10_010, 32, 32, 3))
    expect(write_npz(tmp_path, x_test=images, y_test=np.arange(10_010) % 10), "10,010", "10,000")


# --------------------------------------------------------------------------------------------------------------- search


def test_a_given_folder_without_cifar10_is_an_error_that_lists_it(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    for download in (False, True):
        with pytest.raises(DataError) as caught:
            load_images(tmp_path, download, default_roots=[write_npz(tmp_path.parent / "elsewhere")])
        for word in (str(tmp_path), "holiday.jpg", "notes/", "cifar-10-batches-py", "trainLabels.csv", "npz"):
            assert word in str(caught.value)
        shutil.rmtree(tmp_path.parent / "elsewhere")


def test_a_given_path_that_is_absent_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_images(tmp_path / "nowhere", download=False)
    with pytest.raises(DataError, match="does not exist"):  # no folder is made with the name of a file
        load_images(tmp_path / "cifar10.npz", download=True)
    (tmp_path / "x.bin").write_bytes(b"123")
    with pytest.raises(DataError, match="no known kind"):
        load_images(tmp_path / "x.bin")


def test_the_default_roots_are_searched_in_order(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    broken = write_batches(tmp_path / "broken")
    cut(broken / "cifar-10-batches-py" / "data_batch_5")
    roots = [tmp_path / "absent", tmp_path / "empty", broken, broken / "cifar-10-batches-py", tmp_path / "good"]
    write_npz(tmp_path / "good")
    write_folders(tmp_path / "later")
    for data_root in (None, "auto"):
        images = load_images(data_root, default_roots=[*roots, tmp_path / "later"])
        check(images)
        assert "good" in images.source
        said = capsys.readouterr().out
        assert said.count("Warning") == 1 and "data_batch_5" in said


def test_without_any_copy_the_shapes_stand_in_and_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classes, "make_shapes", lambda n, seed, make=classes.make_shapes: make(n // 100, seed=seed))
    images = load_images(None, download=False, default_roots=[tmp_path])
    assert "NOT CIFAR-10" in capsys.readouterr().out
    assert images.name == "ten shapes (synthetic)" and len(images.classes) == 10
    assert images.train_images.shape == (60, 3, 32, 32) and images.train_images.dtype == torch.uint8
    assert images.test_images.shape == (20, 3, 32, 32) and images.test_labels.dtype == torch.int64
    assert not torch.equal(images.train_images[:20], images.test_images)
    assert torch.equal(images.train_images, load_images(None, False).train_images)  # the same in every run
    with pytest.raises(DataError, match="download=False"):
        load_images("auto", download=False, default_roots=[tmp_path])
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- split


@pytest.fixture
def numbered():
    """100 training images that each carry their own number, as pixels and as label."""
    numbers = torch.arange(100)
    images = numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    return ImageSet(images, numbers, images[:10], numbers[:10], CLASSES, "numbers", "made here")


@pytest.mark.parametrize(
    ("val_size", "train_size", "kept"), [(20, None, 80), (20, 50, 50), (20, 81, 80), (0, None, 100)]
)
def test_hold_out_gives_disjoint_parts_of_the_sizes_asked_for(numbered, val_size, train_size, kept):
    train, val = hold_out(numbered, val_size, train_size, 0, torch.device("cpu"))
    assert (len(train), len(val)) == (kept, val_size)
    for part in (train, val):
        assert part.images.shape[1:] == (3, 32, 32) and part.images.dtype == torch.uint8
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)  # each image keeps its label
    numbers = torch.cat([train.labels, val.labels]).tolist()
    assert len(set(numbers)) == kept + val_size and set(numbers) <= set(range(100))
    assert numbers != sorted(numbers)  # class folders give one class after the other: shuffled


def test_hold_out_is_decided_by_the_seed_alone(numbered):
    def numbers(seed, train_size=None):
        torch.rand(1)  # the global generator has no part in it
        return [part.labels.tolist() for part in hold_out(numbered, 20, train_size, seed, torch.device("cpu"))]

    assert numbers(0) == numbers(0) != numbers(1)
    assert set(numbers(0)[1]) != set(numbers(1)[1])
    assert numbers(0, 30)[1] == numbers(0)[1]  # less to train on, but the same images held out
    assert numbers(0, 30)[0] == numbers(0)[0][:30]


def test_hold_out_puts_everything_on_the_device(numbered):
    for part in hold_out(numbered, 20, None, 0, torch.device("meta")):
        assert part.images.device.type == part.labels.device.type == "meta"


def test_importing_needs_neither_network_nor_cuda():
    code = (
        "import socket, sys; socket.socket.connect = None; socket.getaddrinfo = None; import helpers.vit.data, torch; "
        "assert not torch.cuda.is_initialized(); assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2], timeout=60)


@pytest.mark.slow
def test_the_notebook_trains_on_the_competitions_files(tmp_path):
    """No labels for the test images, so that some labelled ones are held out; nothing held out to choose weights by."""
    write_kaggle(tmp_path / "d")
    changed = {"data_root": tmp_path / "d", "val_size": 0, "epochs": 1, "tta": 0}
    done = papermill("q1.ipynb", tmp_path / "out", **TINY | SHORT | changed)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "run_summary.json").read_text())
    dataset = summary["dataset"]
    assert dataset["name"] == "CIFAR-10" and str(tmp_path / "d") in dataset["source"]
    assert (dataset["train"], dataset["val"], dataset["test"]) == (100, 0, 20)
    assert summary["selected_weights"] == "ema" and summary["best_val_accuracy"] is None
