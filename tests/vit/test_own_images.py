"""helpers/vit/data.py with people's own images, CIFAR-100, and what is left out or refused."""

import io
import pickle
import shutil
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from helpers.vit import image_set
from helpers.vit.data import DataError, load_images
from helpers.vit.layouts import CLASSES, LAYOUTS
from test_data import (
    TEST_X,
    TEST_Y,
    TRAIN_X,
    TRAIN_Y,
    expect,
    png,
    python3_pickle,
    rows,
    write_arrays,
    write_batches,
    write_folders,
    write_kaggle,
    write_npz,
    write_other_batches,
    write_packed,
    write_parquet,
)

COLOURS = {"zwei Wörter": (30, 200, 30), "Äpfel": (200, 30, 30), "猫": (30, 30, 200)}


def write_pets(root, counts=(("train", 10), ("test", 2)), sizes=((48, 64), (300, 200)), ending=".png"):
    """Class folders of plain colours; each image has a shade of its own."""
    for split, count in counts:
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", sizes[i % len(sizes)], tuple(c + i + 20 * (split == "test") for c in colour))
                image.save(root / split / name / f"{i}{ending}")
    return root


def notes_of(root, *words, **settings):
    found = load_images(root, False, **settings)
    for word in words:
        assert any(word in note for note in found.notes), found.notes
    return found


@pytest.mark.parametrize("img_size", [32, 40])
def test_any_classes_and_sizes_are_taken(tmp_path, img_size):
    write_pets(tmp_path / "pets")
    decomposed = unicodedata.normalize("NFD", "Äpfel")  # as a Mac writes it
    (tmp_path / "pets" / "test" / "Äpfel").rename(tmp_path / "pets" / "test" / decomposed)
    found = notes_of(tmp_path / "pets", "3 classes: zwei Wörter, Äpfel, 猫", img_size=img_size)
    assert found.name == "pets" and found.classes == ("zwei Wörter", "Äpfel", "猫") and not found.held_out
    assert found.train_images.shape == (30, 3, img_size, img_size) and found.test_images.shape[0] == 6
    assert found.train_labels.tolist() == [k for k in range(3) for _ in range(10)]
    middle = found.train_images[:, :, img_size // 2, img_size // 2].tolist()
    assert middle == [[c + i for c in colour] for colour in COLOURS.values() for i in range(10)]
    (note,) = [note for note in found.notes if "resized" in note]
    assert f"36 of 36 images were resized to {img_size}x{img_size}" in note and "48x64, 300x200 pixels" in note


def test_images_keep_their_proportions_and_their_orientation(tmp_path):
    """The shorter side is fitted and the middle kept; EXIF's orientation is followed."""
    write_pets(tmp_path)
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, :32], stripes[:, 32:96], stripes[:32, 32:96] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(stripes).save(tmp_path / "train" / "猫" / "0.jpg", quality=95, exif=exif)
    (tmp_path / "train" / "猫" / "0.png").unlink()
    image = load_images(tmp_path, False).train_images[20].permute(1, 2, 0).int()
    assert (image[..., 0] < 60).all()  # no red
    assert (image[:14, :, 1] > 200).all() and (image[18:, :, 2] > 200).all()


def test_32x32_images_stay_as_they_are(tmp_path):
    write_folders(tmp_path)
    assert load_images(tmp_path, False, img_size=64).train_images.shape[-1] == 32
    Image.new("RGB", (64, 64), "red").save(tmp_path / "test" / "cat" / "999.png")
    found = notes_of(tmp_path, "1 of 151 images were resized to 32x32", img_size=64)
    assert found.name == "CIFAR-10" and found.test_images.shape[-1] == found.train_images.shape[-1] == 32


@pytest.mark.parametrize("ending", [".bmp", ".gif", ".webp", ".tiff", ".jfif", ".JPEG", ".ppm"])
def test_common_kinds_of_image(tmp_path, ending):
    assert load_images(write_pets(tmp_path, ending=ending), False).train_images.shape[0] == 30


