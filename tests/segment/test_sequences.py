"""helpers/segment/sequences.py: folders of pictures and animated pictures as videos; what is a clip at all."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, features

import nbload
from helpers.common.device import Compute
from helpers.segment.inputs import Settings
from helpers.segment.models import load_models
from helpers.segment.sequences import Animation, PictureSequence, open_clip
from helpers.segment.video import Silent, VideoError, VideoReader, VideoWriter
from helpers.shapes.scenes import make_scene

COLOURS = [(20 * i, 255 - 20 * i, 90) for i in range(12)]


def pictures(folder, names, size=(32, 24)):
    """One-coloured pictures, in the order of `COLOURS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in zip(names, COLOURS, strict=False):
        Image.new("RGB", size, colour).save(folder / name)
    return folder


def colours(frames):
    """Of the middle pixel of each frame."""
    return [tuple(frame.image[frame.image.shape[0] // 2, frame.image.shape[1] // 2].tolist()) for frame in frames]


def test_a_folder_of_numbered_pictures_is_a_video(tmp_path):
    clip = open_clip(pictures(tmp_path / "frames", [f"{i}.png" for i in range(12)]))
    assert isinstance(clip, PictureSequence) and len(clip) == 12
    assert (clip.width, clip.height, clip.fps, clip.time_base) == (32, 24, 25, Fraction(1, 25))
    assert not clip.sound and (clip.start, clip.aspect) == (0, 1)
    for _ in range(2):  # as often as needed, and in natural order
        frames = list(clip)
        assert colours(frames) == COLOURS
        assert [(f.index, f.pts, round(f.time, 6)) for f in frames] == [(i, i, i / 25) for i in range(12)]
    assert [f.index for f in clip.backwards(5)] == [4, 3, 2, 1, 0] and colours(clip.backwards(2)) == COLOURS[1::-1]
    assert clip.notes == [f"{tmp_path / 'frames'}: 12 pictures, taken for 25 a second"]


def test_a_pattern(tmp_path):
    folder = pictures(tmp_path / "frames", ["a2.png", "a10.png", "b1.png"])
    assert colours(open_clip(f"{folder}/a*.png")) == COLOURS[:2]


def test_pictures_are_read_one_at_a_time(tmp_path):
    clip = open_clip(pictures(tmp_path, ["1.png", "2.png", "3.png"]))
    frames = iter(clip)
    next(frames)
    Image.new("RGB", (32, 24), "white").save(tmp_path / "2.png")  # not read so far
    assert colours([next(frames)]) == [(255, 255, 255)]


@pytest.mark.parametrize("bad", ["0.png", "2.png", "5.png"])
def test_what_cannot_be_read_is_left_out_and_told_once(tmp_path, bad):
    folder = pictures(tmp_path / "frames", ["1.png", "3.png", "4.png"])
    (folder / bad).write_bytes(b"no image")
    clip = open_clip(folder)
    assert len(clip) == 4
    for _ in range(2):
        frames = list(clip)
        assert colours(frames) == COLOURS[:3] and [f.pts for f in frames] == [f.index for f in frames] == [0, 1, 2]
    assert len(clip) == 3 and [f.index for f in clip.backwards(3)] == [2, 1, 0]
    (note,) = [note for note in clip.notes if "left out" in note]
    assert bad in note


def test_other_sizes_are_stretched_to_the_first_and_told(tmp_path):
    pictures(tmp_path, ["1.png", "2.png"])
    for i in (3, 4):
        Image.new("RGB", (64, 60), "white").save(tmp_path / f"{i}.png")
    clip = open_clip(tmp_path)
    assert {f.image.shape for f in clip} == {(24, 32, 3)}
    told = f"{tmp_path}: pictures of other sizes are stretched to the first one's 32 x 24"
    assert [note for note in clip.notes if "other sizes" in note] == [told]


def test_notes_on_the_first_picture_and_on_what_is_passed_over(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((24, 32), 4095 - i, np.uint16)).save(tmp_path / f"{i}.png")
    (tmp_path / "times.txt").touch()
    clip = open_clip(tmp_path)
    assert colours(clip)[0] == (255, 255, 255)
    assert clip.notes[:2] == [
        f"passed over in {tmp_path}: times.txt",
        "0.png: only 12 bits of its numbers are used: 0 … 4,095 became 0 … 255",
    ]
    assert len(clip.notes) == 3


def test_what_a_run_wrote_is_no_frame(tmp_path):
    pictures(tmp_path, ["1.png", "2.png", "overlay.png"])
    assert len(open_clip(tmp_path, tmp_path / "out")) == 3
    (tmp_path / "detections.json").touch()
    assert len(open_clip(tmp_path)) == len(open_clip(tmp_path, tmp_path)) == 2


@pytest.mark.parametrize("kind", ["webp", "avif"])
def test_an_animated_picture_is_a_video_with_its_own_times(tmp_path, kind):
    if not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    path, durations = tmp_path / f"a.{kind}", [40, 200, 40, 120, 600]
    frames = [Image.new("RGBA", (32, 24), (*colour, 255)) for colour in COLOURS[:4]]
    frames.append(Image.new("RGBA", (32, 24), (0, 0, 0, 0)))
    options = {"lossless": True} if kind == "webp" else {"quality": 100, "subsampling": "4:4:4"}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, **options)
    clip = open_clip(path)
    assert isinstance(clip, Animation) and len(clip) == 5 and (clip.width, clip.height) == (32, 24)
    assert clip.fps == pytest.approx(5) and clip.notes == [] and not clip.sound
    for _ in range(2):
        seen = list(clip)
        np.testing.assert_allclose(colours(seen), [*COLOURS[:4], (255, 255, 255)], atol=2)
        assert [f.pts for f in seen] == [0, 40, 240, 280, 400] and clip.time_base == Fraction(1, 1000)
        assert [f.time for f in seen] == pytest.approx([0, 0.04, 0.24, 0.28, 0.4])
    assert [f.index for f in clip.backwards(4)] == [3, 2, 1, 0]
    np.testing.assert_allclose(colours(clip.backwards(2)), COLOURS[1::-1], atol=2)


def test_an_animation_of_many_frames_backwards(tmp_path):
    frames = [Image.new("RGB", (8, 6), (3 * i, 0, 0)) for i in range(70)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    seen = list(open_clip(tmp_path / "a.webp").backwards(69))
    assert [(f.index, int(f.image[0, 0, 0])) for f in seen] == [(i, 3 * i) for i in range(68, -1, -1)]


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_other_animated_pictures_are_read_as_videos(tmp_path, kind):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=100)
    clip = open_clip(tmp_path / f"a.{kind}")
    assert isinstance(clip, VideoReader) and len(list(clip)) == 3


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "tif"])
def test_one_picture_is_no_video(tmp_path, kind):
    Image.new("RGB", (32, 24)).save(tmp_path / f"a.{kind}")
    with pytest.raises(VideoError, match=rf"a\.{kind} is a picture, not a video: give it as IMAGE_PATH"):
        open_clip(tmp_path / f"a.{kind}")


def test_what_holds_no_video(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such file"):
        open_clip(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="is empty"):
        open_clip("")
    with pytest.raises(VideoError, match="no picture among what is found there: nothing"):
        open_clip(tmp_path)
    for name in ("a.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / "*"):
        with pytest.raises(
            VideoError, match=r"no picture among what is found there: a\.mp4, notes\.txt\. Give VIDEO_PATH"
        ):
            open_clip(path)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"1\.png is no image that can be read"):
        open_clip(tmp_path)


def test_a_file_of_any_name_is_left_to_the_reader_of_videos(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", Silent(32, 24, 10)) as writer:
        writer.write(np.zeros((24, 32, 3), np.uint8), 0)
    assert isinstance(open_clip(tmp_path / "a.mp4"), VideoReader)
    (tmp_path / "a [1].mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert isinstance(open_clip(tmp_path / "a [1].mp4"), VideoReader)


def test_a_sequence_is_written_with_its_size_and_times(tmp_path):
    durations = [40, 200, 40, 120]
    frames = [Image.new("RGB", (33, 25), colour) for colour in COLOURS[:4]]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=durations, lossless=True)
    pictures(tmp_path / "frames", [f"{i}.png" for i in range(4)], (33, 25))
    for path, times in ((tmp_path / "a.webp", [0, 0.04, 0.24, 0.28]), (tmp_path / "frames", [0, 0.04, 0.08, 0.12])):
        clip = open_clip(path)
        with VideoWriter(tmp_path / "out.mp4", clip) as writer:
            for frame in clip:
                writer.write(frame.image, frame.pts)
        written = VideoReader(tmp_path / "out.mp4")
        assert (written.width, written.height) == (34, 26) and not written.sound
        seen = list(written)
        assert [f.time for f in seen] == pytest.approx(times, abs=1e-3)
        np.testing.assert_allclose(colours(seen), COLOURS[:4], atol=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_q2_follows_objects_through_a_folder_of_pictures(tmp_path):
    q2 = nbload.load("q2.ipynb")
    scene = make_scene(3, 120, 160)
    for i in range(6):
        path = tmp_path / "frames" / f"{i + 8}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(scene.image, 2 * i, axis=1)).save(path)
    clip, label = open_clip(tmp_path / "frames"), scene.objects[0]
    networks = load_models(Compute(torch.device("cpu"), "", "fp32"), "tiny", download=False)
    phrases = [f"{label.colour} {label.shape}"]
    frames = q2.segment_video(networks, clip, phrases, Settings(redetect_every=3), tmp_path / "out")
    assert [frame["time"] for frame in frames] == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert all(frame["objects"] for frame in frames) and len(VideoReader(tmp_path / "out" / "video_overlay.mp4")) == 6
