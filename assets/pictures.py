# ruff: noqa: E402
"""The pictures of README.md and of the notebooks' first cells, from the files of a run of each:

    python assets/pictures.py outputs/q1 outputs/q2

Writes q1.jpg (the figure of attention), q2.jpg (the first image and what was found in it) and q2.gif (the overlay of
the video) into assets/, and the first two into the notebooks, as data within their Markdown: unlike attachments,
these are shown by Colab, too.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.common.images import read_image
from helpers.segment.figures import picture_row
from helpers.segment.player import animation

WIDTH = 860  # pixels, about as wide as a notebook's text


def save(picture: Image.Image, name: str) -> Path:
    path = ROOT / "assets" / name
    picture.thumbnail((WIDTH, WIDTH))
    picture.save(path, quality=88, optimize=True)
    return path


def draw_attention(out: Path) -> Path:
    """q1's figure without its footer."""
    figure = Image.open(out / "attention.png").convert("RGB")
    rows = (np.asarray(figure) < 200).any((1, 2)).nonzero()[0]
    gaps = np.flatnonzero(np.diff(rows) > 4)  # the last block of ink is the footer
    return save(figure.crop((0, 0, figure.width, int(rows[gaps[-1]]) + 6)), "q1.jpg")


def draw_segmented(out: Path) -> Path:
    record = json.loads((out / "detections.json").read_text("utf-8"))
    image, prompt = read_image(out / "overlay.png"), record["prompt"].replace(". ", " | ")
    path = next(path for path in (Path(record["image"]["path"]), out / "examples" / "shapes-1.png") if path.is_file())
    figure = picture_row([read_image(path), image], ["image", "what was found"], f"phrases: {prompt}")
    figure.savefig(ROOT / "assets" / "q2.jpg")
    return save(Image.open(ROOT / "assets" / "q2.jpg").convert("RGB"), "q2.jpg")


def put_into_title(notebook: Path, picture: Path) -> None:
    """Replace the picture in a notebook's first cell."""
    content = nbformat.read(notebook, 4)
    data = base64.b64encode(picture.read_bytes()).decode()
    cell = content.cells[0]
    cell.source, count = re.subn(r"(!\[[^\]]*\])\([^)]*\)", rf"\1(data:image/jpeg;base64,{data})", cell.source, count=1)
    if count != 1:
        raise ValueError(f"{notebook}: its first cell has no picture")
    cell.pop("attachments", None)
    nbformat.write(content, notebook)


def main(q1: Path, q2: Path) -> None:
    put_into_title(ROOT / "q1.ipynb", draw_attention(q1))
    put_into_title(ROOT / "q2.ipynb", draw_segmented(q2))
    (ROOT / "assets" / "q2.gif").write_bytes(animation(q2 / "video_overlay.mp4").data)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
