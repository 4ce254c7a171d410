"""What is written for an image, read back with other tools than those that wrote it."""

import errno
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from drawing import shape_mask
from helpers.segment.detections import Detection
from helpers.segment.figures import area_curves
from helpers.segment.outputs import (
    decode_mask,
    doubtful_frame,
    encode_mask,
    track_entry,
    write_detections,
    write_tracks,
)
from helpers.segment.overlay import draw_instances

FILES = ["detections.json", "instances.png", "mask.png", "overlay.png"]
MODELS = {"groundingdino": "tiny", "sam2": "tiny", "clipseg": "tiny"}


def disc(cx, cy, size, height=90, width=120):
    return shape_mask("circle", height, width, cx, cy, size) >= 0.5


def detection(mask, score=0.8, label="red circle", box=(1, 2, 30, 40), source="groundingdino", mask_score=0.9):
    return Detection(label, score, box, source, mask, mask_score)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def write(folder, image, detections, path="in/photo.jpg", prompt="red circle. cat", models=MODELS, seconds=None):
    return write_detections(folder, image, detections, path, prompt, models, seconds or {"detect": 1.23456, "masks": 2})


def read(folder):
    """detections.json (strict: no NaN), mask, instances and overlay."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    record = json.loads((folder / "detections.json").read_bytes().decode("utf-8"), parse_constant=refuse)
    return record, *(np.array(Image.open(folder / f"{name}.png")) for name in ("mask", "instances", "overlay"))


# --- Run-length encoding -------------------------------------------------------------------------------------------


def runs(mask):
    """COCO's uncompressed counts by their definition: runs down the columns, zeros first."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.mark.parametrize("mask", [
    disc(60, 40, 50), disc(0, 0, 70), disc(60, 40, 50).T, disc(60, 40, 50)[::-1, ::2], np.asfortranarray(disc(9, 9, 9)),
    np.zeros((7, 5), bool), np.ones((7, 5), bool), np.array([[True]]), np.array([[False]]),
    np.random.default_rng(0).random((1, 5000)) < 0.5, np.random.default_rng(1).random((5000, 1)) < 0.5,
])  # fmt: skip
def test_masks_go_through_coco_and_back(mask):
    rle = json.loads(json.dumps(encode_mask(mask)))
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str)
    assert (
        coco_mask.frPyObjects({"size": rle["size"], "counts": runs(mask)}, *mask.shape)["counts"].decode()
        == rle["counts"]
    )
    back = decode_mask(rle)
    assert back.dtype == bool and back.flags.c_contiguous and back.flags.writeable and (back == mask).all()


# --- The files of an image -----------------------------------------------------------------------------------------


def test_the_four_files(tmp_path, image):
    detections = [
        detection(disc(30, 40, 30), 0.91234567, "red circle", (15.123456, 25, 45, 55)),
        detection(
            disc(90, 40, 40), np.float32(0.5), "кошка", np.float32([70.5, 20, 110, 60]), "clipseg", np.float16(0.75)
        ),
    ]
    seconds = {"detect": np.float32(1.5), "masks": 0.123456}
    record = write(tmp_path / "new" / "out", image, detections, seconds=seconds)
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == FILES
    stored, mask, instances, overlay = read(tmp_path / "new" / "out")
    assert stored == record
    masks = [entry.pop("mask") for entry in stored["detections"]]
    assert stored == {
        "image": {"path": "in/photo.jpg", "width": 120, "height": 90},
        "prompt": "red circle. cat",
        "models": MODELS,
        "seconds": {"detect": 1.5, "masks": 0.1235},
        "detections": [
            {"id": 1, "label": "red circle", "score": 0.9123, "box": [15.12, 25, 45, 55], "mask_score": 0.9,
             "source": "groundingdino"},
            {"id": 2, "label": "кошка", "score": 0.5, "box": [70.5, 20, 110, 60], "mask_score": 0.75,
             "source": "clipseg"},
        ],
    }  # fmt: skip
    for rle, one in zip(masks, detections, strict=True):
        assert (coco_mask.decode(rle) == one.mask).all()
    assert "кошка" in (tmp_path / "new" / "out" / "detections.json").read_text(encoding="utf-8")
    assert mask.dtype == np.uint8 and (mask == 255 * (detections[0].mask | detections[1].mask)).all()
    assert instances.dtype == np.uint16 and (instances == detections[0].mask + 2 * detections[1].mask).all()
    assert (overlay == draw_instances(image, detections)).all()


def test_where_masks_overlap(tmp_path, image):
    large, small = disc(60, 45, 80), disc(60, 45, 20)
    for order, expected in (
        ([large, small], np.where(small, 2, large)),
        ([small, large], np.where(small, 1, 2 * large)),
    ):
        record = write(tmp_path, image, [detection(mask) for mask in order])
        _, mask, instances, _ = read(tmp_path)
        assert (instances == expected).all() and (mask == 255 * large).all()
        for entry, whole in zip(record["detections"], order, strict=True):
            assert (decode_mask(entry["mask"]) == whole).all()
    write(tmp_path, image, [detection(large, score=0.7), detection(large, score=0.6)])
    assert (read(tmp_path)[2] == large).all()


