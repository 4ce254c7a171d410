"""The pipeline of q2.ipynb, with networks that answer what a test tells them to."""

import itertools
import json
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import nbload
from helpers.common.device import Compute
from helpers.segment import association
from helpers.segment.detections import Detection
from helpers.segment.outputs import decode_mask
from helpers.segment.prompts import Caption

PIECES = {"cat": ["cat"], "red dog": ["red", "dog"], "unicycling": ["uni", "##cycl", "##ing"]}


@pytest.fixture(scope="module")
def q2():
    return nbload.load("q2.ipynb")


@pytest.fixture
def settings(q2):
    return q2.Settings(box_threshold=0.35, text_threshold=0.25, clipseg_thr=0.4, nms_iou=0.7, max_objects=50)


class FakeDino:
    """Answers with given boxes; `scores[i]` maps (phrase, token) to the score of box i."""

    name, tokenizer, max_tokens = "fake", None, 256

    def __init__(self, boxes, scores):
        self.boxes, self.scores, self.captions = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), scores, []

    def forward(self, image, caption):
        self.captions.append(caption)
        tokens = [(-1, "[CLS]")]
        for phrase in caption.removesuffix(" .").split(" . "):
            tokens += [(phrase, piece) for piece in PIECES.get(phrase, [phrase])] + [(phrase, ".")]
        tokens.append((-1, "[SEP]"))
        rows = [[given.get(token, 0.01) for token in tokens] for given in self.scores]
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, len(tokens)), self.boxes


def passes(phrases, tokenizer, max_tokens, at_once=100):
    """caption_passes for FakeDino's tokens, `at_once` phrases a pass."""
    captions = []
    for start in range(0, len(phrases), at_once):
        group = phrases[start : start + at_once]
        owner = [-1]
        for i, phrase in enumerate(group):
            owner += [i] * len(PIECES.get(phrase, [phrase])) + [-1]
        captions.append(Caption(" . ".join(group) + " .", tuple(group), np.array([*owner, -1])))
    return captions


class FakeSam:
    """The mask of a box is the box itself."""

    name = "fake"

    def __init__(self, score=0.9):
        self.score, self.images, self.calls = score, 0, []

    def set_image(self, image):
        self.images += 1
        self.shape = image.shape[:2]

    def masks(self, boxes):
        self.calls.append(len(boxes))
        masks = np.zeros((len(boxes), *self.shape), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[round(y0) : round(y1), round(x0) : round(x1)] = True
        return masks, np.full(len(boxes), self.score, np.float32)


class FakeClipSeg:
    name = "fake"

    def __init__(self, maps):
        self.maps, self.asked = maps, []

    def heatmaps(self, image, phrases):
        self.asked.append(list(phrases))
        return np.array([self.maps.get(phrase, np.zeros((32, 32))) for phrase in phrases], np.float32).reshape(
            -1, 32, 32
        )


@pytest.fixture
def networks(q2, monkeypatch):
    monkeypatch.setattr(q2, "caption_passes", passes)

    def make(boxes=(), scores=(), maps=None, sam_score=0.9):
        compute = Compute(torch.device("cpu"), "", "fp32")
        return q2.Models(FakeDino(list(boxes), list(scores)), FakeSam(sam_score), FakeClipSeg(maps or {}), compute)

    return make


IMAGE = np.zeros((64, 96, 3), np.uint8)


def blob(x0, y0, x1, y1, value):
    """A map of 32 x 32 with a rectangle."""
    heat = np.zeros((32, 32), np.float32)
    heat[y0:y1, x0:x1] = value
    return heat


# --- Labels ---


def test_a_box_that_fits_two_phrases_gets_the_one_with_its_best_token_and_not_both(networks, settings, q2):
    scores = [{("cat", "cat"): 0.6, ("red dog", "dog"): 0.7, ("red dog", "red"): 0.5}]
    found = q2.detect(networks([[0, 0, 9, 9]], scores).dino, IMAGE, ["cat", "red dog"], settings)
    assert [(d.label, round(d.score, 4), d.source) for d in found] == [("red dog", 0.7, "groundingdino")]


def test_a_box_that_fits_a_piece_of_a_word_gets_the_whole_phrase(networks, settings, q2):
    scores = [{("unicycling", "##ing"): 0.5}]
    found = q2.detect(networks([[0, 0, 9, 9]], scores).dino, IMAGE, ["cat", "unicycling"], settings)
    assert [d.label for d in found] == ["unicycling"]


def test_separators_and_special_tokens_give_no_label(networks, settings, q2):
    scores = [{("cat", "."): 0.99, (-1, "[CLS]"): 0.99, ("cat", "cat"): 0.1}]
    assert q2.detect(networks([[0, 0, 9, 9]], scores).dino, IMAGE, ["cat"], settings) == []


@pytest.mark.parametrize(("box", "text", "kept"), [(0.35, 0.25, 2), (0.55, 0.25, 1), (0.35, 0.75, 0), (0.0, 0.0, 3)])
def test_both_thresholds_bound_the_best_token(networks, settings, q2, box, text, kept):
    boxes = [[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]
    scores = [{("cat", "cat"): value} for value in (0.6, 0.4, 0.2)]
    settings = replace(settings, box_threshold=box, text_threshold=text)
    assert len(q2.detect(networks(boxes, scores).dino, IMAGE, ["cat"], settings)) == kept


# --- Suppression, passes, order ---


def test_duplicates_are_suppressed_within_a_phrase_only_and_the_surest_come_first(networks, settings, q2):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]]
    scores = [{("cat", "cat"): 0.5}, {("cat", "cat"): 0.6}, {("red dog", "dog"): 0.4}, {("cat", "cat"): 0.9}]
    found = q2.detect(networks(boxes, scores).dino, IMAGE, ["cat", "red dog"], settings)
    boxes = [(d.label, d.box) for d in found]
    assert boxes == [
        ("cat", (50, 50, 60, 60)),
        ("cat", (0, 0, 10, 9)),
        ("red dog", (0, 0, 10, 10)),
    ]


