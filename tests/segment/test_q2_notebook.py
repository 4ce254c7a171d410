"""q2.ipynb as a user runs it: with the embedded tiny models, on the CPU, without a network."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import nbload
import nbrun
from drawing import shape_mask
from helpers.common.launch import export_script
from helpers.segment.detections import mask_iou
from helpers.segment.examples import draw_example_clip, draw_examples
from helpers.segment.outputs import decode_mask
from helpers.segment.prompts import parse_phrases
from helpers.segment.video import Silent, VideoReader, VideoWriter
from helpers.shapes.clips import make_clip
from helpers.shapes.scenes import make_scene
from track_scores import masks_by_id, score_object

ROOT = nbload.ROOT
# fmt: off
PARAMETERS = [
    "IMAGE_PATH", "TEXT_PROMPT", "VIDEO_PATH", "OUT_DIR", "box_threshold", "text_threshold", "clipseg_thr", "nms_iou",
    "max_objects", "one_label", "batch_size", "export", "models", "dino_weights", "sam2_weights", "clipseg_weights",
    "bert_path", "download", "redetect_every", "max_seconds", "compile", "seed",
]
# fmt: on
# Whoever imports this at start-up cannot reach any network; unix sockets and this machine itself (the kernel's own
# channels) still work.
NO_NETWORK = """
import socket
real = socket.socket.connect
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"network used: {address}")
    return real(self, address)
socket.socket.connect = connect
def resolve(host, *args, **kwargs):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        raise AssertionError(f"network used: {host}")
    return original(host, *args, **kwargs)
