"""GroundingDINO (Liu et al. 2023, https://arxiv.org/abs/2303.05499) from either of its two packages, with one face.

    dino = load("groundingdino_swint_ogc.pth", "bert-base-uncased", compute)    # the authors' file, and BERT's folder
    dino = load("grounding-dino-tiny", None, compute)                           # or a folder of transformers' port
    token_scores, boxes = dino.forward(image, "cat . red dog .")                # [Q, T], [Q, 4] in pixels

The same weights give the same boxes and scores either way, but for boxes of which a centre or side is within a
thousandth of 0 or of the whole image: there groundingdino-py cuts logits off, the port later.
"""

from __future__ import annotations

import importlib
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.functional import normalize, to_tensor

from helpers.common.device import Compute
from helpers.common.files import load_plain
from helpers.segment.pretrained import fill, load_pretrained, title

# Channels of the first Swin stage -> the package's module of settings, and the name of the variant.
VARIANTS = {96: ("GroundingDINO_SwinT_OGC", "Swin-T"), 128: ("GroundingDINO_SwinB_cfg", "Swin-B")}
PATCH_EMBED = "backbone.0.patch_embed.proj.weight"
# In the authors' files, but of use in training only, or built by the code.
UNUSED = ("label_enc.weight", "bert.embeddings.position_ids")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of the authors' pixels
PORTS = ("grounding-dino",)  # model_type in the config.json of folders for transformers
# Both packages cut a caption into phrases by these tokens, transformers by the numbers alone: others go unnoticed.
SPECIAL_TOKENS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}

EXPECTED = (
    "Expected: GroundingDINO in its authors' format (groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth), "
    "or a folder of transformers' port with the files of IDEA-Research/grounding-dino-tiny"
)