def test_with_one_label_boxes_of_different_phrases_compete(networks, settings, q2, monkeypatch):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [50, 50, 60, 60]]
    scores = [{("cat", "cat"): 0.5}, {("red dog", "dog"): 0.6}, {("cat", "cat"): 0.4}, {("cat", "cat"): 0.9}]
    expected = [("cat", boxes[3]), ("red dog", boxes[1]), ("cat", boxes[2])]
    for at_once in (2, 1):  # in one pass of the detector, and in two
        monkeypatch.setattr(q2, "caption_passes", partial(passes, at_once=at_once))
        dino = networks(boxes, scores).dino
        found = q2.detect(dino, IMAGE, ["cat", "red dog"], replace(settings, one_label=True))
        assert [(d.label, list(d.box)) for d in found] == expected
        assert len(q2.detect(dino, IMAGE, ["cat", "red dog"], settings)) == 4


def test_results_of_several_passes_are_joined(networks, settings, q2, monkeypatch):
    monkeypatch.setattr(q2, "caption_passes", lambda *args: passes(*args, at_once=1))
    dino = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6, ("red dog", "red"): 0.5}]).dino
    assert [d.label for d in q2.detect(dino, IMAGE, ["cat", "red dog"], settings)] == ["cat", "red dog"]
    assert dino.captions == ["cat .", "red dog ."]


def test_nothing_found_is_an_empty_list(networks, settings, q2):
    detections, seconds = q2.segment(networks(), IMAGE, ["cat"], settings)
    assert detections == [] and all(value >= 0 for value in seconds.values())


def test_max_objects_keeps_the_surest_before_masks_are_made(networks, settings, q2):
    boxes = [[10 * i, 0, 10 * i + 9, 9] for i in range(6)]
    given = networks(boxes, [{("cat", "cat"): 0.4 + 0.1 * i} for i in range(6)])
    detections, _ = q2.segment(given, IMAGE, ["cat"], replace(settings, max_objects=2))
    assert [round(d.score, 2) for d in detections] == [0.9, 0.8] and given.sam2.calls == [2]


def test_settings_refuse_what_is_no_share(q2):
    with pytest.raises(ValueError, match=r"nms_iou=1\.5"):
        q2.Settings(0.3, 0.25, 0.4, 1.5, 50)
    with pytest.raises(ValueError, match="max_objects=0"):
        q2.Settings(0.3, 0.25, 0.4, 0.7, 0)
    with pytest.raises(ValueError, match="one_label='no': give True or False"):
        q2.Settings(0.3, 0.25, 0.4, 0.7, 50, "no")


# --- CLIPSeg's part ---


def test_clipseg_answers_for_the_phrases_without_a_box_and_for_no_others(networks, settings, q2):
    given = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6}], {"red dog": blob(8, 8, 16, 24, 0.9)})
    detections, _ = q2.segment(given, IMAGE, ["cat", "red dog"], settings)
    assert given.clipseg.asked == [["red dog"]] and given.sam2.images == 1
    assert [(d.label, d.source) for d in detections] == [("cat", "groundingdino"), ("red dog", "clipseg")]
    # the rectangle of 8 x 16 cells in a map of 32 x 32, in an image of 96 x 64; the edge is interpolated
    assert detections[1].box == pytest.approx((24, 16, 48, 48), abs=1.5)


def test_clipseg_is_not_asked_when_every_phrase_has_a_box(networks, settings, q2):
    given = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6}])
    _, seconds = q2.segment(given, IMAGE, ["cat"], settings)
    assert given.clipseg.asked == [] and "clipseg" not in seconds


def test_what_has_a_name_already_gets_no_second_one_from_clipseg(networks, settings, q2):
    same = blob(0, 0, 16, 32, 0.9)  # the left half of the image, as the detector's box
    given = networks([[0, 0, 48, 64]], [{("cat", "cat"): 0.6}], {"red dog": same})
    detections, _ = q2.segment(given, IMAGE, ["cat", "red dog"], settings)
    assert [d.label for d in detections] == ["cat"]
    # nor a third one, where two phrases get the same part of CLIPSeg's maps: the higher peak decides
    given = networks(maps={"cat": 0.8 * same, "red dog": same})
    detections, _ = q2.segment(given, IMAGE, ["cat", "red dog"], settings)
    assert [d.label for d in detections] == ["red dog"]


