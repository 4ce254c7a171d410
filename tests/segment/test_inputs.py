"""helpers/segment/inputs.py: what the parameters of q2 name, and in which order wrong ones are told."""

import numpy as np
import pytest
from PIL import Image

from helpers.common.images import ImageError, read_image
from helpers.segment import exports, inputs, outputs
from helpers.segment.detections import Detection
from helpers.segment.images import output_names
from helpers.segment.inputs import find_examples, find_inputs
from helpers.segment.sequences import PictureSequence
from helpers.segment.video import Silent, VideoError, VideoReader, VideoWriter


@pytest.fixture
def photos(tmp_path):
    """Two pictures, one of them deeper, and a text."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (("1.png", "red"), ("deep/2.jpg", "blue")):
        Image.new("RGB", (32, 24), colour).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def clip(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", Silent(32, 24, 10)) as writer:
        for i in range(3):
            writer.write(np.full((24, 32, 3), 60 * i, np.uint8), i)
    return tmp_path / "clip.mp4"


def test_images_and_a_video_of_ones_own(photos, clip, tmp_path, capsys):
    found = find_inputs(photos / "**/*", clip, "Cat. dog", tmp_path / "out")
    assert found.images == [photos / "1.png", photos / "deep" / "2.jpg"] and found.is_folder
    assert found.phrases == found.folder_phrases == found.clip_phrases == ["cat", "dog"]
    assert isinstance(found.clip, VideoReader) and found.root == photos / "**/*"
    assert capsys.readouterr().out == f"passed over in {photos}: notes.txt\n"
    alone = find_inputs(photos / "1.png", None, "cat", tmp_path / "out")
    assert alone.images == [photos / "1.png"] and not alone.is_folder and alone.clip is None
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_without_images_the_first_frame_of_the_video_stands_for_them(photos, clip, tmp_path):
    for video in (clip, photos):
        found = find_inputs(None, video, "cat", tmp_path / "out")
        assert found.images == [tmp_path / "out" / "first_frame.png"] and not found.is_folder
        np.testing.assert_array_equal(read_image(found.images[0]), next(iter(found.clip)).image)
    assert isinstance(found.clip, PictureSequence)


def test_without_either_scenes_and_a_clip_are_drawn(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inputs, "draw_example_clip", lambda folder, seed: (clip, "red circle", None))
    for _ in range(2):  # also when they are there already
        assert find_inputs(None, None, None, tmp_path) is None
        found = find_examples("tiny", None, tmp_path, 0)
        assert len(found.images) == 6 and {path.parent for path in found.images} == {tmp_path / "examples"}
        assert found.is_folder and found.clip.path == clip and found.clip_phrases == ["red circle"]
    assert f"a clip of shapes were drawn in {tmp_path / 'examples'}" in capsys.readouterr().out


def test_the_real_models_are_shown_photos_that_may_be_shipped(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inputs, "draw_example_clip", lambda folder, seed: (clip, "red circle", None))
    found = find_examples("full", None, tmp_path, 0)
    assert [path.name for path in found.images] == ["cat.jpg", "coffee.jpg", "rocket.jpg"] and found.is_folder
    assert found.phrases == found.folder_phrases and "a cat" in found.phrases and found.clip_phrases == ["red circle"]
    origins = (inputs.PHOTOS.parent / "README.md").read_text()
    assert all(f"photos/{path.name}" in origins and read_image(path).shape[2] == 3 for path in found.images)
    assert find_examples("full", "Dog", tmp_path, 0).phrases == ["dog"]


@pytest.mark.parametrize("given", [
    {"images": "none.png"}, {"images": "none.png", "video": "clip.mp4"}, {"images": "photos", "video": "none.mp4"},
    {"images": "clip.mp4"}, {"video": "photos/1.png"}, {"images": "photos/notes.txt"}, {"images": "bad"},
])  # fmt: skip
def test_a_wrong_path_is_told_before_a_missing_prompt(photos, clip, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.heic").write_bytes(b"no image")
    wrong = given.get("images") if given.get("video", "clip.mp4") == "clip.mp4" else given["video"]
    with pytest.raises((ImageError, VideoError, FileNotFoundError), match=wrong):
        find_inputs(given.get("images"), given.get("video"), None, tmp_path / "out")


def test_a_missing_prompt_is_told_where_a_path_is_right(photos, clip, tmp_path):
    for images, video in ((photos, None), (None, clip), (photos, clip)):
        with pytest.raises(ValueError, match="TEXT_PROMPT is not set"):
            find_inputs(images, video, None, tmp_path / "out")


def test_a_path_under_the_wrong_parameter_names_the_right_one(photos, clip, tmp_path):
    with pytest.raises(ImageError, match=r"clip\.mp4 is no image .*give it as VIDEO_PATH"):
        find_inputs(clip, None, "cat", tmp_path / "out")
    with pytest.raises(VideoError, match=r"1\.png is a picture, not a video: give it as IMAGE_PATH"):
        find_inputs(None, photos / "1.png", "cat", tmp_path / "out")


@pytest.mark.parametrize("out", ["photos/out", "photos"])
def test_a_second_run_finds_the_same_images(photos, tmp_path, out):
    """Whatever the first one wrote; also a third one that writes elsewhere."""
    out, pattern = tmp_path / out, photos / "**" / "*"
    first = find_inputs(pattern, None, "cat", out).images
    mask = np.zeros((24, 32), bool)
    mask[4:9, 5:20] = True
    found = [Detection("cat", 0.9, (5, 4, 20, 9), "groundingdino", mask, 0.9)]
    rows = []
    outputs.write_detections(out, read_image(first[0]), found, first[0], "cat", {}, {})
    for path, name in zip(first, output_names(first), strict=True):
        image = read_image(path)
        outputs.write_detections(out / name, image, found, path, "cat", {}, {})
        exports.export_image(out, name, path, image, found, ["cat"], exports.FORMATS)
        rows.append({"image": str(path), "folder": name, "objects": 1, "labels": "cat", "seconds": 0, "skipped": ""})
    exports.finish_folder(out, pattern, rows, ["cat"], exports.FORMATS)
    assert len(list(out.rglob("*.png"))) >= 3 * 3 + 2 + 1
    assert find_inputs(pattern, None, "cat", out).images == first
    assert find_inputs(pattern, None, "cat", tmp_path / "elsewhere").images == first
