"""Decoded frames as a screen shows them: in the colours of their tags, HDR brought into its range, upright."""

import av
import cv2
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

HDR = {16: "smpte2084", 18: "arib-std-b67"}  # PQ and HLG, transfer characteristics: in ITU-T H.273, in FFmpeg's words
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6  # matrix coefficients, likewise


class FrameConverter:
    """Turns the decoded frames of one stream into uint8 RGB [H, W, 3]; one for each thread.

    width, height: of every image before it is turned, since some streams change theirs. turn: from `orientation`.
    """

    def __init__(self, width: int, height: int, turn: tuple[bool, bool, bool]) -> None:
        self._size, self._turn = {"width": width, "height": height}, turn
        self._scaler = VideoReformatter()  # set up once, not for every frame
        self._kind, self._tone_mapper = None, None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.colorspace == _UNSPECIFIED:  # as players guess
            frame.colorspace = _BT709 if frame.width >= 1280 or frame.height >= 720 else _BT601
        if frame.color_trc in HDR:
            frame = self._tone_mapped(frame)
        image = self._scaler.reformat(frame, format="rgb24", **self._size).to_ndarray()
        swap, flip_rows, flip_columns = self._turn
        image = cv2.transpose(image) if swap else image
        if flip_rows or flip_columns:
            image = cv2.flip(image, -1 if flip_rows and flip_columns else int(flip_columns))
        return image

    def _tone_mapped(self, frame: av.VideoFrame) -> av.VideoFrame:
        """An HDR frame in BT.709's colours and range, rgb24, by FFmpeg's scaler: what is darker than an ordinary
        screen's white stays as it is."""
        size = {"width": frame.width, "height": frame.height}
        kind = *size.values(), frame.format.name, frame.color_trc
        if kind != self._kind:  # some streams change on the way
            self._kind, self._tone_mapper = kind, (graph := Graph())
            source = graph.add_buffer(**size, format=frame.format, time_base=frame.time_base)
            colours = f"in_primaries=bt2020:in_transfer={HDR[frame.color_trc]}"
            colours += ":out_primaries=bt709:out_transfer=bt709:out_range=full"
            scale, form = graph.add("scale", colours), graph.add("format", "rgb24")
            graph.link_nodes(source, scale, form, graph.add("buffersink")).configure()
        self._tone_mapper.push(frame)
        return self._tone_mapper.pull()


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(swap rows and columns, flip up and down, flip left and right): what turns a frame upright, in this order.

    For one frame of a stream: its memory is then kept until Python's garbage collector runs.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it lies something that PyAV has no name for; it tells the angle, but no mirror
        angle = np.radians(frame.rotation)
        a, b, c, d = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    else:
        if matrix is None:
            return False, False, False
        a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()  # x, y go to ax + cy, bx + dy
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
