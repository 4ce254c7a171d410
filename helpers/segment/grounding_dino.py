"""GroundingDINO (Liu et al. 2023, https://arxiv.org/abs/2303.05499) from either of its two packages, with one face.

The original code is the package groundingdino-py, with the authors' `.pth` files; transformers has a port of it, with
folders as on its hub. The same weights give the same boxes and scores either way, but for boxes of which a centre or
side is within a thousandth of 0 or of the whole image: there the original cuts logits off, the port later.
"""

from __future__ import annotations

import contextlib
import importlib
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
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
from helpers.segment.hub import quiet_transformers, reason, title

# Channels of the first Swin stage -> the package's module of settings, and the name of the variant.
VARIANTS = {96: ("GroundingDINO_SwinT_OGC", "Swin-T"), 128: ("GroundingDINO_SwinB_cfg", "Swin-B")}
EXPECTED = (
    "expected GroundingDINO in its authors' format: groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth"
)
PATCH_EMBED, WORD_EMBED = "backbone.0.patch_embed.proj.weight", "bert.embeddings.word_embeddings.weight"
# In the authors' files, but of use in training only, or built by the code.
UNUSED = ("label_enc.weight", "bert.embeddings.position_ids")
CONSTANT = "relative_position_index"  # a buffer that the code fills; transformers 5 no longer saves it
SPECIAL_TOKENS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}  # transformers' port has these numbers in its code


