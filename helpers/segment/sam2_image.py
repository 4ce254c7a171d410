"""Boxes to masks with SAM 2 (Ravi et al., 2024, arXiv:2408.00714), through the package `sam2`.

segmenter = load_sam2("weights/sam2.1_hiera_small.pt", pick_compute())
encoded = segmenter.encode(images)                    # each uint8 [H, W, 3]; one encoding serves every box
masks, scores = segmenter.masks(encoded[0], boxes)    # boxes [N, 4] in pixels -> bool [N, H, W], float32 [N]
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from helpers.common.device import Compute, compile_if_possible
from helpers.common.files import reason
from helpers.segment.pretrained import fill, load_checkpoint

# (width, number of blocks) of the image encoder: (letter in the package's configuration files, name)
SIZES = {(96, 12): ("t", "tiny"), (96, 16): ("s", "small"), (112, 24): ("b+", "base+"), (144, 48): ("l", "large")}
PATCH_EMBED = "image_encoder.trunk.patch_embed.proj.weight"
EXPECTED = (
    "Expected: a SAM 2 or SAM 2.1 checkpoint as Meta released it (such as sam2.1_hiera_small.pt), or a folder with "
    "config.yaml and model.safetensors"
)
_MOST_BOXES = 32  # decoded at once: about 50 MB each inside the decoder
_MOST_PIXELS = 2**26  # of all masks of a chunk together: float32 at the image's size, twice


def load_sam2(weights: str | Path, compute: Compute, compile: bool = False) -> Segmenter:
    """SAM 2 on `compute`, from what `build_model` takes. `compile`: takes minutes, pays after hundreds of frames."""
    model, name = build_model(weights)
    model = model.to(compute.device)
    if compile:
        # Not by the package's `compile_image_encoder`: that asks for CUDA graphs, in which the features of an image are
        # overwritten by the next one's, and the predictors keep them for longer.
        example = torch.zeros(1, 3, model.image_size, model.image_size, device=compute.device)
        with torch.no_grad(), compute.autocast():
            model.image_encoder(example)  # keeps the encodings of positions: not inside of what is compiled
            compile_if_possible([model.image_encoder], lambda: model.image_encoder(example))
    return Segmenter(model, name, compute)


def build_model(weights: str | Path) -> tuple[torch.nn.Module, str]:
    """The package's video predictor (on the CPU, without gradients) and its name, from a released checkpoint or a
    folder with `config.yaml` and `model.safetensors`. `ValueError` for what is broken or another model's."""
    path = Path(weights).expanduser()
    model, state, name = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    fill(model, state, f"{path} does not fit {name}", EXPECTED)
    return model.eval().requires_grad_(False), name


def _read_checkpoint(path: Path) -> tuple[torch.nn.Module, dict[str, Tensor], str]:
    """A released model with random weights, its tensors and its name."""
    from sam2.build_sam import build_sam2_video_predictor

    state = load_checkpoint(path, EXPECTED)
    width = len(state.get(PATCH_EMBED, ()))
    blocks = len({key.split(".")[3] for key in state if key.startswith("image_encoder.trunk.blocks.")})
    if (width, blocks) not in SIZES:
        raise ValueError(f"{path} is another model's: {blocks} blocks of image_encoder, width {width}. {EXPECTED}.")
    letter, size = SIZES[width, blocks]
    version = "2.1" if "no_obj_embed_spatial" in state else "2"
    model = build_sam2_video_predictor(f"configs/sam{version}/sam{version}_hiera_{letter}.yaml", device="cpu")
    model.fill_hole_area = 0  # the filling of holes needs the compiled extension
    return model, state, f"SAM {version} Hiera {size}"


