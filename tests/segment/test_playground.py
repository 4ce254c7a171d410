"""The widgets, pressed as a person presses them."""

import numpy as np
import pytest

from helpers.common import figures as common_figures
from helpers.segment.detections import Detection
from helpers.segment.playground import playground

pytest.importorskip("ipywidgets")
IMAGE = np.full((40, 60, 3), 90, np.uint8)


@pytest.fixture
def pressed(monkeypatch):
    """Fill in a prompt and move sliders, then press the button; returns what was asked for and the figures shown."""
    asked, figures = [], []
    monkeypatch.setattr(common_figures, "show", figures.append)

    def segment(prompt, **thresholds):
        if not prompt:
            raise ValueError("the prompt is empty: name something")
        asked.append((prompt, thresholds))
        return [Detection("cat", 0.9, (5, 5, 20, 20), "groundingdino", np.ones((40, 60), bool), 0.9)]

    def press(prompt=None, **thresholds):
        box = playground(segment, IMAGE, "cat. red dog", {"box_threshold": 0.35, "nms_iou": 0.7})
        text, *sliders, button, _ = box.children
        assert button.description == "segment"
        assert text.value == "cat. red dog" and [s.value for s in sliders] == [0.35, 0.7]
        text.value = text.value if prompt is None else prompt
        for slider in sliders:
            slider.value = thresholds.get(slider.description, slider.value)
        button.click()
        return asked, figures

    return press


def test_the_button_segments_with_what_is_set(pressed):
    asked, figures = pressed("bird", box_threshold=0.5)
    assert asked[-1] == ("bird", {"box_threshold": 0.5, "nms_iou": 0.7})
    assert len(figures) == len(asked) and figures[0].axes[0].get_title() == "objects: 1"


def test_a_prompt_that_is_refused_says_why(pressed, capsys):
    asked, figures = pressed("")
    assert asked == [] and figures == [] and "name something" in capsys.readouterr().out
