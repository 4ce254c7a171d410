"""Decoded frames as a screen shows them: in the colours of their tags, HDR brought into its range, upright."""

import functools

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics, in the numbers of ITU-T H.273
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6  # matrix coefficients, likewise
_PEAK, _WHITE = 1000, 203  # nits of the screen that most HDR is graded on, and of its white (ITU-R BT.2408)
_LUMINANCE = np.float32([[0.2627, 0.6780, 0.0593]])  # of BT.2020's red, green and blue
_TO_BT709 = np.float32([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])  # BT.2087


class FrameConverter:
    """Turns the decoded frames of one stream into uint8 RGB [H, W, 3]; one for each thread.

    width, height: of every image before it is turned, since some streams change theirs. turn: from `orientation`.
    """

    def __init__(self, width: int, height: int, turn: tuple[bool, bool, bool]) -> None:
        self._size, self._turn = {"width": width, "height": height}, turn
        self._scaler = VideoReformatter()  # set up once, not for every frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.colorspace == _UNSPECIFIED:  # as players guess
            frame.colorspace = _BT709 if frame.width >= 1280 or frame.height >= 720 else _BT601
        # 16 bits in planes, since FFmpeg's packed ones overflow for saturated colours
        form = "gbrp16le" if frame.color_trc in HDR else "rgb24"
        image = self._scaler.reformat(frame, format=form, **self._size).to_ndarray()
        image = image if form == "rgb24" else tone_map(image, frame.color_trc)
        swap, flip_rows, flip_columns = self._turn
        image = cv2.transpose(image) if swap else image
        if flip_rows or flip_columns:
            image = cv2.flip(image, -1 if flip_rows and flip_columns else int(flip_columns))
        return image


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


def tone_map(image: np.ndarray, transfer: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] for an ordinary screen of the BT.2020 image `image`, uint16 [H, W, 3], `transfer` in `HDR`.

    Light up to 1,000 nits is brought below the 203 of HDR's white by the curve of ITU-R BT.2390, section 5.4, in each
    channel of BT.709, which leaves what is darker than about 90 nits as it is.
    """
    light = _light(transfer)[image]
    if HDR[transfer] == "HLG":  # BT.2100's OOTF: from the light of the scene to that of a screen of 1,000 nits
        light *= cv2.pow(cv2.transform(light, _LUMINANCE), 0.2)[..., None]
    roots = cv2.sqrt(np.clip(cv2.transform(light, _TO_BT709), 0, 1))  # finer steps where it is dark
    return _screen()[(roots * 65535).astype(np.uint16)]


@functools.cache
def _light(transfer: int) -> np.ndarray:
    """Light by the 16-bit signal, 1 at the peak: of the screen for PQ, of the scene for HLG (ITU-R BT.2100)."""
    signal = np.minimum(np.arange(65536) / 65280, 1)  # FFmpeg's white is 255 * 256
    if HDR[transfer] == "PQ":
        return np.float32(_pq_to_nits(signal) / _PEAK)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.float32(np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12))


@functools.cache
def _screen() -> np.ndarray:
    """uint8 values of an ordinary screen (ITU-R BT.1886) by 65,536 times the root of light."""
    peak, white = _nits_to_pq(_PEAK), _nits_to_pq(_WHITE)
    signal, top = _nits_to_pq(_PEAK * np.linspace(0, 1, 65536) ** 2) / peak, white / peak
    knee = 1.5 * top - 0.5
    t = np.maximum(signal - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    nits = _pq_to_nits(np.where(signal < knee, signal, bent) * peak)
    return np.uint8(np.round(255 * np.minimum(nits / _WHITE, 1) ** (1 / 2.4)))


def _pq_to_nits(signal: np.ndarray) -> np.ndarray:
    root = signal ** (32 / 2523)  # SMPTE ST 2084
    return 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)


def _nits_to_pq(nits: np.ndarray | float) -> np.ndarray | float:
    root = (nits / 10000) ** (1305 / 8192)
    return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** (2523 / 32)
