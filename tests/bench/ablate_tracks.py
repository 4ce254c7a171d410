"""What each rule of q2's tracker is worth: drawn clips that no training has seen, followed with one rule left out.

    python tests/bench/ablate_tracks.py --seeds 2 3 --clips 30 --workers 2 --out assets/measured/q2_tracks.csv

Clips and scores are those of assets/tiny/measure_video.py. What is detected on a frame, and where SAM 2 takes a prompt
from there, does not depend on the rules: it is computed once for all of them. The spread of a difference is its
standard error over the objects.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "assets" / "tiny"))

import measure_video as mv  # first of the project's: it sets sys.path for the others

from helpers.common import device
from helpers.common.files import write_csv
from helpers.segment import tracks
from helpers.segment.sam2_video import VideoTracker
from helpers.shapes.clips import make_clip
from track_scores import score_object

ALL = "(all rules)"
restart = tracks.Tracks._restart


def first_seen_now(self, track, detection):
    """`Tracks._restart` of a track that was not detected before."""
    return *restart(self, track, detection)[:2], -1


RULES = {  # left out: what takes its place
    ALL: {},
    "match by colour": {(tracks, "SAME_COLOUR"): -1.0},
    "by colour only what is out of sight, or on another colour": {(tracks, "HIDDEN"): np.inf},
    "lost when inside another": {(tracks.Tracks, "_slipped"): lambda *_: []},
    "a part may lie inside another": {(tracks.Track, "is_part"): property(lambda _: False, lambda *_: None)},
    "start afresh below an IoU of 0.82 (at 0.7 instead)": {(tracks, "RESTART"): tracks.AGREES},
    "where both ways disagree each keeps half": {(tracks.Tracks, "_restart"): first_seen_now},
    "look back": {(tracks.Tracks, "_look_back"): lambda *_: None},
}


class Replay:
    """A `VideoTracker` that computes an object's way from its prompt once: SAM 2 follows each object by its own
    memories alone, so its masks do not depend on what else is followed."""

    known: ClassVar[dict] = {}  # {(frame, prompt, backwards): (tracker, first mask, masks so far)}
    prepared: ClassVar[dict] = {}  # {frame: image as SAM 2 takes it}
    features: ClassVar[dict] = {}  # {frame: what SAM 2's encoder makes of it}

    def __init__(self, *size):
        self.size, self.objects, self.index = size, {}, None
        self.prepare = VideoTracker(*size).prepare

    numbers = property(lambda self: list(self.objects))

    def show(self, index, prepared):
        self.index, self.prepared[index] = index, prepared

    def add(self, number, *, box=None, mask=None):
        prompt = tuple(np.asarray(box, np.float32).tolist()) if mask is None else mask.tobytes()
        self.objects[number] = self.index, prompt, box, mask
        return self.way(number, False)[0]

    def remove(self, number):
        del self.objects[number]

    def track(self, backwards=False):
        return {number: self.way(number, backwards, True)[1][-1] for number in self.objects}

    def way(self, number, backwards, walk=False):
        """The mask with which an object was added, and those from there to the frame shown."""
        start, prompt, box, mask = self.objects[number]
        if (start, prompt, backwards) not in self.known:
            tracker = VideoTracker(*self.size)
            tracker.show(start, self.prepared[start])
            self.known[start, prompt, backwards] = tracker, tracker.add(1, box=box, mask=mask), []
        tracker, first, masks = self.known[start, prompt, backwards]
        steps = abs(self.index - start) + 1
        while walk and len(masks) < steps:
            masks.append(self.step(tracker, start + len(masks) * (-1 if backwards else 1), backwards))
        return first, masks[:steps]

    def step(self, tracker, index, backwards):
        model, encode = self.size[0].model, type(self.size[0].model).forward_image

        def encode_once(image):
            if index not in self.features:
                self.features[index] = encode(model, image)
            return self.features[index]

        tracker.show(index, self.prepared[index])
        model.forward_image = encode_once
        try:
            return tracker.track(backwards)[1]
        finally:
            del model.forward_image


_shared: dict = {}  # in each process: the notebook's definitions and the models


def start_worker() -> None:
    torch.set_num_threads(1)
    _shared["q2"] = mv.nbload.load("q2.ipynb")
    _shared["networks"] = mv.load_tiny(_shared["q2"], device.pick_compute())
    tracks.VideoTracker = Replay


def measure_clip(job: tuple[int, int], every: int, rules: list[str]) -> list[dict]:
    """A row for each rule and object of a clip."""
    q2, networks, (seed, number) = _shared["q2"], _shared["networks"], job
    clip = make_clip(np.random.default_rng((mv.STREAM + seed, number, 1)), mv.HEIGHT, mv.WIDTH, mv.FRAMES)
    looks, rows, segment_batch = {}, [], q2.segment_batch
    for memory in (Replay.known, Replay.prepared, Replay.features):
        memory.clear()

    def segment_once(networks, images, phrases, settings, ask_clipseg):
        for image in images:
            if (image.tobytes(), ask_clipseg) not in looks:
                (found,) = segment_batch(networks, [image], phrases, settings, ask_clipseg)
                looks[image.tobytes(), ask_clipseg] = found
        return [looks[image.tobytes(), ask_clipseg] for image in images]

    q2.segment_batch = segment_once
    for rule in rules:
        plain = {(owner, name): vars(owner).get(name) for owner, name in RULES[rule]}
        for (owner, name), value in RULES[rule].items():
            setattr(owner, name, value)
        with tempfile.TemporaryDirectory() as folder:
            frames = mv.follow(q2, networks, clip, Path(folder) / "clip.mp4", every)
        for (owner, name), value in plain.items():
            setattr(owner, name, value)
        for i, item in enumerate(clip.objects):
            if item.masks.any():
                score = vars(score_object(item, frames))
                rows.append({"left out": rule, "clip": (seed, number), "object": (seed, number, i), **score})
    q2.segment_batch = segment_batch
    return rows


def summary(rows: list[dict], every: int) -> list[dict]:
    """A row for each rule."""
    j = {(row["left out"], row["object"]): row["j"] for row in rows}
    table = []
    for rule in dict.fromkeys(row["left out"] for row in rows):
        own = [row for row in rows if row["left out"] == rule]
        change = np.array([row["j"] - j[ALL, row["object"]] for row in own])
        late = [row["delay"] is not None and row["delay"] <= every for row in own if row["late"]]
        table.append(
            {
                "left out": rule,
                "objects": len(own),
                "mean J": round(float(np.mean([row["j"] for row in own])), 4),
                "difference": round(float(change.mean()), 4),
                "its spread": round(float(change.std(ddof=1) / len(own) ** 0.5), 4),
                "clips that differ": len({row["clip"] for row, d in zip(own, change, strict=True) if abs(d) > 1e-4}),
                "ids that change, %": round(100 * float(np.mean([row["switched"] for row in own])), 1),
                "late ones found in time, %": round(100 * float(np.mean(late)), 1) if late else "",
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--clips", type=int, default=30, help="of each seed")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE")
    parser.add_argument("--redetect-every", type=int, default=6, help="frames, as the notebook's parameter")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, help="write the table here, too")
    args = parser.parse_args()
    jobs = [(seed, number) for number in range(args.clips) for seed in args.seeds]
    work, rows = partial(measure_clip, every=args.redetect_every, rules=[ALL, *(r for r in args.rules if r != ALL)]), []
    with ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker) as pool:
        for job, found in zip(jobs, pool.map(work, jobs), strict=True):
            rows += found
            print(*job, *(f"{row['j']:.3f}" for row in found if row["left out"] == ALL), flush=True)
            table = summary(rows, args.redetect_every)
            if args.out:
                write_csv(table, args.out)
    for row in table:
        print(*row.values(), sep=" | ")


if __name__ == "__main__":
    main()
