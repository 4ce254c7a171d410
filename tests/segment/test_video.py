"""helpers/segment/video.py: files of every kind, made here, and what browsers ask of the files that it writes."""

import base64
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from helpers.segment.player import animation, player, spread_frames
from helpers.segment.sequences import open_clip
from helpers.segment.video import Silent, VideoError, VideoReader, VideoWriter
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
    "fragments.mp4": {"sound": "aac", "options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {"sound": "libopus"},
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


def test_pictures_of_an_unknown_kind(tmp_path):
    data = make(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match="no video stream that can be decoded"):
        VideoReader(tmp_path / "a.mp4")


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


def test_the_player_carries_short_videos_whole_and_long_ones_as_a_preview(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Silent(160, 96, 10), quality=5) as writer:
        for i in range(60):
            noise = np.random.default_rng(i).integers(0, 256, (96, 160, 3), np.uint8)
            writer.write(noise, i)
    size = path.stat().st_size
    assert player(path).data == path.read_bytes() and player(path).width == 640
    monkeypatch.setattr("helpers.segment.player.PLAYER_BYTES", size // 20)
    shown = player(path)
    assert len(shown.data) <= size // 20 and "controls" in shown._repr_html_()
    check_playable(tmp_path / "a_preview.mp4")
    assert [frame.index for frame in spread_frames(path, 4)] == [0, 20, 39, 59]
    assert [frame.index for frame in spread_frames(path, 4, also=41)] == [0, 20, 41, 59]


def test_an_animated_picture_stands_for_a_video_and_is_bounded(tmp_path, monkeypatch):
    with VideoWriter(tmp_path / "clip.mp4", Silent(600, 400, 20)) as writer:
        for i in range(30):
            writer.write(np.random.default_rng(i).integers(0, 256, (400, 600, 3), np.uint8), i)
    sizes = []
    for most in (2**30, 2**19):
        monkeypatch.setattr("helpers.segment.player.ANIMATION_BYTES", most)
        shown = animation(tmp_path / "clip.mp4")
        assert base64.b64decode(shown._repr_mimebundle_()["image/webp"]) == shown.data
        assert len(repr(shown)) < 80  # a log shows it
        with Image.open(io.BytesIO(shown.data)) as image:
            assert image.format == "WEBP" and image.width == 400 and len(shown.data) <= most
            image.load()
            assert 1.2 < image.n_frames * image.info["duration"] / 1000 < 1.8
            sizes.append(image.n_frames)
    assert sizes[0] == 30 > sizes[1] > 2


def flat(planes, size=(64, 48), pixels="yuv420p", **tags):
    """A frame of one colour: the values of its planes, and its tags."""
    frame = av.VideoFrame(*size, pixels)
    kind = np.uint16 if "10" in pixels else np.uint8
    for plane, value in zip(frame.planes, planes, strict=True):
        plane.update(np.full(plane.buffer_size // kind().nbytes, value, kind).tobytes())
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


def encode(path, frames, codec="libx264", crf="1", **more):
    """A video of such frames, tagged as the first one is, 25 to the second."""
    first = frames[0]
    with av.open(str(path), "w", **more) as file:
        video = file.add_stream(codec, rate=25, options={"crf": crf})
        video.width, video.height, video.pix_fmt = first.width, first.height, first.format.name
        for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(video.codec_context, name, getattr(first, name))
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    return path


WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and blue, by the tag of the matrix


def to_yuv(rgb, matrix, full=False, bits=8):
    """Planes' values of a colour between 0 and 1, by the formulas of ITU-R BT.601, BT.709 and BT.2020."""
    red, blue = WEIGHTS[matrix]
    y = red * rgb[0] + (1 - red - blue) * rgb[1] + blue * rgb[2]
    values = y, (rgb[2] - y) / 2 / (1 - blue), (rgb[0] - y) / 2 / (1 - red)
    scales, offsets = ((255,) * 3, (0, 128, 128)) if full else ((219, 224, 224), (16, 128, 128))
    return [
        round((offset + scale * v) * 2 ** (bits - 8)) for v, scale, offset in zip(values, scales, offsets, strict=True)
    ]


def first_pixel(path):
    return next(iter(VideoReader(path))).image[0, 0].astype(int)


@pytest.mark.parametrize("tag", [1, 6, 9, None])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("size", "untagged"), [((64, 48), 6), ((1280, 720), 1)])
def test_colours_are_those_of_the_tags_or_else_of_the_size(tmp_path, tag, full, size, untagged):
    colour = (200, 60, 40)
    planes = to_yuv(np.divide(colour, 255), tag or untagged, full)
    frame = flat(planes, size, colorspace=tag or 2, color_range=2 if full else 1)
    source, out = encode(tmp_path / "a.mp4", [frame]), tmp_path / "out.mp4"
    copy(source, out)
    assert np.abs(first_pixel(source) - colour).max() <= 2
    assert np.abs(first_pixel(out) - colour).max() <= 5  # coded once more
    with av.open(str(out)) as file:
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)


def test_a_stream_that_changes_its_size_keeps_the_first(tmp_path):
    parts = [
        encode(tmp_path / f"{k}.h264", [flat((90 + k, 128, 128), size)] * 3, format="h264")
        for k, size in enumerate([(64, 48), (96, 80)])
    ]
    (tmp_path / "a.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert [frame.image.shape for frame in VideoReader(tmp_path / "a.h264")] == [(48, 64, 3)] * 6


TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # ITU-R BT.2087


def pq(nits):
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(scene):
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 0.1)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


SEEN = {50: 142, 203: 231, 1000: 255}  # nits: their value on a screen of 203 by BT.2390's curve and a gamma of 2.4


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_brought_into_the_range_of_an_ordinary_screen(tmp_path, transfer):
    def see(rgb):
        """What is seen of a light in nits of BT.709's red, green and blue."""
        light = TO_2020 @ rgb
        if transfer == 18:  # the inverse of BT.2100's OOTF for a screen of 1,000 nits
            light = light / 1000 * max(light @ (0.2627, 0.6780, 0.0593) / 1000, 1e-9) ** (1 / 1.2 - 1)
        planes = to_yuv((pq if transfer == 16 else hlg)(light), 9, bits=10)
        frame = flat(planes, pixels="yuv420p10le", colorspace=9, color_range=1, color_trc=transfer, color_primaries=9)
        path = encode(tmp_path / "a.mp4", [frame])
        assert any("HDR" in note and "tone-mapped" in note for note in VideoReader(path).notes)
        return first_pixel(path)

    for nits, value in SEEN.items():
        assert np.abs(see(np.full(3, nits)) - value).max() <= 2
    assert see(np.zeros(3)).max() <= 2
    assert np.abs(see(np.array([60, 20, 20])) - (154, 97, 97)).max() <= 3  # 255 * (nits / 203) ** (1 / 2.4)


def turn(path, a, b, c, d):
    """Write the display matrix into an MP4."""
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44  # version 0, ISO/IEC 14496-12, section 8.3.2
    struct.pack_into(">9i", data, place, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "matrix", [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [(0, s, t, 0) for s in (1, -1) for t in (1, -1)]
)
def test_turned_and_mirrored(tmp_path, matrix):
    a, b, c, d = matrix
    turn(make(tmp_path / "a.mp4", frames=2), *matrix)
    y, x = np.mgrid[:96, :160]
    columns, rows = a * x + c * y, b * x + d * y  # where each pixel goes
    expected = np.zeros((np.ptp(rows) + 1, np.ptp(columns) + 1, 3))
    expected[rows - rows.min(), columns - columns.min()] = picture(0, 96, 160)
    video = VideoReader(tmp_path / "a.mp4")
    assert (video.height, video.width) == expected.shape[:2]
    assert np.abs(next(iter(video)).image - expected).mean() < 12


def test_a_picture_turned_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, 96, 160)).save(tmp_path / "a.jpg", exif=exif)
    video = VideoReader(tmp_path / "a.jpg")
    assert np.abs(next(iter(video)).image.astype(int) - np.rot90(picture(0, 96, 160), -1)).mean() < 12


def sounding(path, codec="pcm_s16le", rate=48000, layout="stereo", start=0.0):
    """A second of grey picture with a tone."""
    with av.open(str(path), "w") as file:
        video, audio = file.add_stream("libx264", rate=10), file.add_stream(codec, rate=rate, layout=layout)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for i in range(10):
            frame = flat((90, 128, 128))
            frame.pts, frame.time_base = i + round(10 * start), Fraction(1, 10)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        wave = (9000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
        tone = av.AudioFrame.from_ndarray(wave.repeat(audio.layout.nb_channels)[None], format="s16", layout=layout)
        tone.sample_rate, tone.pts, tone.time_base = rate, round(start * rate), Fraction(1, rate)
        for piece in av.AudioResampler(audio.format.name, layout, rate).resample(tone):
            file.mux(audio.encode(piece))
        file.mux(audio.encode(None))
    return path


SOUNDS = {
    "192k.mkv": {"rate": 192000},
    "8k.mkv": {"rate": 8000, "layout": "mono"},
    "wide.mkv": {"layout": "5.1.2"},
    "8k_mp3.mkv": {"codec": "libmp3lame", "rate": 8000, "layout": "mono"},  # which an MP4 does not take as it is
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_of_every_rate_and_layout_is_carried(tmp_path, name):
    video = copy(sounding(tmp_path / name, **SOUNDS[name]), tmp_path / "out.mp4")
    heard = times_of(tmp_path / "out.mp4", "audio")
    assert video.notes == [] and len(times_of(tmp_path / "out.mp4")) == 10
    assert heard[0] == pytest.approx(0, abs=0.05) and heard[-1] == pytest.approx(1, abs=0.2)


def test_sound_that_cannot_be_carried_costs_no_picture(tmp_path):
    video = copy(sounding(tmp_path / "a.mkv", layout="9C"), tmp_path / "out.mp4")  # nine channels without places
    assert "cannot be converted" in video.notes[0] and not VideoReader(tmp_path / "out.mp4").sound
    assert len(times_of(tmp_path / "out.mp4")) == 10


def test_sound_that_changes_on_the_way(tmp_path):
    first, later = sounding(tmp_path / "1.ts", "mp2"), sounding(tmp_path / "2.ts", "mp2", 44100, "mono", 1.5)
    (tmp_path / "a.ts").write_bytes(first.read_bytes() + later.read_bytes())
    video = copy(tmp_path / "a.ts", tmp_path / "out.mp4")
    assert len(times_of(tmp_path / "out.mp4")) == 20 and video.notes == []
    end = times_of(tmp_path / "out.mp4")[-1] + 0.1
    assert times_of(tmp_path / "out.mp4", "audio")[-1] == pytest.approx(end, abs=0.05)  # the pause is kept


def test_sound_that_an_mp4_refuses_midway(tmp_path):
    part = sounding(tmp_path / "1.ts", "aac").read_bytes()
    (tmp_path / "a.ts").write_bytes(part + part)  # its clock starts again
    video = copy(tmp_path / "a.ts", tmp_path / "out.mp4")
    assert len(times_of(tmp_path / "out.mp4")) == 20
    assert "sound that is left out in part" in video.notes[0]
    assert times_of(tmp_path / "out.mp4", "audio")[-1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.mov", "a.ts", "a.mpg"])
def test_a_late_start_is_nothing_missing(tmp_path, name):
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4", "a.mpg": "mpeg2video"}.get(name, "libx264")
    with av.open(str(tmp_path / name), "w") as file:
        video = file.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for i in range(100, 150):
            frame = flat((90, 128, 128))
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    video = VideoReader(tmp_path / name)
    assert len(list(video)) == len(video) == 50 and video.notes == []


def test_an_edit_list_leaves_frames_out_without_a_word(tmp_path):
    whole = make(tmp_path / "whole.mp4", frames=100)
    with (
        av.open(str(whole)) as file,
        av.open(str(tmp_path / "a.mp4"), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        stream = file.streams.video[0]
        target, shift = out.add_stream_from_template(stream), round(7 / stream.time_base)
        for packet in file.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                out.mux(packet)
    video = VideoReader(tmp_path / "a.mp4")
    assert len(list(video)) == len(video) == 30 and video.notes == []


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("a.mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("a.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    ],
)
@pytest.mark.parametrize("sound", [None, "aac"])
def test_a_file_without_an_index_that_was_cut_off_is_named(tmp_path, name, more, sound):
    content = make(tmp_path / name, frames=60, sound=sound, **more).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    video = VideoReader(tmp_path / name)
    assert 20 < len(list(video)) < 60 and "breaks off" in video.notes[0]


@pytest.mark.parametrize("default", [False, True])
def test_a_cover_is_not_the_film(tmp_path, default):
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        cover, film, audio = (
            file.add_stream("mjpeg", rate=1),
            file.add_stream("libx264", rate=10),
            file.add_stream("pcm_s16le", rate=48000),
        )
        for stream, kind in ((cover, "yuvj420p"), (film, "yuv420p")):
            stream.width, stream.height, stream.pix_fmt = 64, 48, kind
        cover.disposition = Disposition.default if default else 0
        still = flat((200, 128, 128), pixels="yuvj420p")
        still.pts, still.time_base = 0, Fraction(1)
        file.mux(cover.encode(still))
        for i in range(10):
            frame = flat((90, 128, 128))
            frame.pts, frame.time_base = i, Fraction(1, 10)
            file.mux(film.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 48000), np.int16), format="s16", layout="stereo")
        silence.sample_rate, silence.pts = 48000, 0
        file.mux(audio.encode(silence))
        for stream in (cover, film, audio):
            file.mux(stream.encode(None))
    video = copy(tmp_path / "a.mkv", tmp_path / "out.mp4")
    assert len(list(video)) == len(video) == 10 and first_pixel(tmp_path / "a.mkv").max() < 120
    assert VideoReader(tmp_path / "out.mp4").sound


def test_any_name_is_a_file(tmp_path, monkeypatch):
    source, moving = make(tmp_path / "a.mov", sound="pcm_s16le"), make(tmp_path / "a.gif", **KINDS["a.gif"])
    (tmp_path / "names").mkdir()
    monkeypatch.chdir(tmp_path / "names")
    names = [
        "100%.mov",
        "img%03d.mov",
        "a?#b.mov",
        "-i.mov",
        "file:x.mov",
        "concat:a|b.mov",
        "~a: b\nc.mov",
        "img%03d.gif",
    ]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"\xff\xfe.mov"))
    for name in names:
        shutil.copy(moving if name.endswith("gif") else source, name)
        video = copy(name, f"out {name}.mp4")
        assert [frame.index for frame in video.backwards(15)] == list(range(14, -1, -1))
        again = VideoReader(f"out {name}.mp4")
        assert len(open_clip(name)) == FRAMES
        assert len(again) == len(video) == FRAMES and again.sound == video.sound and video.notes == []


STOPS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
sys.path[:0] = [{root!r}]
from helpers.common.threads import read_ahead
from helpers.segment.video import VideoReader, VideoWriter
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
