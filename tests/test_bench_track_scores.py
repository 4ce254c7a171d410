"""Tracks against the true objects of a clip, by hand."""

import numpy as np
import pytest

from helpers.segment.outputs import track_entry
from helpers.shapes.clips import ClipObject
from track_scores import masks_by_id, score_object

LEFT, RIGHT = np.zeros((2, 20, 40), bool)
LEFT[5:15, 5:15] = RIGHT[5:15, 25:35] = True
NOTHING = np.zeros_like(LEFT)


def score(truth, tracks):
    """`truth`: the mask of a red circle on each frame; `tracks`: a list of (id, label, mask) for each frame."""
    item = ClipObject("circle", "red", 10.0, np.stack(truth))
    frames = [{"objects": [track_entry(i, label, 0.9, mask) for i, label, mask in found]} for found in tracks]
    return score_object(item, masks_by_id(frames))


def test_frames_on_which_an_absent_object_has_no_mask_count_as_right():
    found = [(1, "red circle", LEFT)]
    result = score([LEFT, LEFT, NOTHING, NOTHING], [found, [], [], found])  # right, missed, right, a ghost
    assert result.j == pytest.approx(0.5) and not result.switched and not result.late and result.delay == 0
    assert score([LEFT, LEFT, NOTHING, NOTHING], [[]] * 4).j == pytest.approx(0.5)


def test_only_the_id_that_an_object_has_most_often_counts():
    tracks = [[(1, "red circle", LEFT)]] + [[(2, "red circle", LEFT)]] * 3
    result = score([LEFT] * 4, tracks)
    assert result.switched and result.j == pytest.approx(0.75)


def test_another_label_or_another_place_is_not_the_object():
    assert score([LEFT], [[(1, "blue circle", LEFT)]]).j == 0
    result = score([LEFT], [[(1, "red circle", RIGHT)]])
    assert result.j == 0 and result.delay is None


def test_a_late_object_is_found_so_many_frames_after_half_of_it_shows():
    part = LEFT.copy()
    part[:, 8:] = False
    result = score(
        [NOTHING, part, LEFT, LEFT, LEFT], [[], [], [], [(1, "red circle", LEFT)], [(1, "red circle", LEFT)]]
    )
    assert result.late and result.delay == 1 and result.j == pytest.approx(3 / 5)


def test_a_record_that_was_stopped_early_is_compared_as_far_as_it_goes():
    assert score([LEFT] * 9, [[(4, "red circle", LEFT)]] * 2).j == 1
