"""Boxes to masks with SAM 2 (Ravi et al., 2024, arXiv:2408.00714), through the package `sam2`.

    segmenter = load_sam2("weights/sam2.1_hiera_small.pt", pick_compute())
    segmenter.set_image(image)                # uint8 [H, W, 3]; the one encoding serves every box
    masks, scores = segmenter.masks(boxes)    # boxes [N, 4] in pixels -> bool [N, H, W], float32 [N]

Nothing is executed from a checkpoint or a configuration, and the package's compiled extension is not needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from helpers.common.device import Compute
from helpers.common.files import load_plain
from helpers.segment.hub import reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

# name: (letter in the package's configuration files, width and number of blocks of the image encoder)
SIZES = {"tiny": ("t", 96, 12), "small": ("s", 96, 16), "base+": ("b+", 112, 24), "large": ("l", 144, 48)}
CONFIG_FILE, TENSOR_FILE = "config.yaml", "model.safetensors"  # of a model of one's own, in a folder

EXPECTED = (
    "Expected: a SAM 2 or SAM 2.1 checkpoint as Meta released it (such as sam2.1_hiera_small.pt), or a folder with "
    f"{CONFIG_FILE} and {TENSOR_FILE}"
)

# What sam2's own builders set for use after training: where the single mask of a prompt is not stable, the best of the
# three ambiguous ones takes its place; and what a video's memory holds of a prompted frame is its mask as it is shown.
_AFTER_TRAINING = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}
_FOR_VIDEO = {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"}

_MOST_BOXES = 32  # decoded at once: about 50 MB each inside the decoder
_MOST_PIXELS = 2**26  # of all masks of a chunk together: float32 at the image's size, twice


def load_sam2(weights: str | Path, compute: Compute, compile: bool = False) -> Segmenter:
    """SAM 2 on `compute`, ready for images, and for videos with `segment.sam2_video`; `weights` as in `build_model`,
    which also says what it raises. With `compile` the image encoder goes through `torch.compile`, which takes minutes
    and pays on a GPU after hundreds of frames."""
    model, name = build_model(weights)
    model = model.to(compute.device)
    if compile:
        _compile_encoder(model, compute)
    return Segmenter(model, name, compute)


def _compile_encoder(model: torch.nn.Module, compute: Compute) -> None:
    """Compile the image encoder if that works here, else say why not.

    Not by the package's `compile_image_encoder`: that asks for CUDA graphs, in which the features of an image are
    overwritten by the next one's, and the predictors keep them for longer.
    """
    encoder, plain = model.image_encoder, model.image_encoder.forward
    example = torch.zeros(1, 3, model.image_size, model.image_size, device=compute.device)
    with torch.no_grad(), compute.autocast():
        plain(example)  # the encodings of positions are kept from the first call on: not inside of what is compiled
        try:
            encoder.forward = torch.compile(plain, dynamic=False)
            encoder(example)
        except Exception as error:  # a compiler that is missing or too old, a GPU that is too old: each raises its own
            encoder.forward = plain
            print(f"torch.compile does not work here, going on without: {reason(error)}")


def build_model(weights: str | Path) -> tuple[torch.nn.Module, str]:
    """The model (on the CPU, in evaluation mode, without gradients) and its name.

    `weights`: a released checkpoint, whose size and version are read from its tensors, or a folder with `config.yaml`
    and `model.safetensors`. A released model is set up as by sam2's own builders, a folder's as its configuration says.
    It is the package's video predictor, which serves images as well. Only the filling of holes, which its builders turn
    on for videos, is left out: it needs the compiled extension.

    Raises `FileNotFoundError` where there is no such file, and `ValueError` for what is incomplete, broken or another
    model's.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    path = Path(weights).expanduser()
    if path.is_dir():
        config, state = _read_config(path / CONFIG_FILE), _read_safetensors(path / TENSOR_FILE)
        name = f"SAM 2, {sum(tensor.numel() for tensor in state.values()) / 1e6:.1f} M parameters"
    else:
        state = _read_checkpoint(path)
        file, name = _identify(state, path)
        config = OmegaConf.merge(OmegaConf.load(_package_configs() / file).model, _AFTER_TRAINING)
    try:
        model = instantiate(OmegaConf.merge(config, _FOR_VIDEO), _recursive_=True)
        _fill(model, state)
    except Exception as error:  # a configuration's mistakes surface as any type
        raise ValueError(f"{path} does not fit {name}: {reason(error)}. {EXPECTED}.") from error
    return model.eval().requires_grad_(False), name


