"""Where in an image a phrase applies, as a map: CLIPSeg (Lüddecke and Ecker, 2022, arXiv:2112.10003) of transformers.

    clipseg = load_clipseg("weights/clipseg-rd64-refined", pick_compute())
    (maps,) = clipseg.heatmaps([image], [["a red circle", "a dog"]])    # uint8 [H, W, 3] -> float32 [2, 352, 352]

The maps are semantic: all the dogs of an image are in one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.common.device import Compute
from helpers.segment.pretrained import load_pretrained, title

EXPECTED = "Expected: a folder with config.json (model_type clipseg) and all else of CIDAS/clipseg-rd64-refined"
_MOST_PHRASES = 16  # decoded at once: about 15 MB each at 352 x 352


def load_clipseg(weights: str | Path, compute: Compute) -> ClipSeg:
    """CLIPSeg from a folder of transformers' layout; errors as of `load_pretrained`."""
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    folder = Path(weights).expanduser()
    model, processor = load_pretrained(folder, "clipseg", EXPECTED, CLIPSegForImageSegmentation, CLIPSegProcessor)
    return ClipSeg(model.to(compute.device), processor, f"CLIPSeg ({title(folder)})", compute)


class ClipSeg:
    """CLIPSeg with each image's features computed once for all of its phrases. `name` is the model's."""

    def __init__(self, model: torch.nn.Module, processor: Any, name: str, compute: Compute) -> None:
        self._model, self._processor, self.name, self._compute = model, processor, name, compute

    @torch.inference_mode()
    def heatmaps(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The probability that a pixel belongs to each of an image's own phrases, for images uint8 [H, W, 3] of any
        sizes: float32 [P, h, w] for each, at the model's own size (352 x 352). What a phrase has beyond the text
        tower's length (77 tokens) is ignored."""
        config, device = self._model.config, self._compute.device
        # scaled down before it becomes float; the layout of 1 x 5000 pixels could not be told from the shape
        pixels = self._processor.image_processor(
            [np.require(image, requirements=["C", "W"]) for image in images],
            input_data_format="channels_last",
            return_tensors="pt",
        )["pixel_values"].to(device)
        cut = {"padding": True, "truncation": True, "max_length": config.text_config.max_position_embeddings}
        pairs = [(i, phrase) for i, own in enumerate(phrases) for phrase in own]
        maps = [torch.empty(0, *pixels.shape[-2:])]
        with self._compute.autocast():
            features = self._model.clip.vision_model(pixels, output_hidden_states=True, return_dict=True).hidden_states
            for start in range(0, len(pairs), _MOST_PHRASES):
                owner, chunk = zip(*pairs[start : start + _MOST_PHRASES], strict=True)
                tokens = self._processor.tokenizer(list(chunk), return_tensors="pt", **cut).to(device)
                condition = self._model.get_conditional_embeddings(len(chunk), **tokens)
                # hidden_states[0] is what enters the first layer
                activations = [features[layer + 1][list(owner)] for layer in config.extract_layers]
                logits = self._model.decoder(activations, condition).logits  # of one phrase without the first axis
                maps.append(logits.float().sigmoid().cpu().reshape(len(chunk), *logits.shape[-2:]))
        return [own.numpy() for own in torch.cat(maps).split([len(own) for own in phrases])]
