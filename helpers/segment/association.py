"""Which detection in a video is which object: tracks matched by place and colour, and told when they went astray.

Each detection and track has its mask, bool [H, W]; images are uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.common.boxes import mask_box
from helpers.segment.detections import Detection, covered, mask_iou, overlaps

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

    def detected(self, detection: Detection, part: bool, image: np.ndarray, index: int) -> None:
        """Found again on frame `index`, as a `part` of something else that was found or not."""
        self.score, self.seen, self.area = detection.score, index, np.count_nonzero(detection.mask)
        self.colour, self.unsure, self.part = main_colour(image, detection.mask), False, part


def parts_of_others(detections: Sequence[Detection]) -> list[bool]:
    """Of each detection, whether it lies inside another one."""
    masks = [d.mask for d in detections]
    inside = overlaps(masks, masks)[1] > INSIDE
    np.fill_diagonal(inside, False)
    return inside.any(1).tolist()


def main_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The median of the pixels in a mask that is not empty, float [3]: a part of something else hardly moves it."""
    x0, y0, x1, y1 = mask_box(mask)
    return np.median(image[y0:y1, x0:x1][mask[y0:y1, x0:x1]], axis=0)


def off_colour(track: Track, image: np.ndarray) -> bool:
    """Whether a track in sight has another colour than when it was last detected."""
    return np.linalg.norm(main_colour(image, track.mask) - track.colour) > SAME_COLOUR


def place_distances(tracks: Sequence[Track], detections: Sequence[Detection], image: np.ndarray) -> np.ndarray:
    """Of each track to each detection, float [n, m]: from -1, the same pixels, to 0; infinite where they do not
    overlap."""
    iou, *inside = overlaps([t.mask for t in tracks], [d.mask for d in detections])
    return np.where((iou > SAME_PLACE) | (np.maximum(*inside) > INSIDE), -iou, math.inf)


def colour_distances(tracks: Sequence[Track], detections: Sequence[Detection], image: np.ndarray) -> np.ndarray:
    """In RGB, of what each track looked like when it was last detected to each detection, float [n, m]. Infinite where
    that is unlike the detection, and for a track that is in sight as it was: neither has it all but disappeared nor is
    its mask on another colour."""
    colours = [main_colour(image, d.mask) for d in detections]
    far = np.full((len(tracks), len(detections)), math.inf)
    for row, track in zip(far, tracks, strict=True):
        if colours and (np.count_nonzero(track.mask) < SHRUNK * track.area or off_colour(track, image)):
            row[:] = np.linalg.norm(track.colour - colours, axis=1)
    return np.where(far < SAME_COLOUR, far, math.inf)


def match_tracks(tracks: Sequence[Track], detections: Sequence[Detection], image: np.ndarray) -> dict[int, Track]:
    """{index of a detection: the track that it belongs to}, each track at most once, the nearest first."""
    found: dict[int, Track] = {}
    for distances in (place_distances, colour_distances):
        left = [track for track in tracks if track not in found.values()]
        free = [k for k in range(len(detections)) if k not in found]
        far = distances(left, [detections[k] for k in free], image)
        pairs = [
            (far[i, j], track.id, k, track)
            for i, track in enumerate(left)
            for j, k in enumerate(free)
            if track.label == detections[k].label and far[i, j] < math.inf
        ]
        for _, _, k, track in sorted(pairs):
            if k not in found and track not in found.values():
                found[k] = track
    return found


def split_objects(tracks: Sequence[Track], detections: Sequence[Detection]) -> dict[int, Track]:
    """{index of a detection: its track} where something hides the middle of an object, so that its parts are detected:
    together they are what SAM 2 has, and that has not grown. If it has, it spread over two objects."""
    found = {}
    inside = overlaps([t.mask for t in tracks], [d.mask for d in detections])[2] > INSIDE
    for track, row in zip(tracks, inside, strict=True):
        parts = [k for k in np.flatnonzero(row).tolist() if detections[k].label == track.label]
        if len(parts) > 1 and 0 < np.count_nonzero(track.mask) < GROWN * track.area:
            whole = np.any([detections[k].mask for k in parts], axis=0)
            if mask_iou(whole, track.mask) > AGREES:
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
