"""helpers/segment/exports.py, its files read back by other tools than those that wrote them."""

import contextlib
import io
import json
import re
import time

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from helpers.common.boxes import mask_box
from helpers.common.images import read_image
from helpers.segment.detections import Detection, mask_iou
from helpers.segment.exports import FORMATS, export_image, finish_folder, mask_polygon, parse_formats
from helpers.segment.images import find_images, output_names
from helpers.segment.outputs import write_detections

PHRASES = ["red circle", "cat", "кот 7: «b_c»"]


def blob(seed, height=90, width=120, holes=True):
    """A mask of smooth random parts of at least 30 pixels across, with smaller holes in them."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]

    def discs(count, low, high):
        mask = np.zeros((height, width), bool)
        for _ in range(count):
            cx, cy, r, stretch = draw.uniform([0, 0, low / 2, 0.7], [width, height, high / 2, 1.4])
            mask |= ((x - cx) / stretch) ** 2 + ((y - cy) * stretch) ** 2 <= (r * max(stretch, 1 / stretch)) ** 2
        return mask

    return discs(draw.integers(1, 4), 30, 60) & ~(discs(draw.integers(0, 6), 3, 14) if holes else False)


def rasters(shares, height, width):
    """A polygon in shares of the image, float [P, 2], as masks: by OpenCV, cut off and rounded, and by Pillow."""
    pixels = np.asarray(shares, np.float32) * np.float32([width, height])
    for points in (pixels.astype(np.int32), np.rint(pixels).astype(np.int32)):
        yield cv2.fillPoly(np.zeros((height, width), np.uint8), [points], 1).astype(bool)
    page = Image.new("1", (width, height))
    ImageDraw.Draw(page).polygon([tuple(point) for point in pixels.tolist()], fill=1, outline=1)
    yield np.array(page)


# --- Which formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("export", "formats"), [
    ("coco", ("coco",)), ("", ()), (" ", ()), ("cutouts,coco", ("coco", "cutouts")),
    (" YOLO , coco,", ("coco", "yolo")),
    ("coco,coco", ("coco",)), (",".join(FORMATS), FORMATS),
])  # fmt: skip
def test_formats(export, formats):
    assert parse_formats(export) == formats


@pytest.mark.parametrize("export", ["voc", "coco yolo", "coco, voc", True, ["coco"], 3])
def test_other_formats_are_refused_by_name(export):
    with pytest.raises(ValueError, match=re.escape(f"export={export!r}: give any of coco, yolo, cutouts")):
        parse_formats(export)


# --- Polygons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_polygon_is_its_mask_with_parts_and_holes(seed):
    mask = blob(seed)
    height, width = mask.shape
    path = mask_polygon(mask)
    assert path.ndim == 2 and path.min() >= 0 and (path.max(0) < [width, height]).all()
    for raster in rasters((path + 0.25) / [width, height], height, width):
        assert mask_iou(raster, mask) >= 0.97
        assert (mask & ~raster).sum() <= 0.005 * mask.sum()  # Pillow misses a pixel here and there
        assert (raster & ~mask).sum() <= height + width  # bridges, and nothing else


def test_a_part_without_holes_is_exact():
    for seed in range(8):
        mask = blob(seed, holes=False)
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        for i in range(1, count):
            part = labels == i
            for raster in rasters((mask_polygon(part) + 0.25) / part.shape[::-1], *part.shape):
                np.testing.assert_array_equal(raster, part)


def drawn(height, width, *rectangles):
    mask = np.zeros((height, width), bool)
    for y0, y1, x0, x1, value in rectangles:
        mask[y0:y1, x0:x1] = value
    return mask


@pytest.mark.parametrize("mask", [
    np.ones((1, 1), bool), np.ones((1, 9), bool), np.ones((9, 1), bool), np.ones((8, 9), bool), np.eye(9, dtype=bool),
    drawn(9, 9, (4, 5, 4, 5, True)), drawn(9, 9, (0, 1, 0, 2, True)),
    drawn(9, 9, (0, 9, 0, 9, True), (4, 5, 4, 5, False)),
    drawn(9, 9, (0, 9, 0, 9, True), (1, 8, 1, 8, False)), drawn(9, 9, (0, 9, 0, 1, True), (8, 9, 0, 9, True)),
])  # fmt: skip
def test_small_and_thin_masks(mask):
    path = mask_polygon(mask)
    assert len(path) >= 3
    for raster in rasters((path + 0.25) / mask.shape[::-1], *mask.shape):
        np.testing.assert_array_equal(raster, mask)


def test_bridges_are_as_short_as_can_be():
    """Two bars whose corners are far from each other: the bridge crosses the gap."""
    mask = drawn(100, 100, (0, 100, 0, 30, True), (50, 60, 34, 100, True))
    for raster in rasters((mask_polygon(mask) + 0.25) / 100, 100, 100):
        assert (raster & ~mask).sum() == 4 and (raster | ~mask).all()
    nested = drawn(
        100, 100, (0, 100, 0, 100, True), (20, 80, 20, 80, False), (30, 70, 30, 70, True), (45, 55, 45, 55, False)
    )
    for raster in rasters((mask_polygon(nested) + 0.25) / 100, 100, 100):
        assert (raster & ~nested).sum() == 10 and (raster | ~nested).all()


def test_a_mask_of_noise_takes_no_minutes():
    """Its largest parts are there; there are 1,100 in all."""
    mask = np.random.default_rng(0).random((120, 160)) < 0.3
    start = time.perf_counter()
    (raster, *_) = rasters((mask_polygon(mask) + 0.25) / mask.shape[::-1], *mask.shape)
    assert time.perf_counter() - start < 10
    assert (raster & mask).sum() > 0.8 * mask.sum()


def test_straight_lines_have_no_points_between_their_ends():
    assert sorted(map(tuple, mask_polygon(drawn(50, 50, (5, 30, 10, 40, True))).tolist())) == [
        (10, 5), (10, 29), (39, 5), (39, 29)
    ]  # fmt: skip


# --- A folder ------------------------------------------------------------------------------------------------------


def finish(out, given, images, phrases, formats):
    rows = [{"image": str(path), "folder": name, "skipped": ""} for path, name in images]
    return finish_folder(out, given, rows, phrases, formats)


@pytest.fixture
def exported(tmp_path):
    """Images of one stem in different folders and of several kinds, with objects, in all formats: the folder given,
    its output, the images, and {name: (pixels, detections)}."""
    given, out, draw = tmp_path / "given", tmp_path / "out", np.random.default_rng(0)
    for name in ("a/x.jpg", "b/x.png", "b/x.bmp", "y_1.png", "é z.gif"):
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (90, 120, 3), np.uint8)).save(given / name)
    cv2.imwrite(str(given / "w.tif"), draw.random((90, 120, 3), np.float32))  # a kind that Pillow does not read
    pattern = given / "**" / "*"
    paths = find_images(pattern)
    assert len(paths) == 6
    images, content = list(zip(paths, output_names(paths), strict=True)), {}
    for k, (path, name) in enumerate(images):
        image = read_image(path)
        masks = [blob(10 * k + i) for i in range(k)]  # none in the first
        if k == 2:
            masks.insert(0, np.zeros((90, 120), bool))
        found = [Detection(PHRASES[(i + k) % 3], 0.9 - i / 10, (1, 2, 30, 40), "groundingdino", m, 0.8)
                 for i, m in enumerate(masks)]  # fmt: skip
        write_detections(out / name, image, found, path, ". ".join(PHRASES), {}, {})
        export_image(out, name, path, image, found, PHRASES, FORMATS)
        content[name] = image, found
    lines = finish(out, pattern, images, PHRASES, FORMATS)
    assert len(lines) == 4 and "15 cut-outs" in lines[3]
    return given, out, images, content


def test_coco_instances_as_pycocotools_reads_them(exported):
    given, out, images, content = exported
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(out / "coco.json")
        coco.loadRes([dict(annotation) for annotation in coco.dataset["annotations"]])
    assert coco.loadCats(coco.getCatIds()) == [
        {"id": i, "name": name, "supercategory": ""} for i, name in enumerate(PHRASES, 1)
    ]
    entries = coco.loadImgs(coco.getImgIds())
    expected = ["a/x.jpg", "b/x.bmp", "b/x.png", "w.tif", "y_1.png", "é z.gif"]
    assert [entry["file_name"] for entry in entries] == expected
    assert len(coco.anns) == 15
    for entry, (path, name) in zip(entries, images, strict=True):
        assert (given / entry["file_name"]).samefile(path) and (entry["width"], entry["height"]) == (120, 90)
        kept = [d for d in content[name][1] if d.mask.any()]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))
        for annotation, d in zip(annotations, kept, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, d.mask)
            x0, y0, x1, y1 = mask_box(d.mask)
            assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0] and annotation["area"] == d.mask.sum()
            assert annotation["iscrowd"] == 0 and annotation["score"] == round(d.score, 4)
            assert PHRASES[annotation["category_id"] - 1] == d.label
        instances, painted = np.array(Image.open(out / name / "instances.png")), np.zeros((90, 120), int)
        for annotation in sorted(annotations, key=lambda a: -a["area"]):
            number = 1 + [d.mask.tolist() for d in content[name][1]].index(
                coco.annToMask(annotation).astype(bool).tolist()
            )
            painted[coco.annToMask(annotation) > 0] = number
        np.testing.assert_array_equal(instances, painted)


def test_yolo_polygons_are_the_masks_and_lie_where_ultralytics_looks(exported):
    _, out, images, content = exported
    about = yaml.safe_load((out / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert about == {"train": "images", "val": "images", "names": dict(enumerate(PHRASES))}
    pictures = {file.stem: file for file in (out / "yolo" / "images").iterdir()}
    labels = {file.stem: file for file in (out / "yolo" / "labels").iterdir()}
    assert pictures.keys() == labels.keys() == content.keys() and len(content) == len(images) == 6
    for name, (image, found) in content.items():
        np.testing.assert_array_equal(np.array(Image.open(pictures[name]).convert("RGB")), image)
        kept = [d for d in found if d.mask.any()]
        for line, d in zip(labels[name].read_text().splitlines(), kept, strict=True):
            label, *values = line.split()
            shares = np.array(values, float).reshape(-1, 2)
            assert PHRASES[int(label)] == d.label and len(shares) >= 3 and 0 <= shares.min() <= shares.max() <= 1
            for raster in rasters(shares, 90, 120):
                assert mask_iou(raster, d.mask) >= 0.97
    jpeg = next(path for path, _ in images if path.suffix == ".jpg")
    assert pictures[dict(images)[jpeg]].read_bytes() == jpeg.read_bytes()


def test_the_alpha_of_a_cutout_is_the_mask(exported):
    _, out, _, content = exported
    files = {path.name for path in (out / "cutouts").iterdir()}
    for name, (image, found) in content.items():
        for number, d in enumerate(found, 1):
            if not d.mask.any():
                continue
            (file,) = (out / "cutouts").glob(f"{name}_{number}_*.png")
            files.remove(file.name)
            assert file.stem.split("_")[-1] in ("red-circle", "cat", "кот-7-«b-c»")
            x0, y0, x1, y1 = mask_box(d.mask)
            pixels = np.array(Image.open(file))
            np.testing.assert_array_equal(pixels[..., 3], 255 * d.mask[y0:y1, x0:x1])
            inside = d.mask[y0:y1, x0:x1]
            np.testing.assert_array_equal(pixels[inside][:, :3], image[y0:y1, x0:x1][inside])
            assert not pixels[~inside].any()
    assert not files


def test_a_second_run_leaves_nothing_of_the_first(exported):
    given, out, images, content = exported
    (out / "cutouts" / "y_1_9_mine.png").touch()  # as an earlier run left it
    (out / "cutouts" / "y_1.png").touch()  # no cut-out of these images
    path, name = images[-2]
    write_detections(out / name, content[name][0], [], path, "cat", {}, {})
    export_image(out, name, path, content[name][0], [], ["cat"], FORMATS)
    lines = finish(out, given, images[-2:-1], ["cat"], FORMATS)
    assert lines[3].startswith("0 cut-outs") and not list((out / "cutouts").glob(f"{name}_*_*.png"))
    assert (out / "cutouts" / "y_1.png").exists() == (name != "y")
    assert (out / "yolo" / "labels" / f"{name}.txt").read_text() == ""
    record = json.loads((out / "coco.json").read_text())
    assert record["annotations"] == [] and [c["name"] for c in record["categories"]] == ["cat"]
    assert not [path for path in out.rglob(".*") if ".part" in path.name]


def test_no_image_has_its_folder_where_the_exports_go():
    assert output_names(["yolo.png", "Cutouts.jpg", "coco.json.png"]) == ["yolo_2", "Cutouts_2", "coco.json_2"]


def test_nothing_is_written_that_is_not_asked_for(tmp_path):
    found, image = [Detection("cat", 1, (0, 0, 9, 9), "clipseg", blob(0))], np.zeros((90, 120, 3), np.uint8)
    export_image(tmp_path, "a", tmp_path / "a.png", image, found, [], ())
    assert len(finish(tmp_path, tmp_path, [(tmp_path / "a.png", "a")], ["cat"], ())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


@pytest.mark.parametrize(
    "given", ["photos", "photos/", "photos/*.png", "photos/*", "*/*.png", "**/*.png", "p?otos/a.png"]
)
def test_paths_start_at_what_was_given(tmp_path, monkeypatch, given):
    folder, image = tmp_path / "in", np.zeros((90, 120, 3), np.uint8)
    (folder / "photos").mkdir(parents=True)
    Image.fromarray(image).save(folder / "photos" / "a.png")
    monkeypatch.chdir(folder)
    for path in (given, str(folder / given)):
        (found,) = find_images(path)
        write_detections(tmp_path / "out" / "a", image, [], found, "cat", {}, {})
        finish(tmp_path / "out", path, [(found, "a")], ["cat"], ("coco",))
        (entry,) = json.loads((tmp_path / "out" / "coco.json").read_text())["images"]
        assert entry["file_name"] == ("a.png" if given.startswith("photos") else "photos/a.png")
