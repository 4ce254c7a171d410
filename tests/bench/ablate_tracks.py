"""What each rule of q2's tracker is worth: the drawn clips of measure_video.py, followed with one rule left out.

    python tests/bench/ablate_tracks.py --seeds 2 3 --clips 30 --workers 2 --out assets/measured/q2_tracks_ablation.csv

What GroundingDINO finds on a frame, and where SAM 2 takes a prompt, does not depend on the rules: it is computed once.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "assets" / "tiny"), str(ROOT / "tests")]

import measure_video as mv

from helpers.common import device
from helpers.segment import association as a
from helpers.segment.sam2_video import VideoTracker
from helpers.segment.track_scores import score_object
from helpers.shapes.clips import make_clip


def strayed_without(rule, track, detections, known, image):
    """`strayed` of helpers/segment/association.py without one of its three reasons."""
    if not track.mask.any() or track in known.values():
        return False
    if rule != "unsure" and track.unsure:
        return True
    part = track.part and rule != "part"
    inside = not part and any(a.covered(track.mask, detections[k].mask) > a.INSIDE for k in known)
    others = (d for d in detections if d.label != track.label)
    moved = rule != "colour" and a.off_colour(track, image)
    return (rule != "inside" and inside) or (
        moved and any(a.mask_iou(track.mask, d.mask) > a.SAME_PLACE for d in others)
    )


def contest_without(rule, q2, tracker, tracks, detection, other, known):
    """`contest` of the notebook without the search for a missing track, or without the change of label."""
    if other in known.values():
        return None
    missing = next((t for t in tracks if t.label == detection.label and t not in known.values()), None)
    if missing is not None and rule == "missing":
        return None
    if missing is not None:
        q2.lose(tracker, other)
        return missing
    if detection.score > other.score and rule != "relabel":
        other.label = detection.label
        return other
    return None


def colour_any(tracks, detections, image):
    """`colour_distances`, for every track, in sight as it was or not."""
    colours = [a.main_colour(image, d.mask) for d in detections]
    far = np.full((len(tracks), len(detections)), np.inf)
    for row, track in zip(far, tracks, strict=True):
        if colours:
            row[:] = np.linalg.norm(track.colour - colours, axis=1)
    return np.where(far < a.SAME_COLOUR, far, np.inf)


def apply(q2, rule: str) -> None:
    """Take a rule out of the notebook's definitions."""

    def stub(name, value):
        setattr(q2, name, value)

    plain_add = q2.add_tracks
    if rule == "split objects":
        stub("split_objects", lambda tracks, detections: {})
    elif rule == "small pieces":
        stub("is_piece", lambda track, detection: False)
    elif rule.startswith("strayed: "):
        stub("strayed", partial(strayed_without, rule.split(": ")[1]))
    elif rule.startswith("contest: "):
        stub("contest", partial(contest_without, rule.split(": ")[1], q2))
    elif rule == "contest":
        stub("contest", lambda *_: None)
    elif rule == "merging":
        stub("merge_duplicates", lambda tracker, tracks: None)
    elif rule == "ghosts":
        stub("forget_ghosts", lambda tracks, waiting: None)
    elif rule == "half each":
        stub("add_tracks", lambda *args: [(t, p, -1) for t, p, _ in plain_add(*args)])
    elif rule == "gone after 5 (1)":
        stub("GONE", 1)
    elif rule == "restart at 0.82 (0.7)":
        stub("RESTART", a.AGREES)
    elif rule == "colour: only lost ones":
        a.colour_distances = colour_any
    elif rule == "matching by colour":
        a.colour_distances = lambda tracks, detections, image: np.full((len(tracks), len(detections)), np.inf)
    elif rule == "looking back":
        stub("look_back", lambda *_: None)
    elif rule == "all but the four":
        for one in DOUBTED:
            apply(q2, one)
    elif rule not in ("nothing", "nothing, without replay"):
        raise ValueError(rule)


DOUBTED = [
    "split objects", "small pieces", "strayed: unsure", "strayed: colour", "contest", "merging", "ghosts", "half each",
    "gone after 5 (1)", "restart at 0.82 (0.7)", "colour: only lost ones",
]  # fmt: skip
RULES = [
    "nothing", *DOUBTED, "all but the four", "strayed: part", "contest: missing", "contest: relabel",
    "strayed: inside", "matching by colour", "looking back",
]  # fmt: skip
_shared: dict = {}


