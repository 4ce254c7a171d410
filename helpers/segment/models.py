"""The three networks together, found and loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from helpers.common.device import Compute
from helpers.segment import clipseg, grounding_dino, sam2_image
from helpers.segment.weights import find_models


@dataclass
class Models:
    """The three networks, the device and precision that they run at, and what `find_models` says of them."""

    dino: grounding_dino.GroundingDino
    sam2: sam2_image.Segmenter
    clipseg: clipseg.ClipSeg
    compute: Compute
    kind: str = "full"
    sources: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def names(self) -> dict[str, str]:
        """{part: what it is and where it comes from}, as `detections.json` and `tracks.json` hold it."""
        names = {"groundingdino": self.dino.name, "sam2": self.sam2.name, "clipseg": self.clipseg.name}
        return {part: ": ".join(filter(None, (name, self.sources.get(part)))) for part, name in names.items()}


def load_models(compute: Compute, models: str = "auto", *, compile: bool = False, **where) -> Models:
    """Find the models as `find_models` does, with `where` for its other arguments, and load them."""
    found = find_models(models, **where)
    dino = grounding_dino.load(found.dino, found.bert, compute)
    sam2 = sam2_image.load_sam2(found.sam2, compute, compile)
    heat = clipseg.load_clipseg(found.clipseg, compute)
    return Models(dino, sam2, heat, compute, found.kind, found.sources, found.notes)
