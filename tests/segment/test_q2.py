"""The pipeline of q2.ipynb, with networks that answer what a test tells them to."""

import json
import math
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import nbload
from helpers.common.device import Compute
from helpers.segment import tracks
from helpers.segment.detections import Detection
from helpers.segment.inputs import Settings
from helpers.segment.models import Models, load_models
from helpers.segment.outputs import decode_mask
from helpers.segment.prompts import Caption
from helpers.segment.sam2_image import Encoded
from helpers.shapes.scenes import make_scene

PIECES = {"cat": ["cat"], "red dog": ["red", "dog"], "unicycling": ["uni", "##cycl", "##ing"]}


@pytest.fixture(scope="module")
def q2():
    return nbload.load("q2.ipynb")


@pytest.fixture
def settings(q2):
    return Settings(box_threshold=0.35, text_threshold=0.25, clipseg_thr=0.4, nms_iou=0.7, max_objects=50)


@pytest.fixture(scope="module")
def tiny_models():
    return load_models(Compute(torch.device("cpu"), "", "fp32"), "tiny")


class FakeDino:
    """Answers with given boxes; `scores[i]` maps (phrase, token) to the score of box i."""

    name, tokenizer, max_tokens = "fake", None, 256

    def __init__(self, boxes, scores):
        self.boxes, self.scores, self.captions = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), scores, []

    resized = staticmethod(lambda image: image.shape[:2])

    def forward(self, images, caption):
        self.captions.append(caption)
        tokens = [(-1, "[CLS]")]
        for phrase in caption.removesuffix(" .").split(" . "):
            tokens += [(phrase, piece) for piece in PIECES.get(phrase, [phrase])] + [(phrase, ".")]
        tokens.append((-1, "[SEP]"))
        rows = [[given.get(token, 0.01) for token in tokens] for given in self.scores]
        scores = torch.tensor(rows, dtype=torch.float32).reshape(-1, len(tokens))
        return torch.stack([scores] * len(images)), torch.stack([self.boxes] * len(images))


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

    def encode(self, images):
        self.images += len(images)
        return [Encoded({}, *image.shape[:2]) for image in images]

    def masks(self, encoded, boxes):
        self.calls.append(len(boxes))
        masks = np.zeros((len(boxes), encoded.height, encoded.width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[round(y0) : round(y1), round(x0) : round(x1)] = True
        return masks, np.full(len(boxes), self.score, np.float32)


class FakeClipSeg:
    name = "fake"

    def __init__(self, maps):
        self.maps, self.asked = maps, []

    def heatmaps(self, images, phrases):
        self.asked += map(list, phrases)
        return [np.float32([self.maps.get(phrase, np.zeros((32, 32))) for phrase in own]) for own in phrases]


@pytest.fixture
def networks(q2, monkeypatch):
    monkeypatch.setattr(q2, "caption_passes", passes)

    def make(boxes=(), scores=(), maps=None, sam_score=0.9):
        compute = Compute(torch.device("cpu"), "", "fp32")
        return Models(FakeDino(list(boxes), list(scores)), FakeSam(sam_score), FakeClipSeg(maps or {}), compute)

    return make


IMAGE = np.zeros((64, 96, 3), np.uint8)


def blob(x0, y0, x1, y1, value):
    """A map of 32 x 32 with a rectangle."""
    heat = np.zeros((32, 32), np.float32)
    heat[y0:y1, x0:x1] = value
    return heat


def detect(q2, dino, phrases, settings):
    (found,) = q2.detect(dino, [IMAGE], phrases, settings)
    return found


# --- Labels ---


def test_a_box_that_fits_two_phrases_gets_the_one_with_its_best_token_and_not_both(networks, settings, q2):
    scores = [{("cat", "cat"): 0.6, ("red dog", "dog"): 0.7, ("red dog", "red"): 0.5}]
    found = detect(q2, networks([[0, 0, 9, 9]], scores).dino, ["cat", "red dog"], settings)
    assert [(d.label, round(d.score, 4), d.source) for d in found] == [("red dog", 0.7, "groundingdino")]


def test_a_box_that_fits_a_piece_of_a_word_gets_the_whole_phrase(networks, settings, q2):
    scores = [{("unicycling", "##ing"): 0.5}]
    found = detect(q2, networks([[0, 0, 9, 9]], scores).dino, ["cat", "unicycling"], settings)
    assert [d.label for d in found] == ["unicycling"]


def test_separators_and_special_tokens_give_no_label(networks, settings, q2):
    scores = [{("cat", "."): 0.99, (-1, "[CLS]"): 0.99, ("cat", "cat"): 0.1}]
    assert detect(q2, networks([[0, 0, 9, 9]], scores).dino, ["cat"], settings) == []


@pytest.mark.parametrize(("box", "text", "kept"), [(0.35, 0.25, 2), (0.55, 0.25, 1), (0.35, 0.75, 0), (0.0, 0.0, 3)])
def test_both_thresholds_bound_the_best_token(networks, settings, q2, box, text, kept):
    boxes = [[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]
    scores = [{("cat", "cat"): value} for value in (0.6, 0.4, 0.2)]
    settings = replace(settings, box_threshold=box, text_threshold=text)
    assert len(detect(q2, networks(boxes, scores).dino, ["cat"], settings)) == kept


# --- Suppression, passes, order ---


def test_duplicates_are_suppressed_within_a_phrase_only_and_the_surest_come_first(networks, settings, q2):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]]
    scores = [{("cat", "cat"): 0.5}, {("cat", "cat"): 0.6}, {("red dog", "dog"): 0.4}, {("cat", "cat"): 0.9}]
    found = detect(q2, networks(boxes, scores).dino, ["cat", "red dog"], settings)
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
        found = detect(q2, dino, ["cat", "red dog"], replace(settings, one_label=True))
        assert [(d.label, list(d.box)) for d in found] == expected
        assert len(detect(q2, dino, ["cat", "red dog"], settings)) == 4


def test_results_of_several_passes_are_joined(networks, settings, q2, monkeypatch):
    monkeypatch.setattr(q2, "caption_passes", lambda *args: passes(*args, at_once=1))
    dino = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6, ("red dog", "red"): 0.5}]).dino
    assert [d.label for d in detect(q2, dino, ["cat", "red dog"], settings)] == ["cat", "red dog"]
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
        Settings(0.3, 0.25, 0.4, 1.5, 50)
    with pytest.raises(ValueError, match="max_objects=0"):
        Settings(0.3, 0.25, 0.4, 0.7, 0)
    with pytest.raises(ValueError, match="one_label='no': give True or False"):
        Settings(0.3, 0.25, 0.4, 0.7, 50, "no")
    with pytest.raises(ValueError, match="redetect_every=-1"):
        Settings(redetect_every=-1)


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


