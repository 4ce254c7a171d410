"""GroundingDINO (Liu et al. 2023, https://arxiv.org/abs/2303.05499) from either of its two packages, with one face, and
its successors MM-Grounding-DINO (Zhao et al. 2024, arXiv:2401.02361) and LLMDet (Fu et al. 2025, arXiv:2501.18954).

    dino = load("groundingdino_swint_ogc.pth", "bert-base-uncased", compute)    # the authors' file, and BERT's folder
    dino = load("grounding-dino-tiny", None, compute)                           # or a folder of transformers' port
    dino = load("llmdet_tiny", None, compute)                                   # or of LLMDet or MM-Grounding-DINO
    token_scores, boxes = dino.forward(images, "cat . red dog .")               # [B, Q, T], [B, Q, 4] in pixels

The same weights give the same by either package, but for boxes within a thousandth of the image's edge or size.
"""

from __future__ import annotations

import copy
import importlib
import re
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.functional import normalize

from helpers.common.device import Compute
from helpers.segment.pretrained import fill, load_checkpoint, load_pretrained, model_type, stored, title

# Channels of the first Swin stage -> the package's module of settings, and the name of the variant.
VARIANTS = {96: ("GroundingDINO_SwinT_OGC", "Swin-T"), 128: ("GroundingDINO_SwinB_cfg", "Swin-B")}
PATCH_EMBED = "backbone.0.patch_embed.proj.weight"
UNUSED = ("label_enc.weight", "bert.embeddings.position_ids")  # in the files, of use in training only, or built by code
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of pixels, for both packages
AUTHORS_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
LEAST_SIDE = 40  # pixels: 40 x 1333 make 1,192 cells on the network's four levels, of which it picks its 900 queries
# Both packages cut a caption into phrases by these tokens, transformers by the numbers alone: others go unnoticed.
SPECIAL_TOKENS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
NAMES = {"grounding-dino": "GroundingDINO", "mm-grounding-dino": "MM-Grounding-DINO"}  # by transformers' model_type
HEADS = re.compile(r"(?:model\.decoder\.)?((?:bbox|class)_embed)\.(\d+)\.(.+)")  # which, decoder layer, tensor

EXPECTED = (
    "Expected: GroundingDINO in its authors' format (groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth), "
    "or a folder of transformers with the files of IDEA-Research/grounding-dino-tiny, of MM-Grounding-DINO "
    "(openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit_v3det) or LLMDet (iSEE-Laboratory/llmdet_tiny), "
    "of which mmdetection's own .pth files are not read"
)


