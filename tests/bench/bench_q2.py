"""q2.ipynb's own pipelines: seconds by stage, memory, and beside what people would use instead.

    python tests/bench/bench_q2.py [--parts stages phrases folder tracking length threads] [--sizes tiny full] [--out D]

stages    seconds of each stage for an image, and peak memory, by the image's size and the number of phrases
phrases   images/s for several phrases: one GroundingDINO pass and one SAM 2 encoding for all of them, as the notebook
          does, against one of each for every phrase
folder    images/s for a folder of JPEGs in two shapes, from the files to the files: by the notebook's loop, several at
          once and one at a time, against reading, segmenting and writing one after the other
tracking  frames/s and peak memory: segment/sam2_video.py on frames as they are decoded, against the sam2 package's own
          `init_state` and `propagate_in_video` on a folder of JPEG files
length    frames/s and peak memory of the video pipeline by the length of a clip: 1080p, two objects
threads   frames/s of the video pipeline on the drawn example, tiny models, on idle cores and on cores that others keep
          busy, by how torch's threads wait for each other

Full size means GroundingDINO Swin-T, SAM 2.1 small and CLIPSeg rd64 with random weights: as fast as trained ones, and
nothing has to be fetched. So that every run has the same work, the surest boxes are kept whatever their scores, and in
a video the objects' true boxes. Memory is that of a process for each row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench_common import (
    ROOT,
    Contender,
    busy,
    in_its_own_process,
    nbload,
    peak_memory,
    precisions,
    report,
    spread,
    take_turns,
)
from drawing import shape_mask
from helpers.common.boxes import mask_box
from helpers.common.device import Compute, pick_compute
from helpers.common.images import read_image
from helpers.common.threads import read_ahead
from helpers.segment import clipseg, grounding_dino, sam2_image
from helpers.segment.batches import default_batch_size
from helpers.segment.detections import Detection
from helpers.segment.examples import draw_example_clip
from helpers.segment.inputs import Settings
from helpers.segment.models import Models
from helpers.segment.outputs import write_detections
from helpers.segment.prompts import parse_phrases
from helpers.segment.sam2_video import VideoTracker
from helpers.segment.tracks import Tracks
from helpers.segment.video import Silent, VideoReader, VideoWriter
from helpers.shapes.clips import make_clip
from helpers.shapes.scenes import make_scene

Q2 = "q2.ipynb"
TINY = ROOT / "assets" / "tiny"
PHRASES = ["red circle", "blue square", "green star", "pink heart", "cyan cross", "a triangle", "orange star", "square"]


# ---- models ----


def write_full_size(folder: Path) -> None:
    """The three models at full size, random weights, in the layouts that their loaders read."""
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from transformers import (
        BertTokenizerFast,
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    torch.manual_seed(0)
    dino = folder / "groundingdino"
    tokenizer, config = BertTokenizerFast.from_pretrained(TINY / "groundingdino"), GroundingDinoConfig()
    config.text_config.vocab_size = len(tokenizer)  # which loading compares
    GroundingDinoForObjectDetection(config).save_pretrained(dino)
    GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer).save_pretrained(dino)
    CLIPSegForImageSegmentation(CLIPSegConfig()).save_pretrained(folder / "clipseg")
    processor = CLIPSegProcessor.from_pretrained(TINY / "clipseg")
    processor.image_processor.size = {"height": 352, "width": 352}
    processor.save_pretrained(folder / "clipseg")
    config = OmegaConf.load(Path(sam2.__file__).parent / "configs/sam2.1/sam2.1_hiera_s.yaml").model
    torch.save({"model": instantiate(config, _recursive_=True).state_dict()}, folder / "sam2.1_hiera_small.pt")


def load_sam2(folder: Path, compute: Compute):
    full = folder / "sam2.1_hiera_small.pt"
    return sam2_image.load_sam2(full if full.is_file() else folder / "sam2", compute)


def load_models(q2, folder: Path, compute: Compute):
    """The tiny models from their folder, or what `write_full_size` wrote, as q2's `Models`."""
    return Models(
        grounding_dino.load(folder / "groundingdino", None, compute),
        load_sam2(folder, compute),
        clipseg.load_clipseg(folder / "clipseg", compute),
        compute,
    )


# ---- images ----


