"""Where in an image a phrase applies, as a map: CLIPSeg (Lüddecke and Ecker, 2022, arXiv:2112.10003) of transformers.

    clipseg = load_clipseg("weights/clipseg-rd64-refined", pick_compute())
    maps = clipseg.heatmaps(image, ["a red circle", "a dog"])    # uint8 [H, W, 3] -> float32 [2, 352, 352]

The maps are semantic: all the dogs of an image are in one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from helpers.common.device import Compute
from helpers.segment.hub import model_type, quiet_transformers, reason, title

if TYPE_CHECKING:
    from transformers import CLIPSegProcessor

EXPECTED = (
    "Expected: a folder with config.json (model_type clipseg), model.safetensors or pytorch_model.bin, "
    "preprocessor_config.json and the tokenizer's files, such as CIDAS/clipseg-rd64-refined of the hub"
)
_MOST_PHRASES = 16  # decoded at once: about 15 MB each at 352 x 352


def load_clipseg(weights: str | Path, compute: Compute) -> ClipSeg:
    """CLIPSeg on `compute`; `weights` is a folder of transformers' layout.

    Raises `ValueError` where there is no such folder, and for one that is incomplete, broken or another model's.
    """
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    folder = Path(weights).expanduser()
    if (kind := model_type(folder)) != "clipseg":
        problem = f"says model_type {kind!r}" if kind else "is missing, broken or without a model_type"
        raise ValueError(f"{folder / 'config.json'} {problem}. {EXPECTED}.")
    try:
        with quiet_transformers():
            processor = CLIPSegProcessor.from_pretrained(folder, local_files_only=True)
            model, report = CLIPSegForImageSegmentation.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # missing, truncated, not JSON, other shapes: each library has its own types
        raise ValueError(f"{folder} cannot be loaded: {reason(error)}. {EXPECTED}.") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ValueError(f"{folder} lacks {missing[0]} ({len(missing)} such tensors). {EXPECTED}.")
    model = model.float().eval().requires_grad_(False).to(compute.device)
    return ClipSeg(model, processor, f"CLIPSeg ({title(folder)})", compute)


class ClipSeg:
    """CLIPSeg with the image's features computed once for all phrases. `name` is the model's."""

    def __init__(self, model: torch.nn.Module, processor: CLIPSegProcessor, name: str, compute: Compute) -> None:
        self.name = name
        self._model = model
        self._image_processor, self._tokenizer = processor.image_processor, processor.tokenizer
        self._compute = compute

    @torch.inference_mode()
    def heatmaps(self, image: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """For each phrase the probability that a pixel belongs to it: float32 [P, h, w] in [0, 1] for P >= 0 phrases.

        `image` is uint8 RGB [H, W, 3] of any size; h and w are the model's own (352 x 352 for the released ones), each
        covering the whole image. What a phrase has beyond the text tower's length (77 tokens) is ignored. Raises
        `ValueError` for any other array.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"the image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
        config = self._model.config
        # scaled down before it becomes float; the layout of 1 x 5000 pixels could not be told from the shape
        pixels = self._image_processor(
            np.require(image, requirements=["C", "W"]), input_data_format="channels_last", return_tensors="pt"
        )["pixel_values"].to(self._compute.device)
        patch = config.vision_config.patch_size
        scale = (patch // 4) ** 2 if config.use_complex_transposed_convolution else patch  # of the decoder's last step
        height, width = (side // patch * scale for side in pixels.shape[2:])
        maps = np.empty((len(phrases), height, width), np.float32)
        if not phrases:
            return maps
        limit = config.text_config.max_position_embeddings
        with self._compute.autocast():
            features = self._model.clip.vision_model(pixels, output_hidden_states=True, return_dict=True).hidden_states
            for start in range(0, len(phrases), _MOST_PHRASES):
                chunk = list(phrases[start : start + _MOST_PHRASES])
                tokens = self._tokenizer(chunk, padding=True, truncation=True, max_length=limit, return_tensors="pt")
                condition = self._model.get_conditional_embeddings(
                    len(chunk), **{key: tokens[key].to(self._compute.device) for key in ("input_ids", "attention_mask")}
                )
                # hidden_states[0] is what enters the first layer
                activations = [features[layer + 1].expand(len(chunk), -1, -1) for layer in config.extract_layers]
                logits = self._model.decoder(activations, condition).logits
                maps[start : start + len(chunk)] = logits.float().sigmoid().cpu()
        return maps
