"""Objects followed through a video: which detection is which object, and what a later look may still change.

    tracks = Tracks(segmenter, clip, max_objects=50)
    for frame in clip:
        tracks.move(frame, tracks.prepare(frame.image))   # SAM 2 carries every object on to this frame
        if frame.index % 6 == 0:
            tracks.look(detections)                       # what was detected on it: known, lost and back, or new
        for frame, objects in tracks.settled(): ...       # frames that no later look can change
    for frame, objects in tracks.rest(): ...

Where the first detections are not on the first frame, `begin` comes before that loop. Masks are bool [H, W], images
uint8 [H, W, 3]. The rules here are those of more that proved worth having (assets/measured/q2_tracks.csv);
tests/bench/ablate_tracks.py measures each of them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from helpers.common.boxes import mask_box
from helpers.segment.detections import Detection, mask_iou, overlaps
from helpers.segment.outputs import decode_mask, track_entry
from helpers.segment.sam2_image import Segmenter
from helpers.segment.sam2_video import VideoTracker
from helpers.segment.video import Frame, VideoReader

MOST_HELD = 24  # frames in memory that a later look may still change
SAME_PLACE = 0.3  # least IoU of a detection with a track of its label to be that object, or else INSIDE holds
SAME_COLOUR = 60.0  # most distance in RGB from what a track was when it was last detected
HIDDEN = 0.5  # below this share of the area when it was last detected, a track is nearly out of sight
INSIDE = 0.7  # least share of a mask that lies in another one to be inside it
AGREES = 0.7  # least IoU of an object's masks forwards and backwards in time to be the same
TAKEN = 0.7  # least IoU with any track at which a detection that belongs to none is no new object
RESTART = 0.82  # least IoU of a track with its detection for SAM 2 to go on as it was


@dataclass(eq=False)
class Track:
    """An object over time: its id and label; its mask on the current frame, empty where it is out of sight; and the
    number under which SAM 2 follows it, another one each time it starts afresh, None while it is lost.

    From when it was last detected: the detection's score and source, the frame, its colour (RGB, the median over the
    mask), its area in pixels, and whether it lay inside another detection, as a part of it.
    """

    id: int
    label: str
    mask: np.ndarray
    sam_id: int | None = None
    score: float = 0.0
    source: str = ""
    last_detected: int = -1
    colour: np.ndarray | None = None
    area: int = 0
    is_part: bool = False


@dataclass
class Held:
    """A waiting frame and the objects in sight on it: {id: as `tracks.json` holds it}."""

    frame: Frame
    objects: dict[int, dict[str, Any]] = field(default_factory=dict)


# What SAM 2 follows afresh from the current frame, by what prompt, and the frame on which it was detected before.
Restart = tuple[Track, dict[str, Any], int]


class Tracks:
    """The objects of a video, as SAM 2 follows them and GroundingDINO finds them again.

    segmenter: SAM 2 as `load_sam2` returns it. clip: the video that is followed. max_objects: followed at a time.
    looks_again: False where no later look will change what was found, so that no frame has to wait for it.
    """

    def __init__(
        self, segmenter: Segmenter, clip: VideoReader, max_objects: int = 50, looks_again: bool = True
    ) -> None:
        self._new_tracker = partial(VideoTracker, segmenter, clip.height, clip.width, len(clip))
        self._tracker = self._new_tracker()
        self._max_objects, self._most_held = max_objects, MOST_HELD if looks_again else 0
        self._ids, self._sam_ids = itertools.count(1), itertools.count(1)
        self._frame: Frame | None = None
        self._held: deque[Held] = deque()
        self.tracks: list[Track] = []

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """A frame as SAM 2 takes it; another thread may do it for the frames to come."""
        return self._tracker.prepare(image)

    def begin(self, frame: Frame, detections: Sequence[Detection], earlier: Iterable[Frame]) -> dict[int, list[dict]]:
        """Start with the first frame on which something was detected, and return what SAM 2 sees of that on the
        `earlier` frames, the newest first: {frame index: objects}."""
        self._frame = frame
        self._tracker.show(frame.index, self.prepare(frame.image))
        objects: dict[int, dict[int, dict[str, Any]]] = {}
        self._look_back(self._match(detections), (Held(f, objects.setdefault(f.index, {})) for f in earlier))
        return {index: list(seen.values()) for index, seen in objects.items()}

    def move(self, frame: Frame, prepared: torch.Tensor) -> None:
        """Have SAM 2 carry every object on to `frame`: the next one or, right after `begin`, the same once more."""
        self._frame = frame
        self._tracker.show(frame.index, prepared)
        masks = self._tracker.track()
        for track in self.tracks:
            track.mask = masks.get(track.sam_id, np.zeros_like(track.mask))

    def look(self, detections: Sequence[Detection]) -> None:
        """Bring the tracks up to date with what was detected on the current frame, and correct the frames that wait."""
        self._look_back(self._match(detections), reversed(self._held))

    def settled(self) -> Iterator[tuple[Frame, list[dict[str, Any]]]]:
        """Put the current frame with those that wait, and yield (frame, objects) of those that nothing changes any
        more; objects as `tracks.json` holds them."""
        seen = {t.id: track_entry(t.id, t.label, t.score, t.mask) for t in self.tracks if t.mask.any()}
        self._held.append(Held(self._frame, seen))
        while len(self._held) > self._most_held:
            yield self._release()

    def unsure(self) -> set[int]:
        """The ids of what CLIPSeg alone has found so far."""
        return {track.id for track in self.tracks if track.source == "clipseg"}

    def rest(self) -> Iterator[tuple[Frame, list[dict[str, Any]]]]:
        """Yield the frames that still wait: at the end, or after an interruption."""
        while self._held:
            yield self._release()

    def _release(self) -> tuple[Frame, list[dict[str, Any]]]:
        held = self._held.popleft()
        return held.frame, list(held.objects.values())

    # --- Which detection is which track -----------------------------------------------------------------------------

    def _match(self, detections: Sequence[Detection]) -> list[Restart]:
        """Bring the tracks up to date with detections, the surest first: what belongs to none becomes a new one.
        Returns those that SAM 2 follows afresh from here."""
        detections = [d for d in detections if d.mask.any()]
        masks = [d.mask for d in detections]
        known = self._assign(detections)
        if slipped := self._slipped(masks, known):
            for track in slipped:
                self._lose(track)
            known = self._assign(detections)  # so that their objects can be found elsewhere
        restarts = []
        inside = overlaps(masks, masks)[1] > INSIDE
        np.fill_diagonal(inside, False)
        for k, detection in enumerate(detections):
            track = known.get(k)
            if track is None and any(mask_iou(t.mask, detection.mask) > TAKEN for t in self.tracks):
                continue  # this object has a name already
            if not (track and track.sam_id) and not self._make_room():
                continue
            if track is None:
                track = Track(next(self._ids), detection.label, np.zeros_like(detection.mask))
                self.tracks.append(track)
            if mask_iou(track.mask, detection.mask) < RESTART:
                restarts.append(self._restart(track, detection))
            track.score, track.source, track.last_detected = detection.score, detection.source, self._frame.index
            track.colour, track.area = main_colour(self._frame.image, detection.mask), detection.mask.sum()
            track.is_part = inside[k].any()
        return restarts

    def _assign(self, detections: Sequence[Detection]) -> dict[int, Track]:
        """{index of a detection: its track}, each track at most once and of the same label, the nearest first: by
        place; and what is then left, by colour, where the track is out of sight, nearly so, or on another colour."""
        iou, *shares = overlaps([t.mask for t in self.tracks], [d.mask for d in detections])
        place = np.where((iou > SAME_PLACE) | (np.maximum(*shares) > INSIDE), -iou, np.inf)
        image, colour = self._frame.image, np.full_like(place, np.inf)
        colours = [main_colour(image, d.mask) for d in detections]
        for row, track in zip(colour, self.tracks, strict=True):
            now = main_colour(image, track.mask) if track.mask.any() else np.inf  # out of sight: on any other
            elsewhere = np.linalg.norm(track.colour - now) > SAME_COLOUR
            if colours and (elsewhere or track.mask.sum() < HIDDEN * track.area):
                row[:] = np.linalg.norm(track.colour - colours, axis=1)
        known: dict[int, Track] = {}
        for distance, most in ((place, np.inf), (colour, SAME_COLOUR)):
            pairs = [(distance[i, k], i, k) for i, k in np.ndindex(*distance.shape) if distance[i, k] < most]
            for _, i, k in sorted(pairs):
                track = self.tracks[i]
                if track.label == detections[k].label and k not in known and track not in known.values():
                    known[k] = track
        return known

    def _slipped(self, masks: Sequence[np.ndarray], known: dict[int, Track]) -> list[Track]:
        """The tracks that were not detected, and came to lie inside what was found as another one. A part, such as a
        wheel on a car, lay inside before."""
        shares = overlaps([t.mask for t in self.tracks], masks)[1]
        inside = [any(share[k] > INSIDE for k in known) for share in shares]
        candidates = zip(self.tracks, inside, strict=True)
        return [t for t, within in candidates if within and t not in known.values() and not t.is_part]

    def _restart(self, track: Track, detection: Detection) -> Restart:
        """Have SAM 2 follow a track from a detection on."""
        prompt = {"box": detection.box} if detection.source == "groundingdino" else {"mask": detection.mask}
        self._lose(track)
        track.sam_id = next(self._sam_ids)
        track.mask = self._tracker.add(track.sam_id, **prompt)
        return track, prompt, track.last_detected

    def _lose(self, track: Track) -> None:
        """Have SAM 2 follow it no more, until it is detected again."""
        if track.sam_id:
            self._tracker.remove(track.sam_id)
        track.sam_id, track.mask = None, np.zeros_like(track.mask)

    def _make_room(self) -> bool:
        """Tell whether one more object can be followed, if the longest undetected of those out of sight is lost."""
        followed = [t for t in self.tracks if t.sam_id]
        gone = [t for t in followed if not t.mask.any()]
        if len(followed) >= self._max_objects and gone:
            self._lose(min(gone, key=lambda t: t.last_detected))
        return len(followed) < self._max_objects or bool(gone)

    # --- Back in time -----------------------------------------------------------------------------------------------

    def _look_back(self, restarts: Sequence[Restart], earlier: Iterable[Held]) -> None:
        """Take what SAM 2 follows afresh back through the frames before the current one, the newest first, each track
        until it agrees with what it was there, or is out of sight. If it comes to a frame on which it was detected
        before and they never agreed, neither way is better: each keeps the half next to its own detection."""
        if not restarts or self._frame.index == 0:
            return
        tracker, found = self._new_tracker(), {track.id: [] for track, *_ in restarts}
        tracker.show(self._frame.index, tracker.prepare(self._frame.image))
        for track, prompt, _ in restarts:
            tracker.add(track.id, **prompt)
        tracker.track(backwards=True)
        for held in earlier:
            tracker.show(held.frame.index, tracker.prepare(held.frame.image))
            masks = tracker.track(backwards=True)
            for track, _, detected_before in restarts:
                if track.id not in masks:
                    continue
                mask, known = masks[track.id], held.objects.get(track.id)
                if not mask.any() or (known and mask_iou(decode_mask(known["mask"]), mask) > AGREES):
                    tracker.remove(track.id)
                    continue
                found[track.id].append((held, track_entry(track.id, track.label, track.score, mask)))
                if held.frame.index <= detected_before:
                    tracker.remove(track.id)
                    found[track.id] = found[track.id][: len(found[track.id]) // 2]
            if not tracker.numbers:
                break
        for number, entries in found.items():
            for held, entry in entries:
                held.objects[number] = entry


def main_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The median colour of an image, uint8 [H, W, 3], in a mask that is not empty, float [3]: what covers a part of an
    object hardly moves it."""
    x0, y0, x1, y1 = mask_box(mask)
    return np.median(image[y0:y1, x0:x1][mask[y0:y1, x0:x1]], axis=0)