class GroundingDino(ABC):
    """Boxes for what a caption names.

    `name` says which weights these are, `tokenizer` is the caption's and `max_tokens` its limit. `size` is what images
    are resized to before the network sees them, `{"shortest_edge": …, "longest_edge": …}` or `{"height": …, "width":
    …}` in pixels; a smaller one is faster and coarser.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        max_tokens: int,
        size: dict[str, int],
        strides: list[int],
        num_queries: int,
        compute: Compute,
    ) -> None:
        self.name, self.tokenizer, self.max_tokens, self.size = name, tokenizer, max_tokens, size
        self.model = model.to(compute.device).eval().requires_grad_(False)
        self.strides, self.num_queries, self.compute = strides, num_queries, compute

    def forward(self, image: np.ndarray, caption: str) -> tuple[Tensor, Tensor]:
        """Run the network on one image and one caption, such as `cat . red dog .`

        `image`: uint8 [H, W, 3], RGB. Returns two float32 tensors on the CPU: `token_scores` [Q, T], the sigmoid of
        each query's logit for each of the caption's T tokens, [CLS] and [SEP] included; and `boxes` [Q, 4], (x0, y0,
        x1, y1) in pixels of `image`, within it. Raises `ValueError` for another kind of image, and for a caption of
        more than `max_tokens` tokens, which both packages would cut silently.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"The image is {image.dtype} {list(image.shape)}, expected RGB: uint8 [H, W, 3]")
        tokens = len(self.tokenizer(caption, verbose=False)["input_ids"])
        if tokens > self.max_tokens:
            raise ValueError(f"The caption has {tokens} tokens, more than {self.max_tokens}: give it in several passes")
        pixels = self.preprocess(image).to(self.compute.device)
        with torch.inference_mode(), self.compute.autocast():
            logits, boxes = self._predict(pixels, caption)
        token_scores = logits[:, :tokens].float().cpu().sigmoid()
        height, width = image.shape[:2]
        boxes = box_convert(boxes.float().cpu(), "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        return token_scores, clip_boxes_to_image(boxes, (height, width))

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Resize `image`, uint8 [H, W, 3], as Pillow does, and normalise it: float32 [1, 3, h, w].

        The resizing comes first, on bytes: the floats of a 60-megapixel image would fill 720 MB.
        """
        height, width = resized_shape(*image.shape[:2], self.size, self.strides, self.num_queries)
        return self._normalise(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    @abstractmethod
    def _normalise(self, image: Image.Image) -> Tensor:
        """float32 [1, 3, h, w]."""

    @abstractmethod
    def _predict(self, pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        """Logits [Q, at least T] and boxes [Q, 4], (cx, cy, w, h) as fractions of the image."""


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
        shorter = new.index(min(new))
        new[shorter] += 1
    return new[0], new[1]


def load(weights: Path | str, bert_path: Path | str | None, compute: Compute) -> GroundingDino:
    """`load_groundingdino_py` for a file, `load_transformers` for a folder, which needs no `bert_path`."""
    path = Path(weights).expanduser()
    if path.is_file():
        return load_groundingdino_py(path, bert_path, compute)
    if path.is_dir():
        return load_transformers(path, compute)
    raise FileNotFoundError(f"{weights}: no such file or folder; {EXPECTED}, or a folder of transformers' port")


# --- groundingdino-py -------------------------------------------------------------------------------------------------


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


class _Original(GroundingDino):
    def _normalise(self, image: Image.Image) -> Tensor:
        return normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]

    def _predict(self, pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        with _quiet():
            output = self.model(pixels, captions=[caption])
        return output["pred_logits"][0], output["pred_boxes"][0]


def load_groundingdino_py(weights: Path, bert_path: Path | str, compute: Compute) -> GroundingDino:
    """The original GroundingDINO, Swin-T or Swin-B, from an authors' `.pth`; nothing in the file is executed.

    BERT's weights are in the file. Its vocabulary (`vocab.txt` or `tokenizer.json`) comes from the folder `bert_path`.

    Raises `FileNotFoundError` where the vocabulary is missing, and `ValueError` for a file or vocabulary that is broken
    or another model's.
    """
    state = _read_original(weights)
    channels = state[PATCH_EMBED].shape[0]
    if channels not in VARIANTS:
        raise ValueError(f"{weights} is for a Swin of {channels} channels, and only 96 and 128 are known; {EXPECTED}")
    settings, variant = VARIANTS[channels]
    tokenizer, bert_config = _load_bert(Path(bert_path).expanduser())
    rows = state[WORD_EMBED].shape[0]
    if len(tokenizer) != rows:
        raise ValueError(
            f"The vocabulary in {bert_path} has {len(tokenizer)} tokens, and {weights.name} was trained with {rows}: "
            "set bert_path to the folder of bert-base-uncased"
        )
    _check_special_tokens(tokenizer, bert_path)
    model = _build_original(settings, tokenizer, bert_config)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of a shape; the first line names the class, the second a tensor
        raise ValueError(
            f"{weights} does not fit {variant}: {str(error).splitlines()[1].strip()}; {EXPECTED}"
        ) from error
    missing = [key for key in missing if not key.endswith(CONSTANT)]
    unexpected = [key for key in unexpected if key not in UNUSED]
    if missing or unexpected:
        raise ValueError(
            f"{weights} does not fit {variant}: {len(missing)} tensors are missing and {len(unexpected)} are unknown, "
            f"such as {(missing + unexpected)[0]}; {EXPECTED}"
        )
    return _Original(
        name=f"GroundingDINO {variant} ({weights.name}, groundingdino-py)",
        model=model,
        tokenizer=tokenizer,
        max_tokens=model.max_text_len,
        size={"shortest_edge": 800, "longest_edge": 1333},
        strides=[8, 16, 32, 64],
        num_queries=model.num_queries,
        compute=compute,
    )


def _read_original(weights: Path) -> dict[str, Tensor]:
    """The tensors of an authors' file by their names in the model."""
    content = load_plain(weights, f"; {EXPECTED}")
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{weights} is a checkpoint without 'model'; {EXPECTED}")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    for key in (PATCH_EMBED, WORD_EMBED):
        if not isinstance(state.get(key), Tensor):
            raise ValueError(f"{weights} is another model's checkpoint: it has no {key}; {EXPECTED}")
    return state


def _load_bert(folder: Path) -> tuple[Any, Any]:
    """BERT's tokenizer and configuration."""
    from transformers import BertConfig, BertTokenizerFast

    _require(folder, "bert_path", "BERT's vocabulary", "vocab.txt", "tokenizer.json")
    tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    if (folder / "config.json").is_file():
        return tokenizer, BertConfig.from_pretrained(folder, local_files_only=True)
    return tokenizer, BertConfig()  # that of bert-base-uncased


def _build_original(settings: str, tokenizer: Any, bert_config: Any) -> nn.Module:
    """The package's model with random weights, by its module `settings`; it fetches nothing."""
    from transformers import BertModel

    with _quiet():
        package = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
        values = vars(importlib.import_module(f"groundingdino.config.{settings}"))
    args = types.SimpleNamespace(**{name: value for name, value in values.items() if not name.startswith("__")})
    args.use_checkpoint = args.use_transformer_ckpt = False  # saves memory in training only
    loaders = types.SimpleNamespace(
        get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: BertModel(bert_config)
    )
    with _quiet(), _replaced(package, BertModelWarper=TextEncoder, get_tokenlizer=loaders):
        return package.build_groundingdino(args)


@contextlib.contextmanager
def _replaced(module: types.ModuleType, **names: Any) -> Iterator[None]:
    """Give `module` other objects under `names` for a while."""
    before = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the package calls in its dependencies that is to be called differently one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- transformers -----------------------------------------------------------------------------------------------------


class _Port(GroundingDino):
    def __init__(self, image_processor: Any, **rest: Any) -> None:
        super().__init__(**rest)
        self.image_processor = image_processor

    def _normalise(self, image: Image.Image) -> Tensor:
        return self.image_processor(images=image, do_resize=False, do_pad=False, return_tensors="pt")["pixel_values"]

    def _predict(self, pixels: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        text = self.tokenizer(caption, return_tensors="pt").to(pixels.device)
        output = self.model(pixel_values=pixels, **text)
        return output.logits[0], output.pred_boxes[0]


def load_transformers(folder: Path, compute: Compute) -> GroundingDino:
    """transformers' port, of any size, from a folder with the files of `IDEA-Research/grounding-dino-tiny`.

    The weights are safetensors, in which there is nothing to execute. Raises `FileNotFoundError` where a file is
    missing, and `ValueError` for one that is broken or another model's.
    """
    from transformers import AutoConfig, BertTokenizerFast, GroundingDinoForObjectDetection, GroundingDinoImageProcessor

    _require_port(folder)
    here = {"local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **here)
        if config.model_type != "grounding-dino":
            raise ValueError(f"its config.json is for {config.model_type!r}, expected 'grounding-dino'")
        tokenizer = BertTokenizerFast.from_pretrained(folder, **here)
        image_processor = GroundingDinoImageProcessor.from_pretrained(folder, **here)
        with quiet_transformers():
            model, report = GroundingDinoForObjectDetection.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
                **here,
            )
    except Exception as error:  # of transformers, safetensors, tokenizers, torch and json: each has its own
        raise ValueError(f"{folder} is not GroundingDINO for transformers, or broken: {reason(error)}") from error
    # transformers 4 lists names, 5 tuples of name and shapes
    reshaped = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    misfits = sorted(key for key in {*report["missing_keys"], *reshaped} if not key.endswith(CONSTANT))
    if misfits:
        raise ValueError(
            f"{folder}: {len(misfits)} of the model's tensors are missing, or of another shape than config.json says, "
            f"such as {misfits[0]}: fetch it again"
        )
    size = dict(image_processor.size)
    if not (size.keys() >= {"shortest_edge", "longest_edge"} or size.keys() >= {"height", "width"}):
        raise ValueError(
            f"{folder}: its image size is {size}, expected shortest_edge and longest_edge, or height and width"
        )
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise ValueError(f"{folder}: its vocabulary has {len(tokenizer)} tokens, and its weights know {rows}")
    _check_special_tokens(tokenizer, folder)
    backbone = config.backbone_config
    strides = [backbone.patch_size * 2 ** (stage - 1) for stage in backbone.out_indices]
    strides += [strides[-1] * 2**k for k in range(1, config.num_feature_levels - len(strides) + 1)]
    return _Port(
        image_processor=image_processor,
        name=f"GroundingDINO ({title(folder)}, transformers)",
        model=model,
        tokenizer=tokenizer,
        max_tokens=min(config.max_text_len, config.text_config.max_position_embeddings),
        size=size,
        strides=strides,
        num_queries=config.num_queries,
        compute=compute,
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _require_port(folder: Path) -> None:
    _require(folder, "dino_weights", "transformers' GroundingDINO", "config.json")
    _require(folder, "dino_weights", "its image size", "preprocessor_config.json", "processor_config.json")
    _require(folder, "dino_weights", "its vocabulary", "vocab.txt", "tokenizer.json")
    _require(folder, "dino_weights", "its weights", "*.safetensors")


def _require(folder: Path, parameter: str, what: str, *patterns: str) -> None:
    """Raise `FileNotFoundError` unless a file in `folder` matches one of `patterns`."""
    if not any(path for pattern in patterns for path in folder.glob(pattern)):
        raise FileNotFoundError(
            f"{folder} holds no {' or '.join(patterns)} ({what}): complete it, or set {parameter} to another folder"
        )


def _check_special_tokens(tokenizer: Any, folder: Path | str) -> None:
    """Raise `ValueError` for a vocabulary in which the ends of phrases have other numbers than in BERT's.

    Both packages cut the caption into phrases by them, transformers by the numbers alone: other ones go unnoticed.
    """
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if ids != list(SPECIAL_TOKENS.values()):
        raise ValueError(
            f"{folder}: its vocabulary numbers {', '.join(SPECIAL_TOKENS)} as {ids}, and GroundingDINO needs "
            f"{list(SPECIAL_TOKENS.values())}, as bert-base-uncased has them"
        )
