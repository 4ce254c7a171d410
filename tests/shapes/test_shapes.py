"""The shape renderer against formulas and Pillow, and the ten-class set against what it promises."""

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from drawing import shape_mask
from helpers.segment.examples import draw_example_clip, draw_examples
from helpers.segment.video import VideoReader
from helpers.shapes.classes import make_shapes
from helpers.shapes.clips import make_clip
from helpers.shapes.draw import COLOURS, SHAPES


def crescent_area(distance, radius):
    """The unit disc less its lens with a disc of `radius` at `distance`."""
    a = math.acos((distance**2 + 1 - radius**2) / (2 * distance))
    b = math.acos((distance**2 + radius**2 - 1) / (2 * distance * radius))
    return math.pi - (a - math.sin(2 * a) / 2 + radius**2 * (b - math.sin(2 * b) / 2))


PENTAGRAM = math.sin(math.radians(18)) / math.sin(math.radians(54))  # inner radius for an outer one of 1
HEART_SIDE = (3 - math.sqrt(2)) / math.sqrt(2)  # of its square, where the enclosing circle has radius 1
AREAS = {  # for a radius of 1
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * PENTAGRAM * math.sin(math.radians(36)),
    "cross": 5 * (2 / math.sqrt(10)) ** 2,  # five squares; the outer corners are (1, 3) / sqrt(10)
    "ring": math.pi * (1 - 0.55**2),
    "pentagon": 2.5 * math.sin(math.radians(72)),
    "heart": HEART_SIDE**2 * (1 + math.pi / 4),  # a square and two half discs on its sides
    "crescent": crescent_area(0.5, 0.8),
    "arrow": 1.06 * 0.56 + 0.9 * 1.44 / 2,
}


def pillow_polygon(corners, height, width, oversample=32):
    """Coverage drawn by Pillow, as the mean of oversample x oversample hard pixels."""
    canvas = Image.new("L", (width * oversample, height * oversample))
    # Pillow's coordinates are pixel centres, ours pixel edges.
    ImageDraw.Draw(canvas).polygon([(x * oversample - 0.5, y * oversample - 0.5) for x, y in corners], fill=255)
    hard = np.asarray(canvas, np.float32) / 255
    return hard.reshape(height, oversample, width, oversample).mean((1, 3))


def same_mask(ours, theirs):
    """The masks agree but for a few corner pixels, and for pixels that the outline cuts in half."""
    clear = np.abs(theirs - 0.5) > 0.1
    return ((ours >= 0.5) != (theirs >= 0.5))[clear].sum() <= 4


def star_points(count, radii, first=90.0):
    return [
        (radii[k % len(radii)] * math.cos(t), radii[k % len(radii)] * math.sin(t))
        for k, t in enumerate(math.radians(first + 360 * k / count) for k in range(count))
    ]


OUTLINES = {
    "square": star_points(4, [1], 45),
    "triangle": star_points(3, [1]),
    "star": star_points(10, [1, PENTAGRAM]),
    "pentagon": star_points(5, [1]),
    "cross": [
        (x / math.sqrt(10), y / math.sqrt(10))
        for x, y in zip(
            (1, 1, -1, -1, -3, -3, -1, -1, 1, 1, 3, 3), (1, 3, 3, 1, 1, -1, -1, -3, -3, -1, -1, 1), strict=True
        )
    ],
    "arrow": [(1, 0), (0.1, 0.72), (0.1, 0.28), (-0.96, 0.28), (-0.96, -0.28), (0.1, -0.28), (0.1, -0.72)],
}


# --- shape_mask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_the_formula_s_at_every_angle_and_offset(shape):
    for size, tolerance in ((24, 0.03), (60, 0.01), (200, 0.003)):
        for angle in (0, 17, 45, 100.5, 250, -30):
            mask = shape_mask(shape, 220, 240, 120.3, 109.6, size, angle)
            assert mask.sum() == pytest.approx(AREAS[shape] * (size / 2) ** 2, rel=tolerance), (size, angle)