def test_components_are_apart_and_faint_or_tiny_ones_are_dropped(q2):
    heat = blob(2, 2, 10, 10, 0.9) + blob(20, 20, 30, 30, 0.7) + blob(20, 2, 30, 10, 0.5)
    heat[31, 0] = 0.5  # below the peak asked for
    parts = q2.components(heat, 0.4, 320, 320)
    assert sorted(round(peak, 2) for peak, *_ in parts) == [0.7, 0.9]
    for peak, box, mask in parts:
        expected = (20, 20, 100, 100) if peak > 0.8 else (200, 200, 300, 300)
        assert box == pytest.approx(expected, abs=10) and mask.dtype == bool
    assert q2.components(np.zeros((32, 32), np.float32), 0.4, 320, 320) == []


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (37, 91)])
def test_components_of_odd_images_lie_within_them(q2, height, width):
    ((_, box, _),) = q2.components(np.ones((32, 32), np.float32), 0.4, height, width)
    assert box == pytest.approx((0, 0, width, height))


def test_where_sam_rejects_a_box_clipsegs_own_mask_stays(networks, q2):
    maps = {"cat": blob(0, 0, 16, 32, 0.9)}
    refused, accepted = networks(maps=maps, sam_score=0.2), networks(maps=maps, sam_score=0.8)
    for given in (refused, accepted):
        given.sam2.set_image(IMAGE)
    given = refused.sam2
    given.masks = lambda boxes: (np.zeros((len(boxes), 64, 96), bool), np.full(len(boxes), 0.2, np.float32))
    (own,) = q2.fall_back(refused, IMAGE, ["cat"], 0.4)
    (theirs,) = q2.fall_back(accepted, IMAGE, ["cat"], 0.4)
    left_half = np.zeros((64, 96), bool)
    left_half[:, :48] = True
    for detection in (own, theirs):
        assert np.mean(detection.mask == left_half) > 0.95 and detection.mask.shape == (64, 96)
    assert own.mask_score == pytest.approx(0.2)  # SAM's estimate stays SAM's


# --- Files ---


def test_a_folder_with_a_bad_file_is_done_but_for_that_file(networks, settings, q2, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(IMAGE).save(good)
    bad.write_text("no image")
    given = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6}])
    rows = q2.segment_files(given, [bad, good], ["cat"], settings, tmp_path / "out")
    assert "bad.png" in rows[0]["skipped"] and rows[0]["objects"] is None
    assert rows[1] | {"seconds": 0} == {"image": str(good), "objects": 1, "labels": "cat", "seconds": 0, "skipped": ""}
    record = json.loads((tmp_path / "out" / "good" / "detections.json").read_text())
    assert set(record) == {"image", "prompt", "models", "seconds", "detections"}
    (entry,) = record["detections"]
    assert decode_mask(entry["mask"]).sum() == 81 and entry["label"] == "cat" and entry["source"] == "groundingdino"
    assert not (tmp_path / "out" / "bad").exists()


def test_masks_belong_to_their_boxes(q2):
    sam = FakeSam()
    sam.set_image(IMAGE)
    detections = [
        Detection("cat", 0.5, (0.0, 0.0, 4.0, 5.0), "groundingdino"),
        Detection("cat", 0.4, (9.0, 9.0, 12.0, 11.0), "clipseg"),
    ]
    masked = q2.add_masks(sam, detections)
    assert [d.mask.sum() for d in masked] == [20, 6] and [d.label for d in masked] == ["cat", "cat"]
    assert q2.add_masks(sam, []) == []
    assert SimpleNamespace(**vars(detections[0])).mask is None  # what was given is not changed


# --- videos ----------------------------------------------------------------------------------------------------------


class FakeTracker:
    """Hands out the masks that a test sets; notes what is asked of it."""

    def __init__(self):
        self.objects, self.removed = {}, []
        self.ids = itertools.count(1)

    def add(self, number, box=None, mask=None):
        assert number not in self.objects
        mask = box_mask(*box) if mask is None else mask
        self.objects[number] = mask
        return mask

    def remove(self, number):
        del self.objects[number]
        self.removed.append(number)


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return mask


def seen(label, *box, score=0.8):
    return Detection(label, score, box, "groundingdino", box_mask(*box), 0.9)


def painted(*boxes):
    """An image with a red or a blue rectangle for each (colour, box)."""
    image = IMAGE.copy()
    for colour, box in boxes:
        image[box_mask(*box)] = {"red": (200, 20, 20), "blue": (20, 20, 200)}[colour]
    return image


LEFT, RIGHT = (4, 10, 24, 30), (60, 10, 80, 30)


@pytest.fixture
def followed(q2):
    """A tracker and its tracks after two cats were seen, a red one on the left and a blue one on the right."""
    tracker, tracks = FakeTracker(), []
    image = painted(("red", LEFT), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT), seen("cat", *RIGHT)], image, 50, tracker.ids)
    assert [(t.id, t.number, t.label) for t in tracks] == [(1, 1, "cat"), (2, 2, "cat")]
    return tracker, tracks


