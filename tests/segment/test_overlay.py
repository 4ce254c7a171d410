"""Drawn detections: whose pixels change and to which colours, where tags lie, and sizes from 1 pixel up."""

import itertools

import numpy as np
import pytest

from helpers.common.figures import PALETTE
from helpers.segment import overlay
from helpers.segment.detections import Detection
from helpers.segment.overlay import colour, draw_boxes, draw_instances
from helpers.shapes.draw import shape_mask


def detection(height, width, shape="circle", cx=0.5, cy=0.5, size=0.4, label="red circle", source="groundingdino"):
    """A shape placed in shares of the canvas."""
    mask = shape_mask(shape, height, width, cx * width, cy * height, max(1, size * min(height, width))) >= 0.5
    rows, columns = np.nonzero(mask)
    box = (0, 0, 1, 1)
    if len(rows):
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return Detection(label, 0.87, tuple(map(float, box)), source, mask, 0.9)


def gray(height, width, value=120):
    return np.full((height, width, 3), value, np.uint8)


def tags(image, detections, **more):
    """(x0, y0, x1, y1) of each tag: the box round the pixels that bear exactly the colour of the detection."""
    found = []
    for i in range(len(detections)):
        number = more.get("ids", range(1, len(detections) + 1))[i]
        rows, columns = np.nonzero((draw_instances(image, detections, **more) == colour(number)).all(-1))
        found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return found


def eroded(mask, pixels):
    """The pixels whose neighbourhood of that radius lies in the mask, by shifting."""
    kept = mask.copy()
    for dy, dx in itertools.product(range(-pixels, pixels + 1), repeat=2):
        kept &= np.roll(mask, (dy, dx), (0, 1))
    return kept


def test_the_fill_is_blended_and_the_rest_stays(monkeypatch):
    monkeypatch.setattr(overlay, "_draw_tags", lambda *args: None)
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    before = image.copy()
    one = detection(240, 320)
    drawn = draw_instances(image, [one], alpha=0.3)
    assert (image == before).all() and drawn.dtype == np.uint8 and drawn.shape == image.shape
    inside, outside = eroded(one.mask, 5), eroded(~one.mask, 5)
    assert inside.sum() > 4000
    assert np.abs(drawn[inside] - (0.7 * image[inside] + 0.3 * np.array(colour(1)))).max() <= 0.51
    assert (drawn[outside] == image[outside]).all()


def test_overlapping_fills_do_not_add_up_and_the_small_one_is_on_top(monkeypatch):
    monkeypatch.setattr(overlay, "_draw_tags", lambda *args: None)
    image = gray(240, 320)
    large, small = detection(240, 320, size=0.9), detection(240, 320, size=0.4)
    for order in ([large, small], [small, large]):
        drawn = draw_instances(image, order, alpha=0.5)
        expected = 60 + 0.5 * np.array(colour(1 + order.index(small)))
        assert np.abs(drawn[120, 160] - expected).max() <= 0.51


@pytest.mark.parametrize("value", [0, 60, 128, 200, 255])
@pytest.mark.parametrize("number", [1, 2, 5, 7, 12])
def test_the_outline_stands_out_on_any_background(value, number):
    """Across the contour something is much darker, or much brighter, than the image and than the fill."""
    image, square = gray(240, 320, value), detection(240, 320, "square", size=0.6)
    drawn = draw_instances(image, [square], ids=[number])
    edge = square.mask[120].argmax()
    row = drawn[120, edge - 10 : edge + 11] @ np.array([0.299, 0.587, 0.114])  # from the background into the fill
    line = row[7:14]
    assert np.abs(line - row[0]).max() > 60 and np.abs(line - row[-1]).max() > 60


def test_holes_are_outlined_and_stay_unfilled(monkeypatch):
    monkeypatch.setattr(overlay, "_draw_tags", lambda *args: None)
    image = gray(240, 320)
    ring = detection(240, 320, "ring", size=0.8)
    drawn = draw_instances(image, [ring])
    assert not ring.mask[120, 160] and (drawn[120, 160] == 120).all()
    inner = ring.mask[120, 160:].argmax()
    assert (drawn[120, 160 + inner - 3 : 160 + inner + 3] != 120).any(-1).all()