def stages_once(folder: str, height: int, width: int, phrases: int, repeats: int, boxes: int) -> dict:
    """Median seconds of each stage after a run that is not counted, and of all of them; memory of this process."""
    q2, compute = nbload.load(Q2), pick_compute()
    networks = load_models(q2, Path(folder), compute)
    image, wanted = make_scene(0, height, width, objects=(5, 5)).image, PHRASES[:phrases]
    found = []

    def write(out: str) -> None:
        kept = [replace(d, mask_score=float(np.nan_to_num(d.mask_score))) for d in found]
        write_detections(out, image, kept, "image", ". ".join(wanted), networks.names(), {})

    with tempfile.TemporaryDirectory() as out:
        work = {
            "groundingdino": lambda: q2.detect(networks.dino, [image], wanted, Settings(0.0, 0.0, 0.4, 1.0, boxes))[0],
            "sam2_encode": lambda: networks.sam2.encode([image]),
            "sam2_masks": lambda: q2.add_masks(networks.sam2, encoded, found[:boxes]),
            "clipseg": lambda: networks.clipseg.heatmaps([image], [wanted]),
            "write": lambda: write(out),
        }
        seconds = {stage: [] for stage in work}
        (encoded,) = networks.sam2.encode([image])
        for _ in range(1 + repeats):
            for stage, run in work.items():
                began = time.perf_counter()
                done = run()
                compute.synchronize()
                seconds[stage].append(time.perf_counter() - began)
                found = done if stage in ("groundingdino", "sam2_masks") else found
    totals = [sum(parts) for parts in zip(*(taken[1:] for taken in seconds.values()), strict=True)]
    row = {stage: spread(taken[1:])["median"] for stage, taken in seconds.items()}
    return {"precision": compute.precision, **row, **spread(totals), **peak_memory()}


def stages(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict]:
    rows = []
    for models, folder in folders.items():
        for width, height in args.image_sizes:
            for phrases in (1, args.phrases):
                job = {"folder": str(folder), "height": height, "width": width, "phrases": phrases}
                job |= {"part": "stages", "repeats": repeats(args, models), "boxes": 8}
                row = {"models": models, "image": f"{width} x {height}", "phrases": phrases}
                rows.append(row | in_its_own_process(__file__, job))
    return rows


def one_pass(q2, networks, image: np.ndarray, phrases: list[str], each: int) -> list:
    """As the notebook: all phrases in one caption, one encoding of the image; the surest `each` boxes a phrase on
    average. Returns detections with masks, bool [H, W]."""
    (boxes,) = q2.detect(networks.dino, [image], phrases, Settings(0.0, 0.0, 0.4, 1.0, 1))
    (encoded,) = networks.sam2.encode([image])
    return q2.add_masks(networks.sam2, encoded, boxes[: each * len(phrases)])


def pass_per_phrase(q2, networks, image: np.ndarray, phrases: list[str], each: int) -> list:
    return [d for phrase in phrases for d in one_pass(q2, networks, image, [phrase], each)]


def phrases(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict]:
    q2, rows, (width, height) = nbload.load(Q2), [], args.image_sizes[0]
    image, wanted = make_scene(0, height, width, objects=(5, 5)).image, PHRASES[: args.phrases]
    for models, folder in folders.items():
        for compute in precisions(args.precisions):
            networks, masks = load_models(q2, folder, compute), {}

            def run(way: Callable, networks=networks, compute=compute, masks=masks) -> int:
                masks[way] = len(way(q2, networks, image, wanted, args.boxes))
                compute.synchronize()
                return 1

            ways = {f"{Q2}: one pass for all phrases": one_pass, "one pass for each phrase": pass_per_phrase}
            contenders = [Contender(name, partial(run, way)) for name, way in ways.items()]
            run(one_pass)  # warms the models up: the other way takes up to a minute and a half
            setting = f"{models}, {width} x {height}, {len(wanted)} phrases, {compute.precision}"
            new = take_turns(setting, "images/s", contenders, repeats(args, models), warm_up=False)
            rows += [row | {"masks": masks[way]} for row, way in zip(new, ways.values(), strict=True)]
    return rows


def one_after_the_other(q2, networks, paths: list[Path], phrases: list[str], settings: Settings, out: Path) -> None:
    for path in paths:
        image = read_image(path)
        found, seconds = q2.segment(networks, image, phrases, settings)
        write_detections(out / path.stem, image, found, path, ". ".join(phrases), networks.names(), seconds)


