"""How figures look, and the figures of the notebooks: each function returns one, `finish` saves and shows it."""

from __future__ import annotations

import csv
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers import distributed
from helpers.checkpoint import dispensable_path

# Okabe and Ito's palette (2008): told apart with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 11,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "image.interpolation": "nearest",
}


def finish(figure: Figure, path: Path | str, footer: str) -> Path:
    """Write what the figure was made from under it, save it as PNG (atomically) and show it; of several processes only
    the first one does."""
    if not distributed.is_main():
        plt.close(figure)
        return Path(path)
    inches = figure.get_size_inches()
    lines = textwrap.wrap(footer, int(inches[0] * 15))
    figure.get_layout_engine().set(rect=(0, 0.16 * len(lines) / inches[1], 1, 1 - 0.16 * len(lines) / inches[1]))
    figure.text(0.01, 0.04 / inches[1], "\n".join(lines), fontsize=8, color="0.35", va="bottom")
    with dispensable_path(path) as temporary:
        figure.savefig(temporary)
    show(figure)
    return Path(path)


def show(figure: Figure) -> None:
    """Show a figure that is not to be kept."""
    plt.show(block=False)  # in a window of its own a script would wait for it to be closed
    plt.close(figure)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure in the common style, sized in inches, and its axes."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")


