"""Video files in and out, through PyAV, whose wheels bring FFmpeg's codecs along."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from PIL import Image

from helpers.common.files import atomic_path

PLAYER_BYTES = 6 * 2**20  # of a video within a notebook
_BACKWARDS_BYTES = 2**27  # of frames that are decoded at once on the way back
_COPIED_SOUND = {"aac", "mp3"}  # what every browser plays in an MP4; any other sound is encoded anew


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
    """The frames of the first video stream of a file, decoded as they are asked for; iterate as often as needed.

    `width` and `height` are those of the upright image, in pixels; `fps` the average; the length is what the file
    announces by its packets. `notes` grows while reading, by a sentence for what is damaged or missing; the frames that
    can be decoded come all the same. Raises `FileNotFoundError`, or `VideoError` where no frame can be found.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self.notes: list[str] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Give the path of a video.")
        with self._open() as container:
            stream, first, pts = container.streams.video[0], None, []
            for packet in self._packets(container):
                if packet.size and not packet.is_discard:
                    pts.append(packet.pts)
                first = first or next(self._decode([packet]), None)
            if first is None:
                raise VideoError(f"{path} holds no frame that can be decoded. Is it a whole video file?")
            self.time_base: Fraction = stream.time_base  # seconds
            self.fps = float(stream.average_rate or stream.guessed_rate or 25)
            self.start = Fraction(container.start_time or 0, av.time_base)  # seconds
            self._size = {"width": first.width, "height": first.height}
            self.height, self.width = self._upright(first).shape[:2]
            self.aspect = (stream.sample_aspect_ratio or Fraction(1)) ** (-1 if first.rotation % 180 else 1)  # pixels'
            self._length = max(1, len(pts))
            # without distinct times frames are counted instead
            self._pts = sorted(pts) if None not in pts and len(set(pts)) == len(pts) else []
            self.notes.clear()  # what is damaged is found again, in its place
            self._compare_with_header(container, max((one for one in pts if one is not None), default=0))
            self.sound = any(audio.codec_context for audio in container.streams.audio)
            if container.streams.audio and not self.sound:
                self._note("has sound of a kind that FFmpeg cannot decode, which is left out")

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
            decoded, before = self._decode(self._packets(container)), 0
            if start and self._pts:
                with contextlib.suppress(av.FFmpegError):
                    container.seek(self._pts[start], stream=container.streams.video[0])
                first = next(decoded, None)
                if first is None or first.pts not in self._pts[: start + 1]:
                    yield from self._frames(0)
                    return
                decoded, before = itertools.chain([first], decoded), self._pts.index(first.pts)
            pts = -math.inf
            for index, frame in enumerate(decoded, before):
                counted = round((Fraction(index) / Fraction(self.fps) + self.start) / self.time_base)
                pts = max(counted if frame.pts is None else frame.pts, pts + 1)
                yield Frame(index, pts, float(pts * self.time_base - self.start), self._upright(frame))

    def _compare_with_header(self, container, last: int) -> None:
        announced = container.streams.video[0].frames
        if announced > len(self) + max(2, announced // 50):  # some headers count a frame too many
            self._note(f"breaks off: it has {len(self)} of the {announced} frames announced")
        elif container.duration and not announced:
            end, seconds = last * self.time_base - self.start, container.duration / av.time_base
            if end + max(1, seconds / 20) < seconds:
                self._note(f"has pictures for {float(end):.1f} of its {seconds:.1f} s only")

    def _open(self):
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise VideoError(f"{self.path} is no video that FFmpeg can read: {error.strerror}. Is it whole?") from error
        if not container.streams.video:
            raise VideoError(f"{self.path} has no video stream ({container.format.long_name}). Give a video.")
        container.streams.video[0].thread_type = "AUTO"
        return container

    def _packets(self, container) -> Iterator[av.Packet]:
        """The packets of the film; a damaged end is noted, not raised."""
        try:
            yield from container.demux(container.streams.video[0])
        except av.FFmpegError as error:
            self._note(f"breaks off: {error.strerror}")

    def _decode(self, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self._note(f"is damaged: {error.strerror}")

    def _note(self, text: str) -> None:
        if (note := f"{self.path.name} {text}") not in self.notes:
            self.notes.append(note)

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        image = frame.to_ndarray(format="rgb24", **self._size)  # some streams change their size on the way
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))


def read_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, up to three of them made on another thread while the last one is in use."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(3))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item


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
            self._file = stack.enter_context(av.open(str(temporary), "w", format="mp4", options=options))
            self._video = self._file.add_stream("libx264", rate=Fraction(like.fps).limit_denominator(1001))
            context = self._video.codec_context
            context.width, context.height = like.width + like.width % 2, like.height + like.height % 2
            context.time_base, context.sample_aspect_ratio, context.pix_fmt = like.time_base, like.aspect, "yuv420p"
            # without mbtree the same frames give the same file each time
            context.options = {"crf": str(self._quality), "preset": "veryfast", "x264-params": "mbtree=0"}
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, in FFmpeg's numbers
            context.color_range = 1  # limited
            self._sound = stack.enter_context(contextlib.closing(_sound(like, self._file)))
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


def _sound(video: VideoReader | Silent, out: av.container.OutputContainer) -> Iterator[Fraction]:
    """Write a file's first sound that can be decoded into the MP4 `out`: yields each packet's time before it does."""
    if not video.sound:
        return
    with av.open(str(video.path)) as file:
        stream = next(stream for stream in file.streams.audio if stream.codec_context)
        copied = stream.codec_context.codec.canonical_name in _COPIED_SOUND
        target = out.add_stream_from_template(stream) if copied else out.add_stream("aac")
        try:
            for packet in file.demux(stream):
                if not packet.size or packet.pts is None or packet.dts is None:
                    continue
                yield packet.pts * packet.time_base  # in seconds, on the clock of the file
                offset, packets = round(video.start / packet.time_base), []
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                if copied:
                    packet.stream, packets = target, [packet]
                else:
                    with contextlib.suppress(av.FFmpegError):  # a damaged packet is a click, no more
                        packets = [piece for frame in packet.decode() for piece in target.encode(frame)]
                out.mux(packets)
        except av.FFmpegError as error:
            video.notes.append(f"the sound breaks off: {error.strerror}")
        finally:  # also where the writer closes it early
            if not copied:
                out.mux(target.encode(None))


def player(path: Path | str) -> Any:
    """A player that carries the video within itself, so that it plays wherever the notebook is opened; of more than
    `PLAYER_BYTES` a preview, written beside the file: half the size, coarser, and as much of it as fits."""
    from IPython.display import Video

    shown = path = Path(path)
    video = VideoReader(path)
    width, height, length = max(2, video.width // 4 * 2), max(2, video.height // 4 * 2), len(video)
    while shown.stat().st_size > PLAYER_BYTES:
        shown = path.with_name(f"{path.stem}_preview.mp4")
        with VideoWriter(shown, Silent(width, height, max(1, round(video.fps))), quality=32) as writer:
            for frame in itertools.islice(video, length):
                writer.write(cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA), frame.index)
        length = max(1, int(0.9 * length * PLAYER_BYTES / shown.stat().st_size))
    return Video(data=shown.read_bytes(), mimetype="video/mp4", embed=True, html_attributes="controls loop muted")


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