@dataclass(eq=False, repr=False)
class GroundingDino:
    """Boxes for what a caption names. `network` takes pixels, float32 [B, 3, h, w], and a caption, and returns logits
    [B, Q, at least T] and boxes [B, Q, 4], (cx, cy, w, h) as fractions of the image."""

    name: str
    network: Callable[[Tensor, str], tuple[Tensor, Tensor]]
    tokenizer: Any
    max_tokens: int  # of a caption
    size: dict[str, int]  # to resize images to, in pixels: `shortest_edge` and `longest_edge`, or `height` and `width`
    compute: Compute

    def forward(self, images: Sequence[np.ndarray], caption: str) -> tuple[Tensor, Tensor]:
        """Run the network on images, uint8 RGB [H, W, 3], of the same `resized`, and a caption: `token_scores`
        [B, Q, T], the sigmoid of each query's logit for each of the caption's T tokens, [CLS] and [SEP] included, and
        `boxes` [B, Q, 4], (x0, y0, x1, y1) in pixels, within the image; float32 on the CPU."""
        tokens = len(self.tokenizer(caption)["input_ids"])
        with torch.inference_mode(), self.compute.autocast():
            logits, boxes = self.network(self.preprocess(images), caption)
        boxes = box_convert(boxes.float().cpu(), "cxcywh", "xyxy")
        sizes = [image.shape[:2] for image in images]
        boxes = [
            clip_boxes_to_image(own * torch.tensor([w, h, w, h]), (h, w))
            for own, (h, w) in zip(boxes, sizes, strict=True)
        ]
        return logits[..., :tokens].float().cpu().sigmoid(), torch.stack(boxes)

    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Resize images, uint8 [H, W, 3], as Pillow does, and normalise them: float32 [B, 3, h, w] on the device."""
        # resized first, as bytes: the floats of a 60-megapixel image would fill 720 MB
        (height, width), *others = {self.resized(image) for image in images}
        if others:
            raise ValueError(f"images that are resized to {height} x {width} and to {others}: group them by `resized`")
        resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(self.compute.device)
        return normalize(pixels.permute(0, 3, 1, 2).float().div(255), *IMAGENET)

    def resized(self, image: np.ndarray) -> tuple[int, int]:
        """Height and width that an image [H, W, 3] is resized to: those of the same can go through together."""
        return resized_shape(*image.shape[:2], self.size)


def resized_shape(height: int, width: int, size: dict[str, int]) -> tuple[int, int]:
    """Height and width to resize an image to, by the rule of the authors' `RandomResize`, rounding included; one of
    1 x 5000 is stretched to `LEAST_SIDE`, and boxes, which are fractions of its sides, stay right."""
    if "height" in size:
        return size["height"], size["width"]
    short, long = sorted((height, width))
    new_short = min(size["shortest_edge"], round(size["longest_edge"] * short / long))
    new_long = int(new_short * long / short) or size["longest_edge"]
    new_short = max(new_short, LEAST_SIDE)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def load(weights: Path | str, bert: Path | str | None, compute: Compute) -> GroundingDino:
    """The detector on `compute`. A file is loaded by groundingdino-py, with BERT's vocabulary from the folder `bert`;
    a folder by transformers. Raises `OSError` where there is none, `ValueError` where it is broken or another's.
    """
    path = Path(weights).expanduser()
    return _load_port(path, compute) if path.is_dir() else _load_original(path, bert, compute)


def _check_vocabulary(tokenizer: Any, rows: int, folder: Path) -> None:
    """Raise `ValueError` for another vocabulary, or the empty one that transformers makes where there is no file."""
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if len(tokenizer) != rows or ids != list(SPECIAL_TOKENS.values()):
        needed = f"bert-base-uncased's of {rows} (vocab.txt or tokenizer.json)"
        raise ValueError(
            f"{folder}: its vocabulary of {len(tokenizer)} tokens is not what GroundingDINO needs, {needed}"
        )


def _load_original(weights: Path, bert_path: Path | str, compute: Compute) -> GroundingDino:
    """By groundingdino-py."""
    from transformers import BertConfig, BertTokenizerFast

    tensors = load_checkpoint(weights, EXPECTED)
    state = {key.removeprefix("module."): value for key, value in tensors.items() if not key.endswith(UNUSED)}
    channels = len(state.get(PATCH_EMBED, ()))
    if channels not in VARIANTS:
        raise ValueError(f"{weights} is another model's checkpoint. {EXPECTED}.")
    settings, variant = VARIANTS[channels]
    bert = Path(bert_path).expanduser()
    bert_config = BertConfig.from_json_file(bert / "config.json")
    tokenizer = BertTokenizerFast.from_pretrained(bert, local_files_only=True)
    _check_vocabulary(tokenizer, bert_config.vocab_size, bert)
    model = build_original(settings, tokenizer, bert_config)
    fill(model, state, f"{weights} does not fit GroundingDINO {variant}", EXPECTED)
    model = model.to(compute.device).eval().requires_grad_(False)

    def network(pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package is of an earlier torch
            output = model(pixels, captions=[caption] * len(pixels))
        return output["pred_logits"], output["pred_boxes"]

    name = f"GroundingDINO {variant} ({weights.name}, groundingdino-py)"
    return GroundingDino(name, network, tokenizer, model.max_text_len, dict(AUTHORS_SIZE), compute)


def build_original(settings: str, tokenizer: Any, bert_config: Any) -> nn.Module:
    """The package's model with random weights, as its module `settings` configures it."""
    from transformers import BertModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
        args = types.SimpleNamespace(**vars(importlib.import_module(f"groundingdino.config.{settings}")))
        args.use_checkpoint = args.use_transformer_ckpt = False  # saves memory in training only
        loaders = types.SimpleNamespace()
        loaders.get_tokenlizer = lambda _: tokenizer
        loaders.get_pretrained_language_model = lambda _: BertModel(bert_config)
        # the package takes its text encoder from these two names: they are other ones while the model is built
        before = package.BertModelWarper, package.get_tokenlizer
        package.BertModelWarper, package.get_tokenlizer = TextEncoder, loaders
        try:
            return package.build_groundingdino(args)
        finally:
            package.BertModelWarper, package.get_tokenlizer = before


