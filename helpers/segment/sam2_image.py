"""Boxes to masks with SAM 2 (Ravi et al., 2024, arXiv:2408.00714), through the package `sam2`.

    segmenter = load_sam2("weights/sam2.1_hiera_small.pt", pick_compute())
    segmenter.set_image(image)                # uint8 [H, W, 3]; the one encoding serves every box
    masks, scores = segmenter.masks(boxes)    # boxes [N, 4] in pixels -> bool [N, H, W], float32 [N]

Nothing is executed from a checkpoint or a configuration, and the package's compiled extension is not needed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.common.device import Compute, compile_if_possible
from helpers.common.hub import reason
from helpers.segment.pretrained import fill, load_checkpoint

# (width, number of blocks) of the image encoder: (letter in the package's configuration files, name)
SIZES = {(96, 12): ("t", "tiny"), (96, 16): ("s", "small"), (112, 24): ("b+", "base+"), (144, 48): ("l", "large")}
EXPECTED = (
    "Expected: a SAM 2 or SAM 2.1 checkpoint as Meta released it (such as sam2.1_hiera_small.pt), or a folder with "
    "config.yaml and model.safetensors"
)
# As sam2's own builders set it: where the single mask of a prompt is not stable, the best of the three ambiguous ones
# takes its place; and what a video's memory holds of a prompted frame is its mask as it is shown.
_AFTER_TRAINING = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}

_MOST_BOXES = 32  # decoded at once: about 50 MB each inside the decoder
_MOST_PIXELS = 2**26  # of all masks of a chunk together: float32 at the image's size, twice


def load_sam2(weights: str | Path, compute: Compute, compile: bool = False) -> Segmenter:
    """SAM 2 on `compute`, from what `build_model` takes. `compile` its image encoder with `torch.compile`: it takes
    minutes, and pays after hundreds of frames."""
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
    """The package's video predictor, which serves images as well (on the CPU, without gradients), and its name.

    `weights`: a released checkpoint, set up as by sam2's own builders (but for the filling of holes in videos, which
    needs the compiled extension), or a folder with `config.yaml` and `model.safetensors`. Raises `FileNotFoundError`
    where there is no such file, and `ValueError` for one that is broken or another model's.
    """
    from hydra.utils import instantiate

    path = Path(weights).expanduser()
    config, state, name = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    try:
        model = instantiate(config | {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"})
    except Exception as error:  # a configuration's mistakes surface as any type
        raise ValueError(f"{path} does not fit {name}: {reason(error)}. {EXPECTED}.") from error
    fill(model, state, f"{path} does not fit {name}", EXPECTED)
    return model.eval().requires_grad_(False), name


def _read_checkpoint(path: Path) -> tuple[dict, dict[str, Tensor], str]:
    """Configuration, tensors and name of a released model."""
    state = load_checkpoint(path, EXPECTED)
    width = len(state.get("image_encoder.trunk.patch_embed.proj.weight", ()))
    blocks = len({key.split(".")[3] for key in state if key.startswith("image_encoder.trunk.blocks.")})
    if (width, blocks) not in SIZES:
        raise ValueError(f"{path} is another model's: {blocks} blocks of image_encoder, width {width}. {EXPECTED}.")
    letter, size = SIZES[width, blocks]
    version = "2.1" if "no_obj_embed_spatial" in state else "2"
    return _released_config(version, letter) | _AFTER_TRAINING, state, f"SAM {version} Hiera {size}"


def _read_folder(folder: Path) -> tuple[dict, dict[str, Tensor], str]:
    """Configuration, tensors and name of a model of one's own.

    What a configuration names gets called, and by way of a module's imports a name below `sam2.` reaches everything
    (`sam2.build_sam.os.system`): so it may name the classes of the package's own configurations alone. Nor may it give
    the image encoder a file, which would be unpickled.
    """
    from safetensors.torch import load_file

    def called(config: dict) -> set[str]:  # at any depth, and the arguments that could name a file
        return set(re.findall(r'"(?:_target_|_args_|weights_path)": [^,}]*', json.dumps(config)))

    try:
        config = _read_config(folder / "config.yaml")
        state = load_file(folder / "model.safetensors")
    except Exception as error:  # of YAML, of OmegaConf, of safetensors, of the disk
        raise ValueError(f"{folder} cannot be read as SAM 2: {reason(error)}. {EXPECTED}.") from error
    if strange := ", ".join(sorted(called(config) - called(_released_config("2.1", "t")))):
        raise ValueError(f"{folder}/config.yaml names {strange}, which is no part of SAM 2. {EXPECTED}.")
    count = sum(tensor.numel() for tensor in state.values())
    return config, state, f"SAM 2, {count / 1e6:.1f} M parameters"


def _released_config(version: str, letter: str) -> dict:
    import sam2

    return _read_config(Path(sam2.__file__).parent / f"configs/sam{version}/sam{version}_hiera_{letter}.yaml")


def _read_config(path: Path) -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path).model, resolve=True)


class Segmenter:
    """An image encoded once, and a mask for each box asked for. `model` is the package's video predictor."""

    def __init__(self, model: torch.nn.Module, name: str, compute: Compute) -> None:
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        self.name, self.model, self.compute = name, model, compute
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")  # of its transforms
            self._predictor = SAM2ImagePredictor(model)
        # the predictor has these fixed for images of 1024 pixels
        self._predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]

    def set_image(self, image: np.ndarray) -> None:
        """Encode `image`, uint8 RGB [H, W, 3] of any size."""
        with self.compute.autocast():
            self._predictor.set_image(np.require(image, requirements=["C", "W"]))
        self._size = image.shape[:2]

    def masks(self, boxes: np.ndarray | Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [N, H, W] and SAM's estimates of their IoU, float32 [N], for N >= 0 boxes.

        `boxes` [N, 4] are (x0, y0, x1, y1) in pixels; what lies outside of the image is cut off. They are decoded in
        chunks: beside the result memory does not grow with N.
        """
        height, width = self._size
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4).clip(0, np.float32([width, height, width, height]))
        masks, scores = np.empty((len(boxes), height, width), bool), np.empty(len(boxes), np.float32)
        step = max(1, min(_MOST_BOXES, _MOST_PIXELS // (height * width)))
        for start in range(0, len(boxes), step):
            chunk = slice(start, start + step)
            with self.compute.autocast():
                found, estimates, _ = self._predictor.predict(box=boxes[chunk], multimask_output=False)
            masks[chunk] = found.reshape(-1, height, width)  # [1, H, W] for one box, [n, 1, H, W] for more
            scores[chunk] = estimates.reshape(-1)
        return masks, scores