class Segmenter:
    """An image encoded once, and a mask for each box asked for. `name` is the model's; `model` (the package's video
    predictor) and `compute` serve videos too."""

    def __init__(self, model: torch.nn.Module, name: str, compute: Compute) -> None:
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        self.name, self.model, self.compute = name, model, compute
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")  # of its transforms
            self._predictor = SAM2ImagePredictor(model)
        # the predictor has these fixed for images of 1024 pixels
        self._predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
        self._size: tuple[int, int] | None = None

    def set_image(self, image: np.ndarray) -> None:
        """Encode `image`, uint8 RGB [H, W, 3] of any size; raises `ValueError` for any other array."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"the image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
        self._size = None
        with self.compute.autocast():
            self._predictor.set_image(np.require(image, requirements=["C", "W"]))
        self._size = image.shape[:2]

    def masks(self, boxes: np.ndarray | Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [N, H, W] and SAM's estimates of their IoU, float32 [N], for N >= 0 boxes.

        `boxes` [N, 4] are (x0, y0, x1, y1) in pixels of the image; what lies outside of it is cut off first. The boxes
        go through the decoder in chunks: beside the result, which takes N * H * W bytes, memory does not grow with N.
        Raises `ValueError` for boxes of another shape or not finite, `RuntimeError` before `set_image`.
        """
        if self._size is None:
            raise RuntimeError("no image yet: call set_image(image) before masks(boxes)")
        boxes = np.asarray(boxes, np.float32)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError(f"boxes {list(boxes.shape)}: expected finite numbers [N, 4]: x0, y0, x1, y1 in pixels")
        height, width = self._size
        boxes = boxes.clip(0, np.float32([width, height, width, height]))
        masks, scores = np.empty((len(boxes), height, width), bool), np.empty(len(boxes), np.float32)
        step = max(1, min(_MOST_BOXES, _MOST_PIXELS // (height * width)))
        for start in range(0, len(boxes), step):
            chunk = slice(start, start + step)
            with self.compute.autocast():
                found, estimates, _ = self._predictor.predict(box=boxes[chunk], multimask_output=False)
            masks[chunk] = found.reshape(-1, height, width)  # [1, H, W] for one box, [n, 1, H, W] for more
            scores[chunk] = estimates.reshape(-1)
        return masks, scores


def _package_configs() -> Path:
    import sam2

    return Path(sam2.__file__).parent / "configs"


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    content = load_plain(path, f". {EXPECTED}.")
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} has no tensors under 'model'. {EXPECTED}.")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}. {EXPECTED}.") from error


def _read_config(path: Path) -> DictConfig:
    """The `model` of a configuration like the package's. It may name the same classes as those, and nothing else: what
    is named gets called."""
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(OmegaConf.load(path).model, resolve=True)
    except Exception as error:  # of YAML, of OmegaConf, of the encoding, of the disk
        raise ValueError(f"{path} is no configuration of SAM 2: {reason(error)}. {EXPECTED}.") from error
    known = OmegaConf.load(_package_configs() / "sam2.1/sam2.1_hiera_t.yaml").model
    strange = set(_named("_target_", config)) - set(_named("_target_", OmegaConf.to_container(known)))
    strange |= set(_named("weights_path", config))  # a file that the image encoder would unpickle
    if strange:
        raise ValueError(f"{path} names {', '.join(sorted(strange))}, which is no part of SAM 2. {EXPECTED}.")
    return OmegaConf.create(config)


def _named(key: str, node: Any) -> Iterator[str]:
    """Every value under `key` in nested containers."""
    if isinstance(node, dict):
        if key in node:
            yield str(node[key])
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _named(key, value)


def _identify(state: dict[str, Tensor], path: Path) -> tuple[str, str]:
    """(configuration file inside the package, name) of the released model that has these tensors."""
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {key.split(".")[3] for key in state if key.startswith("image_encoder.trunk.blocks.")}
    version = "2.1" if "no_obj_embed_spatial" in state else "2"
    for size, (letter, width, depth) in SIZES.items():
        if patches is not None and (len(patches), len(blocks)) == (width, depth):
            return f"sam{version}/sam{version}_hiera_{letter}.yaml", f"SAM {version} Hiera {size}"
    if patches is None:
        raise ValueError(f"{path} is another model's; its first tensors: {', '.join(list(state)[:3])}. {EXPECTED}.")
    raise ValueError(f"{path}: a SAM 2 of width {len(patches)} and {len(blocks)} blocks is none of {', '.join(SIZES)}.")


def _fill(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    given = {key: list(value.shape) for key, value in state.items()}
    wrong = [f"it lacks {key}" for key in own.keys() - given.keys()]
    wrong += [f"it also has {key}" for key in given.keys() - own.keys()]
    wrong += [
        f"{key} is {given[key]} instead of {own[key]}" for key in own.keys() & given.keys() if given[key] != own[key]
    ]
    if wrong:
        raise ValueError(f"{min(wrong)} ({len(wrong)} such tensors)")
    model.load_state_dict(state)
