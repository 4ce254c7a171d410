"""Drawn detections: what of the objects can still be seen, where outlines and tags lie, and sizes from 1 pixel up."""

import itertools

import cv2
import numpy as np
import pytest

from drawing import shape_mask
from helpers.common.boxes import mask_box
from helpers.common.figures import PALETTE
from helpers.segment.detections import Detection
from helpers.segment.outputs import track_entry
from helpers.segment.overlay import colour, draw_boxes, draw_instances, draw_tracked
from helpers.shapes.scenes import make_scene


def detection(height, width, shape="circle", cx=0.5, cy=0.5, size=0.4, label="red circle", source="groundingdino"):
    """A shape placed in shares of the canvas."""
    mask = shape_mask(shape, height, width, cx * width, cy * height, max(1, size * min(height, width))) >= 0.5
    box = mask_box(mask) if mask.any() else (0, 0, 1, 1)
    return Detection(label, 0.87, tuple(map(float, box)), source, mask, 0.9)


def gray(height, width, value=120):
    return np.full((height, width, 3), value, np.uint8)


def tag_of(drawn, number):
    """(x0, y0, x1, y1) of a tag: what has exactly the colour of the instance, apart from lines."""
    exact = (drawn == colour(number)).all(-1).astype(np.uint8)
    size = max(7, drawn.shape[0] // 70)
    solid = cv2.morphologyEx(exact, cv2.MORPH_CLOSE, np.ones((size, size)))  # closes the letters
    return mask_box(cv2.morphologyEx(solid, cv2.MORPH_OPEN, np.ones((size, 2 * size))).astype(bool))


def shrunk(mask, pixels):
    return cv2.erode(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2)).astype(bool)


# --- Objects and lines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(240, 320), (480, 640)])
def test_objects_keep_their_colour(size, seed):
    """Each stays nearer to what it was than the colours of two prompts are to each other, by far."""
    scene = make_scene(np.random.default_rng(seed), *size, objects=(4, 5), min_diameter=min(size) / 8)
    masks = [np.asarray(item.mask) >= 0.5 for item in scene.objects]
    found = [Detection("red circle", 0.9, mask_box(mask), "groundingdino", mask, 0.9) for mask in masks]
    before = scene.image.copy()
    drawn = draw_instances(scene.image, found)
    assert (scene.image == before).all() and drawn.dtype == np.uint8 and drawn.shape == before.shape
    for mask in masks:
        means = [image[mask].mean(0) for image in (before.astype(float), drawn.astype(float))]
        assert np.linalg.norm(means[0] - means[1]) < 50  # red and orange are 165 apart, purple and pink 180
    outside = shrunk(~np.any(masks, axis=0), 6)
    for number in range(1, len(masks) + 1):
        x0, y0, x1, y1 = tag_of(drawn, number)
        outside[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3] = False
    assert (drawn[outside] == before[outside]).all()


def test_small_objects_are_not_filled_and_fills_do_not_add_up():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    small, large, larger = (detection(480, 640, size=size) for size in (0.05, 0.4, 0.8))
    drawn = draw_instances(image, [small])
    assert (drawn[small.mask] == image[small.mask]).all()
    for order in ([large, larger], [larger, large]):
        drawn = draw_instances(image, order)
        change = np.abs(drawn[large.mask] - image[large.mask].astype(float))
        assert 0 < change.max() <= 0.2 * 255
        own = image + 0.1 * (np.array(colour(1 + order.index(large))) - image.astype(float))
        assert np.abs(drawn[large.mask] - own[large.mask]).max() <= 0.51  # the smaller one is on top


@pytest.mark.parametrize("value", [0, 60, 128, 200, 255, "own"])
@pytest.mark.parametrize("number", [1, 2, 5, 7, 12])
def test_the_outline_stands_out_on_any_background(value, number):
    """Across the contour there is the instance's colour, something much darker or brighter than the image, and than
    the object, even where all of it has that very colour."""
    image = gray(240, 320, colour(number) if value == "own" else value)
    square = detection(240, 320, "square", size=0.6)
    drawn = draw_instances(image, [square], ids=[number])
    edge = square.mask[120].argmax()
    line = drawn[120, edge - 6 : edge + 1]
    assert np.abs(line - np.array(colour(number), float)).max(1).min() < 30
    light = line @ np.array([0.299, 0.587, 0.114])
    for beside in (drawn[120, edge - 20], drawn[120, edge + 20]):
        assert np.abs(light - beside @ np.array([0.299, 0.587, 0.114])).max() > 60
    assert (drawn[120, edge + 2 : edge + 100] == drawn[120, edge + 20]).all()  # inside there is no line