@pytest.mark.parametrize(
    ("splits", "note", "held_out"),
    [
        ({"train": "train"}, "no test images with labels: 6 of 30, a fifth of each class", True),
        ({"train": "Training", "test": "TESTING"}, "3 classes", False),
        ({"train": "training_set", "test": "test_set"}, "3 classes", False),
        ({"train": "train", "test": "valid"}, "the validation images are the test set", False),
        ({"train": "train", "test": "Validation"}, "the validation images are the test set", False),
        ({"train": "pets"}, "6 of 30", True),
        ({"train": "."}, "6 of 30", True),
    ],
)
def test_splits_by_their_usual_names(tmp_path, splits, note, held_out):
    write_pets(tmp_path, [(splits[k], n) for k, n in (("train", 10), ("test", 2)) if k in splits])
    if "test" not in splits:  # as competitions have it, of images without labels
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "1.png").write_bytes(png(TRAIN_X[0]))
    found = notes_of(tmp_path, note)
    assert found.held_out == held_out and len(found.train_labels) == (24 if held_out else 30)
    assert found.test_labels.bincount().tolist() == [2, 2, 2]
    if held_out:  # the same in every run
        assert torch.equal(found.test_images, load_images(tmp_path, False).test_images)


def test_what_lies_beside_and_is_left_out_is_told(tmp_path):
    write_pets(tmp_path / "val", [("train", 10), ("val", 3), ("test", 2)])
    (tmp_path / "val" / "train" / "猫" / "notes.txt").write_text("x")
    found = notes_of(tmp_path / "val", "validation images are not used", "1 files were left out: notes.txt")
    assert len(found.test_labels) == 6
    parquet = write_parquet(tmp_path / "p")
    shutil.copy(parquet / "train-00000-of-00002.parquet", parquet / "train_small.parquet")
    assert len(notes_of(parquet, "train_small.parquet").train_labels) == 120
    batches = write_batches(tmp_path / "b") / "cifar-10-batches-py"
    shutil.copy(batches / "data_batch_1", batches / "data_batch_1 (1)")
    notes_of(batches, "data_batch_1 (1)")
    notes_of(write_npz(tmp_path / "n", x_test=TRAIN_X[::4], y_test=TRAIN_Y[::4]), "30 of the test images are training")


def test_a_test_set_alone_is_enough_to_evaluate(tmp_path):
    write_pets(tmp_path / "pets", [("test", 4)])
    write_other_batches(tmp_path / "b", ".bin")
    for path in (tmp_path / "b").glob("data_batch*"):
        path.unlink()
    np.savez(tmp_path / "x.npz", x_test=TEST_X, y_test=TEST_Y)
    for name, size, count in (("pets", 48, 12), ("pets/test", 48, 12), ("b", 32, 30), ("x.npz", 32, 30)):
        found = load_images(tmp_path / name, False, img_size=48, training=False)
        assert found.train_images.shape == (0, 3, size, size) and found.train_labels.shape == (0,)
        assert found.test_images.shape == (count, 3, size, size) and not found.held_out
        with pytest.raises(DataError, match="nothing to train on"):
            load_images(tmp_path / name, False)
    found = load_images(write_folders(tmp_path / "f"), False, training=False)
    assert len(found.train_labels) == 0 and len(found.test_labels) == 30 and found.classes == CLASSES
    # held out of what may have been trained on: both parts, to tell by
    assert len(load_images(write_kaggle(tmp_path / "k"), False, training=False).train_labels) == 100


# ------------------------------------------------------------------------------------------------------------ CIFAR-100


FINE = ["aquarium_fish", "sweet_pepper", "willow_tree", *(f"class_{i}" for i in range(97))]
X100, Y100 = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8), np.arange(200) % 100