def test_where_sam_rejects_a_box_clipsegs_own_mask_stays_if_it_is_large(networks, q2):
    maps = {"cat": blob(0, 0, 16, 32, 0.9)}
    refused, accepted = networks(maps=maps, sam_score=0.2), networks(maps=maps, sam_score=0.8)
    (encoded,) = accepted.sam2.encode([IMAGE])
    refused.sam2.masks = lambda _, boxes: (np.zeros((len(boxes), 64, 96), bool), np.full(len(boxes), 0.2, np.float32))
    (own,) = q2.fall_back(refused.sam2, encoded, [maps["cat"]], ["cat"], 0.4)
    (theirs,) = q2.fall_back(accepted.sam2, encoded, [maps["cat"]], ["cat"], 0.4)
    left_half = np.zeros((64, 96), bool)
    left_half[:, :48] = True
    for detection in (own, theirs):
        assert np.mean(detection.mask == left_half) > 0.95 and detection.mask.shape == (64, 96)
    assert own.mask_score == pytest.approx(0.2)  # SAM's estimate stays SAM's
    # what is small is not kept against SAM's estimate: a corner of something else
    small = blob(0, 0, 4, 5, 0.9)
    assert q2.fall_back(refused.sam2, encoded, [small], ["cat"], 0.4) == []
    assert len(q2.fall_back(accepted.sam2, encoded, [small], ["cat"], 0.4)) == 1


# --- Files ---


def test_a_folder_with_a_bad_file_is_done_but_for_that_file(networks, settings, q2, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(IMAGE).save(good)
    bad.write_text("no image")
    given = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6}])
    rows = q2.segment_files(given, [bad, good], ["cat"], settings, tmp_path / "out")
    assert "bad.png" in rows[0]["skipped"] and rows[0]["objects"] is None
    expected = {"image": str(good), "folder": "good", "objects": 1, "labels": "cat", "seconds": 0, "skipped": ""}
    assert rows[1] | {"seconds": 0} == expected
    record = json.loads((tmp_path / "out" / "good" / "detections.json").read_text())
    assert set(record) == {"image", "prompt", "models", "seconds", "detections"}
    (entry,) = record["detections"]
    assert decode_mask(entry["mask"]).sum() == 81 and entry["label"] == "cat" and entry["source"] == "groundingdino"
    assert not (tmp_path / "out" / "bad").exists()


