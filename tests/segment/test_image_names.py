"""Which images are q2's inputs, and where the results of each go."""

import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

import nbload
from albums import names
from helpers.common.images import ImageError
from helpers.segment import images
from helpers.segment.images import find_images, output_names, read_first

# --- What an earlier run wrote -------------------------------------------------------------------------------------


def written_by_a_run(out, images=()):
    """Empty files as a run leaves them, for a folder of `images`."""
    files = ["mask.png", "overlay.png", "detections.json", "boxes.png", "examples/shapes-1.png", "examples/shapes.mp4"]
    files += ["summary.csv", "yolo/data.yaml", "video_overlay.mp4"] if images else []
    for name in images:
        files += [f"{name}/mask.png", f"{name}/detections.json", f"cutouts/{name}_1_cat.png"]
        files += [f"yolo/images/{name}.jpg", f"yolo/labels/{name}.txt"]
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()


@pytest.mark.parametrize("out", ["out", "deep/er/results", "."])
@pytest.mark.parametrize("pattern", ["**/*", "**", "*", ""])
def test_what_a_run_wrote_is_no_input(album, out, pattern):
    path, out = album / pattern, album / out
    before = find_images(path, out)
    written_by_a_run(out, ["2", "10"])
    notes = []
    assert find_images(path, out, notes) == before
    assert find_images(path, album / "elsewhere") == before  # another run's
    told = [note for note in notes if "files that a run writes" in note]
    assert len(told) == (pattern.startswith("**") or out == album / pattern) or (pattern == "*" and out == album)
    (out / "detections.json").unlink()  # as after a run that was stopped early
    kept = {name for name in names(find_images(path, out), album) if "boxes" in name or "shapes" in name}
    assert kept == set()


def test_ones_own_pictures_are_inputs_whatever_their_names(album):
    own = ["mask.png", "deep/overlay.png", "examples/shapes-1.png", "cutouts/a.png", "yolo/images/b.jpg"]
    for name in own:
        (album / name).parent.mkdir(exist_ok=True, parents=True)
        (album / name).touch()
    assert set(own) <= set(names(find_images(album / "**", album / "out"), album))
    # in a folder into which q2 writes, all but what it writes itself
    written_by_a_run(album)
    (album / "examples" / "mine.jpg").touch()
    assert {"2.JPG", "10.png", "examples/mine.jpg"} <= set(names(find_images(album / "**", album), album))


def test_what_a_run_wrote_can_be_given(album):
    written_by_a_run(out := album / "out", ["2"])
    assert find_images(out / "overlay.png", out) == [out / "overlay.png"]
    assert find_images(out / "examples", out) == [out / "examples" / "shapes-1.png"]
    assert find_images(out / "cutouts") == [out / "cutouts" / "2_1_cat.png"]
    with pytest.raises(ImageError, match="no image there but what a run writes, which is taken only one by one"):
        find_images(out / "2")


def test_every_file_that_q2_writes_is_known():
    written = re.findall(r'"(\w+\.(?:png|mp4))"', "".join(cell["source"] for cell in nbload.code_cells("q2.ipynb")))
    assert len(written) >= 8 and set(written) <= set(images._OUTPUTS)


def test_the_first_that_can_be_read(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    good, bad, worse = tmp_path / "2.png", tmp_path / "1.png", tmp_path / "3.png"
    Image.fromarray(photo).save(good)
    bad.write_bytes(b"no image")
    path, image = read_first([bad, good, worse])
    assert path == good
    np.testing.assert_array_equal(image, photo)
    with pytest.raises(ImageError, match=r"none of the 2 images can be read; the last one: .*3\.png cannot be opened"):
        read_first([bad, worse])
    with pytest.raises(ImageError, match=r"^\S*1\.png is no image"):
        read_first([bad])


# --- Where the results of each image go ----------------------------------------------------------------------------


@pytest.mark.parametrize(("paths", "expected"), [
    ([], []),
    (["a/cat.jpg", "b/dog.v2.png"], ["cat", "dog.v2"]),
    (["cat.jpg", "Cat.png", "dog.jpg"], ["cat_jpg", "Cat_png", "dog"]),
    (["a/1.jpg", "b/1.jpg", "a/1.png"], ["a_1_jpg", "b_1_jpg", "1_png"]),
    (["x/a/1.jpg", "y/a/1.jpg"], ["a_1_jpg", "a_1_jpg_2"]),
    (["f/cat.jpg", "f/cat.png", "f/cat_jpg.gif"], ["f_cat_jpg", "cat_png", "f_cat_jpg_gif"]),
    (["f/\u00e9.jpg", "f/e\u0301.jpg"], ["f_é_jpg", "f_é_jpg_2"]),
    (["кошка.jpg", "猫.jpg"], ["кошка", "猫"]),
    (['a:b?<"|>*.jpg', "end. .jpg", "...jpg", ".jpg"], ["a_b______", "end", "_", "jpg"]),
])  # fmt: skip
def test_output_names(tmp_path, monkeypatch, paths, expected):
    monkeypatch.chdir(tmp_path)
    found = output_names(paths)
    assert [unicodedata.normalize("NFC", name) for name in found] == expected
    for name in found:
        (tmp_path / name).mkdir()


def test_output_names_of_long_and_undecodable_names(tmp_path):
    long = "ä" * 125 + ".jpg"  # 254 bytes, a file system's limit is 255
    found = output_names([f"a/{long}", f"b/{long}", "bad\udcff.jpg"])
    assert len(set(found)) == 3
    for name in found:
        (tmp_path / name).mkdir()
        name.encode()