class TextEncoder(nn.Module):
    """BERT whose tokens attend to those of their own phrase only, in place of the package's `BertModelWarper`, which
    calls methods of BERT that transformers 5 no longer has. Sub-modules are named as there, and so in checkpoints."""

    def __init__(self, bert_model: nn.Module) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler

    def forward(self, attention_mask: Tensor, **tokens: Tensor) -> dict[str, Tensor]:
        """`last_hidden_state` [B, T, D]; `attention_mask` is bool [B, T, T], True where a token (row) looks."""
        hidden = self.embeddings(**tokens)
        # Added to the attention logits: of a bool mask, eager attention would add 1 where it is True, and mask nothing.
        mask = torch.where(attention_mask, 0.0, torch.finfo(hidden.dtype).min)[:, None]  # [B, 1, T, T]
        return {"last_hidden_state": self.encoder(hidden, attention_mask=mask.to(hidden.dtype))[0]}


class Port:
    """Either model of transformers, each decoder layer of MM-Grounding-DINO with the heads that the file has for it."""

    @staticmethod
    def from_pretrained(folder: Path, **options) -> tuple[nn.Module, dict]:
        """As transformers' method of the same name, with `output_loading_info`."""
        from transformers import AutoModelForZeroShotObjectDetection

        model, report = AutoModelForZeroShotObjectDetection.from_pretrained(folder, **options)
        if model.config.model_type == "mm-grounding-dino":
            others = {key for key in report["missing_keys"] if not HEADS.fullmatch(key)}
            report["missing_keys"] = others | own_heads(model, stored(folder))
        return model, report


def own_heads(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Fill MM-Grounding-DINO's heads from `tensors` (name, tensor), and return the names of those that are not there.

    All six decoder layers have heads of their own, which transformers 5.0 to 5.20 replace by the first layer's, and
    later ones do as well, unless config.json has `decoder_bbox_embed_share` and `decoder_cls_embed_share` false. Files
    hold them by the names of the model or of its decoder, and those of a model with the same heads in all layers once.
    """
    found = {match.groups(): value for key, value in tensors if (match := HEADS.fullmatch(key))}
    missing = set()
    for name in ("bbox_embed", "class_embed"):
        heads = nn.ModuleList(map(copy.deepcopy, getattr(model, name)))  # each copied alone: nothing is shared any more
        once = {layer for kind, layer, _ in found if kind == name} == {"0"}
        for key, value in heads.state_dict().items():
            layer, _, part = key.partition(".")
            tensor = found.get((name, "0" if once else layer, part))
            if tensor is None:
                missing.add(f"{name}.{key}")
            elif tensor.shape == value.shape:  # else it is in transformers' report
                value.copy_(tensor)
        setattr(model, name, heads)
        setattr(model.model.decoder, name, heads)
    return missing


def mend_positions(model: nn.Module) -> None:
    """Let a model of transformers number each phrase's tokens from 0 up to its full stop, as the weights were trained.

    Versions 5.0 to 5.22 give that stop the position 0; from 5.10 on, if not before, those of them also round the sines
    of positions to integers. Where transformers has it right, this changes nothing.
    """

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _, mask, _, position_ids = inputs[:4]  # the mask, bool [B, T, T] or [B, 1, T, T], has True within a phrase
        # in place: the caller goes on with these numbers
        position_ids.copy_(mask.reshape(*position_ids.shape, -1).long().tril(-1).sum(-1))

    def as_floats(_: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**options, "text_position_ids": options["text_position_ids"].float()}

    model.text_backbone.register_forward_pre_hook(count)
    model.encoder.register_forward_pre_hook(as_floats, with_kwargs=True)


def _load_port(folder: Path, compute: Compute) -> GroundingDino:
    """By transformers."""
    from transformers import BertTokenizerFast, GroundingDinoImageProcessor

    kind = model_type(folder)
    kind = kind if kind in [*NAMES] else "grounding-dino"
    classes = Port, BertTokenizerFast, GroundingDinoImageProcessor
    model, tokenizer, image_processor = load_pretrained(folder, kind, EXPECTED, *classes)
    model = model.to(compute.device)
    mend_positions(model.model)
    _check_vocabulary(tokenizer, model.config.text_config.vocab_size, folder)

    def network(pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        tokens = tokenizer([caption] * len(pixels), return_tensors="pt").to(pixels.device)
        output = model(pixel_values=pixels, **tokens)
        return output.logits, output.pred_boxes

    name = f"{NAMES[kind]} ({title(folder)}, transformers)"
    return GroundingDino(name, network, tokenizer, model.config.max_text_len, dict(image_processor.size), compute)
