"""A video's sound, carried over into an MP4."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from helpers.segment.media import open_media

_COPIED = {"aac", "mp3"}  # what every browser plays in an MP4; any other sound is encoded anew
_RATE = 48000  # Hz, in stereo, which every encoder and player takes


def carry_sound(video, out: av.container.OutputContainer) -> Iterator[Fraction]:
    """Write the first sound of a `VideoReader`'s file that can be decoded into the MP4 `out`: yields each piece's time,
    in seconds on the clock of the file, before it does. What cannot be carried is left out, and noted by the reader."""
    if not video.sound:
        return
    with open_media(video.path) as file, _noted(video):
        stream = next(stream for stream in file.streams.audio if stream.codec_context)
        copied = stream.codec_context.codec.canonical_name in _COPIED and _mp4_takes(stream)
        packets = (one for one in file.demux(stream) if one.size and one.pts is not None and one.dts is not None)
        pieces = packets if copied else _stereo(packets)
        if (first := next(pieces, None)) is None:
            video.note("has sound that cannot be converted, which is left out")
            return
        target = out.add_stream_from_template(stream) if copied else out.add_stream("aac", rate=_RATE)
        try:
            for piece in itertools.chain([first], pieces):
                yield piece.pts * piece.time_base
                with _noted(video):
                    offset = round(video.start / piece.time_base)
                    piece.pts -= offset
                    if copied:
                        piece.dts, piece.stream = piece.dts - offset, target
                    out.mux(piece if copied else target.encode(piece))
        finally:  # also where the writer closes it early
            if not copied:
                out.mux(target.encode(None))


def _mp4_takes(stream: av.AudioStream) -> bool:
    """True if an MP4 can begin with this sound as it is."""
    with contextlib.suppress(av.FFmpegError), av.open(io.BytesIO(), "w", format="mp4") as trial:
        trial.add_stream_from_template(stream)
        trial.start_encoding()
        return True
    return False


@contextlib.contextmanager
def _noted(video) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        video.note(f"has sound that is left out in part: {error.strerror}")


def _stereo(packets: Iterator[av.Packet]) -> Iterator[av.AudioFrame]:
    """Stereo frames at `_RATE`, pauses as silence; without what is damaged, a click, or cannot be converted."""
    resampler, before, clock = None, None, None
    for packet in packets:
        with contextlib.suppress(av.FFmpegError, ValueError):
            for frame in packet.decode():
                kind = frame.format.name, frame.layout.name, frame.sample_rate
                if kind != before:  # some streams change on the way
                    resampler, before = av.AudioResampler("fltp", "stereo", _RATE), kind
                for piece in resampler.resample(frame):
                    place = (clock or 0) if piece.pts is None else round(piece.pts * piece.time_base * _RATE)
                    clock = place if clock is None else clock
                    if _RATE // 20 < place - clock < 60 * _RATE:  # the encoder knows no pauses
                        silence = np.zeros((2, place - clock), np.float32)
                        yield _at(clock, av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo"))
                        clock = place
                    yield _at(clock, piece)
                    clock += piece.samples


def _at(place: int, piece: av.AudioFrame) -> av.AudioFrame:
    piece.sample_rate, piece.pts, piece.time_base = _RATE, place, Fraction(1, _RATE)
    return piece
