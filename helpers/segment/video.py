"""Video files in and out, through PyAV, whose wheels bring FFmpeg's codecs along.

video = VideoReader("clip.mov")
with VideoWriter("overlay.mp4", video) as out:     # H.264 that browsers play, timing and sound as in the clip
    for frame in read_ahead(video):
        out.write(draw(frame.image), frame.pts)
"""

from __future__ import annotations

import bisect
import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
import numpy as np
from PIL import Image

from helpers.common.files import atomic_path

Item = TypeVar("Item")

_BACKWARDS_BYTES = 2**27  # of frames that are decoded at once on the way back
_COPIED_SOUND = {"aac", "mp3"}  # what every browser plays in an MP4; any other sound is encoded anew
_BT709 = 1  # matrix, primaries and transfer function alike, in FFmpeg's numbers
_LIMITED_RANGE = 1


class VideoError(ValueError):
    """A file that holds no video, or none that can be read."""


class VideoFormat(Protocol):
    """What a new video takes over from another one; a `VideoReader` has all of it."""

    path: Path
    notes: list[str]
    width: int
    height: int
    fps: float
    time_base: Fraction
    aspect: Fraction
    start: Fraction
    sound: bool


@dataclass(frozen=True)
class Silent:
    """The format of a video without sound that is no copy of any: square pixels, a frame each 1 / `fps` seconds."""

    width: int
    height: int
    fps: int
    path: Path = Path()
    notes: list[str] = field(default_factory=list)
    aspect: Fraction = Fraction(1)
    start: Fraction = Fraction(0)
    sound: bool = False

    @property
    def time_base(self) -> Fraction:
        return Fraction(1, self.fps)


@dataclass(frozen=True)
class Frame:
    """`image` is uint8 RGB [H, W, 3], upright; `pts` its time in units of the reader's `time_base`; `time` the same in
    seconds from the file's start."""

    index: int
    pts: int
    time: float
    image: np.ndarray