original, socket.getaddrinfo = socket.getaddrinfo, resolve
"""


def execute(out: Path, cwd: Path = ROOT, **parameters) -> subprocess.CompletedProcess:
    """Run q2 with papermill in a process of its own, its kernel cut off from every network."""
    guard = out / "guard"
    guard.mkdir(parents=True)
    (guard / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "JPY_SESSION_NAME")}
    environment |= {"TQDM_DISABLE": "1", "PYTHONPATH": os.pathsep.join([str(guard), str(ROOT)])}
    return nbrun.execute("q2.ipynb", out, parameters | {"OUT_DIR": out}, cwd, environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("q2") / "out"
    done = execute(out, cwd=tmp_path_factory.mktemp("elsewhere"), models="tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def check_outputs(folder: Path, prompt: set[str]) -> dict:
    """The four files agree with one another and with the contract; returns the record."""
    record = json.loads((folder / "detections.json").read_text())
    assert record.keys() == {"image", "prompt", "models", "seconds", "detections"}
    size = record["image"]["height"], record["image"]["width"]
    instances, union = np.asarray(Image.open(folder / "instances.png")), np.asarray(Image.open(folder / "mask.png"))
    assert instances.dtype == np.uint16 and union.dtype == np.uint8 and instances.shape == union.shape == size
    assert np.asarray(Image.open(folder / "overlay.png")).shape == (*size, 3)
    everything = np.zeros(size, bool)
    for number, entry in enumerate(record["detections"], 1):
        assert entry.keys() == {"id", "label", "score", "box", "mask", "mask_score", "source"}
        assert entry["id"] == number and entry["label"] in prompt and entry["source"] in ("groundingdino", "clipseg")
        x0, y0, x1, y1 = entry["box"]
        assert 0 <= x0 <= x1 <= size[1] and 0 <= y0 <= y1 <= size[0]
        mask = decode_mask(entry["mask"])
        assert mask.shape == size and not (mask[instances == number] == 0).any()
        everything |= mask
    assert np.array_equal(union, np.where(everything, 255, 0)) and np.array_equal(instances > 0, everything)
    return record


def test_q2_finds_objects_and_writes_what_it_promises(run):
    _, prompt = draw_examples(run / "again", 0)
    record = check_outputs(run, set(parse_phrases(prompt)))
    assert record["detections"] and record["models"].keys() == {"groundingdino", "sam2", "clipseg"}
    assert all(seconds >= 0 for seconds in record["seconds"].values())


def test_q2_says_loudly_that_the_models_are_tiny(run):
    assert "TINY STAND-INS" in nbrun.printed(run)


def test_q2_does_the_whole_folder(run):
    with (run / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(not row["skipped"] for row in rows)
    for row in rows:
        folder = run / Path(row["image"]).stem
        assert int(row["objects"]) == len(json.loads((folder / "detections.json").read_text())["detections"])
    assert not (run / "yolo").exists() and not (run / "cutouts").exists()
    coco = json.loads((run / "coco.json").read_text())  # by default
    assert [image["file_name"] for image in coco["images"]] == [Path(row["image"]).name for row in rows]
    assert len(coco["annotations"]) == sum(int(row["objects"]) for row in rows)


@pytest.mark.parametrize(
    "name", ["boxes", "masks", "clipseg", "result", "thresholds", "folder", "video_strip", "video_areas"]
)
def test_q2_figures_are_pictures_with_something_on_them(run, name):
    pixels = np.asarray(Image.open(run / f"{name}.png").convert("L"))
    assert min(pixels.shape) > 100 and pixels.std() > 5 and (run / f"{name}.png").stat().st_size < 1_000_000


def check_tracks(folder: Path, video: Path, complete: bool = True) -> dict:
    """`tracks.json` and the overlay agree with the contract and with the video; returns the record."""
    record, source = json.loads((folder / "tracks.json").read_text()), VideoReader(video)
    assert record.keys() == {"video", "prompt", "models", "complete", "frames"} and record["complete"] is complete
    assert record["video"].keys() == {"path", "width", "height", "fps", "frames"}
    assert record["video"]["frames"] == len(record["frames"]) and (len(record["frames"]) == len(source)) == complete
    overlay = list(VideoReader(folder / "video_overlay.mp4"))
    assert len(overlay) == len(record["frames"])
    labels = {}
    for i, (frame, drawn) in enumerate(zip(record["frames"], overlay, strict=True)):
        assert frame["index"] == i and frame["time"] == pytest.approx(drawn.time, abs=0.01)
        for entry in frame["objects"]:
            assert entry.keys() == {"id", "label", "score", "box", "mask"}
            assert labels.setdefault(entry["id"], entry["label"]) == entry["label"]
            mask = decode_mask(entry["mask"])
            assert mask.shape == (source.height, source.width)
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            assert entry["box"] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return record


def test_q2_tracks_the_clip(run):
    record = check_tracks(run, run / "examples" / "shapes.mp4")
    assert set(record["prompt"].split(". ")) >= {o["label"] for f in record["frames"] for o in f["objects"]}
    _, _, clip = draw_example_clip(run / "again", 0)
    assert np.mean([score_object(item, masks_by_id(record["frames"])).j for item in clip.objects]) > 0.7
    executed = (run / "executed.ipynb").read_text()
    assert "image/webp" in executed  # a player would be blank until the notebook is trusted


def test_q2_stops_a_video_in_time_and_keeps_what_is_done(tmp_path):
    clip, frames = make_clip(3, 97, 131, 60).frames, 60
    with VideoWriter(tmp_path / "clip.mp4", Silent(131, 97, 20)) as writer:
        for i in range(frames):
            writer.write(clip[i], i)
    given = {"VIDEO_PATH": tmp_path / "clip.mp4", "TEXT_PROMPT": "circle, square, star"}
    done = execute(tmp_path / "out", models="tiny", max_seconds=0.5, redetect_every=0, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    # without an image of one's own the video's first frame is the one that the sections on images show
    found = check_outputs(tmp_path / "out", {"circle", "square", "star"})
    assert Path(found["image"]["path"]).name == "first_frame.png"
    seen = np.array(Image.open(tmp_path / "out" / "first_frame.png"))
    np.testing.assert_array_equal(seen, next(iter(VideoReader(tmp_path / "clip.mp4"))).image)
    record = check_tracks(tmp_path / "out", tmp_path / "clip.mp4", complete=False)
    assert 1 <= len(record["frames"]) < frames and "stopped after 0.5 s (max_seconds)" in nbrun.printed(
        tmp_path / "out"
    )


def test_q2_asks_for_a_prompt_where_a_file_of_ones_own_is_given(tmp_path):
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    done = execute(tmp_path / "out", models="tiny", IMAGE_PATH=tmp_path / "a.png")
    assert done.returncode != 0 and "TEXT_PROMPT is not set: say what to look for" in done.stderr


def test_q2_leaves_out_the_widgets_where_nobody_can_use_them(run):
    assert "a person who runs this notebook" in nbrun.printed(run)


def test_q2_on_a_folder_of_ones_own_with_a_bad_file_and_a_prompt_that_finds_nothing(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(make_scene(5, 120, 200).image).save(photos / "a.png")
    Image.fromarray(np.full((40, 30, 3), 120, np.uint8)).save(photos / "b.jpg")
    (photos / "0.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")  # the first one, where others can be read
    # letters that the detector's vocabulary lacks: left to CLIPSeg alone, with a word to the user
    done = execute(tmp_path / "out", models="tiny", IMAGE_PATH=photos, TEXT_PROMPT="犬 . RED CIRCLE..", clipseg_thr=1.0)
    assert done.returncode == 0, done.stderr[-3000:]
    text = nbrun.printed(tmp_path / "out")
    assert "犬" in text and "0.jpg" in text
    record = check_outputs(tmp_path / "out" / "b", {"red circle", "犬"})
    assert record["detections"] == [] and record["prompt"] == "犬. red circle"
    with (tmp_path / "out" / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["skipped"]) for row in rows] == [True, False, False]
    assert Path(check_outputs(tmp_path / "out", {"red circle", "犬"})["image"]["path"]).name == "a.png"


def test_q2_shares_a_folder_among_processes(tmp_path):
    """Under torchrun: every image is done once, by one of two processes, and there is one table, in order."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(4):
        Image.fromarray(make_scene(i, 96, 128).image).save(photos / f"{i}.png")
    (photos / "2.png").write_bytes(b"no image")
    given = {"models": "tiny", "IMAGE_PATH": str(photos), "TEXT_PROMPT": "circle. square. star", "OUT_DIR": str(out)}
    script = export_script(ROOT / "q2.ipynb", given, tmp_path / "q2.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("3 of 4 images; the table is in") == done.stdout.count("phrases: circle") == 1
    with (out / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).stem for row in rows] == ["0", "1", "2", "3"]
    assert [bool(row["skipped"]) for row in rows] == [False, False, True, False]
    for row in rows:
        if not row["skipped"]:
            record = check_outputs(out / Path(row["image"]).stem, {"circle", "square", "star"})
            assert len(record["detections"]) == int(row["objects"])
    assert {path.name for path in out.glob("*.png")} >= {"boxes.png", "result.png", "folder.png"}
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["0.png", "1.png", "3.png"]
    assert len(coco["annotations"]) == sum(int(row["objects"]) for row in rows if not row["skipped"])