def test_what_overlaps_an_object_in_sight_is_that_object(q2, followed):
    tracker, tracks = followed
    moved = (7, 11, 27, 31)
    detections = [seen("cat", *moved, score=0.6), seen("red dog", *RIGHT)]
    q2.add_tracks(tracker, tracks, detections, painted(("red", moved), ("blue", RIGHT)), 50, tracker.ids)
    assert len(tracks) == 2 and len(tracker.objects) == 2
    assert [(t.label, t.score) for t in tracks] == [("cat", 0.6), ("cat", 0.8)]  # another label changes nothing


def test_what_overlaps_nothing_is_new(q2, followed):
    tracker, tracks = followed
    middle = (34, 40, 50, 60)
    image = painted(("red", LEFT), ("blue", RIGHT), ("red", middle))
    q2.add_tracks(tracker, tracks, [seen("cat", *middle)], image, 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 2, 3] and set(tracker.objects) == {1, 2, 3}
    q2.add_tracks(tracker, tracks, [seen("cat", 0, 50, 10, 60)], image, 3, tracker.ids)  # max_objects is reached
    assert len(tracks) == 3


def test_a_lost_object_keeps_its_id_when_it_is_back(q2, followed):
    tracker, tracks = followed
    for track in tracks:
        track.mask = np.zeros_like(track.mask)
    back = (40, 40, 60, 60)
    q2.add_tracks(tracker, tracks, [seen("cat", *back)], painted(("blue", back)), 50, tracker.ids)
    assert [(t.id, t.mask.any()) for t in tracks] == [(1, False), (2, True)]  # by its colour
    assert tracks[1].number == 3 and tracker.removed == [2] and set(tracker.objects) == {1, 3}
    q2.add_tracks(tracker, tracks, [seen("red dog", *LEFT)], painted(("red", LEFT)), 50, tracker.ids)
    assert [t.label for t in tracks] == ["cat", "cat", "red dog"]  # another label is another object


def test_a_track_that_slipped_to_another_object_is_taken_back(q2, followed):
    tracker, tracks = followed
    tracks[0].mask = box_mask(*RIGHT)  # of the red cat: now on something blue
    image = painted(("red", LEFT), ("blue", RIGHT))
    detections = [seen("cat", *LEFT), seen("red dog", *RIGHT)]
    tracker.remove(tracks.pop().number)
    q2.add_tracks(tracker, tracks, detections, image, 50, tracker.ids)
    assert [(t.id, t.label) for t in tracks] == [(1, "cat"), (3, "red dog")]
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*LEFT))
    np.testing.assert_array_equal(tracks[1].mask, box_mask(*RIGHT))


def test_a_mask_that_disagrees_with_its_detection_starts_afresh(q2, followed):
    tracker, tracks = followed
    tracks[0].mask = box_mask(4, 10, 14, 30)  # half of it
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT)], painted(("red", LEFT), ("blue", RIGHT)), 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 2] and tracker.removed == [1]
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*LEFT))


def test_a_track_that_lies_on_another_one_is_lost(q2, followed):
    tracker, tracks = followed
    image = painted(("red", LEFT), ("red", RIGHT))
    below = (60, 40, 80, 60)
    q2.add_tracks(tracker, tracks, [seen("red dog", *below)], painted(("red", below)), 50, tracker.ids)
    tracks[0].mask = tracks[2].mask = box_mask(*RIGHT)  # of the same colour: only the detector tells them apart
    tracker.remove(tracks.pop(1).number)
    q2.add_tracks(tracker, tracks, [seen("red dog", *RIGHT)], image, 50, tracker.ids)
    assert [(t.id, t.label, t.mask.any()) for t in tracks] == [(1, "cat", False), (3, "red dog", True)]
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT), seen("red dog", *RIGHT)], image, 50, tracker.ids)
    assert [(t.id, t.mask.any()) for t in tracks] == [(1, True), (3, True)]


def test_a_track_whose_colour_changed_gives_its_id_to_what_looks_like_it(q2, followed):
    tracker, tracks = followed
    below = (4, 40, 24, 60)
    tracks[0].mask = box_mask(60, 40, 80, 60)  # of the red cat: now on something blue that the detector does not know
    image = painted(("blue", (60, 40, 80, 60)), ("blue", RIGHT), ("red", below))
    q2.add_tracks(tracker, tracks, [seen("cat", *below)], image, 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 2]
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*below))


def test_two_detections_in_the_place_of_one_track_are_two_objects(q2, followed):
    tracker, tracks = followed
    tracks[0].mask = box_mask(4, 10, 44, 30)  # it spread over two cats
    image = painted(("red", (4, 10, 44, 30)), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT), seen("cat", 26, 10, 44, 30)], image, 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 2, 3]
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*LEFT))