class VideoReader:
    """The frames of the first video stream of a file, decoded as they are asked for; iterate as often as needed.

    `width` and `height` are those of the upright image, in pixels; `fps` the average; `time_base` the unit of time in
    seconds; `frames` how many the file announces by its packets; `sound` says whether it has any. `notes` grows while
    reading, by a sentence for what is damaged or missing: the frames that can be decoded are handed over all the same.

    Raises `FileNotFoundError`, or `VideoError` for a file in which no frame of a video can be found.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self.notes: list[str] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Give the path of a video.")
        with self._open() as container:
            stream = container.streams.video[0]
            self.sound = any(audio.codec_context for audio in container.streams.audio)
            self.time_base: Fraction = stream.time_base
            self.fps = float(stream.average_rate or stream.guessed_rate or 25)
            self.aspect = stream.sample_aspect_ratio or Fraction(1)  # of a pixel
            self.start = Fraction(container.start_time or 0, av.time_base)  # seconds
            first = next(self._decode(container), None)
            if first is None:
                raise VideoError(f"{path} holds no frame that can be decoded. Is it a whole video file?")
            self._size = (first.width, first.height)
            self.height, self.width = self._upright(first).shape[:2]
            if first.rotation % 180:
                self.aspect = 1 / self.aspect
        self.notes.clear()  # what is damaged is found again, in its place
        with self._open() as container:
            if container.streams.audio and not self.sound:
                self._note(f"{self.path.name}: its sound is of a kind that FFmpeg cannot decode, and is left out")
            self._pts = [packet.pts for packet in self._packets(container) if packet.size and not packet.is_discard]
            self._compare_with_header(container)
        self.frames = max(1, len(self._pts))
        known = None not in self._pts and len(set(self._pts)) == len(self._pts)
        self._pts = sorted(self._pts) if known else []  # without them frames are counted instead

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order."""
        with self._open() as container:
            yield from self._number(self._decode(container), 0)

    def backwards(self, start: int) -> Iterator[Frame]:
        """The frames `start` - 1, ..., 0, a few at a time decoded from the last key frame before them on."""
        step = max(1, min(32, _BACKWARDS_BYTES // (3 * self.width * self.height)))
        for stop in range(start, 0, -step):
            yield from reversed(list(self._between(max(0, stop - step), stop)))

    def _between(self, start: int, stop: int) -> Iterator[Frame]:
        with self._open() as container:
            frames = self._after_seek(container, start) if self._pts else None
            if frames is None:
                frames = iter(self)
            for frame in frames:
                if frame.index >= stop:
                    break
                if frame.index >= start:
                    yield frame

    def _after_seek(self, container, start: int) -> Iterator[Frame] | None:
        """Frames from a key frame at or before `start` on; `None` where the file cannot be searched."""
        try:
            container.seek(self._pts[start], stream=container.streams.video[0])
            decoded = self._decode(container)
            first = next(decoded, None)
        except av.FFmpegError:
            return None
        if first is None or first.pts is None or first.pts > self._pts[start] or first.pts not in self._pts:
            return None
        index = bisect.bisect_left(self._pts, first.pts)
        return self._number(_chain(first, decoded), index)

    def _compare_with_header(self, container) -> None:
        announced = container.streams.video[0].frames
        if announced > len(self._pts) + max(2, announced // 50):  # some headers count a frame too many
            self._note(f"{self.path.name} breaks off: it has {len(self._pts)} of the {announced} frames announced")
        elif container.duration and not announced:
            end = max((pts for pts in self._pts if pts is not None), default=0) * self.time_base - self.start
            seconds = container.duration / av.time_base
            if end + max(1, seconds / 20) < seconds:
                self._note(f"{self.path.name}: the pictures end after {float(end):.1f} of {seconds:.1f} s")

    def _open(self):
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{self.path} is no video that FFmpeg can read: {reason}. Is the file whole?") from error
        if not container.streams.video:
            container.close()
            raise VideoError(f"{self.path} has no video stream ({container.format.long_name}). Give a video.")
        return container

    def _packets(self, container) -> Iterator[av.Packet]:
        """Ends where the file does, however it does."""
        packets = container.demux(container.streams.video[0])
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.EOFError):
                return
            except av.FFmpegError as error:
                self._note(f"{self.path.name} breaks off: {error.strerror}")
                return
            yield packet

    def _decode(self, container) -> Iterator[av.VideoFrame]:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for packet in self._packets(container):
            with contextlib.suppress(av.error.EOFError):
                try:
                    yield from packet.decode()
                except av.error.EOFError:
                    raise
                except av.FFmpegError as error:
                    self._note(f"{self.path.name} is damaged: {error.strerror}")

    def _number(self, decoded: Iterator[av.VideoFrame], index: int) -> Iterator[Frame]:
        last = None
        for index, frame in enumerate(decoded, index):  # noqa: B020
            pts = frame.pts
            if pts is None:
                pts = round((Fraction(index) / Fraction(self.fps) + self.start) / self.time_base)
            pts = pts if last is None else max(pts, last + 1)
            last = pts
            yield Frame(index, pts, float(pts * self.time_base - self.start), self._upright(frame))

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        if (frame.width, frame.height) != self._size:  # some streams change on the way
            frame = frame.reformat(*self._size)
        image = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _chain(first: Item, rest: Iterator[Item]) -> Iterator[Item]:
    yield first
    yield from rest


def read_ahead(items: Iterable[Item], depth: int = 3) -> Iterator[Item]:
    """The same items, up to `depth` of them made on another thread while the last one is in use."""
    items, end = iter(items), object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        with contextlib.suppress(AttributeError):
            items.close()  # of a generator


class VideoWriter:
    """An MP4 with the timing, the shape of the pixels and the sound of `like`: H.264, yuv420p, playable while it loads.

    A context manager. The file is written under another name and takes its own at the end, also after an error or an
    interrupt, with what was written by then; after none at all, nothing is left. An odd side gets a pixel more, since
    the format wants even ones. `quality` is x264's CRF: lower is better and larger. `frames` counts what was written.
    """

    def __init__(self, path: Path | str, like: VideoFormat, quality: int = 20) -> None:
        self.path, self.frames = Path(path), 0
        self._like, self._quality = like, quality
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._file = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
            )
            like = self._like
            self._video = self._file.add_stream("libx264", rate=Fraction(like.fps).limit_denominator(1001))
            context = self._video.codec_context
            context.width, context.height = like.width + like.width % 2, like.height + like.height % 2
            context.pix_fmt, context.time_base = "yuv420p", like.time_base
            context.sample_aspect_ratio = like.aspect
            # without mbtree the same frames give the same file each time
            context.options = {"crf": str(self._quality), "preset": "veryfast", "x264-params": "mbtree=0"}
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            self._sound = stack.enter_context(_Sound(like, self._file)) if like.sound else None
            self._offset = round(like.start / like.time_base)
            self._cleanup = stack.pop_all()
        return self

    def write(self, image: np.ndarray, pts: int) -> None:
        """Add a frame, uint8 RGB [H, W, 3] of the reader's size, to be shown from `pts` on, later than the last one."""
        height, width = self._like.height, self._like.width
        if image.dtype != np.uint8 or image.shape != (height, width, 3):
            raise ValueError(f"a frame is {image.dtype} {list(image.shape)}, expected uint8 {[height, width, 3]}")
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = pts - self._offset, self._like.time_base
        self._file.mux(self._video.encode(frame))
        self.frames += 1
        if self._sound:
            self._sound.write_until(pts * self._like.time_base)

    def __exit__(self, kind, error, trace) -> None:
        if not self.frames:
            nothing = error or VideoError(f"{self.path}: no frame was written")
            self._cleanup.__exit__(type(nothing), nothing, trace)
            if error is None:
                raise nothing
            return
        with self._cleanup:
            if self._sound and error is None:
                self._sound.write_until(None)
            self._file.mux(self._video.encode(None))


class _Sound:
    """The first sound of a file that can be decoded, given to an MP4 in step with its frames."""

    def __init__(self, video: VideoFormat, out: av.container.OutputContainer) -> None:
        self._start, self._notes, self._out = video.start, video.notes, out
        self._in = av.open(str(video.path))
        self._stream = next(stream for stream in self._in.streams.audio if stream.codec_context)
        context = self._stream.codec_context
        self._copied = context.codec.canonical_name in _COPIED_SOUND
        if self._copied:
            self._target = out.add_stream_from_template(self._stream)
        else:
            self._target = out.add_stream("aac", rate=context.sample_rate)
            self._target.codec_context.layout = "stereo" if context.channels > 1 else "mono"
            self._resampler = av.AudioResampler("fltp", self._target.codec_context.layout, context.sample_rate)
        self._packets = self._read()
        self._next = next(self._packets, None)

    def __enter__(self) -> _Sound:
        return self

    def __exit__(self, *_) -> None:
        if not self._copied:
            self._out.mux(self._target.encode(None))
        self._in.close()

    def write_until(self, seconds: Fraction | None) -> None:
        """Write what is heard before `seconds` on the file's clock, or all that is left."""
        while self._next is not None and (seconds is None or self._next.pts * self._next.time_base < seconds):
            packet, self._next = self._next, next(self._packets, None)
            offset = round(self._start / packet.time_base)
            if self._copied:
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = self._target
                self._out.mux(packet)
                continue
            with contextlib.suppress(av.FFmpegError):  # a damaged packet is a click, no more
                for frame in packet.decode():
                    frame.pts = None if frame.pts is None else frame.pts - offset
                    for piece in self._resampler.resample(frame):
                        self._out.mux(self._target.encode(piece))

    def _read(self) -> Iterator[av.Packet]:
        try:
            for packet in self._in.demux(self._stream):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    yield packet
        except av.FFmpegError as error:
            self._notes.append(f"the sound breaks off: {error.strerror}")


def player(path: Path | str, most_bytes: int = 6 * 2**20) -> Any:
    """A player for a notebook that carries the video within itself, so that it plays wherever the notebook is opened.

    A file of more than `most_bytes` is shown as a preview: half the size, coarser, and as much of it as fits.
    """
    from IPython.display import Video

    path = Path(path)
    if path.stat().st_size > most_bytes:
        path = _preview(path, most_bytes)
    return Video(data=path.read_bytes(), mimetype="video/mp4", embed=True, html_attributes="controls loop muted")


def _preview(path: Path, most_bytes: int) -> Path:
    """Write the preview beside the video and return its path."""
    video, out = VideoReader(path), path.with_name(f"{path.stem}_preview.mp4")
    width, height = max(2, video.width // 4 * 2), max(2, video.height // 4 * 2)
    small = Silent(width, height, max(1, round(video.fps)))
    length = len(video)
    while True:
        with VideoWriter(out, small, quality=32) as writer:
            for frame in video:
                if frame.index == length:
                    break
                image = np.array(Image.fromarray(frame.image).resize((width, height), reducing_gap=2.0))
                writer.write(image, frame.index)
        size = out.stat().st_size
        if size <= most_bytes or length == 1:
            return out
        length = max(1, int(0.9 * length * most_bytes / size))


def save_first_frame(path: Path | str, image: Path) -> Path:
    """Write the first frame of a video as the PNG file `image`, and return that."""
    with atomic_path(image) as temporary:
        Image.fromarray(next(iter(VideoReader(path))).image).save(temporary)
    return image


def spread_frames(path: Path | str, count: int) -> list[Frame]:
    """Up to `count` frames of a video, spread evenly over its length, the first and the last among them."""
    video = VideoReader(path)
    wanted = set(np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int).tolist())
    return [frame for frame in video if frame.index in wanted]