def write_cifar100(root, kind):
    root.mkdir(parents=True)
    for split in ("train", "test"):
        content = {"data": rows(X100), "fine_labels": Y100, "coarse_labels": Y100 // 5}
        if kind == "python":
            lists = {key: values if key == "data" else values.tolist() for key, values in content.items()}
            (root / split).write_bytes(
                pickle.dumps({key.encode(): values for key, values in lists.items()}, protocol=2)
            )
        elif kind == "binary":
            (root / f"{split}.bin").write_bytes(np.c_[Y100 // 5, Y100, rows(X100)].astype(np.uint8).tobytes())
        elif kind == "matlab":
            savemat(root / f"{split}.mat", content)
        else:
            table = pa.table({"img": [png(x) for x in X100], "fine_label": Y100, "coarse_label": Y100 // 5})
            names = b'{"info": {"features": {"fine_label": {"names": %s}}}}' % str(FINE).replace("'", '"').encode()
            pq.write_table(table.replace_schema_metadata({"huggingface": names}), root / f"{split}.parquet")
    if kind == "python":
        (root / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE}, protocol=2))
    elif kind == "binary":
        (root / "fine_label_names.txt").write_text("\n".join(FINE))
    elif kind == "matlab":
        savemat(root / "meta.mat", {"fine_label_names": np.array(FINE, object)[:, None]})


@pytest.mark.parametrize("kind", ["python", "binary", "matlab", "parquet"])
def test_cifar100_in_its_layouts(tmp_path, kind, capsys):
    write_cifar100(tmp_path / "cifar-100" / "d", kind)
    write_packed(lambda root: write_cifar100(root, kind), f"cifar-100-{kind}.tar.gz")(tmp_path)
    for root in (tmp_path / "cifar-100", tmp_path / f"cifar-100-{kind}.tar.gz"):
        found = notes_of(root, "part of CIFAR-100: 200 of 50,000 train images and 200 of 10,000")
        assert found.name == "CIFAR-100" and found.classes == tuple(FINE)
        assert found.train_labels.tolist() == Y100.tolist()
        assert np.array_equal(found.train_images.permute(0, 2, 3, 1).numpy(), X100)
    # the search takes CIFAR-10 alone, and says what it saw
    with pytest.raises(DataError, match=r"Seen, and not taken .*d, whose classes are aquarium_fish"):
        load_images("auto", False, default_roots=[tmp_path / "cifar-100"])


# ----------------------------------------------------------------------------------------------------- search, refusals


def test_the_search_says_what_it_saw_and_goes_on(tmp_path, capsys):
    write_pets(tmp_path / "a" / "pets")
    write_arrays(tmp_path / "b", x_train=np.zeros((20, 28, 28), np.uint8), y_train=np.arange(20))
    write_arrays(tmp_path / "c", first=TRAIN_X, second=TRAIN_Y)
    write_packed(write_batches, "things.zip")(tmp_path / "d")
    (write_kaggle(tmp_path / "e") / "trainLabels.csv").unlink()
    roots = [tmp_path / name for name in "abcde"]
    with pytest.raises(DataError) as caught:
        load_images("auto", False, default_roots=roots)
    for word in (
        "猫",
        "data_root=",
        "[20, 28, 28]",
        "first, second",
        "things.zip, an archive",
        "copy trainLabels.csv beside",
    ):
        assert word in str(caught.value)
    pq.write_table(pa.table([TRAIN_Y, TRAIN_Y], ["label", "label"]), tmp_path / "a" / "train.parquet")
    write_packed(write_folders, "cifar10.zip")(tmp_path / "f")  # named so, and without a split's names in it
    found = load_images(None, False, default_roots=[*roots, tmp_path / "f"])
    assert found.name == "CIFAR-10" and "cifar10.zip" in found.source
    assert '"label" exists 2 times' in capsys.readouterr().out
    write_folders(tmp_path / "g" / "sets" / "mine")  # beside folders of other images
    for name in ("a", "b"):
        (tmp_path / "g" / name).mkdir()
        (tmp_path / "g" / name / "1.png").write_bytes(png(TRAIN_X[0]))
    assert load_images("auto", False, default_roots=[tmp_path / "g"]).name == "CIFAR-10"


def test_what_is_broken_hides_nothing_in_a_search_and_is_no_other_set_where_it_was_given(tmp_path, capsys):
    write_batches(tmp_path / "sets")
    for name in ("other.npz", "cut.npz"):
        np.savez(tmp_path / name, x_train=np.array([[1], [2, 3]], object), y_train=[0, 1])
    found = load_images(None, False, default_roots=[tmp_path, tmp_path])
    assert found.name == "CIFAR-10" and capsys.readouterr().out.count("cut.npz") == 1
    expect(tmp_path, "cut.npz")
    write_npz(tmp_path / "own", x_train=TRAIN_X / 127.5 - 1)
    write_pets(tmp_path / "own" / "thumbs")
    expect(tmp_path / "own", "not normalised")


def test_cifar100_without_the_names_of_its_classes(tmp_path):
    write_cifar100(tmp_path / "d", "python")
    (tmp_path / "d" / "meta").unlink()
    assert load_images(tmp_path, False).classes == tuple(map(str, range(100)))


def test_too_few_classes_are_refused(tmp_path):
    write_pets(tmp_path)
    for split in ("train", "test"):
        for name in ("Äpfel", "猫"):
            shutil.rmtree(tmp_path / split / name)
    expect(tmp_path, "no labelled images")


def test_both_files_of_the_packed_competition_are_named(tmp_path):
    (tmp_path / "trainLabels.csv").write_text("id,label\n1,cat\n")
    (tmp_path / "train.7z").write_bytes(b"7z")
    message = expect(tmp_path, f"py7zr x {tmp_path / 'train.7z'} cifar10", f"cp {tmp_path / 'trainLabels.csv'} cifar10")
    assert "data_root='cifar10'" in message
    (write_kaggle(tmp_path / "unpacked") / "trainLabels.csv").unlink()
    expect(tmp_path / "unpacked", "copy trainLabels.csv beside")


def test_more_than_fits_into_memory_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    write_pets(tmp_path / "pets")
    np.savez_compressed(tmp_path / "x.npz", x_train=np.zeros((3000, 32, 32, 3), np.uint8), y_train=np.arange(3000) % 10)
    monkeypatch.setattr(image_set, "free_memory", lambda: 2e6)
    monkeypatch.setattr("helpers.vit.array_files.free_memory", lambda: 2e6)
    monkeypatch.setattr(image_set, "thread_map", None)  # not called
    with pytest.raises(
        DataError, match=r"36 images .* are 0.0 GB; 0.0 GB of memory are free: give img_size of 96 at most"
    ):
        load_images(tmp_path / "pets", False, img_size=128)
    expect(tmp_path / "x.npz", "GB of arrays")


def test_archives_cannot_write_elsewhere_nor_be_larger_than_they_may(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-python.tar.gz"

    def pack(*members):
        write_batches(tmp_path / "b")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "b" / "cifar-10-batches-py", "cifar-10-batches-py")
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("cifar-10-batches-py/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        shutil.rmtree(tmp_path / "b")

    pack(("../../outside.png", b"x"), ("/outside.png", b"x"))
    assert len(load_images(archive, False).train_labels) == 120
    assert not list(tmp_path.glob("outside*")) and not Path("/outside.png").exists()
    pack(("other/data_batch_1", python3_pickle(TEST_X, TEST_Y)))  # a second one elsewhere does not replace the first
    assert len(load_images(archive, False).train_labels) == 120
    monkeypatch.setattr("helpers.vit.archives.free_memory", lambda: 100_000)
    expect(archive, "no room for all")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as made:
        made.writestr("../outside.png", "x")
    expect(tmp_path / "pets.zip", "holds no labelled images")


def test_a_missing_reader_is_named(tmp_path, monkeypatch):
    write_other_batches(tmp_path / "d", ".mat")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    expect(tmp_path, "scipy", "pip install")


def test_numbers_for_names_may_be_of_anything(tmp_path):
    for i in range(40):
        (tmp_path / "digits" / str(i % 10)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "digits" / str(i % 10) / f"{i}.png").write_bytes(png(TRAIN_X[i]))
    assert load_images(tmp_path / "digits", False).classes == tuple("0123456789")


def test_the_readme_has_the_layouts_that_the_code_has():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = dict(
        line.strip("| ").split(" | ")
        for line in readme.splitlines()
        if line.startswith(tuple(f"| {k} |" for k in LAYOUTS))
    )
    assert table == LAYOUTS
