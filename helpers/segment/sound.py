"""A video's sound carried over into an MP4."""

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction

import av

from helpers.segment.media import open_media

_COPIED = {"aac", "mp3"}  # what every browser plays in an MP4; any other sound is encoded anew
_RATE = 48000  # Hz, in stereo, which every encoder and player takes


def carry_sound(video, out: av.container.OutputContainer) -> Iterator[Fraction]:
    """Write the first sound of the `VideoReader` that can be decoded into the MP4 `out`: yields each piece's time in
    seconds on the file's clock before it does, the first one once its stream is there. What cannot be carried is left
    out, and noted in `video.notes`."""
    if not video.sound:
        return
    with open_media(video.path) as file:
        stream = next(stream for stream in file.streams.audio if stream.codec_context)
        copied = stream.codec_context.codec.canonical_name in _COPIED and _mp4_takes(stream)
        pieces = _packets(video, file, stream)
        if not copied:
            pieces = _decoded(pieces)
        if (piece := next(pieces, None)) is None:
            video.note("has sound that cannot be converted, which is left out")
            return
        target = out.add_stream_from_template(stream) if copied else out.add_stream("aac", rate=_RATE)
        try:
            while piece is not None:
                yield piece.pts * piece.time_base
                piece.pts -= round(video.start / piece.time_base)
                try:
                    if copied:
                        piece.dts -= round(video.start / piece.time_base)
                        piece.stream = target
                    out.mux(piece if copied else target.encode(piece))
                except av.FFmpegError as error:
                    video.note(f"has sound that is in part left out: {error.strerror}")
                piece = next(pieces, None)
        finally:  # also where the writer closes it early
            if not copied:
                with contextlib.suppress(av.FFmpegError):
                    out.mux(target.encode(None))


def _mp4_takes(stream: av.AudioStream) -> bool:
    """True if the head of an MP4 can be written with this sound as it is."""
    with contextlib.suppress(av.FFmpegError), av.open(io.BytesIO(), "w", format="mp4") as trial:
        trial.add_stream_from_template(stream)
        trial.start_encoding()
        return True
    return False


def _packets(video, file: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.Packet]:
    try:
        for packet in file.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None:
                yield packet
    except av.FFmpegError as error:
        video.note(f"has sound that breaks off: {error.strerror}")


def _decoded(packets: Iterator[av.Packet]) -> Iterator[av.AudioFrame]:
    """Stereo at 48 kHz; what is damaged or cannot be converted to that is left out."""
    resampler, before = None, None
    for packet in packets:
        with contextlib.suppress(av.FFmpegError, ValueError):  # a damaged packet is a click, no more
            for frame in packet.decode():
                kind = frame.format.name, frame.layout.name, frame.sample_rate
                if kind != before:  # some streams change on the way
                    resampler, before = av.AudioResampler("fltp", "stereo", _RATE), kind
                for piece in resampler.resample(frame):
                    piece.pts = round(piece.pts * piece.time_base * _RATE)
                    piece.time_base = Fraction(1, _RATE)
                    yield piece
