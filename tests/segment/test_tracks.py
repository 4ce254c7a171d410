"""Ids over time, with a tracker that shows what a test tells it to; and how masks overlap."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.segment import tracks as module
from helpers.segment.detections import Detection, mask_iou, overlaps
from helpers.segment.outputs import decode_mask
from helpers.segment.tracks import MOST_HELD, Tracks

HEIGHT, WIDTH = 64, 96
LEFT, RIGHT = (4, 10, 24, 30), (60, 10, 80, 30)


def box_mask(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return mask


def seen(label, *box, score=0.8):
    return Detection(label, score, box, "groundingdino", box_mask(*box), 0.9)


def frame(index, *boxes):
    """A frame with a red or a blue rectangle for each (colour, box)."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for colour, box in boxes:
        image[box_mask(*box)] = {"red": (200, 20, 20), "blue": (20, 20, 200)}[colour]
    return SimpleNamespace(index=index, image=image)


class FakeTracker:
    """Shows an object where the test put it, else where it was prompted; backwards, where `past` has it."""

    past: dict = {}  # noqa: RUF012 {id: {frame index: box, or nothing where it is out of sight}}
    backwards: list = []  # noqa: RUF012 the frames shown to each tracker that went back

    def __init__(self, *_):
        self.objects, self.shown = {}, []

    numbers = property(lambda self: list(self.objects))

    def prepare(self, image):
        return image

    def show(self, index, prepared):
        self.shown.append(index)

    def add(self, number, box=None, mask=None):
        assert number not in self.objects
        self.objects[number] = box_mask(*box) if mask is None else mask
        return self.objects[number]

    def remove(self, number):
        del self.objects[number]

    def track(self, backwards=False):
        if not backwards:
            return dict(self.objects)
        if len(self.shown) == 1:
            self.backwards.append(self.shown)
        where = {number: self.past.get(number, {}).get(self.shown[-1]) for number in self.objects}
        return {number: box_mask(*(box or (0, 0, 0, 0))) for number, box in where.items()}


class Followed(Tracks):
    """Tracks whose objects a test moves."""

    def go(self, shown, **where):
        """To a frame, on which `id3=box` moves object 3; None: out of sight."""
        for name, box in where.items():
            track = next(t for t in self.tracks if t.id == int(name[2:]))
            self._tracker.objects[track.sam_id] = box_mask(*(box or (0, 0, 0, 0)))
        self.move(shown, None)

    @property
    def ids(self):
        return [t.id for t in self.tracks]

    @property
    def boxes(self):
        """{id: (label, box)} of what is in sight."""
        return {t.id: (t.label, module.mask_box(t.mask)) for t in self.tracks if t.mask.any()}

    def check(self):
        """SAM 2 follows what is not lost, and no more than it may."""
        assert sorted(self._tracker.objects) == sorted(t.sam_id for t in self.tracks if t.sam_id)
        assert len(self._tracker.objects) <= self._max_objects and len(set(self.ids)) == len(self.ids)


@pytest.fixture(autouse=True)
def no_past(monkeypatch):
    monkeypatch.setattr(module, "VideoTracker", FakeTracker)
    monkeypatch.setattr(FakeTracker, "past", {})
    monkeypatch.setattr(FakeTracker, "backwards", [])


def new_tracks(most=50, **options):
    return Followed(None, FakeClip(), most, **options)


class FakeClip(list):
    height, width = HEIGHT, WIDTH


@pytest.fixture
def two():
    """After two cats were seen, a red one on the left and a blue one on the right."""
    tracks = new_tracks()
    tracks.go(frame(0, ("red", LEFT), ("blue", RIGHT)))
    tracks.look([seen("cat", *LEFT), seen("cat", *RIGHT)])
    assert tracks.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT)}
    return tracks


# --- Which detection is which track ---


def test_what_clipseg_found_is_unsure_until_it_is_detected():
    tracks = new_tracks()
    tracks.go(frame(0, ("red", LEFT), ("blue", RIGHT)))
    tracks.look([replace(seen("cat", *box), source="clipseg") for box in (LEFT, RIGHT)])
    assert tracks.unsure() == {1, 2}
    tracks.go(frame(6, ("red", LEFT), ("blue", RIGHT)))
    tracks.look([seen("cat", *RIGHT)])
    assert tracks.unsure() == {1} and tracks.ids == [1, 2]