def test_the_parts_of_an_object_behind_something_are_that_object(q2, followed):
    tracker, tracks = followed
    image = painted(("red", LEFT), ("blue", RIGHT))
    parts = [seen("cat", 4, 10, 12, 30), seen("cat", 14, 10, 24, 30)]  # a thin post before it
    q2.add_tracks(tracker, tracks, parts, image, 50, tracker.ids, 12)
    assert [t.id for t in tracks] == [1, 2] and not tracker.removed
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*LEFT))
    assert [t.seen for t in tracks] == [12, 0]


def test_a_piece_of_an_object_does_not_take_its_place(q2, followed):
    tracker, tracks = followed
    image = painted(("red", LEFT), ("blue", RIGHT))
    piece = (4, 10, 12, 30)  # 40 % of it
    q2.add_tracks(tracker, tracks, [seen("cat", *piece)], image, 50, tracker.ids, 6)
    assert not tracker.removed and (tracks[0].seen, tracks[0].area) == (6, 400)
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*LEFT))
    tracks[0].mask = box_mask(4, 10, 44, 30)  # it has spread since: the piece is what is known of the object
    image = painted(("red", (4, 10, 44, 30)), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *piece)], image, 50, tracker.ids, 12)
    assert tracker.removed == [1]
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*piece))


def test_a_surer_detection_gives_an_object_the_right_name_and_no_new_id(q2, followed):
    tracker, tracks = followed
    image = painted(("red", LEFT), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("red dog", *LEFT, score=0.7)], image, 50, tracker.ids, 12)
    assert [(t.id, t.label) for t in tracks] == [(1, "cat"), (2, "cat")]  # less sure than the cat was
    detections = [seen("cat", *LEFT, score=0.5), seen("red dog", *LEFT, score=0.9)]
    q2.add_tracks(tracker, tracks, detections, image, 50, tracker.ids, 24)
    assert [(t.id, t.label) for t in tracks] == [(1, "cat"), (2, "cat")]  # both: it keeps its name
    q2.add_tracks(tracker, tracks, [seen("red dog", *LEFT, score=0.9)], image, 50, tracker.ids, 36)
    assert [(t.id, t.label, t.seen) for t in tracks] == [(1, "red dog", 36), (2, "cat", 0)]
    assert not tracker.removed


def test_a_track_that_slipped_onto_a_missing_one_gives_it_back(q2, followed):
    tracker, tracks = followed
    below = (60, 40, 80, 60)
    q2.add_tracks(tracker, tracks, [seen("red dog", *below)], painted(("red", below)), 50, tracker.ids)
    tracks[0].mask, tracks[2].mask = box_mask(*below), box_mask(30, 40, 50, 60)  # the cat's passed before the dog
    image = painted(("red", below), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *RIGHT), seen("red dog", *below)], image, 50, tracker.ids, 6)
    assert [(t.id, t.label, t.mask.any()) for t in tracks] == [
        (1, "cat", False),
        (2, "cat", True),
        (3, "red dog", True),
    ]
    np.testing.assert_array_equal(tracks[2].mask, box_mask(*below))


def test_what_comes_back_undetected_is_taken_back(q2, followed):
    tracker, tracks = followed
    nothing = np.zeros_like(tracks[0].mask)
    tracks[0].move(nothing)
    tracks[0].move(box_mask(*LEFT))  # SAM 2 has it back
    entries = [q2.track_entry(1, "cat", 0.8, box_mask(*LEFT)), q2.track_entry(2, "cat", 0.8, box_mask(*RIGHT))]
    waiting = [q2.Held(frame, {e["id"]: e for e in entries}) for frame in frames_of(4)]
    del waiting[1].objects[1]
    image = painted(("red", LEFT), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *RIGHT)], image, 50, tracker.ids, 6)  # GroundingDINO does not
    q2.forget_ghosts(tracks, waiting)
    assert [(t.id, t.mask.any()) for t in tracks] == [(1, False), (2, True)] and tracker.removed == [1]
    assert [list(held.objects) for held in waiting] == [[1, 2], [2], [2], [2]]  # back to where it was out of sight
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT)], image, 50, tracker.ids, 12)
    assert [(t.id, t.mask.any(), t.unsure) for t in tracks] == [(1, True, False), (2, True, False)]