def test_a_line_parts_objects_that_touch():
    left, right = np.zeros((2, 240, 320), bool)
    left[60:180, 60:160], right[60:180, 160:260] = True, True
    found = [Detection("cat", 0.9, mask_box(mask), "groundingdino", mask) for mask in (left, right)]
    row = draw_instances(gray(240, 320), found)[120].astype(int)
    assert np.abs(row[154:166] - row[130]).max() > 60 and np.abs(row[154:166] - row[200]).max() > 60


def test_holes_are_outlined_and_stay_unfilled():
    ring = detection(240, 320, "ring", size=0.8)
    drawn = draw_instances(gray(240, 320), [ring])
    assert not ring.mask[120, 160] and (drawn[120, 160] == 120).all()
    inner = ring.mask[120, 160:].argmax()
    assert (drawn[120, 160 + inner - 3 : 160 + inner] != 120).any(-1).all()


def test_boxes():
    image, one = gray(240, 320), detection(240, 320)
    drawn = draw_boxes(image, [one])
    x0, y0, x1, y1 = map(int, one.box)
    assert (drawn[y0:y1, x0:x1] == 120).all()  # no fill
    for x, y in ((x0 - 2, 120), (x1 + 1, 120), (160, y0 - 2), (160, y1 + 1)):
        assert (drawn[y, x] != 120).any()
    one.mask = None
    assert (draw_boxes(image, [one]) == drawn).all()
    whole = draw_boxes(image, [Detection("sky", 0.9, (-5.0, 0.0, 320.0, 260.0), "groundingdino")])
    assert (whole[:4] != 120).any() and (whole[-4:] != 120).any()  # its lines are inside the image


def test_no_detections_and_an_empty_mask():
    image = gray(60, 80)
    drawn = draw_instances(image, [])
    assert (drawn == image).all() and drawn is not image
    empty = Detection("cat", 0.5, (10.0, 30.0, 40.0, 50.0), "groundingdino", np.zeros((60, 80), bool), 0.1)
    assert (draw_instances(image, [empty]) != image).any()  # its tag


def test_colours_are_distinct_and_start_with_the_palette():
    hexes = ["#{:02X}{:02X}{:02X}".format(*colour(number)) for number in range(1, 129)]
    assert hexes[:7] == list(PALETTE[:7]) and len(set(hexes)) == 128
    first = np.array([colour(number) for number in range(1, 25)], float)
    distance = np.linalg.norm(first[:, None] - first, axis=-1) + 1e3 * np.eye(24)
    assert distance.min() > 45
    assert all(0 <= value <= 255 for value in colour(10**6))


def test_a_tracked_object_keeps_its_colour():
    image, masks = gray(240, 320), [detection(240, 320, cx=cx, size=0.3).mask for cx in (0.25, 0.75)]
    entries = [track_entry(number, "cat", 0.9, mask) for number, mask in zip((3, 8), masks, strict=True)]
    both, alone = draw_tracked(image, entries), draw_tracked(image, entries[1:])
    assert (both[masks[1]] == alone[masks[1]]).all() and (both[masks[0]][0] != both[masks[1]][0]).any()
    found = Detection("cat", 0.9, mask_box(masks[1]), "groundingdino", masks[1])
    assert (draw_instances(image, [found])[masks[1]] != alone[masks[1]]).any()
    assert (draw_tracked(image, []) == image).all()
    by_clipseg = Detection("cat", 0.9, mask_box(masks[0]), "clipseg", masks[0])
    assert (draw_tracked(image, entries[:1], unsure={3}) == draw_instances(image, [by_clipseg], ids=[3])).all()
    with pytest.raises(ValueError, match="argument"):
        draw_instances(image, [found, found], ids=[3])


# --- Tags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [draw_instances, draw_boxes])
def test_tags_are_inside_beside_the_objects_and_apart(draw):
    centres = [(0.1, 0.1), (0.12, 0.24), (0.95, 0.05), (0.93, 0.97), (0.5, 0.5), (0.5, 0.62), (0.62, 0.5)]
    found = [detection(480, 640, cx=cx, cy=cy, size=0.15, label=f"object {i}") for i, (cx, cy) in enumerate(centres)]
    drawn = draw(gray(480, 640), found)
    places = [tag_of(drawn, number) for number in range(1, len(found) + 1)]
    objects = np.any([d.mask for d in found], axis=0)
    for (x0, y0, x1, y1), d in zip(places, found, strict=True):
        assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480 and x1 - x0 > 40 and 10 < y1 - y0 < 30
        assert not objects[y0:y1, x0:x1].any()
        left, top, right, bottom = d.box  # at most a few tags away from what it names
        assert max(left - x1, x0 - right, 0) + max(top - y1, y0 - bottom, 0) < 60
    for (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) in itertools.combinations(places, 2):
        assert min(ax1, bx1) <= max(ax0, bx0) or min(ay1, by1) <= max(ay0, by0)