@dataclass(eq=False, repr=False)
class GroundingDino:
    """Boxes for what a caption names.

    `network` takes pixels, float32 [1, 3, h, w], and a caption, and returns logits [Q, at least T] and boxes [Q, 4],
    (cx, cy, w, h) as fractions of the image. `size` is what images are resized to before, `{"shortest_edge": …,
    "longest_edge": …}` or `{"height": …, "width": …}` in pixels; a smaller one is faster and coarser.
    """

    name: str
    network: Callable[[Tensor, str], tuple[Tensor, Tensor]]
    tokenizer: Any
    max_tokens: int
    size: dict[str, int]
    mean_std: tuple[Sequence[float], Sequence[float]]  # of the pixels in [0, 1], by channel
    strides: list[int]
    num_queries: int
    compute: Compute

    def forward(self, image: np.ndarray, caption: str) -> tuple[Tensor, Tensor]:
        """Run the network on one image and one caption of at most `max_tokens` tokens, such as `cat . red dog .`

        `image`: uint8 [H, W, 3], RGB. Returns two float32 tensors on the CPU: `token_scores` [Q, T], the sigmoid of
        each query's logit for each of the caption's T tokens, [CLS] and [SEP] included; and `boxes` [Q, 4], (x0, y0,
        x1, y1) in pixels of `image`, within it.
        """
        tokens = len(self.tokenizer(caption)["input_ids"])
        pixels = self.preprocess(image).to(self.compute.device)
        with torch.inference_mode(), self.compute.autocast():
            logits, boxes = self.network(pixels, caption)
        height, width = image.shape[:2]
        boxes = box_convert(boxes.float().cpu(), "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        return logits[:, :tokens].float().cpu().sigmoid(), clip_boxes_to_image(boxes, (height, width))

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Resize `image`, uint8 [H, W, 3], as Pillow does, and normalise it: float32 [1, 3, h, w]."""
        # resized first, as bytes: the floats of a 60-megapixel image would fill 720 MB
        height, width = resized_shape(*image.shape[:2], self.size, self.strides, self.num_queries)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return normalize(to_tensor(resized), *self.mean_std)[None]


def resized_shape(
    height: int, width: int, size: dict[str, int], strides: list[int], num_queries: int
) -> tuple[int, int]:
    """Height and width to resize an image to, by the rule of the authors' `RandomResize`, rounding included.

    The network picks `num_queries` of the cells of all its levels, one level for each of `strides`. Where the rule
    leaves fewer, or a side of 0 pixels (an image of 1 x 5000), the image is stretched; boxes, which are fractions of
    its sides, stay right.
    """
    if "shortest_edge" in size:
        short, long = sorted((height, width))
        longest = size["longest_edge"]
        new_short = min(size["shortest_edge"], round(longest * short / long))
        new_long = int(new_short * long / short) or longest
        new = [new_short, new_long] if height <= width else [new_long, new_short]
    else:
        new = [size["height"], size["width"]]
    while sum(-(-new[0] // stride) * -(-new[1] // stride) for stride in strides) < num_queries:
        new[new.index(min(new))] += 1
    return new[0], new[1]


def load(weights: Path | str, bert: Path | str | None, compute: Compute) -> GroundingDino:
    """GroundingDINO on `compute`, by groundingdino-py from a file and by transformers from a folder.

    A file is an authors' `.pth`, Swin-T or Swin-B; BERT's weights are in it, its vocabulary in the folder `bert`, which
    a folder of the port does not need. Nothing is executed from either. Raises `FileNotFoundError` for what is not
    there, and `ValueError` for what is incomplete, broken or another model's.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return _load_port(path, compute)
    if path.is_file():
        return _load_original(path, bert, compute)
    raise FileNotFoundError(f"{weights}: no such file or folder. {EXPECTED}.")


def _check_vocabulary(tokenizer: Any, rows: int, folder: Path) -> None:
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if len(tokenizer) != rows or ids != list(SPECIAL_TOKENS.values()):
        raise ValueError(
            f"{folder}: its vocabulary has {len(tokenizer)} tokens and numbers {' '.join(SPECIAL_TOKENS)} as {ids}, "
            f"and GroundingDINO needs that of bert-base-uncased: {rows} tokens and {list(SPECIAL_TOKENS.values())}"
        )


def _load_original(weights: Path, bert_path: Path | str, compute: Compute) -> GroundingDino:
    """By groundingdino-py."""
    from transformers import BertConfig, BertTokenizerFast

    content = load_plain(weights, f". {EXPECTED}.")
    tensors = content.get("model") if isinstance(content, dict) else None
    tensors = tensors if isinstance(tensors, dict) else {}
    state = {key.removeprefix("module."): value for key, value in tensors.items() if not key.endswith(UNUSED)}
    channels = len(state.get(PATCH_EMBED, ()))
    if channels not in VARIANTS:
        raise ValueError(f"{weights} is another model's checkpoint. {EXPECTED}.")
    settings, variant = VARIANTS[channels]
    bert = Path(bert_path).expanduser()
    # transformers would make a tokenizer without words where there are none
    if not any((bert / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise FileNotFoundError(f"{bert} holds no vocab.txt or tokenizer.json: set bert_path to bert-base-uncased's")
    tokenizer = BertTokenizerFast.from_pretrained(bert, local_files_only=True)
    config = bert / "config.json"
    bert_config = BertConfig.from_json_file(config) if config.is_file() else BertConfig()  # bert-base-uncased's
    _check_vocabulary(tokenizer, bert_config.vocab_size, bert)
    model = build_original(settings, tokenizer, bert_config)
    try:
        fill(model, state)
    except ValueError as error:
        raise ValueError(f"{weights} does not fit GroundingDINO {variant}: {error}. {EXPECTED}.") from error
    model = model.to(compute.device).eval().requires_grad_(False)

    def network(pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package is of an earlier torch
            output = model(pixels, captions=[caption])
        return output["pred_logits"][0], output["pred_boxes"][0]

    return GroundingDino(
        name=f"GroundingDINO {variant} ({weights.name}, groundingdino-py)",
        network=network,
        tokenizer=tokenizer,
        max_tokens=model.max_text_len,
        size={"shortest_edge": 800, "longest_edge": 1333},
        mean_std=IMAGENET,
        strides=[8, 16, 32, 64],
        num_queries=model.num_queries,
        compute=compute,
    )


def build_original(settings: str, tokenizer: Any, bert_config: Any) -> nn.Module:
    """The package's model with random weights, by its module `settings`; it fetches nothing."""
    from transformers import BertModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
        values = vars(importlib.import_module(f"groundingdino.config.{settings}"))
        args = types.SimpleNamespace(**{name: value for name, value in values.items() if not name.startswith("__")})
        args.use_checkpoint = args.use_transformer_ckpt = False  # saves memory in training only
        loaders = types.SimpleNamespace(
            get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: BertModel(bert_config)
        )
        # the package takes its text encoder from these two names: they are other ones while the model is built
        before = package.BertModelWarper, package.get_tokenlizer
        package.BertModelWarper, package.get_tokenlizer = TextEncoder, loaders
        try:
            return package.build_groundingdino(args)
        finally:
            package.BertModelWarper, package.get_tokenlizer = before


class TextEncoder(nn.Module):
    """BERT whose tokens attend to those of their own phrase only: stands in for the package's `BertModelWarper`.

    That one calls methods of BERT that transformers 5 no longer has. The sub-modules keep their names, and so the
    checkpoint's keys fit.
    """

    def __init__(self, bert_model: nn.Module) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`attention_mask`: bool [B, T, T], True where a token (row) looks. Returns `last_hidden_state` [B, T, D]."""
        hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids)
        # Added to the attention logits: of a bool mask, eager attention would add 1 where it is True, and mask nothing.
        mask = torch.zeros_like(attention_mask, dtype=hidden.dtype)
        mask = mask.masked_fill(~attention_mask, torch.finfo(hidden.dtype).min)[:, None]  # [B, 1, T, T]
        return {"last_hidden_state": self.encoder(hidden, attention_mask=mask)[0]}


def _load_port(folder: Path, compute: Compute) -> GroundingDino:
    """By transformers."""
    from transformers import AutoModelForZeroShotObjectDetection, BertTokenizerFast, GroundingDinoImageProcessor

    classes = AutoModelForZeroShotObjectDetection, BertTokenizerFast, GroundingDinoImageProcessor
    model, tokenizer, image_processor = load_pretrained(folder, PORTS, EXPECTED, *classes)
    config, model = model.config, model.to(compute.device)
    _check_vocabulary(tokenizer, config.text_config.vocab_size, folder)
    backbone = config.backbone_config
    strides = [backbone.patch_size * 2 ** (stage - 1) for stage in backbone.out_indices]
    strides += [strides[-1] * 2**k for k in range(1, config.num_feature_levels - len(strides) + 1)]

    def network(pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        output = model(pixel_values=pixels, **tokenizer(caption, return_tensors="pt").to(pixels.device))
        return output.logits[0], output.pred_boxes[0]

    return GroundingDino(
        name=f"GroundingDINO ({title(folder)}, transformers)",
        network=network,
        tokenizer=tokenizer,
        max_tokens=min(config.max_text_len, config.text_config.max_position_embeddings),
        size=dict(image_processor.size),
        mean_std=(image_processor.image_mean, image_processor.image_std),
        strides=strides,
        num_queries=config.num_queries,
        compute=compute,
    )
