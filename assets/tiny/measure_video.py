"""Measure q2's tracking with the embedded tiny models on drawn clips that no training has seen:

    python assets/tiny/measure_video.py --seed 1 --clips 50 --workers 2

The whole pipeline, from the text to the masks on every frame: clips of 60 frames with 2 to 4 objects that cross, are
hidden, enter late and leave (`make_clip` of helpers/shapes/clips.py). Prints a table and, with --out, writes it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import STREAM, load_tiny, nbload, table

from helpers.common import device, environment
from helpers.segment.inputs import Settings
from helpers.segment.tracks import Tracks
from helpers.segment.video import Silent, VideoReader, VideoWriter
from helpers.shapes.clips import make_clip
from track_scores import TrackScore, masks_by_id, score_object

HEIGHT, WIDTH, FRAMES, FPS = 240, 320, 60, 24


def follow(q2, networks, clip, path: Path, every: int) -> list[dict]:
    """The objects of each frame, {id: (label, mask)}, for the clip as a video file."""
    with VideoWriter(path, Silent(WIDTH, HEIGHT, FPS), quality=12) as writer:
        for i, frame in enumerate(clip.frames):
            writer.write(frame, i)
    phrases = list(dict.fromkeys(f"{item.colour} {item.shape}" for item in clip.objects))
    video, settings = VideoReader(path), Settings(redetect_every=every)
    tracks = Tracks(networks.sam2, video, settings.max_objects)
    walk = q2.track_frames(tracks, networks, video, phrases, settings)
    return masks_by_id([{"objects": objects} for _, objects in itertools.chain(walk, tracks.rest())])


_shared: dict = {}  # in each process: the notebook's definitions and the models


def _start_worker() -> None:
    torch.set_num_threads(1)
    _shared["q2"] = nbload.load("q2.ipynb")
    _shared["networks"] = load_tiny(_shared["q2"], device.pick_compute())


def measure_clip(seed: int, every: int, number: int) -> tuple[list[TrackScore], float]:
    """The scores of a clip's objects, and seconds a frame."""
    q2 = _shared["q2"]
    clip = make_clip(np.random.default_rng((STREAM + seed, number, 1)), HEIGHT, WIDTH, FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        frames = follow(q2, _shared["networks"], clip, Path(folder) / "clip.mp4", every)
        seconds = (time.perf_counter() - begun) / FRAMES
    return [score_object(item, frames) for item in clip.objects if item.masks.any()], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--redetect-every", type=int, default=6, help="frames, as the notebook's parameter")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, help="write the table here too, as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, seconds, start = [], [], time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.workers, spawn, _start_worker) as pool:
        given = itertools.repeat(args.seed), itertools.repeat(args.redetect_every), range(args.clips)
        for i, (found, taken) in enumerate(pool.map(measure_clip, *given)):
            results += found
            seconds.append(taken)
            print(f"clip {i + 1}: J so far {np.mean([r.j for r in results]):.3f}", flush=True)
    late = [r.delay is not None and r.delay <= args.redetect_every for r in results if r.late]
    rows = [
        ("mean J over frames and objects", f"{np.mean([r.j for r in results]):.3f}", len(results)),
        ("median J of an object", f"{np.median([r.j for r in results]):.3f}", len(results)),
        ("objects whose id changes", f"{100 * np.mean([r.switched for r in results]):.1f} %", len(results)),
        (
            f"late objects found within {args.redetect_every} frames of half of their largest area showing",
            f"{100 * np.mean(late):.1f} %" if late else "none",
            len(late),
        ),
        (f"median seconds a frame, {args.workers} at once", f"{np.median(seconds):.3f}", len(seconds)),
    ]
    versions = environment.versions("torch", "transformers", "sam2", "numpy", "av")
    made_by = f"assets/tiny/measure_video.py --seed {args.seed} --clips {args.clips}"
    made_by += f" --redetect-every {args.redetect_every} --workers {args.workers}"
    about = f"`{made_by}`, {time.perf_counter() - start:.0f} s, {device.pick_compute()}, {versions}"
    text = table(rows, about).replace(
        "held-out scenes", f"held-out clips of {FRAMES} frames, {WIDTH} x {HEIGHT} pixels"
    )
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