@pytest.mark.parametrize("label", ["red dog", "cat"])
def test_one_new_object_that_is_detected_twice_is_one(q2, followed, label):
    tracker, tracks = followed
    box, larger = (34, 36, 54, 60), (34, 33, 54, 60)
    image = painted(("red", LEFT), ("blue", RIGHT), ("red", larger))
    twice = [seen("red dog", *box, score=0.6), seen(label, *larger, score=0.5)]
    fresh = q2.add_tracks(tracker, tracks, twice, image, 50, tracker.ids, 6)
    assert [(t.id, t.label) for t in tracks] == [(1, "cat"), (2, "cat"), (3, "red dog")]
    assert [track.id for track, *_ in fresh] == [3] and set(tracker.objects) == {1, 2, 3}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_detected_tracks_and_what_sam2_follows_agree(q2, seed):
    """Looks at random boxes of two labels, between which the tracks go anywhere, out of sight too."""
    rng, tracker, tracks = np.random.default_rng(seed), FakeTracker(), []
    places = [(x, y, x + wide, y + high) for x in (0, 6, 40) for y in (0, 5, 30) for wide, high in ((20, 20), (30, 25))]

    def anywhere():
        return places[rng.integers(len(places))]

    for index in range(12):
        colours = rng.choice(["red", "blue"], 3)
        image = painted(*((colour, anywhere()) for colour in colours))
        found = [
            seen(str(rng.choice(["cat", "dog"])), *anywhere(), score=rng.uniform(0.3, 1))
            for _ in range(rng.integers(5))
        ]
        found.sort(key=lambda d: -d.score)
        most = int(rng.integers(2, 6))
        fresh = q2.add_tracks(tracker, tracks, found, image, most, tracker.ids, index)
        q2.merge_duplicates(tracker, tracks)
        kept = [track for track, *_ in fresh if track in tracks]
        assert len({track.id for track in kept}) == len(kept) and all(track.number for track in kept)
        assert len({track.id for track in tracks}) == len(tracks)
        assert sorted(tracker.objects) == sorted(track.number for track in tracks if track.number)
        for track in tracks:
            shows = track.number and rng.random() < 0.8
            track.move(box_mask(*anywhere()) if shows else np.zeros_like(track.mask))


def test_max_objects_are_followed_at_a_time_and_what_left_makes_room(q2, followed):
    tracker, tracks = followed
    corner, middle = (0, 50, 10, 60), (34, 40, 50, 60)
    image = painted(("red", LEFT), ("blue", RIGHT), ("red", corner))
    q2.add_tracks(tracker, tracks, [seen("cat", *corner)], image, 2, tracker.ids, 6)
    assert [t.id for t in tracks] == [1, 2] and not tracker.removed  # both are in sight
    tracks[1].move(np.zeros_like(tracks[1].mask))  # the blue one has left
    q2.add_tracks(tracker, tracks, [seen("cat", *corner)], image, 2, tracker.ids, 12)
    assert [(t.id, t.number > 0) for t in tracks] == [(1, True), (2, False), (3, True)] and tracker.removed == [2]
    image = painted(("red", LEFT), ("red", corner), ("blue", middle))
    q2.add_tracks(tracker, tracks, [seen("cat", *middle)], image, 2, tracker.ids, 18)  # it is back, without room
    assert [t.number > 0 for t in tracks] == [True, False, True]
    tracks[0].move(np.zeros_like(tracks[0].mask))
    q2.add_tracks(tracker, tracks, [seen("cat", *middle)], image, 2, tracker.ids, 24)
    assert [(t.id, t.number > 0) for t in tracks] == [(1, False), (2, True), (3, True)]


def test_what_was_left_of_a_hidden_object_gives_its_id_to_where_it_comes_out(q2, followed):
    tracker, tracks = followed
    tracks[0].mask = box_mask(20, 10, 24, 30)  # a fifth of it still shows, and is not detected
    out = (40, 40, 50, 60)
    image = painted(("red", (20, 10, 24, 30)), ("red", out), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *out), seen("cat", *RIGHT)], image, 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 2] and tracker.removed == [1]
    np.testing.assert_array_equal(tracks[0].mask, box_mask(*out))
    tracks[0].mask = box_mask(40, 40, 50, 53)  # two thirds of it: it is in sight, and the other one is new
    image = painted(("red", LEFT), ("red", out), ("blue", RIGHT))
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT), seen("cat", *RIGHT)], image, 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 2, 3]


@pytest.mark.parametrize("label", ["red dog", "cat"])
def test_a_track_that_came_to_lie_inside_another_object_is_lost_and_taken_back(q2, followed, label):
    tracker, tracks = followed
    big = (34, 30, 84, 60)
    image = painted(("red", LEFT), ("blue", RIGHT), ("red", big))
    q2.add_tracks(tracker, tracks, [seen("cat", *LEFT), seen("cat", *RIGHT), seen(label, *big)], image, 50, tracker.ids)
    tracks[0].mask = box_mask(40, 35, 60, 50)  # the red cat has left the image: SAM 2 goes on within what is as red
    inside = q2.track_entry(1, "cat", 0.8, tracks[0].mask)
    other = q2.track_entry(3, label, 0.8, box_mask(*big))
    waiting = [q2.Held(frame, {1: inside, 3: other}) for frame in frames_of(3)]
    waiting[0].objects[1] = q2.track_entry(1, "cat", 0.8, box_mask(*LEFT))
    q2.add_tracks(tracker, tracks, [seen("cat", *RIGHT), seen(label, *big)], image, 50, tracker.ids, 6)
    q2.forget_ghosts(tracks, waiting)
    assert [(t.id, t.mask.any()) for t in tracks] == [(1, False), (2, True), (3, True)]
    assert [list(held.objects) for held in waiting] == [[1, 3], [3], [3]]


