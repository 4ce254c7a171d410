"""q2's figures: each function returns one, `finish` saves and shows it."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pycocotools import mask as coco_mask

from helpers.common.figures import PALETTE, new_figure, panels

Counts = dict[str, Sequence[int]]  # of each phrase, for each threshold


def _fit(image: np.ndarray) -> np.ndarray:
    """Few enough pixels for a figure: matplotlib keeps several float copies of what it shows."""
    step = -(-max(image.shape[:2]) // 900)
    return image[::step, ::step]


def _grid(count: int, height: float):
    """A figure of up to three pictures in a row, of this height as a share of their width, and its axes."""
    columns = 2 if count == 4 else min(count, 3)
    rows, width = -(-count // columns), 11 if columns > 1 else 7.5
    return panels(width, rows * (width / columns * min(height, 1.5) + 0.35) + 0.3, rows, columns)


def picture_row(images: Sequence[np.ndarray], titles: Sequence[str], title: str = "") -> Figure:
    """Pictures uint8 `[H, W, 3]` of any sizes, up to three in a row, each under its title, and a title for all."""
    heights = [image.shape[0] / image.shape[1] for image in images]
    # of a common height where they differ, so that a tall one does not leave white beside the others
    figure, axes = _grid(len(images), float(np.median(heights)))
    for axis, image, text in zip(axes, images, titles, strict=False):
        axis.imshow(_fit(image), interpolation="antialiased")
        axis.set_title(text, fontsize=10)
    if title:
        figure.suptitle("\n".join(textwrap.wrap(title, 100)), fontsize=11)
    return figure


def area_curves(frames: Sequence[dict[str, Any]]) -> Figure:
    """How much of each object can be seen over time, in percent of the image; frames: those of `tracks.json`."""
    times = [frame["time"] for frame in frames]
    names = dict(sorted({o["id"]: f"{o['id']} {o['label']}" for f in frames for o in f["objects"]}.items()))
    areas = [{o["id"]: coco_mask.area(o["mask"]) / np.prod(o["mask"]["size"]) for o in f["objects"]} for f in frames]
    figure, axis = new_figure(9, 3)
    for colour, (number, name) in zip(itertools.cycle(PALETTE), names.items(), strict=False):
        axis.plot(times, [100 * area.get(number, 0) for area in areas], color=colour, label=name)
    axis.set(xlabel="seconds", ylabel="% of the frame", title="Each object's visible area")
    axis.set_ylim(0, 1.08 * axis.get_ylim()[1])  # lines along the top edge would be cut
    if names:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def heat_overlays(image: np.ndarray, heat: np.ndarray, phrases: Sequence[str], threshold: float) -> Figure:
    """CLIPSeg's map of each phrase, `[P, h, w]` in [0, 1], over the image, uint8 `[H, W, 3]`; a line where it reaches
    the threshold. The first six phrases are shown."""
    phrases, (height, width) = phrases[:6], image.shape[:2]
    figure, axes = _grid(len(phrases), height / width)
    for axis, phrase, values in zip(axes, phrases, heat, strict=False):
        place = {"extent": (0, width, height, 0)}
        axis.imshow(_fit(image).mean(2), cmap="gray", vmin=0, vmax=255, interpolation="antialiased", **place)
        # the surer, the less of the picture shows through
        fade = 0.25 + 0.55 * np.clip(values, 0, 1)
        shown = axis.imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=fade, interpolation="nearest", **place)
        if values.max() >= threshold > values.min():
            axis.contour(values, [threshold], colors="white", linewidths=1, origin="upper", **place)
        axis.set_title(f"{phrase}: up to {values.max():.2f}", fontsize=10)
    figure.colorbar(ScalarMappable(shown.norm, shown.cmap), ax=axes, label="probability", shrink=0.6, pad=0.01)
    figure.suptitle(f"CLIPSeg's maps; the white line is at clipseg_thr = {threshold:g}")
    return figure


def threshold_curves(
    thresholds: np.ndarray, boxes: Counts, parts: Counts, box_threshold: float, clipseg_thr: float
) -> Figure:
    """How many boxes of GroundingDINO and components of CLIPSeg each threshold keeps, a line for each phrase."""
    figure, axes = new_figure(11, 4, 1, 2)
    for axis, counts, chosen, name, what in (
        (axes[0], boxes, box_threshold, "box_threshold", "GroundingDINO's boxes"),
        (axes[1], parts, clipseg_thr, "clipseg_thr", "CLIPSeg's components"),
    ):
        for i, (phrase, values) in enumerate(list(counts.items())[: len(PALETTE)]):
            # of lines that lie on one another each shows beside the next, which is thinner
            axis.step(thresholds, values, where="post", label=phrase, linewidth=max(1.5, 7 - 1.5 * i))
        axis.axvline(chosen, color="0.3", linestyle="--", linewidth=1)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=f"{what} that are kept", xlabel=f"{name} (dashed: {chosen:g})", ylabel="how many", xlim=(0, 1))
        axis.set_ylim(-0.2, max(3, *(max(values) for values in counts.values())) + 0.6)
    axes[1].legend(frameon=False, fontsize=9)
    return figure
