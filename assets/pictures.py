# ruff: noqa: E402
"""The pictures of README.md and of the notebooks' Markdown, from the files of a run of each (q1 with
-p checkpoint assets/q1_vit_h100.pth):

    python tests/bench/gpu.py --part figures --out outputs/gpu
    python assets/pictures.py outputs/q1/evaluation outputs/q2 outputs/gpu

Writes q1.jpg (the figure of attention), q2.jpg (the first image and what was found in it) and q2.webp (the overlay of
the video) into assets/. The first two, and section 7's figures of what was measured, go into the notebooks, as data
within their Markdown: unlike attachments, these are shown by Colab, too.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Sequence
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


def put_into(notebook: Path, cell_id: str, pictures: Sequence[Path]) -> None:
    """Put the pictures into a cell in place of those that its Markdown has, in order."""
    content = nbformat.read(notebook, 4)
    (cell,) = (cell for cell in content.cells if cell.id == cell_id)
    kinds = {".jpg": "jpeg", ".png": "png"}
    data = [f"data:image/{kinds[p.suffix]};base64,{base64.b64encode(p.read_bytes()).decode()}" for p in pictures]
    left = iter(data)
    cell.source, count = re.subn(r"(!\[[^\]]*\])\([^)]*\)", lambda match: f"{match[1]}({next(left)})", cell.source)
    if count != len(data):
        raise ValueError(f"{notebook}, cell {cell_id}: {count} pictures, {len(data)} given")
    cell.pop("attachments", None)
    nbformat.write(content, notebook)


def main(q1: Path, q2: Path, gpu: Path) -> None:
    put_into(ROOT / "q1.ipynb", "cell-00", [draw_attention(q1)])
    put_into(ROOT / "q1.ipynb", "cell-measured", [gpu / f"{name}.png" for name in ("recipe", "gpu_run", "cpu_run")])
    put_into(ROOT / "q2.ipynb", "cell-00", [draw_segmented(q2)])
    (ROOT / "assets" / "q2.webp").write_bytes(animation(q2 / "video_overlay.mp4").data)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
