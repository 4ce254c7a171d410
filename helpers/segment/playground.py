"""A prompt and thresholds to play with in a notebook; ipywidgets is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from helpers.common import figures
from helpers.segment.figures import picture_row
from helpers.segment.overlay import draw_instances


def playground(segment: Callable[..., list], image: np.ndarray, prompt: str, thresholds: dict[str, float]) -> Any:
    """A widget: a field for the prompt, a slider for each threshold, and a button that segments `image`, uint8
    [H, W, 3], anew by `segment(prompt, **thresholds)`, which returns detections; a `ValueError` of its is printed."""
    from ipywidgets import FloatSlider, interactive

    def run(prompt: str, **thresholds: float) -> None:
        try:
            detections = segment(prompt, **thresholds)
        except ValueError as error:  # an empty prompt, or one that is too long
            print(error)
        else:
            figures.show(picture_row([draw_instances(image, detections)], [f"objects: {len(detections)}"]))

    sliders = {name: FloatSlider(value, min=0.05, max=0.95, step=0.05) for name, value in thresholds.items()}
    return interactive(run, {"manual": True, "manual_name": "segment"}, prompt=prompt, **sliders)