def test_tags_do_not_hide_small_objects():
    close = [detection(480, 640, size=0.05, cy=0.5 + 0.075 * i) for i in range(3)]  # each below the other
    drawn = draw_instances(gray(480, 640), close)
    for one in close:
        assert (drawn[one.mask] == 120).all()


def test_text_is_black_or_white_by_contrast():
    for number, ink in ((1, 255), (7, 0), (5, 0)):  # blue, yellow, orange
        drawn = draw_instances(gray(480, 640), [detection(480, 640)], ids=[number])
        x0, y0, x1, y1 = tag_of(drawn, number)
        tag = drawn[y0:y1, x0:x1]
        assert (tag == ink).all(-1).any() and not (tag == 255 - ink).all(-1).any()


def test_text_grows_with_the_image():
    heights = []
    for height, width in ((120, 160), (480, 640), (1920, 2560)):
        _, y0, _, y1 = tag_of(draw_instances(gray(height, width), [detection(height, width)]), 1)
        heights.append(y1 - y0)
    assert heights[0] < heights[1] < heights[2] and heights[2] > 3 * heights[1]


def test_what_a_tag_says():
    drawn = [
        draw_instances(gray(240, 320), [detection(240, 320, source=source, label=label)], ids=ids)
        for source in ("groundingdino", "clipseg")
        for label in ("cat", "red cat")
        for ids in (None, (1,))
    ]
    assert all(a.tobytes() != b.tobytes() for a, b in itertools.combinations(drawn, 2))
    widths = []
    for label in ("word " * 30, "word " * 300):
        x0, _, x1, _ = tag_of(draw_instances(gray(480, 640), [detection(480, 640, label=label)]), 1)
        widths.append(x1 - x0)
    assert widths[0] == widths[1] < 420  # shortened
    narrow = draw_instances(gray(240, 96), [detection(240, 96, label="large blue square")])
    assert (narrow == colour(1)).all(-1).sum() > 96 * 8  # shortened to fit


@pytest.mark.parametrize("label", ["кошка", "猫", "قطة", "👩‍🚀", "", "e\u0301", "\u202eabc"])
def test_labels_in_any_script(label):
    image = gray(240, 320)
    assert (draw_instances(image, [detection(240, 320, label=label)]) == colour(1)).all(-1).sum() > 200


# --- Any size, any input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (16, 16), (30, 200), (97, 96)])
def test_tiny_and_narrow_images(size):
    found = [
        detection(*size, label="a large blue square"),
        detection(*size, "star", size=1),
        detection(*size, size=0.1),
    ]
    for draw in (draw_instances, draw_boxes):
        drawn = draw(gray(*size), found)
        assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8


@pytest.mark.parametrize(
    "box", [(-50.5, -3, 400.2, 900), (319.9, 239.9, 330, 250), (-20, -20, -5, -5), (500, 500, 600, 600), (5, 5, 5, 5)]
)
def test_boxes_that_reach_beyond_the_image(box):
    drawn = draw_boxes(gray(240, 320), [Detection("cat", 0.5, box, "groundingdino")])
    assert drawn.shape == (240, 320, 3) and (drawn != 120).any()


def test_many_detections():
    places = np.random.default_rng(0).random((200, 2))
    found = [detection(240, 320, cx=x, cy=y, size=0.1) for x, y in places]
    assert draw_instances(gray(240, 320), found).shape == (240, 320, 3)


def test_memory_layouts_do_not_matter():
    rng = np.random.default_rng(0)
    image, one = rng.integers(0, 256, (240, 320, 3), np.uint8), detection(240, 320, "arrow")
    expected = draw_instances(image, [one])
    turned = np.asfortranarray(image)[:, :, ::-1].copy()[:, :, ::-1]  # reversed channels, as of a BGR frame
    turned.flags.writeable = False
    one.mask = np.asfortranarray(one.mask)
    assert (draw_instances(turned, [one]) == expected).all()
