"""helpers/segment/video.py: files of every kind, made here, and what browsers ask of the files that it writes."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from helpers.segment.video import Silent, VideoError, VideoReader, VideoWriter, player, read_ahead, spread_frames
from nbload import ROOT

FRAMES, RATE = 20, 10


def picture(i, height, width):
    """A frame whose top left corner is red, whose bottom is blue, and that has a bright bar at a place of its own."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[: height // 3, : width // 4] = (220, 30, 30)
    image[-height // 4 :] = (30, 30, 200)
    image[height // 2 - 4 : height // 2 + 4, 3 * i : 3 * i + 8] = 250
    return image


def make(
    path, codec="libx264", pixels="yuv420p", size=(160, 96), turned=0, times=None, sound=None, frames=FRAMES, **more
):
    """A video, and if `sound` names a codec, a tone of the same length."""
    width, height = size
    with av.open(str(path), "w", **more) as file:
        video = file.add_stream(codec, rate=RATE)
        video.width, video.height, video.pix_fmt = width, height, pixels
        if codec == "libx264":
            video.codec_context.gop_size = 6
        if turned:
            video.set_display_rotation(turned)
        audio = file.add_stream(sound, rate=48000) if sound else None
        if audio:
            audio.codec_context.layout = "mono"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
                video.codec_context.time_base = Fraction(1, 1000)
            file.mux(video.encode(frame))
        for k in range(frames * 48000 // RATE // 960 if audio else 0):
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(960 * k, 960 * (k + 1)) / 48000)
            piece = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, 960 * k, Fraction(1, 48000)
            file.mux(audio.encode(piece))
        if audio:
            file.mux(audio.encode(None))
        file.mux(video.encode(None))
    return path


def copy(path, out, **options):
    video = VideoReader(path)
    with VideoWriter(out, video, **options) as writer:
        for frame in video:
            writer.write(frame.image, frame.pts)
    return video


def times_of(path, kind="video"):
    """Seconds of each frame of a stream."""
    with av.open(str(path)) as file:
        return [frame.time for frame in file.decode(**{kind: 0})]


def check_playable(path):
    """H.264, 8 bits, even sides, the index in front of the pictures."""
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.width % 2 == context.height % 2 == 0
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


KINDS = {
    "a.mp4": {},
    "a.mov": {"sound": "aac"},
    "a.webm": {"codec": "libvpx-vp9", "sound": "libopus"},
    "a.avi": {"codec": "mpeg4", "sound": "libmp3lame"},
    "a.gif": {"codec": "gif", "pixels": "rgb8"},
    "odd.mp4": {"size": (161, 97), "pixels": "yuv444p"},
    "ten_bits.mp4": {"pixels": "yuv420p10le"},
    "pcm.mov": {"sound": "pcm_s16le"},
}


@pytest.mark.parametrize("name", KINDS)
def test_videos_of_every_kind_come_out_with_their_frames_timing_and_sound(tmp_path, name):
    source, out = make(tmp_path / name, **KINDS[name]), tmp_path / "out.mp4"
    width, height = KINDS[name].get("size", (160, 96))
    video = copy(source, out)
    assert (video.width, video.height, len(video), video.notes) == (width, height, FRAMES, [])
    assert video.fps == pytest.approx(RATE)
    for frame in video:
        assert frame.image.dtype == np.uint8 and frame.image.shape == (height, width, 3)
        tolerance = 40 if name == "a.gif" else 12
        assert np.abs(frame.image.astype(int) - picture(frame.index, height, width)).mean() < tolerance
    check_playable(out)
    np.testing.assert_allclose(times_of(out), times_of(source), atol=0.002)
    again = VideoReader(out)
    assert (again.width, again.height) == (width + width % 2, height + height % 2)
    for before, after in zip(video, again, strict=True):  # the second coding changes little, and no colour
        difference = np.abs(after.image[:height, :width].astype(int) - before.image)
        assert difference.mean() < (16 if name == "a.gif" else 4)  # a GIF is dithered, finer than its colours are kept
    with av.open(str(out)) as file:
        assert bool(file.streams.audio) == ("sound" in KINDS[name])
    if "sound" in KINDS[name]:
        heard, meant = times_of(out, "audio"), times_of(source, "audio")
        assert heard[-1] == pytest.approx(meant[-1], abs=0.1) and heard[0] == pytest.approx(meant[0], abs=0.05)


def test_variable_frame_rate(tmp_path):
    times = [0, 100, 130, 500, 520, 900, 1700, 1800, 2000, 2500]
    source = make(tmp_path / "a.mp4", times=times, frames=len(times))
    copy(source, tmp_path / "out.mp4")
    np.testing.assert_allclose(times_of(tmp_path / "out.mp4"), [t / 1000 for t in times], atol=0.002)
    assert [frame.time for frame in VideoReader(source)] == pytest.approx([t / 1000 for t in times], abs=0.002)


@pytest.mark.parametrize("turned", [90, -90, 180])
def test_a_turned_phone(tmp_path, turned):
    video = copy(make(tmp_path / "a.mov", turned=turned), tmp_path / "out.mp4")
    expected = np.rot90(picture(0, 96, 160), turned // 90)  # counter-clockwise, as FFmpeg defines it
    assert (video.height, video.width) == expected.shape[:2]
    for path in (tmp_path / "a.mov", tmp_path / "out.mp4"):
        first = next(iter(VideoReader(path)))
        assert np.abs(first.image.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.avi"])
def test_backwards_is_forwards_in_reverse(tmp_path, name, monkeypatch):
    monkeypatch.setattr("helpers.segment.video._BACKWARDS_BYTES", 3 * 160 * 96 * 4)  # four frames at once
    video = VideoReader(make(tmp_path / name, **KINDS[name]))
    forwards = list(video)
    backwards = list(video.backwards(15))
    assert [frame.index for frame in backwards] == list(range(14, -1, -1))
    for frame in backwards:
        assert frame.pts == forwards[frame.index].pts
        np.testing.assert_array_equal(frame.image, forwards[frame.index].image)


def test_a_file_that_was_cut_off_gives_what_it_has(tmp_path):
    whole = make(tmp_path / "whole.mp4", sound="aac", options={"movflags": "+faststart"}, frames=60)
    content = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 6 // 10])
    video = copy(tmp_path / "cut.mp4", tmp_path / "out.mp4")
    assert 5 < len(VideoReader(tmp_path / "out.mp4")) < 60
    assert any("cut.mp4 breaks off" in note and "of the 60 frames" in note for note in video.notes)
    check_playable(tmp_path / "out.mp4")


def test_one_frame(tmp_path):
    video = copy(make(tmp_path / "a.mp4", frames=1), tmp_path / "out.mp4")
    assert len(video) == 1 and len(times_of(tmp_path / "out.mp4")) == 1


@pytest.mark.parametrize(
    "content", [b"", b"these are words, not pictures\n" * 20, b"\x00\x00\x00\x20ftypisom" + bytes(99)]
)
def test_what_is_no_video_is_named(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4 .*(no video|no frame)"):
        VideoReader(tmp_path / "a.mp4")


def test_sound_alone_and_no_file(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        stream.codec_context.layout = "mono"
        file.mux(stream.encode(silence))
        file.mux(stream.encode(None))
    with pytest.raises(VideoError, match="has no video stream"):
        VideoReader(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4: no such file"):
        VideoReader(tmp_path / "nothing.mp4")


def test_sound_of_an_unknown_kind_is_left_out_with_a_word(tmp_path):
    source = make(tmp_path / "a.mov", sound="pcm_s16le")
    data = source.read_bytes()
    assert data.count(b"sowt") == 1  # what the file calls its sound
    source.write_bytes(data.replace(b"sowt", b"zzzz"))
    video = VideoReader(source)
    assert not video.sound and "cannot decode" in video.notes[0]
    with VideoWriter(tmp_path / "out.mp4", video) as out:
        for frame in video:
            out.write(frame.image, frame.pts)
    assert out.frames == len(video) and not VideoReader(tmp_path / "out.mp4").sound


def test_an_error_leaves_what_was_written_and_no_frame_leaves_nothing(tmp_path):
    video = VideoReader(make(tmp_path / "a.mov", sound="pcm_s16le"))
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "part.mp4", video) as writer:
        for frame in video:
            if frame.index == 7:
                raise KeyboardInterrupt
            writer.write(frame.image, frame.pts)
    assert len(times_of(tmp_path / "part.mp4")) == 7
    assert times_of(tmp_path / "part.mp4", "audio")[-1] == pytest.approx(0.6, abs=0.05)
    check_playable(tmp_path / "part.mp4")
    (tmp_path / "none.mp4").write_bytes(b"what stood there")
    with pytest.raises(RuntimeError, match="at once"), VideoWriter(tmp_path / "none.mp4", video):
        raise RuntimeError("at once")
    with pytest.raises(VideoError, match="no frame"), VideoWriter(tmp_path / "none.mp4", video):
        pass
    assert (tmp_path / "none.mp4").read_bytes() == b"what stood there"
    assert {path.name for path in tmp_path.iterdir()} == {"a.mov", "part.mp4", "none.mp4"}


def test_the_same_frames_give_the_same_file(tmp_path):
    contents = []
    for name in ("a.mp4", "b.mp4"):
        with VideoWriter(tmp_path / name, Silent(160, 96, 10)) as writer:
            for i in range(FRAMES):
                writer.write(picture(i, 96, 160), i)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_reading_ahead_keeps_order_and_errors_and_stops_when_left():
    made, threads = [], set()

    def items():
        for i in range(10):
            made.append(i)
            threads.add(threading.current_thread())
            yield i
        raise OSError("after the last")

    seen = []
    with pytest.raises(OSError, match="after the last"):
        for item in read_ahead(items()):
            seen.append(item)
    assert seen == list(range(10)) and threading.current_thread() not in threads
    made.clear()
    walk = read_ahead(items())
    assert [next(walk), next(walk)] == [0, 1]
    walk.close()
    time.sleep(0.1)
    assert len(made) <= 6
    assert list(read_ahead(itertools.islice(itertools.count(), 4))) == [0, 1, 2, 3]


def test_the_player_carries_short_videos_whole_and_long_ones_as_a_preview(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Silent(160, 96, 10), quality=5) as writer:
        for i in range(60):
            noise = np.random.default_rng(i).integers(0, 256, (96, 160, 3), np.uint8)
            writer.write(noise, i)
    size = path.stat().st_size
    assert player(path).data == path.read_bytes()
    monkeypatch.setattr("helpers.segment.video.PLAYER_BYTES", size // 20)
    shown = player(path)
    assert len(shown.data) <= size // 20 and "controls" in shown._repr_html_()
    check_playable(tmp_path / "a_preview.mp4")
    assert [frame.index for frame in spread_frames(path, 4)] == [0, 20, 39, 59]


STOPS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
sys.path[:0] = [{root!r}]
from helpers.segment.video import VideoReader, VideoWriter, read_ahead
video = VideoReader({source!r})
with VideoWriter({out!r}, video) as writer:
    for frame in read_ahead(video):
        writer.write(frame.image, frame.pts)
        print(frame.index, flush=True)
        for _ in range(600 if frame.index == 8 else 0):  # until it is interrupted
            time.sleep(0.1)  # a signal that comes just before a long sleep would wait for its end
"""


def test_an_interrupt_from_outside_leaves_a_file_that_plays(tmp_path):
    source, out = make(tmp_path / "a.mp4", sound="aac"), tmp_path / "out.mp4"
    code = STOPS.format(root=str(ROOT), source=str(source), out=str(out))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while process.stdout.readline().strip() != b"8":
            assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    assert len(times_of(out)) == 9 < FRAMES
    check_playable(out)