def test_what_overlaps_an_object_in_sight_is_that_object(two):
    moved = (7, 11, 27, 31)
    two.go(frame(6, ("red", moved), ("blue", RIGHT)))
    two.look([seen("cat", *moved, score=0.6), seen("red dog", *RIGHT)])
    assert two.boxes == {1: ("cat", moved), 2: ("cat", RIGHT)}  # another label changes nothing
    assert [t.score for t in two.tracks] == [0.6, 0.8]


def test_what_overlaps_nothing_is_new(two):
    middle = (34, 40, 50, 60)
    two.go(frame(6, ("red", LEFT), ("blue", RIGHT), ("red", middle)))
    two.look([seen("cat", *middle)])
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT), 3: ("cat", middle)}


def test_an_object_that_is_not_detected_again_is_not_dropped(two):
    two.go(frame(6))
    two.look([])
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT)}


def test_a_lost_object_keeps_its_id_when_it_is_back(two):
    back = (40, 40, 60, 60)
    two.go(frame(6, ("blue", back)), id1=None, id2=None)
    two.look([seen("cat", *back)])
    assert two.boxes == {2: ("cat", back)}  # by its colour
    two.go(frame(12, ("red", LEFT), ("blue", back)))
    two.look([seen("red dog", *LEFT)])
    assert two.boxes == {2: ("cat", back), 3: ("red dog", LEFT)}  # another label is another object


def test_what_is_left_of_a_hidden_object_gives_its_id_to_where_it_comes_out(two):
    left, out = (20, 10, 24, 30), (40, 40, 50, 60)  # a fifth of it still shows, and is not detected
    two.go(frame(6, ("red", left), ("red", out), ("blue", RIGHT)), id1=left)
    two.look([seen("cat", *out), seen("cat", *RIGHT)])
    assert two.boxes == {1: ("cat", out), 2: ("cat", RIGHT)}
    most = (40, 40, 50, 53)  # two thirds of it: it is in sight, and the other one is new
    two.go(frame(12, ("red", LEFT), ("red", out), ("blue", RIGHT)), id1=most)
    two.look([seen("cat", *LEFT), seen("cat", *RIGHT)])
    assert two.boxes == {1: ("cat", most), 2: ("cat", RIGHT), 3: ("cat", LEFT)}


def test_a_mask_that_disagrees_with_its_detection_starts_afresh(two):
    two.go(frame(6, ("red", LEFT), ("blue", RIGHT)), id1=(4, 10, 14, 30))  # half of it
    two.look([seen("cat", *LEFT)])
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT)}
    two.go(frame(7))
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT)}


def test_two_detections_in_the_place_of_one_track_are_two_objects(two):
    both, other = (4, 10, 44, 30), (26, 10, 44, 30)
    two.go(frame(6, ("red", both), ("blue", RIGHT)), id1=both)  # it spread over two cats
    two.look([seen("cat", *LEFT), seen("cat", *other)])
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT), 3: ("cat", other)}


@pytest.mark.parametrize("label", ["red dog", "cat"])
def test_a_track_that_slipped_onto_another_object_is_lost_and_found_elsewhere(two, label):
    big, within = (34, 30, 84, 60), (40, 35, 60, 50)
    two.go(frame(6, ("red", LEFT), ("blue", RIGHT), ("red", big)))
    two.look([seen("cat", *LEFT), seen("cat", *RIGHT), seen(label, *big)])
    # the red cat has left the image: SAM 2 goes on within what is as red
    two.go(frame(12, ("blue", RIGHT), ("red", big)), id1=within)
    two.look([seen("cat", *RIGHT), seen(label, *big)])
    assert two.boxes == {2: ("cat", RIGHT), 3: (label, big)}
    two.go(frame(18, ("red", LEFT), ("blue", RIGHT), ("red", big)))
    two.look([seen("cat", *LEFT), seen("cat", *RIGHT), seen(label, *big)])
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT), 3: (label, big)}


def test_a_part_of_another_object_is_followed_inside_it(two):
    car, wheel = (34, 30, 84, 60), (40, 35, 60, 50)
    two.go(frame(6, ("red", LEFT), ("blue", RIGHT), ("red", car)))
    two.look([seen("car", *car), seen("wheel", *wheel)])
    two.go(frame(12, ("red", LEFT), ("blue", RIGHT), ("red", car)))
    two.look([seen("car", *car)])
    assert two.boxes[4] == ("wheel", wheel)