def _read_folder(folder: Path) -> tuple[torch.nn.Module, dict[str, Tensor], str]:
    """A model of one's own with random weights, its tensors and its name.

    What a configuration names gets called, and by way of a module's imports a name below `sam2.` reaches everything
    (`sam2.build_sam.os.system`): so it may name the classes of the package's own configurations alone. Nor may it give
    the image encoder a file, which would be unpickled.
    """
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    def read(path: Path) -> tuple[dict, set[str]]:
        """A configuration, and what it has called, at any depth, with the arguments that could name a file."""
        config = OmegaConf.to_container(OmegaConf.load(path).model, resolve=True)
        return config, set(re.findall(r'"(?:_target_|_args_|weights_path)": [^,}]*', json.dumps(config)))

    try:
        config, called = read(folder / "config.yaml")
        state = load_file(folder / "model.safetensors")
    except Exception as error:  # of YAML, of OmegaConf, of safetensors, of the disk
        raise ValueError(f"{folder} cannot be read as SAM 2: {reason(error)}. {EXPECTED}.") from error
    _, known = read(Path(sam2.__file__).parent / "configs/sam2.1/sam2.1_hiera_t.yaml")
    if strange := ", ".join(sorted(called - known)):
        raise ValueError(f"{folder}/config.yaml names {strange}, which is no part of SAM 2. {EXPECTED}.")
    name = f"SAM 2, {sum(tensor.numel() for tensor in state.values()) / 1e6:.1f} M parameters"
    try:
        return instantiate(config | {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"}), state, name
    except Exception as error:  # a configuration's mistakes surface as any type
        raise ValueError(f"{folder} does not fit {name}: {reason(error)}. {EXPECTED}.") from error


class Encoded(NamedTuple):
    """An image as SAM 2 sees it: the features of its levels, as the package keeps them, and its size in pixels."""

    features: dict
    height: int
    width: int


class Segmenter:
    """Images encoded once, and a mask for each box asked for. `model` is the package's video predictor."""

    def __init__(self, model: torch.nn.Module, name: str, compute: Compute) -> None:
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        self.name, self.model, self.compute = name, model, compute
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")  # of its transforms
            self._predictor = SAM2ImagePredictor(model)
        # the predictor has these fixed for images of 1024 pixels
        self._predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
        self._predictor._transforms.to_tensor = self._to_tensor  # the package resizes where this is: on the device

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(self.compute.device)
        return pixels.permute(2, 0, 1).contiguous().float().div(255)

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode images, uint8 RGB [H, W, 3] of any sizes, together."""
        with self.compute.autocast():
            self._predictor.set_image_batch(list(images))
        embedded, levels = self._predictor._features["image_embed"], self._predictor._features["high_res_feats"]
        encoded = []
        for i, image in enumerate(images):
            own = {"image_embed": embedded[i : i + 1], "high_res_feats": [level[i : i + 1] for level in levels]}
            encoded.append(Encoded(own, *image.shape[:2]))
        return encoded

    def masks(self, encoded: Encoded, boxes: np.ndarray | Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [N, H, W] and SAM's estimates of their IoU, float32 [N], for N >= 0 boxes (x0, y0, x1, y1) in
        pixels. What lies outside of the image is cut off. Decoded in chunks: memory does not grow with N."""
        features, height, width = encoded
        predictor = self._predictor
        predictor._features, predictor._orig_hw, predictor._is_batch = features, [(height, width)], False
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4).clip(0, np.float32([width, height, width, height]))
        masks, scores = np.empty((len(boxes), height, width), bool), np.empty(len(boxes), np.float32)
        step = max(1, min(_MOST_BOXES, _MOST_PIXELS // (height * width)))
        for start in range(0, len(boxes), step):
            chunk = slice(start, start + step)
            with self.compute.autocast():
                found, estimates, _ = predictor.predict(box=boxes[chunk], multimask_output=False)
            masks[chunk] = found.reshape(-1, height, width)  # [1, H, W] for one box, [n, 1, H, W] for more
            scores[chunk] = estimates.reshape(-1)
        return masks, scores