def test_boxes_only():
    image = gray(240, 320)
    one = detection(240, 320)
    drawn = draw_boxes(image, [one])
    assert (drawn[120, 160] == 120).all()  # no fill
    x0, y0, x1, y1 = map(int, one.box)
    for x, y in ((x0, 120), (x1 - 1, 120), (160, y0), (160, y1 - 1)):
        assert (drawn[y, x] != 120).any()
    one.mask = None
    assert (draw_boxes(image, [one]) == drawn).all() and (draw_instances(image, [one]) == drawn).all()


def test_no_detections_and_an_empty_mask():
    image = gray(60, 80)
    drawn = draw_instances(image, [])
    assert (drawn == image).all() and drawn is not image
    empty = Detection("cat", 0.5, (10.0, 30.0, 40.0, 50.0), "groundingdino", np.zeros((60, 80), bool), 0.1)
    assert (draw_instances(image, [empty]) != image).any()  # its tag


# --- Colours -------------------------------------------------------------------------------------------------------


def test_colours_are_distinct_and_start_with_the_palette():
    hexes = ["#{:02X}{:02X}{:02X}".format(*colour(number)) for number in range(1, 129)]
    assert hexes[:7] == list(PALETTE[:7]) and len(set(hexes)) == 128
    first = np.array([colour(number) for number in range(1, 25)], float)
    distance = np.linalg.norm(first[:, None] - first, axis=-1) + 1e3 * np.eye(24)
    assert distance.min() > 45
    assert colour(129) == colour(1) and colour(10**6) == colour(10**6 % 128)


def test_an_id_keeps_its_colour():
    image = gray(240, 320)
    left, right = detection(240, 320, cx=0.25), detection(240, 320, cx=0.75)
    both, alone = draw_instances(image, [left, right], ids=[3, 8]), draw_instances(image, [right], ids=[8])
    assert (both[120, 240] == alone[120, 240]).all() and (both[120, 240] != both[120, 80]).any()
    assert (draw_instances(image, [right])[120, 240] != alone[120, 240]).any()
    with pytest.raises(ValueError, match="argument"):
        draw_instances(image, [left, right], ids=[3])


# --- Tags ----------------------------------------------------------------------------------------------------------


def test_tags_are_inside_and_apart():
    detections = [
        detection(480, 640, cx=cx, cy=cy, size=0.15, label=f"object {i}")
        for i, (cx, cy) in enumerate(
            [(0.1, 0.1), (0.12, 0.14), (0.95, 0.05), (0.93, 0.97), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]
        )
    ]
    found = tags(gray(480, 640), detections)
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480 and x1 - x0 > 40 and 10 < y1 - y0 < 30
    for (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) in itertools.combinations(found, 2):
        assert min(ax1, bx1) <= max(ax0, bx0) or min(ay1, by1) <= max(ay0, by0)


def test_tags_do_not_hide_small_objects():
    close = [detection(480, 640, size=0.05, cy=0.5 + 0.06 * i) for i in range(3)]  # each below the other
    drawn = draw_instances(gray(480, 640), close)
    for one in close:
        for number in (1, 2, 3):
            assert not (drawn[one.mask] == colour(number)).all(-1).any()


def test_text_is_black_or_white_by_contrast():
    for number, ink in ((1, 255), (7, 0), (5, 0)):  # blue, yellow, orange
        tag = overlay._tag("", "cat", "0.87", number, 20, 640, 480)
        assert (tag == ink).all(-1).any() and not (tag == 255 - ink).all(-1).any()


def test_text_grows_with_the_image():
    heights = []
    for height, width in ((120, 160), (480, 640), (1920, 2560)):
        ((_, y0, _, y1),) = tags(gray(height, width), [detection(height, width)])
        heights.append(y1 - y0)
    assert heights[0] < heights[1] < heights[2] and heights[2] > 3 * heights[1]


def widths(*labels, width=640, prefix=""):
    return [overlay._tag(prefix, label, "0.87", 1, 12, width, 480).shape[1] for label in labels]