def test_a_part_of_another_object_is_followed_inside_it(q2, followed):
    tracker, tracks = followed
    big, part = (34, 30, 84, 60), (40, 35, 60, 50)
    image = painted(("red", LEFT), ("blue", RIGHT), ("red", big))
    q2.add_tracks(tracker, tracks, [seen("red dog", *big), seen("cat", *part)], image, 50, tracker.ids)
    assert [(t.id, t.part) for t in tracks] == [(1, False), (2, False), (3, False), (4, True)]
    q2.add_tracks(tracker, tracks, [seen("red dog", *big)], image, 50, tracker.ids, 6)
    np.testing.assert_array_equal(tracks[3].mask, box_mask(*part))


def test_an_object_that_is_not_detected_again_is_not_dropped(q2, followed):
    tracker, tracks = followed
    q2.add_tracks(tracker, tracks, [], IMAGE, 50, tracker.ids)
    q2.merge_duplicates(tracker, tracks)
    assert len(tracks) == 2 and not tracker.removed


def test_duplicates_are_merged_into_the_older_one(q2, followed):
    tracker, tracks = followed
    tracks[1].mask = tracks[0].mask.copy()
    tracks.append(replace(tracks[0], id=3, label="red dog", number=3))
    tracker.objects[3] = tracks[0].mask
    q2.merge_duplicates(tracker, tracks)
    assert [t.id for t in tracks] == [1, 3] and tracker.removed == [2]
    q2.merge_duplicates(tracker, tracks)
    tracker.remove(tracks.pop().number)
    q2.add_tracks(tracker, tracks, [seen("cat", 0, 50, 10, 60)], IMAGE, 50, tracker.ids)
    assert [t.id for t in tracks] == [1, 3]  # 2 was merged, and is not given again


class BackwardsTracker(FakeTracker):
    """On frame i, its object `number` is where `paths[number][i]` says; nowhere if that is None."""

    def __init__(self, paths):
        super().__init__()
        self.paths, self.shown = paths, []

    @property
    def numbers(self):
        return list(self.objects)

    def prepare(self, image):
        return image

    def show(self, index, prepared):
        self.shown.append(index)

    def track(self, backwards=False):
        assert backwards
        where = {number: self.paths[number].get(self.shown[-1]) for number in self.objects}
        return {number: box_mask(*box) if box else np.zeros(IMAGE.shape[:2], bool) for number, box in where.items()}


def test_a_new_object_is_followed_back_to_where_it_cannot_be_seen(q2):
    path = {i: (4 + 2 * i, 10, 24 + 2 * i, 30) if i > 1 else None for i in range(5)}
    tracker = BackwardsTracker({7: path})
    track = q2.Track(7, "cat", 1, box_mask(*path[4]))
    waiting = [q2.Held(frame, {}) for frame in frames_of(4)]
    q2.look_back(tracker, SimpleNamespace(index=4, image=IMAGE), [(track, {"box": path[4]}, -1)], reversed(waiting))
    assert tracker.shown == [4, 3, 2, 1, 0]
    assert [list(held.objects) for held in waiting] == [[], [], [7], [7]]
    np.testing.assert_array_equal(q2.decode_mask(waiting[2].objects[7]["mask"]), box_mask(*path[2]))
    assert waiting[2].objects[7]["label"] == "cat"


def test_a_track_that_had_drifted_is_mended_back_to_where_it_was_right(q2):
    right, wrong = box_mask(*LEFT), box_mask(*RIGHT)
    tracker = BackwardsTracker({1: dict.fromkeys(range(6), LEFT)})
    track = q2.Track(1, "cat", 4, right)
    other = q2.track_entry(2, "cat", 0.5, wrong)
    waiting = [
        q2.Held(frame, {1: q2.track_entry(1, "cat", 0.8, mask), 2: other})
        for frame, mask in zip(frames_of(5), (right, wrong, right, wrong, wrong), strict=True)
    ]
    q2.look_back(tracker, SimpleNamespace(index=5, image=IMAGE), [(track, {"box": LEFT}, 0)], reversed(waiting))
    assert tracker.shown == [5, 4, 3, 2]  # where both agree; what was before that is not touched
    masks = [q2.decode_mask(held.objects[1]["mask"]) for held in waiting]
    assert [np.array_equal(mask, right) for mask in masks] == [True, False, True, True, True]
    assert all(held.objects[2] is other for held in waiting)


def test_where_both_ways_disagree_each_keeps_the_half_next_to_its_detection(q2):
    forwards, backwards = box_mask(*LEFT), box_mask(*RIGHT)
    tracker = BackwardsTracker({1: dict.fromkeys(range(9), RIGHT)})
    waiting = [q2.Held(frame, {1: q2.track_entry(1, "cat", 0.8, forwards)}) for frame in frames_of(8)]
    track = q2.Track(1, "cat", 4, backwards)
    q2.look_back(tracker, SimpleNamespace(index=8, image=IMAGE), [(track, {"box": RIGHT}, 2)], reversed(waiting))
    assert tracker.shown == [8, 7, 6, 5, 4, 3, 2]  # 2 is where it was detected before
    masks = [q2.decode_mask(held.objects[1]["mask"]) for held in waiting]
    assert [np.array_equal(mask, backwards) for mask in masks] == [False] * 5 + [True] * 3


