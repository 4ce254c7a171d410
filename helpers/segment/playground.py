"""A prompt and thresholds to play with in a notebook; ipywidgets is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.common import figures
from helpers.segment.figures import picture_row
from helpers.segment.overlay import draw_instances

if TYPE_CHECKING:
    from ipywidgets import VBox


def playground(segment: Callable[..., list], image: np.ndarray, prompt: str, thresholds: dict[str, float]) -> VBox:
    """A box for the prompt, a slider for each threshold, and a button that segments `image`, uint8 [H, W, 3], anew.

    segment: called as `segment(prompt, **thresholds)`, returns a list of `Detection`; a `ValueError` of its is shown.
    """
    import ipywidgets as w

    text = w.Text(prompt, description="prompt", layout=w.Layout(width="90%"))
    bounds = {"min": 0.05, "max": 0.95, "step": 0.05}
    sliders = {name: w.FloatSlider(value, description=name, **bounds) for name, value in thresholds.items()}
    button, shown = w.Button(description="segment"), w.Output()

    def run(_: Any) -> None:
        with shown:
            shown.clear_output(wait=True)
            try:
                detections = segment(text.value, **{name: slider.value for name, slider in sliders.items()})
            except ValueError as error:  # an empty prompt, or one that is too long
                print(error)
                return
            figures.show(picture_row([draw_instances(image, detections)], [f"objects: {len(detections)}"]))

    button.on_click(run)
    return w.VBox([text, *sliders.values(), button, shown])
