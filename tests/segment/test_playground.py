"""The widgets, used as a person uses them."""

import io
import json
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers.segment.detections import Detection
from helpers.segment.inputs import Settings
from helpers.segment.playground import _uploaded, playground

pytest.importorskip("ipywidgets")
IMAGE = np.full((40, 60, 3), 90, np.uint8)
MASK = np.zeros((40, 60), bool)
MASK[5:20, 5:20] = True


class Bench:
    """The playground of an image in which nothing was found yet; `asked` has what it asked for."""

    def __init__(self, out, kind="full"):
        self.asked, self.busy, self.found = [], [], [Detection("cat", 0.9, (5, 5, 20, 20), "clipseg", MASK, 0.8)]
        models = SimpleNamespace(kind=kind, names=lambda: {"sam2": "SAM 2"})
        self.widget = playground(self.segment, models, IMAGE, [], "cat. red dog", Settings(), out)
        top, sliders, self.status, self.picture = self.widget.children
        self.text, self.button, self.upload = top.children
        self.sliders = {slider.description: slider for slider in sliders.children}

    def segment(self, image, prompt, **thresholds):
        if not prompt:
            raise ValueError("the prompt is empty: <name> something")
        self.busy.append(self.button.disabled)
        self.asked.append((image.shape, prompt, thresholds))
        return self.found, {"groundingdino": 0.25}

    def shown(self):
        return np.asarray(Image.open(io.BytesIO(self.picture.value)).convert("RGB"))


def test_the_picture_is_there_before_anything_is_pressed(tmp_path):
    bench = Bench(tmp_path)
    assert (bench.shown() == IMAGE).all() and bench.asked == [] and "Enter" in bench.status.value
    assert bench.text.value == "cat. red dog" and bench.sliders["box_threshold"].value == 0.35


def test_enter_the_button_and_a_slider_segment_with_what_is_set(tmp_path):
    bench = Bench(tmp_path)
    bench.text.value = "bird"  # sent when Enter is pressed
    bench.sliders["box_threshold"].value = 0.5
    bench.button.click()
    shape, changed = IMAGE.shape, {"box_threshold": 0.5, "clipseg_thr": 0.4, "nms_iou": 0.7}
    assert bench.asked == [(shape, "bird", changed | {"box_threshold": 0.35})] + [(shape, "bird", changed)] * 2
    assert bench.busy == [True] * 3 and not bench.button.disabled and bench.button.description == "segment"
    record = json.loads((tmp_path / "detections.json").read_text())
    assert [found["label"] for found in record["detections"]] == ["cat"] and record["prompt"] == "bird"
    assert (bench.shown() != IMAGE).any() and "cat" in bench.status.value and "0.25 s" in bench.status.value


def test_nothing_found_and_a_prompt_that_is_refused_say_what_to_do(tmp_path):
    bench = Bench(tmp_path)
    bench.found = []
    bench.button.click()
    assert "nothing found: lower box_threshold (0.35)" in bench.status.value and (bench.shown() == IMAGE).all()
    bench.text.value = ""
    assert "&lt;name&gt; something" in bench.status.value and not bench.button.disabled


def test_the_tiny_models_always_say_what_they_know(tmp_path):
    bench, known = Bench(tmp_path, "tiny"), "know six drawn shapes"
    assert known in bench.status.value
    for found in (bench.found, []):
        bench.found = found
        bench.button.click()
        assert bench.status.value.count(known) == 1
    assert known not in Bench(tmp_path).status.value


def test_an_uploaded_picture_is_segmented(tmp_path):
    bench, file = Bench(tmp_path), io.BytesIO()
    Image.new("RGB", (30, 20), (10, 200, 30)).save(file, "PNG")

    def upload(name, content):
        about = {"name": name, "type": "", "size": len(content), "last_modified": datetime(2026, 1, 1)}
        bench.upload.value = ({**about, "content": memoryview(content)},)

    bench.found = []  # its mask is of the other picture
    upload("a/b.png", file.getvalue())
    assert [shape for shape, *_ in bench.asked] == [(20, 30, 3)] and bench.shown().shape == (20, 30, 3)
    upload("note.txt", b"no image")
    assert len(bench.asked) == 1 and "note.txt" in bench.status.value
    # as ipywidgets 7 has it, which Colab brings along
    assert _uploaded({"b.png": {"content": file.getvalue()}}).shape == (20, 30, 3)