def test_q2_exports_a_folder_in_every_format(tmp_path):
    """With a prompt in a list, and one label for each object."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for i, name in enumerate(["a/x.png", "b/x.png", "y.jpg", "z.png"]):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_scene(i, 120, 160).image).save(photos / name)
    (photos / "z.png").write_bytes(b"no image")
    given = {"TEXT_PROMPT": '["Circle", "square", "star"]', "one_label": True, "export": "coco,yolo,cutouts"}
    done = execute(out, models="tiny", IMAGE_PATH=photos / "**" / "*", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "phrases: circle | square | star" in nbrun.printed(out)
    coco = COCO(out / "coco.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["circle", "square", "star"]
    entries = coco.loadImgs(coco.getImgIds())
    assert [entry["file_name"] for entry in entries] == ["a/x.png", "b/x.png", "y.jpg"]
    folders = [out / name for name in ("a_x_png", "b_x_png", "y")]
    for entry, folder in zip(entries, folders, strict=True):
        record = check_outputs(folder, {"circle", "square", "star"})
        masks = [coco.annToMask(a).astype(bool) for a in coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))]
        assert len(masks) == len(record["detections"])
        instances = np.asarray(Image.open(folder / "instances.png"))
        assert np.array_equal(np.any([*masks, instances < 0], axis=0), instances > 0)
        for number, mask in enumerate(masks, 1):
            assert mask[instances == number].all()
        lines = (out / "yolo" / "labels" / f"{folder.name}.txt").read_text().splitlines()
        for line, mask in zip(lines, masks, strict=True):
            polygon = np.array(line.split()[1:], float).reshape(-1, 2) * mask.shape[::-1]
            filled = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [polygon.astype(np.int32)], 1) > 0
            assert mask_iou(filled, mask) > 0.9
        assert len(list((out / "cutouts").glob(f"{folder.name}_*_*.png"))) == len(masks)
    assert coco.anns and {file.stem for file in (out / "yolo" / "images").iterdir()} == {f.name for f in folders}
    assert (out / "yolo" / "data.yaml").is_file()


def test_q2_refuses_an_unknown_export_before_it_looks_for_models(tmp_path):
    done = execute(tmp_path / "out", models="full", download=False, export="coco, voc")
    assert done.returncode != 0 and "export='coco, voc': give any of coco, yolo, cutouts" in done.stderr


def test_q2_refuses_a_broken_model_and_names_its_file(tmp_path):
    """A given path never falls back to anything, whatever else would do."""
    broken, tiny = tmp_path / "sam2.1_hiera_tiny.pt", ROOT / "assets" / "tiny"
    broken.write_bytes(b"PK\x03\x04 not all of it")
    given = {"dino_weights": tiny / "groundingdino", "clipseg_weights": tiny / "clipseg", "sam2_weights": broken}
    done = execute(tmp_path / "out", download=False, **given)
    assert done.returncode != 0 and f"{broken} ({broken.stat().st_size} bytes) is truncated" in done.stderr


def test_q2_has_the_parameters_of_its_contract_as_literals():
    (cell,) = (c for c in nbload.code_cells("q2.ipynb") if "parameters" in c["metadata"].get("tags", ()))
    namespace = {}
    exec(cell["source"], namespace)
    assert [name for name in namespace if name != "__builtins__"] == PARAMETERS
    expected = {"box_threshold": 0.35, "text_threshold": 0.25, "clipseg_thr": 0.4, "nms_iou": 0.7, "models": "auto"}
    expected |= {"download": True, "one_label": False, "export": "coco"}
    assert expected.items() <= namespace.items()


@pytest.mark.slow
def test_the_readmes_script_segments_a_picture(tmp_path):
    readme = (ROOT / "README.md").read_text("utf-8")
    script = re.search(r"```python\n(from helpers\.common\.device import pick_compute\n.*?)```", readme, re.S)[1]
    assert len(script.splitlines()) <= 10
    image = np.full((200, 300, 3), 150, np.uint8)
    image[shape_mask("circle", 200, 300, 150, 100, 80) >= 0.5] = (220, 30, 40)
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=95)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (found,) = (line for line in done.stdout.splitlines() if line.startswith("a red circle 0."))
    assert abs(int(found.split()[-1]) - 40**2 * np.pi) < 500
