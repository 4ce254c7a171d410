"""A prompt, thresholds and a picture to play with in a notebook; ipywidgets is imported when it is called."""

from __future__ import annotations

import html
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.common.images import ImageError, read_image
from helpers.segment.detections import Detection
from helpers.segment.images import safe_name
from helpers.segment.inputs import Settings
from helpers.segment.models import Models
from helpers.segment.outputs import TINY, advice, table, write_detections
from helpers.segment.overlay import draw_instances

THRESHOLDS = ("box_threshold", "clipseg_thr", "nms_iou")
WIDEST = 900  # pixels of the picture that is shown
HIGHEST = "480px"  # so that field, answer and picture are seen together


def playground(
    segment: Callable[..., tuple[list[Detection], dict[str, float]]],
    models: Models,
    image: np.ndarray,
    found: list[Detection],
    prompt: str,
    settings: Settings,
    out: Path,
) -> Any:
    """A widget: a field for the prompt, a slider for each of `THRESHOLDS`, a button, an upload, and the picture, uint8
    [H, W, 3], with what was `found` in it so far.

    Enter, the button, a slider that is let go, and an upload call `segment(image, prompt, **thresholds)`, which returns
    detections and the seconds of each stage; a `ValueError` of its is shown. What is found is written into `out`.
    """
    from ipywidgets import HTML, Button, FileUpload, FloatSlider, HBox, Layout, Text, VBox
    from ipywidgets import Image as Picture

    options = {"min": 0.05, "max": 0.95, "step": 0.05, "continuous_update": False}
    options["style"] = {"description_width": "initial"}  # long names are not cut off
    text = Text(prompt, description="prompt", continuous_update=False, layout=Layout(width="70%"))
    button, upload = Button(description="segment", button_style="primary"), FileUpload(accept="image/*")
    sliders = {name: FloatSlider(getattr(settings, name), description=name, **options) for name in THRESHOLDS}
    place = Layout(width="auto", max_width="100%", max_height=HIGHEST, object_fit="contain", object_position="left")
    picture, status, shown = Picture(format="png", layout=place), HTML(), [image]
    hint = f"\n{TINY}" if models.kind == "tiny" else ""

    def show(detections: list[Detection], said: str) -> None:
        picture.value = _png(draw_instances(shown[0], detections))
        status.value = f"<pre>{html.escape(said)}</pre>"

    def run(_: Any = None) -> None:
        button.disabled, button.description = True, "working …"
        try:
            detections, seconds = segment(shown[0], text.value, **{name: one.value for name, one in sliders.items()})
            nothing = f"nothing found: {advice(models.kind, settings)}"
            show(detections, f"{table(detections, seconds) + hint if detections else nothing}\nwritten into {out}")
            write_detections(out, shown[0], detections, "from the playground", text.value, models.names(), seconds)
        except ValueError as error:  # an empty prompt, or one that is too long
            show([], str(error))
        finally:
            button.disabled, button.description = False, "segment"

    def take(_: Any) -> None:
        if upload.value:
            try:
                shown[0] = _uploaded(upload.value)
            except ImageError as error:
                status.value = f"<pre>{html.escape(str(error))}</pre>"
            else:
                run()

    for widget in (text, *sliders.values()):
        widget.observe(run, "value")
    button.on_click(run)
    upload.observe(take, "value")
    show(found, f"Enter starts it. Phrases are separated by full stops or commas.{hint}")
    return VBox([HBox([text, button, upload]), HBox(list(sliders.values())), status, picture])


def _png(image: np.ndarray) -> bytes:
    """An image as the bytes of a PNG file, at most `WIDEST` pixels wide."""
    small, buffer = Image.fromarray(image), io.BytesIO()
    small.thumbnail((WIDEST, 2 * WIDEST))
    small.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _uploaded(files: Any) -> np.ndarray:
    """The last of the files in a `FileUpload`'s value: a tuple of them, or in ipywidgets 7 (Colab) one by name."""
    name, file = list(files.items())[-1] if isinstance(files, dict) else (files[-1]["name"], files[-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe_name(name)
        path.write_bytes(file["content"])
        return read_image(path)