def folder(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict]:
    """Every image gets masks for its 8 surest boxes; CLIPSeg is not asked."""
    q2, rows, wanted, compute = nbload.load(Q2), [], PHRASES[: args.phrases], pick_compute()
    for models, weights in folders.items():
        networks, count = load_models(q2, weights, compute), args.images if models == "tiny" else args.full_images
        at_once = args.batch_size or default_batch_size(compute)
        with tempfile.TemporaryDirectory() as place:
            paths = [Path(place) / f"{i}.jpg" for i in range(count)]
            for i, path in enumerate(paths):
                height, width = (480, 640) if i % 3 else (640, 480)
                Image.fromarray(make_scene(i, height, width, objects=(5, 5)).image).save(path, quality=90)

            def settings(size: int) -> Settings:
                return Settings(0.0, 0.0, 0.4, 1.0, 8, batch_size=size)

            def by_the_notebook(size: int, networks=networks, paths=paths, place=place) -> int:
                q2.segment_files(networks, paths, wanted, settings(size), Path(place) / "out")
                return len(paths)

            def plainly(networks=networks, paths=paths, place=place) -> int:
                one_after_the_other(q2, networks, paths, wanted, settings(1), Path(place) / "out")
                return len(paths)

            ways = {f"{Q2}, batch_size={size}": partial(by_the_notebook, size) for size in sorted({1, at_once, 4})}
            contenders = [Contender(name, run) for name, run in {**ways, "one after the other": plainly}.items()]
            setting = f"{models}, {count} images of 640 x 480 and 480 x 640, {len(wanted)} phrases, {compute.precision}"
            rows += take_turns(setting, "images/s", contenders, repeats(args, models), warm_up=models == "tiny")
    return rows


# ---- videos ----


def draw_clip(folder: Path, frames: int, height: int, width: int, objects: int) -> list[tuple[int, ...]]:
    """Write clip.mp4 and its frames as jpg/00000.jpg and so on; returns the boxes of the objects on the first frame,
    x0, y0, x1, y1 in pixels."""
    clip = make_clip(3, height, width, frames, occluders=(0, 0), motions=["stay"] * objects)
    (folder / "jpg").mkdir()
    with VideoWriter(folder / "clip.mp4", Silent(width, height, 25)) as writer:
        for i, image in enumerate(clip.frames):
            writer.write(image, i)
            Image.fromarray(image).save(folder / "jpg" / f"{i:05}.jpg", quality=95)
    return [mask_box(item.masks[0]) for item in clip.objects]


def track_lazily(segmenter, folder: Path, boxes: list, frames: list | None = None) -> np.ndarray:
    """The masks, bool [T, objects, H, W], of helpers/segment/sam2_video.py on clip.mp4, or on `frames`, a list of uint8
    [H, W, 3]."""
    clip = VideoReader(folder / "clip.mp4") if frames is None else frames
    images = (frame.image for frame in clip) if frames is None else iter(frames)
    width, height = Image.open(folder / "jpg" / "00000.jpg").size
    tracker, found = VideoTracker(segmenter, height, width, len(clip)), []
    for i, prepared in enumerate(read_ahead(map(tracker.prepare, images))):
        tracker.show(i, prepared)
        for number, box in enumerate(boxes if i == 0 else ()):
            tracker.add(number, box=box)
        found.append(np.stack(list(tracker.track().values())))
    return np.stack(found)


@torch.inference_mode()
def track_plainly(segmenter, folder: Path, boxes: list) -> np.ndarray:
    """The same by the package's own loop over the folder jpg, as its examples have it."""
    model, found = segmenter.model, []
    with segmenter.compute.autocast():
        state = model.init_state(str(folder / "jpg"))
        for number, box in enumerate(boxes):
            model.add_new_points_or_box(state, 0, number, box=np.float32(box))
        for _, _, logits in model.propagate_in_video(state):
            found.append((logits[:, 0] > 0).cpu().numpy())
    return np.stack(found)


TRACKERS = {f"{Q2}: frames as they come": track_lazily, "sam2's own loop over jpg files": track_plainly}


def tracking_once(name: str, folder: str, precision: str, clip: str, boxes: list) -> dict:
    """Memory of this process after contender `name` has tracked the clip."""
    TRACKERS[name](load_sam2(Path(folder), pick_compute(precision)), Path(clip), boxes)
    return peak_memory()