def test_a_folder_in_batches_has_the_files_of_each_image_and_rows_in_order(networks, settings, q2, tmp_path):
    paths = []
    for i, size in enumerate([(96, 64), (64, 96), (96, 64), (96, 64), (64, 96), (96, 64)]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", size).save(paths[i])
    paths[2].write_text("no image")
    given = networks([[0, 0, 9, 9]], [{("cat", "cat"): 0.6}])
    rows = q2.segment_files(given, paths, ["cat"], replace(settings, batch_size=2), tmp_path / "out", ("cutouts",))
    assert [row["image"] for row in rows] == list(map(str, paths))
    assert [row["objects"] for row in rows] == [1, 1, None, 1, 1, 1] and "2.png" in rows[2]["skipped"]
    assert len(given.dino.captions) == 3  # 0 and 3, 1 and 4, and 5
    for i in (0, 1, 3, 4, 5):
        record = json.loads((tmp_path / "out" / str(i) / "detections.json").read_text())
        assert record["image"]["path"] == str(paths[i])
        assert [record["image"]["width"], record["image"]["height"]] == list(Image.open(paths[i]).size)
        assert (tmp_path / "out" / "cutouts" / f"{i}_1_cat.png").is_file()


def test_images_together_are_as_each_alone(q2, settings, tiny_models):
    scenes = [make_scene(i, 120, 160, objects=(3, 3)) for i in range(4)]
    images = [scene.image for scene in scenes]
    phrases = sorted({f"{item.colour} {item.shape}" for scene in scenes for item in scene.objects})
    together = q2.segment_batch(tiny_models, images, phrases, settings)
    for image, (found, seconds) in zip(images, together, strict=True):
        expected, stages = q2.segment(tiny_models, image, phrases, settings)
        assert seconds.keys() >= stages.keys()
        assert [(d.label, d.source) for d in found] == [(d.label, d.source) for d in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-3) and one.box == pytest.approx(other.box, abs=0.1)
            assert np.mean(one.mask != other.mask) < 1e-3
    assert sum(len(found) for found, _ in together) > 4


def test_masks_belong_to_their_boxes(q2):
    sam = FakeSam()
    (encoded,) = sam.encode([IMAGE])
    detections = [
        Detection("cat", 0.5, (0.0, 0.0, 4.0, 5.0), "groundingdino"),
        Detection("cat", 0.4, (9.0, 9.0, 12.0, 11.0), "clipseg"),
    ]
    masked = q2.add_masks(sam, encoded, detections)
    assert [d.mask.sum() for d in masked] == [20, 6] and [d.label for d in masked] == ["cat", "cat"]
    assert q2.add_masks(sam, encoded, []) == []
    assert SimpleNamespace(**vars(detections[0])).mask is None  # what was given is not changed


# --- videos ----------------------------------------------------------------------------------------------------------

LEFT, RIGHT = (4, 10, 24, 30), (60, 10, 80, 30)


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[y0:y1, x0:x1] = True
    return mask


class FakeFrames(list):
    fps, path = 10.0, "clip.mp4"
    height, width = IMAGE.shape[:2]

    def backwards(self, stop):
        return reversed(self[:stop])


def frames_of(count):
    """Frames of black with their number in the first pixel."""
    frames = FakeFrames(SimpleNamespace(index=i, image=IMAGE.copy(), time=i / 10, pts=i) for i in range(count))
    for frame in frames:
        frame.image[0, 0] = frame.index
    return frames


class StillTracker:
    """Everything stays where it was prompted."""

    def __init__(self, *_):
        self.objects = {}

    numbers = property(lambda self: list(self.objects))
    prepare = show = staticmethod(lambda *_: None)

    def add(self, number, box=None, mask=None):
        self.objects[number] = box_mask(*map(int, box)) if mask is None else mask
        return self.objects[number]

    def remove(self, number):
        del self.objects[number]

    def track(self, backwards=False):
        return dict(self.objects)


@pytest.fixture
def follow(q2, networks, settings, monkeypatch):
    """Follow objects that show on frames from `first` to `last`; a function that returns (index, labels) of each frame,
    and the frames at which the detector looked."""

    def make(frames, every, shows, given=None, deadline=math.inf, batch_size=1):
        def detect(dino, images, phrases, settings):
            return [detect_on(image) for image in images]

        def detect_on(image):
            looked.append(int(image[0, 0, 0]))
            names = [name for name, (first, last) in shows.items() if first <= looked[-1] <= last]
            boxes = {"cat": LEFT, "red dog": RIGHT}
            return [Detection(name, 0.8, tuple(map(float, boxes[name])), "groundingdino") for name in names]

        looked, done = [], []
        monkeypatch.setattr(q2, "detect", detect)
        monkeypatch.setattr(tracks, "VideoTracker", StillTracker)
        given, looking = given or networks(), replace(settings, redetect_every=every, batch_size=batch_size)
        followed = q2.Tracks(given.sam2, frames, settings.max_objects, every > 0)
        try:
            for frame, objects in q2.track_frames(followed, given, frames, list(shows), looking, deadline):
                done.append((frame.index, [o["label"] for o in objects]))
        finally:
            done += [(frame.index, [o["label"] for o in objects]) for frame, objects in followed.rest()]
        return done, looked

    return make


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("first_seen", "from_frame"), [(8, 0), (40, 40 - 24)])
def test_what_is_detected_late_is_there_on_the_frames_before_that_still_wait(
    follow, first_seen, from_frame, batch_size
):
    shows = {"cat": (0, 99), "red dog": (first_seen, 99)}
    done, looked = follow(frames_of(48), 4, shows, batch_size=batch_size)
    both = ["cat", "red dog"]
    assert done == [(i, ["cat"] if i < from_frame else both) for i in range(48)]
    assert looked == list(range(0, 48, 4))


