"""Video files in and out, through PyAV, whose wheels bring FFmpeg's codecs along.

video = VideoReader("clip.mov")
with VideoWriter("overlay.mp4", video) as out:     # H.264 that browsers play, timing and sound as in the clip
    for frame in read_ahead(video):
        out.write(draw(frame.image), frame.pts)
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

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


@dataclass(frozen=True)
class Silent:
    """The format of a video without sound, of square pixels, with a frame each 1 / `fps` seconds; a `VideoReader` has
    the same attributes, which are what a `VideoWriter` takes over."""

    width: int
    height: int
    fps: int
    aspect, start, sound = Fraction(1), Fraction(0), False

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
            wanted = range(max(0, stop - step), stop)
            with self._open() as container:
                frames = itertools.takewhile(lambda frame: frame.index < stop, self._after_seek(container, wanted[0]))  # noqa: B023
                few = [frame for frame in frames if frame.index in wanted]
            yield from reversed(few)

    def _after_seek(self, container, start: int) -> Iterator[Frame]:
        """Frames from a key frame at or before `start` on, or all of them where the file cannot be searched."""
        with contextlib.suppress(av.FFmpegError, IndexError):
            container.seek(self._pts[start], stream=container.streams.video[0])
            decoded = self._decode(container)
            first = next(decoded, None)
            if first is not None and first.pts in self._pts[: start + 1]:
                return self._number(itertools.chain([first], decoded), self._pts.index(first.pts))
        return iter(self)

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
        with self._noting("breaks off"):
            yield from container.demux(container.streams.video[0])

    def _decode(self, container) -> Iterator[av.VideoFrame]:
        container.streams.video[0].thread_type = "AUTO"
        for packet in self._packets(container):
            with self._noting("is damaged"):
                yield from packet.decode()

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            if not isinstance(error, EOFError):
                self._note(f"{self.path.name} {what}: {error.strerror}")

    def _number(self, decoded: Iterator[av.VideoFrame], index: int) -> Iterator[Frame]:
        pts = -math.inf
        for index, frame in enumerate(decoded, index):  # noqa: B020
            counted = round((Fraction(index) / Fraction(self.fps) + self.start) / self.time_base)
            pts = max(counted if frame.pts is None else frame.pts, pts + 1)
            yield Frame(index, pts, float(pts * self.time_base - self.start), self._upright(frame))

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        if (frame.width, frame.height) != self._size:  # some streams change on the way
            frame = frame.reformat(*self._size)
        image = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, up to three of them made on another thread while the last one is in use."""
    items, end = iter(items), object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(3))
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

    def __init__(self, path: Path | str, like: VideoReader | Silent, quality: int = 20) -> None:
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
            self._sound = stack.enter_context(contextlib.closing(_sound(like, self._file))) if like.sound else iter(())
            self._heard = next(self._sound, None)  # adds its stream, which has to be before the first frame
            self._cleanup = stack.pop_all()
        return self

    def write(self, image: np.ndarray, pts: int) -> None:
        """Add a frame, uint8 RGB [H, W, 3] of the reader's size, to be shown from `pts` on, later than the last one."""
        like = self._like
        if image.dtype != np.uint8 or image.shape != (like.height, like.width, 3):
            expected = [like.height, like.width, 3]
            raise ValueError(f"a frame is {image.dtype} {list(image.shape)}, expected uint8 {expected}")
        if like.height % 2 or like.width % 2:
            image = np.pad(image, ((0, like.height % 2), (0, like.width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = pts - round(like.start / like.time_base), like.time_base
        self._file.mux(self._video.encode(frame))
        self.frames += 1
        self._hear_until(pts * like.time_base)

    def _hear_until(self, seconds: float | Fraction) -> None:
        """Write the sound before `seconds` on the clock of the file that it comes from."""
        while self._heard and self._heard[0] < seconds:
            self._file.mux(self._heard[1])
            self._heard = next(self._sound, None)

    def __exit__(self, kind, error, trace) -> None:
        if not self.frames:
            error = error or VideoError(f"{self.path}: no frame was written")
            self._cleanup.__exit__(type(error), error, trace)
            raise error
        with self._cleanup:
            if error is None:
                self._hear_until(math.inf)
            self._file.mux(self._video.encode(None))


def _sound(video: VideoReader, out: av.container.OutputContainer) -> Iterator[tuple[Fraction, list[av.Packet]]]:
    """The first sound of a file that can be decoded: its times in seconds, and packets of it for the MP4 `out`."""
    with av.open(str(video.path)) as file:
        stream = next(stream for stream in file.streams.audio if stream.codec_context)
        context = stream.codec_context
        copied = context.codec.canonical_name in _COPIED_SOUND
        if copied:
            target = out.add_stream_from_template(stream)
        else:
            target = out.add_stream("aac", rate=context.sample_rate)
            target.codec_context.layout = "stereo" if context.channels > 1 else "mono"
        try:
            for packet in file.demux(stream):
                if not packet.size or packet.pts is None or packet.dts is None:
                    continue
                seconds, offset = packet.pts * packet.time_base, round(video.start / packet.time_base)
                packet.pts, packet.dts, packets = packet.pts - offset, packet.dts - offset, []
                if copied:
                    packet.stream = target
                    packets = [packet]
                else:
                    with contextlib.suppress(av.FFmpegError):  # a damaged packet is a click, no more
                        packets = [piece for frame in packet.decode() for piece in target.encode(frame)]
                yield seconds, packets
        except av.FFmpegError as error:
            video.notes.append(f"the sound breaks off: {error.strerror}")
        finally:  # also where the writer closes it early
            if not copied:
                out.mux(target.encode(None))


PLAYER_BYTES = 6 * 2**20


def player(path: Path | str) -> Any:
    """A player for a notebook that carries the video within itself, so that it plays wherever the notebook is opened.

    A file of more than `PLAYER_BYTES` is shown as a preview: half the size, coarser, and as much of it as fits.
    """
    from IPython.display import Video

    path = Path(path)
    if path.stat().st_size > PLAYER_BYTES:
        path = _preview(path)
    return Video(data=path.read_bytes(), mimetype="video/mp4", embed=True, html_attributes="controls loop muted")


def _preview(path: Path) -> Path:
    """Write the preview beside the video and return its path."""
    video, out = VideoReader(path), path.with_name(f"{path.stem}_preview.mp4")
    small = Silent(max(2, video.width // 4 * 2), max(2, video.height // 4 * 2), max(1, round(video.fps)))
    length = len(video)
    while True:
        with VideoWriter(out, small, quality=32) as writer:
            for frame in itertools.islice(video, length):
                image = Image.fromarray(frame.image).resize((small.width, small.height), reducing_gap=2.0)
                writer.write(np.array(image), frame.index)
        size = out.stat().st_size
        if size <= PLAYER_BYTES or length == 1:
            return out
        length = max(1, int(0.9 * length * PLAYER_BYTES / size))


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
