"""How figures look, and how they are kept and shown."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from helpers.common import distributed
from helpers.common.files import dispensable_path

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
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "image.interpolation": "nearest",
}
# In names and paths a dollar sign is no beginning of a formula: for every text that shows one.
PLAIN = {"parse_math": False}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure in the common style, sized in inches, and its axes."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")


def panels(width: float, height: float, rows: int, columns: int):
    """A figure for pictures: its axes, in one row of an array, have no frame."""
    figure, axes = new_figure(width, height, rows, columns)
    axes = np.atleast_1d(axes).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, title: str) -> Figure:
    """Small images, each uint8 `[H, W, 3]`, in a grid, each under its title."""
    rows = max(1, -(-len(images) // columns))
    figure, axes = panels(1.15 * columns, 1.35 * rows + 0.4, rows, columns)
    for axis, image, text in zip(axes, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(text, fontsize=8, pad=3, **PLAIN)
    figure.suptitle(title, **PLAIN)
    return figure


def finish(figure: Figure, path: Path | str, footer: str) -> None:
    """Write what the figure was made from under it, save it as PNG and show it; of several processes rank 0 does."""
    if distributed.is_main():
        inches = figure.get_size_inches()
        lines = textwrap.wrap(footer, int(inches[0] * 15))
        below = 0.16 * len(lines) / inches[1]
        figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
        figure.text(0.01, 0.04 / inches[1], "\n".join(lines), fontsize=8, color="0.35", va="bottom", **PLAIN)
        with dispensable_path(path) as temporary:
            figure.savefig(temporary)
        plt.show(block=False)  # in a window of its own a script would wait for it to be closed
    plt.close(figure)