def _panels(width: float, height: float, rows: int, columns: int):
    """A figure for pictures: its axes, in one row of an array, have no frame."""
    figure, axes = new_figure(width, height, rows, columns)
    axes = np.atleast_1d(axes).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def image_grid(images: np.ndarray, titles: Sequence[str], columns: int, title: str) -> Figure:
    """Small images uint8 `[N, H, W, 3]` in a grid, each under its title."""
    rows = max(1, -(-len(images) // columns))
    figure, axes = _panels(1.15 * columns, 1.35 * rows + 0.4, rows, columns)
    for axis, image, text in zip(axes, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(text, fontsize=8, pad=3)
    figure.suptitle(title)
    return figure


def schedule(rate: Callable[[float], float], epochs: float) -> Figure:
    """Learning rate over a run that has time for all its epochs; `rate` maps progress, 0 to 1, to it."""
    figure, axis = new_figure(8, 2.6)
    progress = np.linspace(0, 1, 400)
    axis.plot(epochs * progress, [rate(p) for p in progress])
    axis.set(title="Learning rate", xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    return figure


def learning_curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss, and validation accuracy of raw and EMA weights, over epochs; from rows of `history.csv`."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = new_figure(11, 4, 1, 2)
    left.plot(epochs, [row["loss"] for row in history], marker="o", markersize=3)
    left.set(title="Training loss (on augmented images)", xlabel="epoch", ylabel="cross-entropy (nats)")
    for key, label in (("val_accuracy", "raw weights"), ("ema_accuracy", "EMA weights")):
        points = [(row["epoch"], row[key]) for row in history if row[key] is not None]
        if points:
            right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    right.set(title="Accuracy on validation images", xlabel="epoch", ylabel="accuracy (%)")
    if right.lines:
        right.legend(frameon=False)
    return figure


def class_report(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Accuracy per class beside the confusion matrix: counts `[C, C]`, rows are the true class."""
    figure, (left, right) = new_figure(12, 5.2, 1, 2)
    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    bars = left.barh(classes, share.diagonal())
    left.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    left.set(title="Accuracy per class", xlabel="accuracy (%)", xlim=(0, 110))
    left.invert_yaxis()
    right.imshow(share, cmap="Blues", vmin=0, vmax=100)
    right.grid(False)
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if share[row, column] > 55 else "black"
        right.text(column, row, f"{count:d}", ha="center", va="center", fontsize=8, color=colour)
    right.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    right.set_yticks(range(len(classes)), classes)
    right.set(title="Confusion matrix (images)", xlabel="predicted class", ylabel="true class")
    return figure


def reliability(bins: Sequence[dict[str, float]], error: float) -> Figure:
    """Accuracy over confidence, a bar per bin {`accuracy`, `share`}; `error` is the ECE in percent."""
    figure, (left, right) = new_figure(10, 4, 1, 2)
    width = 1 / len(bins)
    centres = (np.arange(len(bins)) + 0.5) * width
    filled = [i for i, entry in enumerate(bins) if entry["share"] > 0]
    left.bar(centres[filled], [bins[i]["accuracy"] for i in filled], width * 0.9, label="measured")
    left.plot([0, 1], [0, 1], "--", color="0.3", label="perfectly calibrated")
    left.set(title=f"Calibration, ECE {error:.1f} %", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False)
    right.bar(centres, [100 * entry["share"] for entry in bins], width * 0.9, color=PALETTE[5])
    right.set(title="How sure the model is", xlabel="confidence", ylabel="share of the test images (%)", xlim=(0, 1))
    return figure


def attention_overlays(images: np.ndarray, maps: np.ndarray, titles: Sequence[str], title: str) -> Figure:
    """Images uint8 `[N, H, W, 3]`, and below them under their attention maps `[N, g, g]`, each scaled to its peak."""
    count, size = len(images), images.shape[1]
    figure, axes = new_figure(1.35 * count, 3.5, 2, count)
    for column, (image, weights, text) in enumerate(zip(images, maps, titles, strict=True)):
        for axis in axes[:, column]:
            axis.imshow(image)
            axis.axis("off")
        extent = (-0.5, size - 0.5, size - 0.5, -0.5)
        axes[1, column].imshow(weights, cmap="inferno", alpha=0.65, extent=extent, interpolation="bilinear")
        axes[0, column].set_title(text, fontsize=8)
    figure.suptitle(title)
    return figure


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, numbers as such; none where the file is missing."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: float(value) if _NUMBER.fullmatch(value) else value or None for key, value in r.items()} for r in rows
    ]


_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def comparison(rows: Sequence[dict[str, Any]], held_out: int = 5000) -> Figure:
    """Runs with one thing changed each, rows of tests/bench/gpu.py: accuracy, and the residual stream's largest channel
    at the end."""
    rows = sorted(rows, key=lambda row: row["val"])
    figure, (left, right) = new_figure(12, 0.34 * len(rows) + 1.3, 1, 2)
    values = np.array([row["val"] for row in rows])
    error = 1.96 * np.sqrt(values * (100 - values) / held_out)
    left.errorbar(values, [row["variant"] for row in rows], xerr=error, fmt="o", capsize=3)
    left.set(title=f"After {rows[0]['epochs']:g} epochs", xlabel=f"accuracy on {held_out:,} validation images (%)")
    right.barh([row["variant"] for row in rows], [row["largest_channel"] for row in rows], color=PALETTE[1])
    right.set(title="Largest channel of the residual stream", xlabel="root mean square", xscale="log")
    right.sharey(left)
    right.tick_params(labelleft=False)
    return figure


def _fit(image: np.ndarray, longest: int = 900) -> np.ndarray:
    """Few enough pixels for a figure: matplotlib keeps several float copies of what it shows."""
    step = -(-max(image.shape[:2]) // longest)
    return image[::step, ::step]


def picture_row(images: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Pictures uint8 `[H, W, 3]` of any sizes, up to three in a row, each under its title."""
    columns = min(len(images), 3)
    rows = -(-len(images) // columns)
    width = 11 if columns > 1 else 7.5
    tallest = max(min(image.shape[0] / image.shape[1], 1.5) for image in images)
    figure, axes = _panels(width, rows * (width / columns * tallest + 0.35) + 0.3, rows, columns)
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(_fit(image), interpolation="antialiased")
        axis.set_title(title, fontsize=10)
    return figure


def area_curves(times: Sequence[float], areas: dict[str, Sequence[float]]) -> Figure:
    """How much of each object can be seen over time; areas: for each name the share of the image, as `times` long."""
    figure, axis = new_figure(9, 3)
    for colour, (name, values) in zip(itertools.cycle(PALETTE), areas.items(), strict=False):
        axis.plot(times, 100 * np.asarray(values, float), color=colour, label=name)
    axis.set(
        xlabel="seconds", ylabel="visible area, % of the frame", ylim=(0, None), title="Each object's visible area"
    )
    if areas:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def heat_overlays(image: np.ndarray, heat: np.ndarray, phrases: Sequence[str], threshold: float) -> Figure:
    """CLIPSeg's map of each phrase, `[P, h, w]` in [0, 1], over the image, uint8 `[H, W, 3]`; a line where it reaches
    the threshold. The first six phrases are shown."""
    phrases = phrases[:6]
    columns = min(len(phrases), 3)
    rows = -(-len(phrases) // columns)
    height, width = image.shape[:2]
    figure, axes = _panels(11, rows * (11 / columns * min(height / width, 1.5) + 0.35) + 0.6, rows, columns)
    extent = (0, width, height, 0)
    for axis, phrase, values in zip(axes, phrases, heat, strict=False):
        axis.imshow(_fit(image).mean(2), cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
        shown = axis.imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=0.65, extent=extent, interpolation="bilinear")
        if values.max() >= threshold > values.min():
            x = (np.arange(values.shape[1]) + 0.5) * width / values.shape[1]
            y = (np.arange(values.shape[0]) + 0.5) * height / values.shape[0]
            axis.contour(x, y, values, [threshold], colors="white", linewidths=1)
        axis.set_title(f"{phrase}: up to {values.max():.2f}", fontsize=10)
    figure.colorbar(shown, ax=axes, label="probability", shrink=0.8, pad=0.01)
    figure.suptitle(f"CLIPSeg's maps; the white line is at clipseg_thr = {threshold:g}")
    return figure


def threshold_curves(
    thresholds: np.ndarray,
    boxes: dict[str, Sequence[int]],
    parts: dict[str, Sequence[int]],
    box_threshold: float,
    clipseg_thr: float,
) -> Figure:
    """What each threshold would keep: boxes of GroundingDINO and components of CLIPSeg, a line for each phrase."""
    figure, axes = new_figure(11, 4, 1, 2)
    for axis, counts, chosen, name, what in (
        (axes[0], boxes, box_threshold, "box_threshold", "GroundingDINO's boxes"),
        (axes[1], parts, clipseg_thr, "clipseg_thr", "CLIPSeg's components"),
    ):
        for i, (phrase, values) in enumerate(list(counts.items())[: len(PALETTE)]):
            # lines that lie on one another are set apart a little
            axis.step(thresholds, np.asarray(values) + 0.04 * i, where="post", label=phrase)
        axis.axvline(chosen, color="0.3", linestyle="--", linewidth=1)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=f"{what} that are kept", xlabel=f"{name} (dashed: {chosen:g})", ylabel="number", xlim=(0, 1))
        axis.set_ylim(-0.2, max(3, *(max(values) for values in counts.values())) + 0.6)
    axes[1].legend(frameon=False, fontsize=9)
    return figure