@pytest.mark.parametrize(("every", "seed"), [(0, 5), (2, 4), (30, 5), (100, 5)])
def test_the_search_for_a_first_look_looks_twice_a_second_at_least(follow, every, seed):
    done, looked = follow(frames_of(40), every, {"cat": (3, 29)})  # ten a second
    assert done == [(i, ["cat"]) for i in range(40)]
    assert next(i for i in looked if 3 <= i < 30) == seed


def test_without_looks_the_video_is_searched_once_and_then_followed(follow):
    done, looked = follow(frames_of(12), 0, {"cat": (0, 99), "red dog": (6, 99)})
    assert looked == [0] and done == [(i, ["cat"]) for i in range(12)]


def test_clipseg_is_asked_only_after_the_whole_clip_has_been_searched(q2, networks, settings):
    fakes = networks(maps={"cat": blob(4, 4, 12, 12, 0.9)})
    frame, found = q2.first_look(fakes, frames_of(9), ["cat"], settings, 4)
    assert frame.index == 0 and [d.source for d in found] == ["clipseg"]
    assert len(fakes.dino.captions) == 4 and len(fakes.clipseg.asked) == 1
    assert q2.first_look(networks(), frames_of(9), ["cat"], settings, 4) == (None, [])


def test_the_search_ends_at_the_deadline_and_leaves_one_frame(q2, networks, settings, monkeypatch):
    monkeypatch.setattr(tracks, "VideoTracker", StillTracker)
    fakes = networks()
    assert q2.first_look(fakes, frames_of(20), ["cat"], settings, 4, deadline=time.perf_counter()) == (None, [])
    assert fakes.dino.captions == [] and fakes.clipseg.asked == []
    followed, done = q2.Tracks(fakes.sam2, frames_of(20)), []
    with pytest.raises(TimeoutError):
        for frame, objects in q2.track_frames(followed, fakes, frames_of(20), ["cat"], settings, 0.0):
            done.append((frame.index, objects))
    assert done == [(0, [])]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_a_video_that_is_stopped_keeps_what_is_done(q2, networks, settings, monkeypatch, tmp_path, error, capsys):
    def track_frames(followed, networks, clip, *_):
        for frame in clip[:30]:
            followed.move(frame, None)
            yield from followed.settled()
        raise error

    class Writer:
        written: ClassVar[list] = []

        def __init__(self, *_):
            self.written.clear()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, image, pts):
            self.written.append(pts)

    monkeypatch.setattr(tracks, "VideoTracker", StillTracker)
    monkeypatch.setattr(q2, "track_frames", track_frames)
    monkeypatch.setattr(q2.video, "VideoWriter", Writer)
    frames = q2.segment_video(networks(), frames_of(48), ["cat"], settings, tmp_path, 1.5)
    assert [frame["index"] for frame in frames] == Writer.written == list(range(30))
    record = json.loads((tmp_path / "tracks.json").read_text())
    assert record["complete"] is False and record["video"]["frames"] == 30
    reason = "interrupted" if error is KeyboardInterrupt else "stopped after 1.5 s (max_seconds)"
    assert f"{reason}: 30 of 48 frames" in capsys.readouterr().out