@pytest.mark.parametrize("label", ["red dog", "cat"])
def test_one_new_object_that_is_detected_twice_is_one(two, label):
    box, larger = (34, 36, 54, 60), (34, 33, 54, 60)
    two.go(frame(6, ("red", LEFT), ("blue", RIGHT), ("red", larger)))
    two.look([seen("red dog", *box, score=0.6), seen(label, *larger, score=0.5)])
    assert two.boxes == {1: ("cat", LEFT), 2: ("cat", RIGHT), 3: ("red dog", box)}


def test_max_objects_are_followed_at_a_time_and_what_left_makes_room():
    corner, middle = (0, 50, 10, 60), (34, 40, 50, 60)
    tracks = new_tracks(most=2)
    tracks.go(frame(0, ("red", LEFT), ("blue", RIGHT)))
    tracks.look([seen("cat", *LEFT), seen("cat", *RIGHT)])
    tracks.go(frame(6, ("red", LEFT), ("blue", RIGHT), ("red", corner)))
    tracks.look([seen("cat", *corner)])
    assert tracks.ids == [1, 2]  # both are in sight
    tracks.go(frame(12, ("red", LEFT), ("red", corner)), id2=None)
    tracks.look([seen("cat", *corner)])
    assert tracks.boxes == {1: ("cat", LEFT), 3: ("cat", corner)}
    tracks.go(frame(18, ("red", LEFT), ("red", corner), ("blue", middle)))
    tracks.look([seen("cat", *middle)])  # it is back, without room
    assert tracks.boxes == {1: ("cat", LEFT), 3: ("cat", corner)}
    tracks.go(frame(24, ("red", corner), ("blue", middle)), id1=None)
    tracks.look([seen("cat", *middle)])
    assert tracks.boxes == {2: ("cat", middle), 3: ("cat", corner)}
    tracks.check()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_detected_tracks_and_what_sam2_follows_agree(seed):
    """Looks at random boxes of two labels, between which the tracks go anywhere, out of sight too."""
    rng, tracks = np.random.default_rng(seed), new_tracks(most=int(np.random.default_rng(seed).integers(2, 6)))
    places = [(x, y, x + wide, y + high) for x in (0, 6, 40) for y in (0, 5, 30) for wide, high in ((20, 20), (30, 25))]

    def anywhere():
        return places[rng.integers(len(places))]

    for index in range(12):
        moved = {f"id{t.id}": anywhere() if rng.random() < 0.8 else None for t in tracks.tracks if t.sam_id}
        tracks.go(frame(index, *((colour, anywhere()) for colour in rng.choice(["red", "blue"], 3))), **moved)
        labels = rng.choice(["cat", "dog"], rng.integers(5))
        found = [seen(str(label), *anywhere(), score=rng.uniform(0.3, 1)) for label in labels]
        tracks.look(sorted(found, key=lambda d: -d.score))
        tracks.check()
        list(tracks.settled())


# --- Back in time ---


def objects_of(frames):
    """{frame index: {id: box}} of (frame, objects)."""
    return {shown.index: {o["id"]: tuple(o["box"]) for o in objects} for shown, objects in frames}


def test_a_new_object_is_followed_back_to_where_it_cannot_be_seen():
    tracks, path = new_tracks(), {i: (4 + 2 * i, 10, 24 + 2 * i, 30) for i in range(2, 6)}
    FakeTracker.past = {1: path}
    for i in range(5):
        tracks.go(frame(i))
        assert list(tracks.settled()) == []
    tracks.go(frame(5, ("red", path[5])))
    tracks.look([seen("cat", *path[5])])
    list(tracks.settled())
    assert FakeTracker.backwards == [[5, 4, 3, 2, 1]]  # where it is gone, it is let go
    rest = list(tracks.rest())
    assert objects_of(rest) == {0: {}, 1: {}, **{i: {1: path[i]} for i in (2, 3, 4, 5)}}
    assert rest[2][1][0]["label"] == "cat" and decode_mask(rest[2][1][0]["mask"]).sum() == 400