def tracking(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict]:
    """`equal, %` is the share of the masks' pixels in which the two agree on the same frames, those of the files."""
    rows, (width, height) = [], args.video_size
    for models, folder in folders.items():
        frames = args.frames if models == "tiny" else args.full_frames
        for objects in args.objects if models == "tiny" else args.objects[:1]:
            for compute in precisions(args.precisions):
                with tempfile.TemporaryDirectory() as place:
                    clip, segmenter = Path(place), load_sam2(folder, compute)
                    boxes = draw_clip(clip, frames, height, width, objects)
                    images = [np.array(Image.open(path)) for path in sorted((clip / "jpg").iterdir())]
                    same = track_lazily(segmenter, clip, boxes, images) == track_plainly(segmenter, clip, boxes)
                    contenders = [
                        Contender(name, lambda run=run, s=segmenter, c=clip, b=boxes: len(run(s, c, b)))
                        for name, run in TRACKERS.items()
                    ]
                    setting = f"{models}, {frames} frames of {width} x {height}, {objects} objects, {compute.precision}"
                    count = repeats(args, models)  # the comparison of the masks was the warm-up
                    for row in take_turns(setting, "frames/s", contenders, count, warm_up=False):
                        job = {"part": "tracking", "name": row["contender"], "folder": str(folder), "clip": place}
                        memory = in_its_own_process(__file__, job | {"precision": compute.precision, "boxes": boxes})
                        rows.append(row | {"equal, %": round(100 * same.mean(), 3)} | memory)
    return rows


HEIGHT, WIDTH = 1080, 1920
ROUND = (("circle", (220, 40, 40), 300, 0.0), ("square", (40, 80, 220), 360, 2.0))


def draw_long_clip(path: Path, frames: int) -> None:
    """A red circle and a blue square that go to and fro, one above the other, on grey."""
    with VideoWriter(path, Silent(WIDTH, HEIGHT, 30)) as writer:
        for i in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
            for row, (shape, colour, size, phase) in enumerate(ROUND):
                x = WIDTH / 2 + 0.35 * WIDTH * np.sin(2 * np.pi * i / 300 + phase)
                image[shape_mask(shape, HEIGHT, WIDTH, x, HEIGHT * (0.27 + 0.46 * row), size) >= 0.5] = colour
            writer.write(image, i)