def test_a_track_back_in_time_is_let_go_once_it_is_gone(q2):
    tracker = BackwardsTracker({3: {19: LEFT, 18: LEFT}})
    waiting = [q2.Held(frame, {}) for frame in frames_of(20)]
    track = q2.Track(3, "cat", 1, box_mask(*LEFT))
    q2.look_back(tracker, SimpleNamespace(index=20, image=IMAGE), [(track, {"box": LEFT}, -1)], reversed(waiting))
    assert tracker.shown == list(range(20, 17 - q2.GONE, -1)) and tracker.removed == [3]
    assert [held.frame.index for held in waiting if held.objects] == [18, 19]


class FakeFrames(list):
    fps = 10.0


def frames_of(count):
    return FakeFrames(SimpleNamespace(index=i, image=np.full_like(IMAGE, i)) for i in range(count))


class StillTracker(FakeTracker):
    """Everything stays where it was prompted."""

    def __init__(self, *_):
        super().__init__()

    numbers = property(lambda self: list(self.objects))
    prepare = show = staticmethod(lambda *_: None)

    def track(self, backwards=False):
        return dict(self.objects)


@pytest.mark.parametrize(("first_seen", "from_frame"), [(8, 0), (40, 40 - 24)])
def test_what_is_detected_late_is_there_on_the_frames_before_that_still_wait(
    q2, networks, settings, monkeypatch, first_seen, from_frame
):
    def detect(dino, image, phrases, settings):
        return [seen("cat", *LEFT)] + [seen("red dog", *RIGHT)] * int(image[0, 0, 0] >= first_seen)

    monkeypatch.setattr(q2, "detect", detect)
    monkeypatch.setattr(q2, "VideoTracker", StillTracker)
    monkeypatch.setattr(association, "off_colour", lambda track, image: False)
    frames = frames_of(48)
    frames.height, frames.width = IMAGE.shape[:2]
    frames.backwards = lambda stop: reversed(frames[:stop])
    done = list(q2.track_frames(networks(), frames, ["cat", "red dog"], settings, 4))
    assert [frame.index for frame, _ in done] == list(range(48))
    assert [[o["label"] for o in objects] for _, objects in done] == [["cat"]] * from_frame + [["cat", "red dog"]] * (
        48 - from_frame
    )


def test_the_seed_is_the_first_frame_with_a_detection(q2, networks, settings, monkeypatch):
    fakes, looked = networks(), []

    def detect(dino, image, phrases, settings):
        looked.append(int(image[0, 0, 0]))
        return [seen("cat", *LEFT)] if image[0, 0, 0] >= 7 else []

    monkeypatch.setattr(q2, "detect", detect)
    index, found = q2.seed_frame(fakes, frames_of(20), ["cat"], settings, 5)
    assert (index, [d.label for d in found]) == (10, ["cat"]) and looked == [0, 5, 10]
    assert fakes.clipseg.asked == []


@pytest.mark.parametrize(("every", "seed"), [(0, 5), (2, 4), (30, 5), (100, 5)])
def test_the_search_for_a_seed_looks_twice_a_second_at_least(q2, networks, settings, monkeypatch, every, seed):
    def detect(dino, image, phrases, settings):
        looked.append(int(image[0, 0, 0]))
        return [seen("cat", *LEFT)] if 3 <= image[0, 0, 0] < 30 else []

    looked = []
    monkeypatch.setattr(q2, "detect", detect)
    monkeypatch.setattr(q2, "VideoTracker", StillTracker)
    frames = frames_of(40)  # ten a second
    frames.height, frames.width = IMAGE.shape[:2]
    frames.backwards = lambda stop: reversed(frames[:stop])
    done = list(q2.track_frames(networks(), frames, ["cat"], settings, every))
    assert len(done) == 40 and all([o["label"] for o in objects] == ["cat"] for _, objects in done)
    assert next(i for i in looked if 3 <= i < 30) == seed


def test_clipseg_seeds_only_after_the_whole_clip_has_been_searched(q2, networks, settings):
    fakes = networks(maps={"cat": blob(4, 4, 12, 12, 0.9)})
    index, found = q2.seed_frame(fakes, frames_of(9), ["cat"], settings, 4)
    assert index == 0 and [d.source for d in found] == ["clipseg"]
    assert len(fakes.dino.captions) == 3 and len(fakes.clipseg.asked) == 1
    assert q2.seed_frame(networks(), frames_of(9), ["cat"], settings, 4) == (None, [])


def test_the_search_for_a_seed_ends_at_the_deadline(q2, networks, settings, monkeypatch):
    monkeypatch.setattr(q2, "VideoTracker", StillTracker)
    fakes, frames = networks(), frames_of(20)
    assert q2.seed_frame(fakes, frames, ["cat"], settings, 4, deadline=time.perf_counter()) == (None, [])
    assert fakes.dino.captions == [] and fakes.clipseg.asked == []
    frames.height, frames.width = IMAGE.shape[:2]
    done = []
    with pytest.raises(TimeoutError):
        for frame, objects in q2.track_frames(fakes, frames, ["cat"], settings, 4, time.perf_counter()):
            done.append((frame.index, objects))
    assert done == [(0, [])]  # a file has one frame at least