def test_what_a_tag_says():
    image = gray(240, 320)
    drawn = {
        (source, ids): draw_instances(image, [detection(240, 320, source=source)], ids=ids)
        for source in ("groundingdino", "clipseg")
        for ids in (None, (1,))
    }
    different = [a.tobytes() != b.tobytes() for a, b in itertools.combinations(drawn.values(), 2)]
    assert all(different)  # the detector or CLIPSeg, with its id or without
    long, longer = widths("word " * 30, "word " * 300)
    assert long == longer < 340
    plain, narrow = widths("large blue square")[0], widths("large blue square", width=96)[0]
    assert narrow <= 96 < plain


def test_labels_in_any_script():
    assert overlay._printable("  кошка,\n Ελλάδα é قطة ") == "кошка, Ελλάδα é قطة"
    assert overlay._printable("猫 cat") == "? cat"
    for label in ("кошка", "猫", "قطة", "👩‍🚀", "", "\x00\x07", "e\u0301", "\u202eabc"):
        assert draw_instances(gray(240, 320), [detection(240, 320, label=label)]).shape == (240, 320, 3)


def test_prefix_and_score_keep_their_places_round_a_label_from_right_to_left():
    """The id's columns on the left, the score's on the right, as for a Latin label."""
    tag, other = (overlay._tag("1 ", "قطة", score, 1, 20, 640, 480) for score in ("0.87", "0.11"))
    prefixed = overlay._tag("4 ", "قطة", "0.87", 1, 20, 640, 480)
    changed = np.nonzero((tag != other).any((0, 2)))[0]
    assert changed.min() > tag.shape[1] / 2
    changed = np.nonzero((tag != prefixed).any((0, 2)))[0]
    assert changed.max() < tag.shape[1] / 4


# --- Any size, any input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (16, 16), (30, 200), (97, 96)])
def test_tiny_and_narrow_images(size):
    detections = [
        detection(*size, label="a large blue square"),
        detection(*size, "star", size=1),
        detection(*size, size=0.1),
    ]
    for draw in (draw_instances, draw_boxes):
        drawn = draw(gray(*size), detections)
        assert drawn.shape == (*size, 3) and (drawn != 120).any()


def test_a_tag_takes_no_more_than_a_quarter_of_a_small_image():
    assert overlay._tag("", "cat", "0.87", 1, 9, 24, 24) is None
    for side in (40, 64, 96):
        h, w, _ = overlay._tag("", "a large blue square", "0.87", 1, 9, side, side).shape
        assert w <= side and h * w <= side * side / 4


def test_boxes_that_reach_beyond_the_image():
    for box in (
        (-50.5, -3, 400.2, 900),
        (319.9, 239.9, 330, 250),
        (-20, -20, -5, -5),
        (500, 500, 600, 600),
        (5, 5, 5, 5),
    ):
        drawn = draw_boxes(gray(240, 320), [Detection("cat", 0.5, box, "groundingdino")])
        assert drawn.shape == (240, 320, 3) and (drawn != 120).any()


def test_many_detections():
    rng = np.random.default_rng(0)
    detections = [detection(240, 320, cx=x, cy=y, size=0.1) for x, y in rng.random((200, 2))]
    assert draw_instances(gray(240, 320), detections).shape == (240, 320, 3)


def test_memory_layouts_do_not_matter():
    rng = np.random.default_rng(0)
    image, one = rng.integers(0, 256, (240, 320, 3), np.uint8), detection(240, 320, "arrow")
    expected = draw_instances(image, [one])
    turned = np.asfortranarray(image)[:, :, ::-1].copy()[:, :, ::-1]  # reversed channels, as of a BGR frame
    turned.flags.writeable = False
    one.mask = np.asfortranarray(one.mask)
    assert (draw_instances(turned, [one]) == expected).all()


def test_wrong_arrays_are_refused():
    image, one = gray(240, 320), detection(240, 320)
    for wrong in (image[:, :, 0], image.astype(np.float32), np.zeros((240, 320, 4), np.uint8), image[:0]):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            draw_instances(wrong, [one])
    for mask in (one.mask.T, one.mask.astype(np.float32), one.mask[None]):
        one.mask = mask
        with pytest.raises(ValueError, match=r"mask of 'red circle' is .* expected bool \[240, 320\]"):
            draw_instances(image, [one])