def start_worker() -> None:
    torch.set_num_threads(1)
    _shared["q2"] = mv.nbload.load("q2.ipynb")
    _shared["networks"] = mv.load_tiny(_shared["q2"], device.pick_compute())
    _shared["plain"] = dict(vars(_shared["q2"])), dict(vars(a))


class Replay:
    """A `VideoTracker` that computes each object's way from its prompt once for all rules: SAM 2 follows an object by
    its own memories alone, so its masks do not depend on what else is followed."""

    known: ClassVar[
        dict
    ] = {}  # {(frame, prompt, backwards): (tracker, masks so far)}, emptied for each clip, as are the others
    prepared: ClassVar[dict] = {}
    features: ClassVar[dict] = {}

    def __init__(self, *size):
        self.size, self.objects = size, {}
        self.tracker = VideoTracker(*size)  # only to prepare images and for the masks of new objects

    @property
    def numbers(self):
        return list(self.objects)

    def prepare(self, image):
        return self.tracker.prepare(image)

    def show(self, index, prepared):
        self.index, self.prepared[index] = index, prepared

    def add(self, number, *, box=None, mask=None):
        prompt = tuple(np.asarray(box, np.float32).tolist()) if mask is None else mask.tobytes()
        self.objects[number] = self.index, prompt, box, mask
        return self.way(number, False, walk=False)[0]

    def remove(self, number):
        self.objects.pop(number, None)

    def way(self, number, backwards, walk=True):
        """The mask with which an object was added, and those from there to the frame shown."""
        start, prompt, box, mask = self.objects[number]
        if (start, prompt, backwards) not in self.known:
            tracker = VideoTracker(*self.size)
            tracker.show(start, self.prepared[start])
            first = tracker.add(1, box=box, mask=mask)
            self.known[start, prompt, backwards] = tracker, first, []
        tracker, first, masks = self.known[start, prompt, backwards]
        while walk and len(masks) <= abs(self.index - start):
            index = start + len(masks) * (-1 if backwards else 1)
            masks.append(self.step(tracker, index, backwards))
        return first, masks

    def step(self, tracker, index, backwards):
        """The object's mask on a frame, whose features are computed once."""
        model = self.size[0].model
        encode = model.forward_image

        def encode_once(image):
            if index not in self.features:
                self.features[index] = encode(image)
            return self.features[index]

        tracker.show(index, self.prepared[index])
        model.forward_image = encode_once
        try:
            return tracker.track(backwards)[1]
        finally:
            del model.forward_image

    def track(self, backwards=False):
        return {
            number: self.way(number, backwards)[1][abs(self.index - self.objects[number][0])] for number in self.objects
        }


def one_clip(seed: int, number: int, every: int, rules: list[str]) -> list[tuple]:
    """(rule, seed, clip, object, j, switched, late, delay) of every object of a clip, for every rule."""
    q2, networks = _shared["q2"], _shared["networks"]
    clip = make_clip(np.random.default_rng((mv.STREAM + seed, number, 1)), mv.HEIGHT, mv.WIDTH, mv.FRAMES)
    looks, rows, find = {}, [], _shared["plain"][0]["find_objects"]
    Replay.known, Replay.prepared, Replay.features = {}, {}, {}

    def find_once(networks, image, phrases, settings):
        key = image.tobytes()
        if key not in looks:
            looks[key] = find(networks, image, phrases, settings)
        return looks[key]

    for rule in rules:
        for module, names in zip((q2, a), _shared["plain"], strict=True):
            vars(module).update(names)
        q2.find_objects, q2.VideoTracker = find_once, Replay
        if rule == "nothing, without replay":
            q2.find_objects, q2.VideoTracker = find, VideoTracker
        apply(q2, rule)
        with tempfile.TemporaryDirectory() as folder:
            frames = mv.follow(q2, networks, clip, Path(folder) / "clip.mp4", every)
        for i, item in enumerate(clip.objects):
            if item.masks.any():
                s = score_object(item, frames)
                rows.append((rule, seed, number, i, round(s.j, 5), int(s.switched), int(s.late), s.delay))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--redetect-every", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    jobs = [(seed, number) for number in range(args.clips) for seed in args.seeds]
    columns = ["left out", "seed", "clip", "object", "j", "switched", "late", "delay"]
    rows = []
    with ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker) as pool:
        work = partial(one_clip, every=args.redetect_every, rules=args.rules)
        for done in pool.map(work, *zip(*jobs, strict=True)):
            rows += done
            print(*done[0][1:3], len(rows), flush=True)
            if args.out:
                with args.out.open("w", newline="") as file:
                    csv.writer(file).writerows([columns, *rows])


if __name__ == "__main__":
    main()