def test_a_track_that_had_drifted_is_mended_back_to_where_it_was_right(two):
    FakeTracker.past = {1: dict.fromkeys(range(7), LEFT)}
    list(two.settled())
    for i, box in enumerate([LEFT, RIGHT, LEFT, (30, 40, 50, 60), (30, 40, 50, 60)], 1):
        two.go(frame(i, ("red", LEFT), ("blue", RIGHT)), id1=box)
        list(two.settled())
    two.go(frame(6, ("red", LEFT), ("blue", RIGHT)))
    two.look([seen("cat", *LEFT), seen("cat", *RIGHT)])
    list(two.settled())
    boxes = objects_of(two.rest())
    # back to 3, where both agree; what was before that is not touched
    assert [boxes[i][1] for i in range(7)] == [LEFT, LEFT, RIGHT, LEFT, LEFT, LEFT, LEFT]
    assert FakeTracker.backwards == [[6, 5, 4, 3]] and all(boxes[i][2] == RIGHT for i in boxes)


def test_where_both_ways_disagree_each_keeps_the_half_next_to_its_detection(two):
    there = (30, 40, 50, 60)
    FakeTracker.past = {1: dict.fromkeys(range(9), there)}
    list(two.settled())
    for i in range(1, 9):
        two.go(frame(i, ("blue", RIGHT)), id1=LEFT)
        if i == 8:  # SAM 2 was left on nothing; the red cat is elsewhere
            two.go(frame(8, ("red", there), ("blue", RIGHT)), id1=LEFT)
            two.look([seen("cat", *there), seen("cat", *RIGHT)])
        list(two.settled())
    boxes = objects_of(two.rest())
    assert [boxes[i][1] for i in range(9)] == [LEFT] * 4 + [there] * 5
    assert FakeTracker.backwards == [[8, 7, 6, 5, 4, 3, 2, 1, 0]]  # 0 is where it was detected before


def test_frames_wait_for_later_looks_and_come_in_order():
    tracks, done = new_tracks(), []
    FakeTracker.past = {1: dict.fromkeys(range(60), LEFT)}
    for i in range(50):
        tracks.go(frame(i, ("red", LEFT)))
        if i == 40:
            tracks.look([seen("cat", *LEFT)])
        done += tracks.settled()
        assert len(done) == max(0, i + 1 - MOST_HELD)
    boxes = objects_of([*done, *tracks.rest()])
    assert list(boxes) == list(range(50)) and list(tracks.rest()) == []
    assert [i for i in boxes if boxes[i]] == list(range(40 - MOST_HELD, 50))


def test_no_frame_waits_where_no_look_will_change_it(two):
    tracks = new_tracks(looks_again=False)
    for i in range(3):
        tracks.go(frame(i))
        assert [shown.index for shown, _ in tracks.settled()] == [i]


def test_the_first_look_goes_back_to_the_first_frame():
    tracks, path = new_tracks(), dict.fromkeys(range(4, 40), LEFT)
    FakeTracker.past = {1: path}
    frames = [frame(i, ("red", LEFT)) for i in range(40)]
    earlier = tracks.begin(frames[39], [seen("cat", *LEFT)], reversed(frames[:39]))
    assert {i for i, objects in earlier.items() if objects} == set(range(4, 39))
    tracks.move(frames[39], None)
    assert tracks.boxes == {1: ("cat", LEFT)}
    assert new_tracks().begin(frames[0], [seen("cat", *LEFT)], iter(())) == {}


# --- How masks overlap ---


def test_overlaps_are_those_of_numpy():
    rng = np.random.default_rng(0)
    ones = [rng.random((9, 13)) < p for p in (0.0, 0.1, 0.6)]
    others = [rng.random((9, 13)) < p for p in (0.0, 0.3, 0.5, 1.0)]
    found = overlaps(ones, others)
    for i, one in enumerate(ones):
        for j, other in enumerate(others):
            both = (one & other).sum()
            expected = [both / max(1, n) for n in ((one | other).sum(), one.sum(), other.sum())]
            assert [part[i, j] for part in found] == pytest.approx(expected)
            assert mask_iou(one, other) == pytest.approx(expected[0])
    assert [part.shape for part in overlaps([], others)] == [(0, 4)] * 3
    assert [part.shape for part in overlaps(ones, [])] == [(3, 0)] * 3
