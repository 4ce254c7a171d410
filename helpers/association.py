"""Which detection in a video is which object: tracks matched by place and colour, and told when they went astray.

Each detection and track has its mask, bool [H, W]; images are uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.detections import Detection, covered, mask_iou

SAME_PLACE = 0.3  # least IoU of a detection with a track of its label to be of the same object
INSIDE = 0.7  # least share of a mask that lies in another one to be inside it
GROWN = 1.5  # times its area when it was detected: a track of more has spread over something else
SHRUNK = 0.5  # times that, a track of less is being hidden; times a track's area, a detection of less is a piece of it
AGREES = 0.7  # least IoU of a track with a detection of another label to be it
SAME_COLOUR = 60.0  # most distance in RGB


@dataclass(eq=False)
class Track:
    """An object over time: its `id` and label, the number under which SAM 2 follows it (another one after it was lost,
    0 while it does not) and its mask on the current frame; and from when it was last detected the detector's score,
    its main colour [3], its area in pixels, the frame, and whether it lay inside something else that was detected."""

    id: int
    label: str
    number: int
    mask: np.ndarray
    score: float = 0.0
    colour: np.ndarray | None = None
    area: int = 0
    seen: int = -1
    part: bool = False
    unsure: bool = False  # out of sight since then: what comes back may be something else

    def move(self, mask: np.ndarray) -> None:
        """To its mask on the next frame, empty where it cannot be seen."""
        self.mask = mask
        self.unsure |= not mask.any()

    def detected(self, detection: Detection, others: Sequence[Detection], image: np.ndarray, index: int) -> None:
        """Found again on frame `index`, among `others`."""
        self.score, self.seen, self.area = detection.score, index, np.count_nonzero(detection.mask)
        self.colour, self.unsure = main_colour(image, detection.mask), False
        self.part = any(covered(detection.mask, d.mask) > INSIDE for d in others if d is not detection)


def main_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The median of the pixels in a mask that is not empty, float [3]: a part of something else hardly moves it."""
    return np.median(image[mask], axis=0)


def off_colour(track: Track, image: np.ndarray) -> bool:
    """Whether a track in sight has another colour than when it was last detected."""
    return np.linalg.norm(main_colour(image, track.mask) - track.colour) > SAME_COLOUR


def place_distance(track: Track, detection: Detection, image: np.ndarray) -> float:
    """From -1, the same pixels, to 0; infinite where a track does not overlap a detection."""
    iou = mask_iou(track.mask, detection.mask)
    inside = max(covered(track.mask, detection.mask), covered(detection.mask, track.mask))
    return -iou if iou > SAME_PLACE or inside > INSIDE else math.inf


def colour_distance(track: Track, detection: Detection, image: np.ndarray) -> float:
    """In RGB, from what a track looked like when it was last detected. Infinite if that is unlike the detection, or if
    the track is in sight as it was: neither has it all but disappeared nor is its mask on another colour."""
    hidden = np.count_nonzero(track.mask) < SHRUNK * track.area
    distance = np.linalg.norm(track.colour - main_colour(image, detection.mask))
    return distance if distance < SAME_COLOUR and (hidden or off_colour(track, image)) else math.inf


def match_tracks(tracks: Sequence[Track], detections: Sequence[Detection], image: np.ndarray) -> dict[int, Track]:
    """{index of a detection: the track that it belongs to}, each track at most once, the nearest first."""
    found, taken = {}, set()
    for distance in (place_distance, colour_distance):
        pairs = [(t, k, d) for k, d in enumerate(detections) for t in tracks if t.label == d.label]
        for far, number, k, track in sorted((distance(t, d, image), t.id, k, t) for t, k, d in pairs):
            if far < math.inf and k not in found and number not in taken:
                found[k] = track
                taken.add(number)
    return found


def split_objects(tracks: Sequence[Track], detections: Sequence[Detection]) -> dict[int, Track]:
    """{index of a detection: its track} where something hides the middle of an object, so that its parts are detected:
    together they are what SAM 2 has, and that has not grown. If it has, it spread over two objects."""
    found = {}
    for track in (t for t in tracks if 0 < t.mask.sum() < GROWN * t.area):
        parts = [k for k, d in enumerate(detections) if d.label == track.label and covered(d.mask, track.mask) > INSIDE]
        if len(parts) > 1 and mask_iou(np.any([detections[k].mask for k in parts], axis=0), track.mask) > AGREES:
            found |= dict.fromkeys(parts, track)
    return found


def is_piece(track: Track, detection: Detection) -> bool:
    """Whether a detection is a small piece of what SAM 2 has of its object, while that has not grown."""
    area = np.count_nonzero(track.mask)
    small = np.count_nonzero(detection.mask) < SHRUNK * area and covered(detection.mask, track.mask) > INSIDE
    return small and area < GROWN * track.area and not track.unsure


def strayed(track: Track, detections: Sequence[Detection], known: Mapping[int, Track], image: np.ndarray) -> bool:
    """Whether a track in sight that is not detected came back from out of sight; or lies inside another object that is
    found, though it is not a part of it; or has changed colour on what has another label. `known` is as from
    `match_tracks`."""
    if not track.mask.any() or track in known.values():
        return False
    if track.unsure:
        return True
    inside = not track.part and any(covered(track.mask, detections[k].mask) > INSIDE for k in known)
    others = (d for d in detections if d.label != track.label)
    return inside or (off_colour(track, image) and any(mask_iou(track.mask, d.mask) > SAME_PLACE for d in others))