def true_objects(q2, networks, images, phrases, settings, ask_clipseg) -> list[tuple[list[Detection], dict]]:
    """In place of the notebook's `segment_batch`: as much work, but with the boxes of what differs from the grey."""
    q2.detect(networks.dino, images, phrases, settings)
    results = []
    for image, encoded in zip(images, networks.sam2.encode(images), strict=True):
        different = np.abs(image.astype(int) - 150).max(2) > 40
        boxes = []
        for top in (0, HEIGHT // 2):
            x0, y0, x1, y1 = mask_box(different[top : top + HEIGHT // 2])
            boxes.append((float(x0), float(y0 + top), float(x1), float(y1 + top)))
        found = [Detection(p, 0.9, box, "groundingdino") for p, box in zip(phrases, boxes, strict=True)]
        results.append((q2.add_masks(networks.sam2, encoded, found), {}))
    return results


def length_once(folder: str, path: str, every: int) -> dict:
    """From the text to `video_overlay.mp4` and `tracks.json`, in this process."""
    q2, compute, clip = nbload.load(Q2), pick_compute(), VideoReader(Path(path))
    if Path(folder) != TINY:
        q2.segment_batch = partial(true_objects, q2)
    networks = load_models(q2, Path(folder), compute)
    settings = Settings(redetect_every=every, batch_size=default_batch_size(compute))
    began = time.perf_counter()
    frames = q2.segment_video(networks, clip, ["red circle", "blue square"], settings, Path(path).parent)
    seconds = time.perf_counter() - began
    ids = {o["id"] for frame in frames for o in frame["objects"]}
    return {"objects": len(ids), "frames/s": round(len(frames) / seconds, 2), **peak_memory()}


def length(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict]:
    rows = []
    for models, folder in folders.items():
        for frames in args.lengths if models == "tiny" else args.full_lengths:
            with tempfile.TemporaryDirectory() as place:
                clip = Path(place) / "clip.mp4"
                draw_long_clip(clip, frames)
                job = {"part": "length", "folder": str(folder), "path": str(clip), "every": args.redetect_every}
                rows.append({"models": models, "frames": frames, **in_its_own_process(__file__, job)})
    return rows


# ---- how threads wait ----

WAITING = {  # by the variables of torch's OpenMP
    "spin 1,000 times, then sleep (helpers/)": {"GOMP_SPINCOUNT": "1000"},
    "spin 300,000 times (OpenMP's default)": {"GOMP_SPINCOUNT": "300000"},
    "sleep at once": {"GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def threads_once(frames: int) -> dict:
    """Follow what is in the first frames of the drawn example, in this process."""
    q2, compute = nbload.load(Q2), pick_compute("fp32")
    networks, settings = load_models(q2, TINY, compute), Settings()
    with tempfile.TemporaryDirectory() as place:
        path, prompt, _ = draw_example_clip(Path(place), 0)
        clip = VideoReader(path)
        tracks = Tracks(networks.sam2, clip, settings.max_objects, looks_again=False)
        walk = q2.track_frames(tracks, networks, clip, parse_phrases(prompt), settings)
        began = time.perf_counter()
        done = sum(1 for _ in itertools.islice(walk, frames))
    return {"frames/s": done / (time.perf_counter() - began)}


def threads(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict]:
    rates = {(beside, way): [] for beside in (0, os.cpu_count()) for way in WAITING}
    for _ in range(args.repeats):  # in turns
        for (beside, way), own in rates.items():
            with busy(beside):
                job = {"part": "threads", "frames": args.frames}
                own.append(in_its_own_process(__file__, job, **WAITING[way])["frames/s"])
    return [
        {"threads": way, "beside": f"{beside} busy processes", "unit": "frames/s", **spread(own)}
        for (beside, way), own in rates.items()
    ]


# ---- command line ----

PARTS = {"stages": stages, "phrases": phrases, "folder": folder, "tracking": tracking, "length": length}
PARTS |= {"threads": threads}
JOBS = {"stages": stages_once, "tracking": tracking_once, "length": length_once, "threads": threads_once}


def repeats(args: argparse.Namespace, models: str) -> int:
    return args.repeats if models == "tiny" else args.full_repeats


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "full"), default=["tiny", "full"])
    parser.add_argument("--out", type=Path, help="folder for the CSV and Markdown tables")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full-repeats", type=int, default=1, help="for the models of full size")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16", "fp16"])
    parser.add_argument("--image-sizes", nargs="+", type=pair, default=[(640, 480), (4000, 3000)], metavar="WxH")
    parser.add_argument("--phrases", type=int, default=len(PHRASES))
    parser.add_argument("--boxes", type=int, default=1, help="a phrase (phrases; the tiny GroundingDINO has 20 in all)")
    parser.add_argument("--images", type=int, default=64, help="(folder)")
    parser.add_argument("--full-images", type=int, default=64, help="for the models of full size (folder)")
    parser.add_argument("--batch-size", type=int, help="default: as the notebook chooses (folder)")
    parser.add_argument("--video-size", type=pair, default=(320, 240), metavar="WxH", help="(tracking)")
    parser.add_argument("--frames", type=int, default=60, help="(tracking, threads)")
    parser.add_argument("--full-frames", type=int, default=8, help="(tracking)")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3], help="full size: the first number (tracking)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 2000], help="in frames (length)")
    parser.add_argument("--full-lengths", type=int, nargs="+", default=[12, 36], help="in frames (length)")
    parser.add_argument("--redetect-every", type=int, default=6, help="frames, as the notebook's parameter (length)")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)  # of `in_its_own_process`
    args = parser.parse_args(given)
    torch.set_float32_matmul_precision("high")  # as in the notebook
    if args.job:
        print(json.dumps(JOBS[args.job.pop("part")](**args.job)))
        return
    with tempfile.TemporaryDirectory() as full:
        if "full" in args.sizes:
            write_full_size(Path(full))
        folders = {name: folder for name, folder in (("tiny", TINY), ("full", Path(full))) if name in args.sizes}
        for part in args.parts:
            report("bench_q2", part, PARTS[part](args, folders), args.out, given)


def pair(text: str) -> tuple[int, ...]:
    """(640, 480) from 640x480."""
    width, height = map(int, text.split("x"))
    return width, height


if __name__ == "__main__":
    main(sys.argv[1:])