def test_nothing_detected(tmp_path, image):
    write(tmp_path, image, [detection(disc(60, 45, 80))])
    write(tmp_path, image, [])  # over what an earlier run left
    record, mask, instances, overlay = read(tmp_path)
    assert record["detections"] == [] and record["image"]["width"] == 120
    assert not mask.any() and not instances.any() and mask.shape == instances.shape == (90, 120)
    assert (overlay == image).all() and sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_boxes_are_cut_at_the_border(tmp_path, image):
    write(tmp_path, image, [detection(disc(60, 45, 80), box=(-3.5, -0.0, 120.04, 1e9))])
    assert read(tmp_path)[0]["detections"][0]["box"] == [0, 0, 120, 90]


def test_a_path_that_is_no_text(tmp_path, image):
    write(tmp_path, image, [], path=tmp_path / "bad\udcff é.jpg")
    assert read(tmp_path)[0]["image"]["path"] == f"{tmp_path / 'bad? é.jpg'}"


def test_one_pixel(tmp_path):
    write(tmp_path, np.zeros((1, 1, 3), np.uint8), [detection(np.ones((1, 1), bool), box=(0, 0, 1, 1))])
    _, mask, instances, overlay = read(tmp_path)
    assert mask.tolist() == [[255]] and instances.tolist() == [[1]] and overlay.shape == (1, 1, 3)


def test_more_than_255_instances(tmp_path):
    masks = np.eye(300, dtype=bool).reshape(300, 15, 20)
    write(tmp_path, np.zeros((15, 20, 3), np.uint8), [detection(mask, box=(0, 0, 20, 15)) for mask in masks])
    assert read(tmp_path)[2].ravel().tolist() == list(range(1, 301))


def test_a_full_disk_keeps_whole_files_only(tmp_path, image, monkeypatch):
    write(tmp_path, image, [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = Image.Image.save

    def full(picture, target, **options):
        if "overlay" in target.name:
            target.write_bytes(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(picture, target, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=f"{tmp_path}: the results could not be written there .*No space left"):
        write(tmp_path, image, [detection(disc(30, 30, 10))])
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(after) == FILES and after["overlay.png"] == before["overlay.png"]
    assert after["detections.json"] == before["detections.json"]  # written last


def test_a_folder_that_is_a_file(tmp_path, image):
    (tmp_path / "out").touch()
    with pytest.raises(OSError, match="out: the results could not be written there"):
        write(tmp_path / "out", image, [])


def test_tracks_are_json_that_another_tool_reads(tmp_path):
    frames = [
        {"index": i, "time": i / 24, "objects": [track_entry(1, "red circle", 0.5, disc(20 + i, 30, 24))] if i else []}
        for i in range(3)
    ]
    clip = SimpleNamespace(path=tmp_path / "é.mp4", width=120, height=90, fps=24.0)
    write_tracks(tmp_path / "tracks.json", clip, "red circle", MODELS, False, frames)
    record = json.loads((tmp_path / "tracks.json").read_text(encoding="utf-8"))
    assert record["video"] == {"path": str(clip.path), "width": 120, "height": 90, "fps": 24.0, "frames": 3}
    assert record["complete"] is False and record["video"]["path"].endswith("é.mp4") and record["models"] == MODELS
    assert [len(frame["objects"]) for frame in record["frames"]] == [0, 1, 1]
    (entry,) = record["frames"][2]["objects"]
    mask = coco_mask.decode(entry["mask"]).astype(bool)
    np.testing.assert_array_equal(mask, disc(22, 30, 24))
    assert entry["box"] == [10, 18, 34, 42] and entry["score"] == 0.5
    write_tracks(tmp_path / "none.json", clip, "", MODELS, True, [])
    assert json.loads((tmp_path / "none.json").read_text(encoding="utf-8"))["frames"] == []


def test_areas_over_time_are_shares_of_the_image():
    whole, half = np.ones((10, 20), bool), np.zeros((10, 20), bool)
    half[:5] = True
    frames = [
        {"objects": [track_entry(2, "cat", 0.9, half), track_entry(1, "cat", 0.9, whole)]},
        {"objects": []},
        {"objects": [track_entry(2, "red dog", 0.9, whole)]},
    ]
    frames = [frame | {"time": i / 24} for i, frame in enumerate(frames)]
    (axis,) = area_curves(frames).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines == {"1 cat": [100, 0, 0], "2 red dog": [50, 0, 100]} and list(lines) == ["1 cat", "2 red dog"]
    assert area_curves([]).axes[0].lines[:] == []


def test_the_frame_to_doubt_is_where_two_masks_share_most():
    def row(index, *starts):  # objects of 10 pixels each that begin at these columns
        masks = np.zeros((len(starts), 4, 60), bool)
        for mask, start in zip(masks, starts, strict=True):
            mask[1, start : start + 10] = True
        entries = [track_entry(number, "cat", 0.9, mask) for number, mask in enumerate(masks, 1)]
        return {"index": index, "time": index / 25, "objects": entries}

    apart = [row(0), row(1, 0), row(2, 0, 30), row(3, 0, 6)]  # the last two share 4 of 10 pixels
    assert doubtful_frame(apart) is None
    assert doubtful_frame([*apart, row(4, 0, 30, 34), row(5, 0, 30, 31), row(6, 0, 4)]) == 5
