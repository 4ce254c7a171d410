"""Video files in and out, through PyAV, whose wheels bring FFmpeg's codecs along."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.stream import Disposition

from helpers.common.files import atomic_path
from helpers.common.images import expand
from helpers.segment.colours import HDR, FrameConverter, orientation
from helpers.segment.media import is_cut, open_media
from helpers.segment.sound import carry_sound

_BACKWARDS_BYTES = 2**27  # of frames that are decoded at once on the way back


class VideoError(ValueError):
    """A file that holds no video, or none that can be read."""


class Silent:
    """Size in pixels and frames/s of a video without sound, for a `VideoWriter` without a `VideoReader`."""

    aspect, start, sound = Fraction(1), Fraction(0), False

    def __init__(self, width: int, height: int, fps: int) -> None:
        self.width, self.height, self.fps, self.time_base = width, height, fps, Fraction(1, fps)


class Frame(NamedTuple):
    """A picture of a video."""

    index: int
    pts: int  # its time in units of the reader's `time_base`
    time: float  # seconds from the file's start
    image: np.ndarray  # uint8 RGB [H, W, 3], upright


class VideoReader:
    """The frames of a file's film, decoded as they are asked for; iterate as often as needed.

    `width` and `height` are those of the upright image, in pixels; `fps` the average; the length is what the file
    announces by its packets. `notes` grows while reading, by a sentence for what is damaged, missing or shown other
    than it is stored; the frames that can be decoded come all the same. Raises `FileNotFoundError`, or `VideoError`
    where no frame can be found.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path) if Path(path).is_file() else expand(path)
        self.notes: list[str] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Give the path of a video.")
        with self._open() as container:
            self._index = self._choose(container)
            stream, first, pts, stored = container.streams[self._index], None, [], 0
            for packet in self._packets(container):
                if packet.size:
                    stored, cut = stored + 1, packet.is_corrupt
                if packet.size and not packet.is_discard:  # some files are meant to be shown in part
                    pts.append(packet.pts)
                first = first or next(self._decode([packet]), None)
            if first is None:
                raise VideoError(f"{path} holds no frame that can be decoded. Is it a whole video file?")
            self.time_base: Fraction = stream.time_base  # seconds
            self.fps = float(stream.average_rate or stream.guessed_rate or 25)
            self.start = Fraction(container.start_time or 0, av.time_base)  # seconds
            self._stored = first.width, first.height, orientation(first)
            swapped = self._stored[2][0]
            self.width, self.height = (first.height, first.width) if swapped else (first.width, first.height)
            self.aspect = (stream.sample_aspect_ratio or Fraction(1)) ** (-1 if swapped else 1)  # pixels'
            self._length = max(1, len(pts))
            # without distinct times frames are counted instead
            self._pts = sorted(pts) if None not in pts and len(set(pts)) == len(pts) else []
            self.notes.clear()  # what is damaged is found again, in its place
            self._compare_with_header(container, stored, max((one for one in pts if one is not None), default=0))
            if not self.notes and (cut or is_cut(self.path)):
                self.note("breaks off: its last part is not whole")
            if first.color_trc in HDR:
                self.note(f"is HDR ({HDR[first.color_trc]}), tone-mapped to the range of an ordinary screen")
            self.sound = any(audio.codec_context for audio in container.streams.audio)
            if container.streams.audio and not self.sound:
                self.note("has sound of a kind that FFmpeg cannot decode, which is left out")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Frame]:
        return self._frames(0)

    def backwards(self, start: int) -> Iterator[Frame]:
        """The frames `start` - 1, ..., 0, a few at a time decoded from the last key frame before them on."""
        step = max(1, min(32, _BACKWARDS_BYTES // (3 * self.width * self.height)))
        for stop in range(start, 0, -step):
            frames = itertools.takewhile(lambda frame, stop=stop: frame.index < stop, self._frames(max(0, stop - step)))
            yield from reversed([frame for frame in frames if frame.index >= stop - step])

    def _frames(self, start: int) -> Iterator[Frame]:
        """Frames from a key frame at or before `start` on, or all of them where the file cannot be searched."""
        with self._open() as container:
            decoded, before, convert = self._decode(self._packets(container)), 0, FrameConverter(*self._stored)
            if start and self._pts:
                with contextlib.suppress(av.FFmpegError):
                    container.seek(self._pts[start], stream=container.streams[self._index])
                first = next(decoded, None)
                if first is None or first.pts not in self._pts[: start + 1]:
                    yield from self._frames(0)
                    return
                decoded, before = itertools.chain([first], decoded), self._pts.index(first.pts)
            pts = -math.inf
            for index, frame in enumerate(decoded, before):
                counted = round((Fraction(index) / Fraction(self.fps) + self.start) / self.time_base)
                pts = max(counted if frame.pts is None else frame.pts, pts + 1)
                yield Frame(index, pts, float(pts * self.time_base - self.start), convert(frame))

    def _compare_with_header(self, container, stored: int, last: int) -> None:
        stream, seconds = container.streams[self._index], (container.duration or 0) / av.time_base
        if announced := stream.frames:
            end, seconds = last * self.time_base - self.start, (stream.duration or math.inf) * self.time_base
            # some headers count a frame too many, some the pauses, and some what an edit list leaves out
            if announced > stored + max(2, announced // 50) and end + 1.5 / self.fps < seconds:
                self.note(f"breaks off: it has {stored} of the {announced} frames announced")
        else:
            end = last * self.time_base - min(self.start, 0)  # Matroska's duration includes what precedes the start
            if end + max(1, seconds / 20) < seconds:
                self.note(f"has pictures for {float(end):.1f} of its {seconds:.1f} s only")

    def _open(self):
        try:
            container = open_media(self.path)
        except av.FFmpegError as error:
            raise VideoError(f"{self.path} is no video that FFmpeg can read: {error.strerror}. Is it whole?") from error
        # without a decoder there is no context; older versions of PyAV crash if such a stream is decoded
        if not any(stream.codec_context for stream in container.streams.video):
            kind = "that can be decoded " if container.streams.video else ""
            raise VideoError(f"{self.path} has no video stream {kind}({container.format.long_name}). Give a video.")
        return container

    def _choose(self, container) -> int:
        """The index of the film: the default video stream or else the first, but no cover picture and nothing short."""
        videos = [one for one in container.streams.video if one.codec_context]
        videos = [one for one in videos if not one.disposition & Disposition.attached_pic] or videos
        if len(videos) == 1:
            return videos[0].index
        counts = Counter()
        with self._open() as again, contextlib.suppress(av.FFmpegError):
            packets = again.demux(*(again.streams[one.index] for one in videos))
            counts.update(packet.stream_index for packet in packets if packet.size)
        long = [one for one in videos if 2 * counts[one.index] >= max(counts[other.index] for other in videos)]
        return max(long, key=lambda one: bool(one.disposition & Disposition.default)).index

    def _packets(self, container) -> Iterator[av.Packet]:
        """The packets of the film; a damaged end is noted, not raised."""
        stream = container.streams[self._index]
        stream.thread_type = "AUTO"
        try:
            yield from container.demux(stream)
        except av.FFmpegError as error:
            self.note(f"breaks off: {error.strerror}")

    def _decode(self, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self.note(f"is damaged: {error.strerror}")

    def note(self, text: str) -> None:
        """Add a sentence about the file to `notes`, once."""
        if (note := f"{self.path.name} {text}") not in self.notes:
            self.notes.append(note)


class VideoWriter:
    """An MP4 with the timing, the shape of the pixels and the sound of `like`: H.264, yuv420p, playable while it loads.

    The file takes its name at the end, also after an error or an interrupt, with the `frames` written by then; without
    any nothing is left. An odd side gets a pixel more. `quality` is x264's CRF: lower is better and larger.
    """

    def __init__(self, path: Path | str, like: VideoReader | Silent, quality: int = 20) -> None:
        self.path, self.frames = Path(path), 0
        self._like, self._quality = like, quality

    def __enter__(self) -> VideoWriter:
        like = self._like
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            options = {"movflags": "+faststart"}
            self._file = stack.enter_context(open_media(temporary, "w", "mp4", options=options))
            self._video = self._file.add_stream("libx264", rate=Fraction(like.fps).limit_denominator(1001))
            context = self._video.codec_context
            context.width, context.height = like.width + like.width % 2, like.height + like.height % 2
            context.time_base, context.sample_aspect_ratio, context.pix_fmt = like.time_base, like.aspect, "yuv420p"
            # without mbtree the same frames give the same file each time
            context.options = {"crf": str(self._quality), "preset": "veryfast", "x264-params": "mbtree=0"}
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, in FFmpeg's numbers
            context.color_range = 1  # limited
            self._sound = stack.enter_context(contextlib.closing(carry_sound(like, self._file)))
            self._heard = next(self._sound, math.inf)  # adds its stream, which has to be before the first frame
            self._cleanup = stack.pop_all()
        return self

    def write(self, image: np.ndarray, pts: int) -> None:
        """Add a frame, uint8 RGB [H, W, 3] of the reader's size, to be shown from `pts` on, later than the last one."""
        like = self._like
        image = cv2.copyMakeBorder(image, 0, like.height % 2, 0, like.width % 2, cv2.BORDER_REPLICATE)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = pts - round(like.start / like.time_base), like.time_base
        self._file.mux(self._video.encode(frame))
        self.frames += 1
        while self._heard < pts * like.time_base:
            self._heard = next(self._sound, math.inf)

    def __exit__(self, kind, error, trace) -> None:
        with self._cleanup:
            if not self.frames:
                raise error or VideoError(f"{self.path}: no frame was written")
            if error is None:
                deque(self._sound, maxlen=0)  # the rest of it
            self._file.mux(self._video.encode(None))