@pytest.mark.parametrize("shape", OUTLINES)
@pytest.mark.parametrize("angle", [0, 33, 200])
def test_polygons_agree_with_pillow(shape, angle):
    cx, cy, size, turn = 50.25, 41.5, 70, math.radians(angle)
    corners = [
        (
            cx + size / 2 * (x * math.cos(turn) - y * math.sin(turn)),
            cy - size / 2 * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in OUTLINES[shape]
    ]
    ours, theirs = shape_mask(shape, 90, 110, cx, cy, size, angle), pillow_polygon(corners, 90, 110)
    assert np.abs(ours - theirs).mean() < 0.0015
    assert np.abs(ours - theirs).max() < 0.4  # in the one pixel of a sharp corner
    assert same_mask(ours, theirs)


@pytest.mark.parametrize("shape", ["circle", "ring", "crescent", "heart"])
def test_round_shapes_agree_with_discs_drawn_point_by_point(shape):
    size, fine = 64, 8
    at = (np.arange(80 * fine) + 0.5) / fine
    x, y = (at[None] - 40) / 32, (40 - at[:, None]) / 32
    unit = x**2 + y**2 <= 1
    if shape == "ring":
        unit &= x**2 + y**2 >= 0.55**2
    elif shape == "crescent":
        unit &= (x - 0.5) ** 2 + y**2 >= 0.8**2
    elif shape == "heart":
        half = HEART_SIDE / math.sqrt(2)  # half of the square's diagonal; its lower corner is at (0, -1)
        lobes = (np.abs(x) - half / 2) ** 2 + (y + 1 - 1.5 * half) ** 2 <= HEART_SIDE**2 / 4
        unit = lobes | (np.abs(x) + np.abs(y + 1 - half) <= half)
    theirs = unit.reshape(80, fine, 80, fine).mean((1, 3))
    ours = shape_mask(shape, 80, 80, 40, 40, size)
    assert np.abs(ours - theirs).mean() < 0.003
    assert same_mask(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_anti_aliased_and_one_pixel_wide(shape):
    mask = shape_mask(shape, 100, 100, 50.2, 49.7, 80, 20)
    edge = mask[(mask > 0) & (mask < 1)]
    assert mask.dtype == np.float32 and mask.shape == (100, 100) and mask.min() == 0 and mask.max() == 1
    assert edge.mean() == pytest.approx(0.5, abs=0.06)
    assert edge.size < 0.25 * (mask > 0).sum() and np.unique(edge.round(1)).size > 8


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_circle_and_stays_inside_it(shape):
    y, x = np.mgrid[:90, :90] + 0.5
    away = np.hypot(x - 45, y - 45)
    for angle in (0, 71):
        mask = shape_mask(shape, 90, 90, 45, 45, 80, angle)
        assert away[mask > 0].max() <= 40 + 1
        assert away[mask > 0].max() >= 40 - 1.5


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirrored_shape_is_the_same_shape_turned(shape):
    own_axis = 180 if shape in ("crescent", "arrow") else 0  # these two point to the side
    mirrored = shape_mask(shape, 70, 70, 35, 35, 60, 25)[:, ::-1]
    np.testing.assert_allclose(mirrored, shape_mask(shape, 70, 70, 35, 35, 60, own_axis - 25), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_agree(shape):
    large = shape_mask(shape, 1024, 768, 400, 520, 600, 13)
    small = shape_mask(shape, 256, 192, 100, 130, 150, 13)
    reduced = large.reshape(256, 4, 192, 4).mean((1, 3))
    assert np.abs(small - reduced).mean() < 0.002
    assert ((small >= 0.5) != (reduced >= 0.5)).mean() < 0.002


@pytest.mark.parametrize(
    ("shape", "angle", "inside", "outside"),  # points (right, up) relative to the radius
    [
        ("arrow", 0, (0.2, 0.5), (-0.5, 0.5)),
        ("arrow", 90, (-0.5, 0.2), (-0.5, -0.5)),
        ("arrow", 180, (-0.2, 0.5), (0.5, 0.5)),
        ("triangle", 0, (0, 0.8), (0, -0.8)),
        ("triangle", 90, (-0.8, 0), (0.8, 0)),
        ("heart", 0, (0, -0.8), (0, 0.8)),
        ("crescent", 0, (-0.7, 0), (0.7, 0)),
        ("crescent", 90, (0, -0.7), (0, 0.7)),
        ("square", 0, (0.6, 0.6), (0.9, 0)),
    ],
)
def test_angles_turn_counter_clockwise(shape, angle, inside, outside):
    mask = shape_mask(shape, 100, 100, 50, 50, 80, angle)
    for (right, up), value in ((inside, 1), (outside, 0)):
        assert mask[round(50 - 40 * up), round(50 + 40 * right)] == value


def test_a_shape_may_be_cut_off_or_outside():
    whole = shape_mask("star", 100, 100, 50, 50, 60, 10)
    np.testing.assert_allclose(shape_mask("star", 50, 40, 30, 0, 60, 10), whole[50:, 20:60], atol=1e-5)
    assert not shape_mask("circle", 20, 30, -40, 10, 20).any()
    assert not shape_mask("circle", 20, 30, 15, 900, 20).any()
    assert shape_mask("circle", 20, 30, 15, 10, 500).min() == 1


def test_shapes_are_told_apart_by_their_masks():
    turns = {s: [shape_mask(s, 64, 64, 32, 32, 60, a) >= 0.5 for a in range(0, 360, 15)] for s in SHAPES}
    for a, b in combinations(SHAPES, 2):
        best = max((turns[a][0] & m).sum() / (turns[a][0] | m).sum() for m in turns[b])
        assert best < 0.8, (a, b, best)


# --- make_shapes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train():
    return make_shapes(6000, seed=1)


@pytest.fixture(scope="module")
def test():
    return make_shapes(2000, seed=2)


def test_shapes_types_and_balance(train):
    images, labels = train
    assert images.shape == (6000, 3, 32, 32) and images.dtype == np.uint8
    assert labels.shape == (6000,) and labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [600] * 10
    assert np.bincount(make_shapes(23, seed=0)[1], minlength=10).tolist() == [3] * 3 + [2] * 7
    assert (np.diff(labels[:100]) != 0).mean() > 0.7 and np.unique(labels[:100]).size == 10  # in random order


def test_equal_seeds_give_equal_bytes_and_others_share_no_image(train, test):
    def hashes(images):
        return {hashlib.sha256(image.tobytes()).digest() for image in images}

    again, labels = make_shapes(2000, seed=2)
    assert again.tobytes() == test[0].tobytes() and labels.tobytes() == test[1].tobytes()
    assert len(hashes(train[0])) == 6000 and len(hashes(test[0])) == 2000
    assert not hashes(train[0]) & hashes(test[0])


def accuracy(train, test, view, **options):
    """Percent of the test images that a linear model gets right, on standardised features and on plain ones."""
    x, u = (view(images).astype(np.float32) for images, _ in (train, test))
    scaler = StandardScaler().fit(x)
    return [
        100 * LogisticRegression(**options).fit(a, train[1]).score(b, test[1])
        for a, b in ((scaler.transform(x), scaler.transform(u)), (x, u))
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # stopping early only helps it here
def test_a_linear_model_stays_under_60_percent(train, test):
    scores = accuracy(train, test, lambda images: images.reshape(len(images), -1) / 255, max_iter=30)
    assert max(scores) < 60, scores


def test_colour_does_not_tell_the_class(train, test):
    def mean_colour(images):  # and its square, for a boundary that need not be a plane
        mean = images.mean((2, 3)) / 255
        return np.concatenate([mean, mean**2, mean[:, :1] * mean[:, 1:]], 1)

    assert max(accuracy(train, test, mean_colour, max_iter=300)) < 17  # 10 is chance; brightness hints at the area


def test_both_polarities_occur_in_every_class(train):
    images, labels = train
    bright = images.mean(1, dtype=np.float32)
    middle = bright[:, 12:20, 12:20].mean((1, 2))
    border = np.concatenate([bright[:, :2].reshape(len(bright), -1), bright[:, -2:].reshape(len(bright), -1)], 1).mean(
        1
    )
    for label, shape in enumerate(SHAPES):
        brighter = (middle > border)[labels == label].mean()
        assert 0.1 < brighter < 0.9, shape


def test_colours_are_distinct_rgb():
    assert list(COLOURS) == ["red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan"]
    for a, b in combinations(COLOURS.values(), 2):
        assert math.dist(a, b) > 60, (a, b)
    assert all(len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in COLOURS.values())


# --- clips -----------------------------------------------------------------------------------------------------------


def test_clips_are_equal_for_equal_seeds_and_hold_what_they_say():
    clip, again = (make_clip(4, 90, 130, 20) for _ in range(2))
    assert clip.frames.shape == (20, 90, 130, 3) and clip.frames.dtype == np.uint8
    np.testing.assert_array_equal(clip.frames, again.frames)
    assert (make_clip(5, 90, 130, 20).frames != clip.frames).any()
    for seed in range(12):
        clip = make_clip(seed, 90, 130, 20)
        assert 2 <= len(clip.objects) <= 4 and clip.objects[0].masks.any()
        assert len({(item.shape, item.colour) for item in clip.objects}) == len(clip.objects)
        masks = np.array([item.masks for item in clip.objects])
        assert masks.dtype == bool and masks.shape[1:] == (20, 90, 130) and masks.sum(0).max() == 1  # none overlap


def test_objects_of_a_clip_move_enter_and_leave():
    clip = make_clip(0, 90, 130, 30, occluders=(0, 0), motions=("stay", "enter", "leave"))
    shows = np.array([item.masks.any((1, 2)) for item in clip.objects])
    assert not shows[1, 0] and shows[1, -1] and shows[2, 0] and not shows[2, -1]
    first, last = (np.argwhere(clip.objects[0].masks[t]).mean(0) for t in (0, -1))
    assert np.abs(first - last).max() > 3


def test_the_example_prompt_names_every_colour_of_the_first_picture_and_one_that_is_not_there(tmp_path):
    prompts = [draw_examples(tmp_path, seed)[1].split(". ") for seed in (0, 1)]
    assert prompts[0] == ["the cyan star", "a green star", "blue cross", "a pink shape"]
    assert prompts[1] == ["the orange shape", "a pink cross", "blue cross", "a yellow square"]


def test_the_example_clip_tells_its_story(tmp_path):
    path, prompt, clip = draw_example_clip(tmp_path, 0)
    hidden, late, gone = (item.masks.any((1, 2)) for item in clip.objects)
    assert hidden[0] and hidden[-1] and (~hidden).sum() >= 4
    assert not late[0] and late[-1] and gone[0] and not gone[-1]
    assert prompt.split(". ") == [f"{item.colour} {item.shape}" for item in clip.objects]
    frames = [frame.image for frame in VideoReader(path)]
    assert len(frames) == len(clip.frames)
    assert np.abs(frames[30].astype(int) - clip.frames[30]).mean() < 8  # the coding smooths the noise
