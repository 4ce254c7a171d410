"""Trains the tiny SAM 2: a box on a scene -> the mask of what it holds, and an estimate of the mask's IoU; then on
clips too, where the mask is to follow its object through the frames.

The architecture is that of the package `sam2`, memory and object pointers included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from common import Optimizers, Sample, draw_sample, normalised, run_steps
from helpers.common.boxes import mask_box
from helpers.common.files import atomic_path
from helpers.shapes.clips import Clip, make_clip
from helpers.shapes.scenes import Scene, SceneObject

SIZE = 512  # of the input: the masks have a quarter of it, at which an object of 24 of 1024 pixels still spans 3
WIDTH, MEMORY = 96, 32  # channels of the features and of the memories
STAGES = (32, 48, 72, 108)  # channels of the image encoder's stages

_MODELING = "sam2.modeling"
_POSITIONS = {"_target_": f"{_MODELING}.position_encoding.PositionEmbeddingSine", "normalize": True, "scale": None}
_ATTENTION = {
    "_target_": f"{_MODELING}.sam.transformer.RoPEAttention",
    "rope_theta": 10000.0,
    "feat_sizes": [SIZE // 16, SIZE // 16],
    "embedding_dim": WIDTH,
    "num_heads": 1,
    "downsample_rate": 1,
    "dropout": 0.0,
}
MODEL = {
    "_target_": f"{_MODELING}.sam2_base.SAM2Base",
    "image_encoder": {
        "_target_": f"{_MODELING}.backbones.image_encoder.ImageEncoder",
        "scalp": 1,
        "trunk": {
            "_target_": f"{_MODELING}.backbones.hieradet.Hiera",
            "embed_dim": STAGES[0],
            "num_heads": 2,
            "dim_mul": 1.5,
            "head_mul": 1.5,
            "stages": [1, 1, 2, 1],
            "window_spec": [8, 4, 4, 2],
            "global_att_blocks": [3],
            "window_pos_embed_bkg_spatial_size": [8, 8],
        },
        "neck": {
            "_target_": f"{_MODELING}.backbones.image_encoder.FpnNeck",
            "position_encoding": {**_POSITIONS, "num_pos_feats": WIDTH},
            "d_model": WIDTH,
            "backbone_channel_list": list(STAGES[::-1]),
            "fpn_top_down_levels": [2, 3],
            "fpn_interp_model": "nearest",
        },
    },
    "memory_attention": {
        "_target_": f"{_MODELING}.memory_attention.MemoryAttention",
        "d_model": WIDTH,
        "pos_enc_at_input": True,
        "num_layers": 2,
        "layer": {
            "_target_": f"{_MODELING}.memory_attention.MemoryAttentionLayer",
            "activation": "relu",
            "d_model": WIDTH,
            "dim_feedforward": WIDTH,
            "dropout": 0.0,
            "pos_enc_at_attn": False,
            "pos_enc_at_cross_attn_keys": True,
            "pos_enc_at_cross_attn_queries": False,
            "self_attention": _ATTENTION,
            "cross_attention": {**_ATTENTION, "rope_k_repeat": True, "kv_in_dim": MEMORY},
        },
    },
    "memory_encoder": {
        "_target_": f"{_MODELING}.memory_encoder.MemoryEncoder",
        "in_dim": WIDTH,
        "out_dim": MEMORY,
        "position_encoding": {**_POSITIONS, "num_pos_feats": MEMORY},
        "mask_downsampler": {
            "_target_": f"{_MODELING}.memory_encoder.MaskDownSampler",
            "embed_dim": WIDTH,
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
        },
        "fuser": {
            "_target_": f"{_MODELING}.memory_encoder.Fuser",
            "num_layers": 1,
            "layer": {
                "_target_": f"{_MODELING}.memory_encoder.CXBlock",
                "dim": WIDTH,
                "kernel_size": 7,
                "padding": 3,
                "layer_scale_init_value": 0.1,  # 1e-6 would take longer to grow than this training lasts
                "use_dwconv": True,
            },
        },
    },
    "num_maskmem": 4,  # 7 in the released models: on a CPU the attention to them takes most of the time
    "image_size": SIZE,
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "no_obj_embed_spatial": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "multimask_output_for_tracking": False,  # one mask less to be trained on clips
    "use_multimask_token_for_obj_ptr": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_mlp_for_obj_ptr_proj": True,
}

# Steps in all; of these, those until the learning rates reach 0 for the first time; of these, the first with images
# only; of these, the first with small ones only.
STEPS, FIRST_STEPS, IMAGE_STEPS, SMALL_STEPS = 6400, 4400, 900, 600
IMAGES = ((192, 8), (320, 4), (SIZE, 2))  # (size of the input, images a step)
CLIPS = ((192, 2, 8), (320, 1, 7), (SIZE, 1, 5))  # (size, clips a step, frames of each), every second step
CHANCES = (0.65, 0.22, 0.13)  # of the sizes: small images' objects have as many pixels as small ones of large images
# After `FIRST_STEPS`, two steps of three are on clips, longer and larger ones, and objects are more alike.
LATER_CLIPS = ((192, 1, 14), (320, 1, 8), (SIZE, 1, 5))
LATER_CHANCES = (0.5, 0.3, 0.2)
ALIKE = (0.6, 0.85)  # share of a clip's objects that have something in common with another
LEARNING_RATE, MUON_RATE, WARM_UP, WEIGHT_DECAY = 1e-3, 2.5e-3, 100, 0.02
SMALLEST = 9.0  # diameter in pixels of the input
CROWDED = 0.4  # share of the images in which objects hide much of one another
GOOD_BOXES = 3  # most an image
POINTS = 48  # the masks are compared at POINTS x POINTS places in and around the box


# Shares of the memories that hold the true mask, and of the clips whose memories are told the truth about which objects
# can be seen: at the first step with clips, and from `TRUE_STEPS` steps later on.
TRUE_MEMORY, TRUE_PRESENCE, TRUE_STEPS = (0.9, 0.15), (1.0, 0.3), 2200
OBJECTS = 3  # most that are followed in a clip
TIME_SPAN = 60  # frames; SAM 2 measures the age of what it remembers by the length of a clip if that is under 16

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build() -> torch.nn.Module:
    """The untrained model."""
    model = instantiate(OmegaConf.create(MODEL), _recursive_=True)
    # Positions are Fourier features of frequencies that stay as they were drawn. Here half of them go along each axis,
    # from a tenth of a period to 5 periods for half the image: the slow ones tell easily on which side of a box's edge
    # a place lies.
    matrix = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    half = matrix.shape[1] // 2
    frequencies = torch.logspace(-1, math.log10(5), half)
    matrix.zero_()
    matrix[0, :half], matrix[1, half:] = frequencies, frequencies
    return model


def set_size(model: torch.nn.Module, size: int) -> None:
    """Let the model take images of size x size pixels, a multiple of 32."""
    model.image_size = size
    model.sam_image_embedding_size = size // 16
    prompts = model.sam_prompt_encoder
    prompts.input_image_size, prompts.image_embedding_size = (size, size), (size // 16, size // 16)
    prompts.mask_input_size = (size // 4, size // 4)


@dataclass
class Batch:
    """`images` [B, 3, S, S], normalised. For each of the N boxes: `image` [N] its image's index; `boxes` [N, 4] in
    pixels; `good` [N] whether it is one of an object, of index `target` [N]; `empty` [N] whether nothing is in it;
    `window` [N, 4] the part of the image, x0, y0, x1, y1 relative, in which masks are compared; `ids` [N, P, P] the
    objects' indices there, -1 for the background; `areas` [N, 5] of all objects, relative to the image."""

    images: Tensor
    image: Tensor
    boxes: Tensor
    good: Tensor
    empty: Tensor
    target: Tensor
    window: Tensor
    ids: Tensor
    areas: Tensor


def _jitter(rng: np.random.Generator, box: np.ndarray, size: int) -> np.ndarray:
    """A box [4] in pixels as a detector would give it: mostly off by a few per cent of its size and about a pixel."""
    scale = math.exp(rng.normal(0, 0.6))
    width, height = box[2:] - box[:2]
    spread = scale * (0.04 * np.array([width, height, width, height]) + 0.8)
    x0, y0, x1, y1 = (box + rng.normal(0, 1, 4) * np.minimum(spread, 0.15 * min(width, height) + 0.5)).clip(0, size)
    return np.array([x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)])


def _bad_box(rng: np.random.Generator, boxes: np.ndarray, size: int) -> np.ndarray:
    """A box [4] in pixels that is anywhere, far too large, beside an object, or around a part of it."""
    x0, y0, x1, y1 = boxes[rng.integers(len(boxes))]
    width, height, kind = x1 - x0, y1 - y0, rng.random()
    if kind < 0.4:
        width, height = np.exp(rng.uniform(math.log(SMALLEST), math.log(0.5 * size), 2))
        x0, y0 = rng.uniform(0, size - width), rng.uniform(0, size - height)
    elif kind < 0.6:
        grow = rng.uniform(0.3, 1.5, 4)
        x0, y0, x1, y1 = x0 - grow[0] * width, y0 - grow[1] * height, x1 + grow[2] * width, y1 + grow[3] * height
        width, height = x1 - x0, y1 - y0
    elif kind < 0.8:
        turn, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.2)
        x0, y0 = x0 + far * math.cos(turn) * width, y0 + far * math.sin(turn) * height
    else:
        share = rng.uniform(0.3, 0.6, 2)
        x0, y0 = (x0, y0) + rng.uniform(0, 1, 2) * (1 - share) * (width, height)
        width, height = share * (width, height)
    box = np.array([x0, y0, x0 + width, y0 + height]).clip(0, size)
    return box if (box[2:] - box[:2] >= 3).all() else np.array([0.0, 0.0, size, size])


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which of `boxes` [N, 4] share more than a sliver with `box` [4]."""
    wide, high = (np.minimum(box[2 + i], boxes[:, 2 + i]) - np.maximum(box[i], boxes[:, i]) for i in (0, 1))
    return (wide > 1) & (high > 1)


def draw_crowded(rng: np.random.Generator, size: int, alike: float) -> Sample:
    """A frame of a clip, size x size pixels: objects lie over one another, behind posts and across the image's edge."""
    wide, high = (round(size * ratio) for ratio in rng.permutation((1, rng.uniform(1, 1.6))))
    smallest = SMALLEST * max(high, wide) / size
    clip = make_clip(rng, high, wide, 2, objects=(2, 5), min_diameter=smallest, max_share=0.55, alike=alike)
    t = rng.integers(2)
    seen = [item for item in clip.objects if _shows(item.masks[t])]
    objects = [SceneObject(item.shape, item.colour, item.diameter, item.masks[t]) for item in seen]
    boxes = np.array([mask_box(item.mask) for item in objects], np.float32).reshape(-1, 4)
    boxes /= np.array([wide, high] * 2, np.float32)
    image = cv2.resize(clip.frames[t], (size, size), interpolation=cv2.INTER_AREA)
    return Sample(image, np.empty((0, size, size), bool), boxes, Scene(clip.frames[t], objects))


def draw_batch(rng: np.random.Generator, size: int, images: int, alike: float) -> Batch:
    """Scenes, and boxes around some of their objects and elsewhere."""
    rows: list[tuple[Any, ...]] = []
    pictures = []
    while len(pictures) < images:
        if rng.random() < CROWDED:
            sample = draw_crowded(rng, size, alike)
        else:
            sample = draw_sample(rng, size, size, SMALLEST, 2 ** rng.uniform(-1, 1))
        if not len(sample.boxes):
            continue
        objects = sample.boxes * size
        tall, wide = sample.scene.image.shape[:2]
        ids = np.full((tall, wide), -1, np.int8)
        areas = np.zeros(5, np.float32)
        for i, item in enumerate(sample.scene.objects):
            ids[item.mask] = i
            areas[i] = item.mask.mean()
        prompts = [(_jitter(rng, objects[i], size), i) for i in rng.permutation(len(objects))[:GOOD_BOXES]]
        if rng.random() < 0.7:
            prompts.append((_bad_box(rng, objects, size), -1))
        for box, target in prompts:
            inside = _overlaps(box, objects)
            near = objects[inside] if target < 0 else objects[target : target + 1]
            hull = np.concatenate([np.vstack([near, box]).min(0)[:2], np.vstack([near, box]).max(0)[2:]])
            margin = 0.2 * (hull[2:] - hull[:2]) + 3
            window = np.concatenate([hull[:2] - margin, hull[2:] + margin]).clip(0, size) / size
            # places in the middles of P x P cells
            at = (np.arange(POINTS) + 0.5) / POINTS
            x, y = ((window[i] + at * (window[2 + i] - window[i])) for i in (0, 1))
            seen = ids[np.minimum(y * tall, tall - 1).astype(int)[:, None], np.minimum(x * wide, wide - 1).astype(int)]
            rows.append((len(pictures), box, target >= 0, not inside.any(), max(target, 0), window, seen, areas))
        pictures.append(sample.image)
    return Batch(normalised(pictures, MEAN, STD), *_columns(rows))


def _columns(rows: list[tuple[Any, ...]]) -> list[Tensor]:
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return [c.float() if c.is_floating_point() else c for c in columns]


def decode(model: torch.nn.Module, features: Tensor, fine: list[Tensor], points: tuple[Tensor, Tensor]) -> tuple:
    """Mask logits, estimates, tokens and presence for prompts: points [N, K, 2] in pixels and their labels [N, K]."""
    sparse, dense = model.sam_prompt_encoder(points, None, None)
    return model.sam_mask_decoder.predict_masks(
        image_embeddings=features,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=fine,
    )


def predict(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [N, 4, S/4, S/4] of the single and the three ambiguous masks, estimates [N, 4] of their IoU, and the
    logits [N, 1] of an object being there: what `SAM2ImagePredictor` computes. And the features [N, S*S/256, WIDTH] of
    the image as the decoder's transformer leaves them."""
    features = model.forward_image(batch.images)["backbone_fpn"]
    features[-1] = features[-1] + model.no_mem_embed.permute(1, 2, 0)[..., None]
    fine, middle, coarse = (level[batch.image] for level in features)
    labels = torch.tensor([[2, 3]]).expand(len(batch.boxes), 2)  # the two corners of a box
    left: list[Tensor] = []
    hook = model.sam_mask_decoder.transformer.register_forward_hook(lambda *call: left.append(call[2][1]))
    logits, ious, _, present = decode(model, coarse, [fine, middle], (batch.boxes.reshape(-1, 2, 2), labels))
    hook.remove()
    return logits, ious, present, left[0]


def inside_box(head: torch.nn.Module, batch: Batch, features: Tensor) -> Tensor:
    """Cross-entropy of which share of each cell of 16 x 16 pixels lies inside the box, as `head` reads it from
    `features` [N, S*S/256, WIDTH]. Without this task the training stays where all objects are segmented, whatever the
    box: it has the decoder compare the image's places with the box's corners."""
    edges = 16.0 * torch.arange(math.isqrt(features.shape[1]) + 1)
    low, high = (batch.boxes[:, i : i + 2, None] for i in (0, 2))  # [N, 2, 1]
    share = ((torch.minimum(edges[1:], high) - torch.maximum(edges[:-1], low)) / 16).clamp(min=0)  # [N, 2, S/16]
    share = share[:, 1, :, None] * share[:, 0, None, :]
    return F.binary_cross_entropy_with_logits(head(features)[..., 0], share.flatten(1))


def losses(batch: Batch, logits: Tensor, ious: Tensor, present: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy and dice of the masks, in a window around each box so that small objects count as much as large
    ones, with the focal loss outside of it; squared error of the estimates; cross-entropy of presence."""
    side = logits.shape[-1]
    at = (torch.arange(POINTS) + 0.5) / POINTS
    x, y = ((batch.window[:, i, None] + at * (batch.window[:, 2 + i] - batch.window[:, i])[:, None]) for i in (0, 1))
    grid = torch.stack((x[:, None, :].expand(-1, POINTS, -1), y[:, :, None].expand(-1, -1, POINTS)), -1)
    inside = F.grid_sample(logits, 2 * grid - 1, padding_mode="border", align_corners=False).flatten(2)  # [N, 4, P*P]
    middles = (torch.arange(side) + 0.5) / side
    in_x, in_y = ((middles > batch.window[:, i, None]) & (middles < batch.window[:, 2 + i, None]) for i in (0, 1))
    outside = ~(in_y[:, :, None] & in_x[:, None, :])[:, None]  # [N, 1, S/4, S/4]

    with torch.no_grad():  # IoU with every object, of which the best counts
        cell = (batch.window[:, 2:] - batch.window[:, :2]).prod(1) / POINTS**2
        found = (inside > 0).float()
        members = (batch.ids.flatten(1)[:, None] == torch.arange(5)[:, None]).float()  # [N, 5, P*P]
        shared = found @ members.transpose(1, 2) * cell[:, None, None]  # [N, 4, 5]
        area = found.sum(2) * cell[:, None] + ((logits > 0) & outside).sum((2, 3)) / side**2
        overlap = shared / (area[..., None] + batch.areas[:, None] - shared).clamp(min=1e-9)
        best = overlap.max(2).values

    good = batch.good
    truth = (batch.ids.flatten(1) == batch.target[:, None])[good][:, None].float()
    inside = inside[good]
    cross = F.binary_cross_entropy_with_logits(inside, truth.expand_as(inside), reduction="none").mean(2)
    chance = inside.sigmoid()
    dice = 1 - (2 * (chance * truth).sum(2) + 1) / (chance.sum(2) + truth.sum(2) + 1)
    stray = logits[good] * outside[good] - 20.0 * ~outside[good]
    cells = (~outside).sum((2, 3)).clamp(min=64)
    far = (F.softplus(stray) * stray.sigmoid() ** 2).sum((2, 3)) / cells[good]
    nothing = logits[batch.empty]
    nothing = (F.softplus(nothing) * nothing.sigmoid() ** 2).sum((2, 3)) / cells[batch.empty]
    weights = torch.tensor([1.0, 0.3, 0.3, 0.3])  # the single mask, and those for ambiguous prompts
    mask = ((2 * cross + dice + 0.5 * far) * weights).sum(1).mean() + 0.1 * (nothing * weights).sum() / len(logits)
    error = (ious - best) ** 2
    estimate = (error * weights).sum(1).mean()
    sure = good | batch.empty
    presence = F.binary_cross_entropy_with_logits(present[sure, 0], good[sure].float())
    own = overlap[good, 0].gather(1, batch.target[good, None])
    figures = {
        "bce": cross[:, 0].mean(),
        "dice": dice[:, 0].mean(),
        "far": far[:, 0].mean(),
        "iou": own.mean(),
        "estimate": error[:, 0].mean().sqrt(),
        "presence": presence,
    }
    return mask + 2 * estimate + 0.1 * presence, {name: value.item() for name, value in figures.items()}


# --- Clips -----------------------------------------------------------------------------------------------------------


def draw_clip(rng: np.random.Generator, size: int, frames: int, alike: float) -> Clip:
    """Consecutive frames of a clip, anything from a fast one to a slow one. On the first of them something shows, which
    in most is hidden later on."""
    while True:
        length = round(frames * math.exp(rng.uniform(math.log(1.2), math.log(10))))
        height, width = (round(size * ratio) for ratio in rng.permutation((1, rng.uniform(1, 1.6))))
        smallest = SMALLEST * max(height, width) / size
        clip = make_clip(rng, height, width, length, objects=(1, 4), min_diameter=smallest, alike=alike)
        shows = np.array([[_shows(mask) for mask in item.masks] for item in clip.objects])  # [N, T]
        hidden = ~np.array([item.masks.any((1, 2)) for item in clip.objects])
        starts = [t for t in range(length - frames + 1) if shows[:, t].any()]
        events = [t for t in starts if (shows[:, t] & hidden[:, t : t + frames].any(1)).any()]
        if not starts or (not events and rng.random() < 0.4):
            continue
        start = rng.choice(events if events and rng.random() < 0.7 else starts)
        clip.frames = clip.frames[start : start + frames]
        for item in clip.objects:
            item.masks = item.masks[start : start + frames]
        return clip


def _shows(mask: np.ndarray) -> bool:
    return np.count_nonzero(mask) > 40


def _box(mask: np.ndarray, size: int) -> np.ndarray:
    """Box of a mask [H, W] in pixels of the model's input."""
    return np.array(mask_box(mask)) * (size / np.array([mask.shape[1], mask.shape[0]] * 2))


def _clip_rows(rng: np.random.Generator, clip: Clip, first: int, size: int) -> list[list[tuple[Any, ...]]]:
    """For each object followed a row for each frame, whose images are numbered from `first`: the true mask
    [S/4, S/4] as logits, and what `Batch` holds. Only the first box of an object is a prompt."""
    tall, wide = clip.frames.shape[1:3]
    at = (np.arange(POINTS) + 0.5) / POINTS
    tracks = []
    seen = [i for i, item in enumerate(clip.objects) if _shows(item.masks[0])]
    for i in rng.permutation(seen)[:OBJECTS]:
        window = np.array([0.0, 0.0, 1.0, 1.0])
        track = []
        for t in range(len(clip.frames)):
            ids = np.full((tall, wide), -1, np.int8)
            areas = np.zeros(5, np.float32)
            for k, item in enumerate(clip.objects):
                ids[item.masks[t]] = k
                areas[k] = item.masks[t].mean()
            visible = bool(clip.objects[i].masks[t].any())
            box = _box(clip.objects[i].masks[t], size) if visible else np.array([0.0, 0.0, size, size])
            if visible:
                margin = 0.25 * (box[2:] - box[:2]) + 4
                window = np.concatenate([box[:2] - margin, box[2:] + margin]).clip(0, size) / size
            x, y = ((window[a] + at * (window[2 + a] - window[a])) for a in (0, 1))
            places = ids[
                np.minimum(y * tall, tall - 1).astype(int)[:, None], np.minimum(x * wide, wide - 1).astype(int)
            ]
            prompt = _jitter(rng, box, size) if t == 0 else box
            small = cv2.resize(
                clip.objects[i].masks[t].astype(np.float32), (size // 4,) * 2, interpolation=cv2.INTER_AREA
            )
            track.append((20 * small - 10, first + t, prompt, visible, not visible, i, window, places, areas))
        tracks.append(track)
    return tracks


def follow(
    model: torch.nn.Module, images: Tensor, tracks: list[list[tuple]], forced: bool, truth: float
) -> tuple[Batch, tuple]:
    """What the model makes of each object on each frame, the first one prompted with its box: the batch of all frames'
    rows, and its logits, estimates and presence as from `predict`, but with memories and pointers as SAM 2 uses them
    (`SAM2Base.track_step`). While `forced`, the memory is told whether the object can be seen: the package's hard
    choice lets no gradient through. `truth` is the share of the memories that are made of the true mask: those of bad
    masks teach nothing."""
    out = model.forward_image(images)
    levels, positions = out["backbone_fpn"], out["vision_pos_enc"]
    sizes = [level.shape[-2:] for level in levels]
    memory: dict[str, dict] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    batches, answers = [], []
    for t, rows in enumerate(zip(*tracks, strict=True)):
        true_mask, *columns = _columns(list(rows))
        batch = Batch(images, *columns)
        count = len(rows)
        current = [level[batch.image] for level in levels]
        tokens, token_positions = (
            [level.flatten(2).permute(2, 0, 1) for level in maps]
            for maps in (current, [position[batch.image] for position in positions])
        )
        features = model._prepare_memory_conditioned_features(
            frame_idx=t,
            is_init_cond_frame=t == 0,
            current_vision_feats=tokens[-1:],
            current_vision_pos_embeds=token_positions[-1:],
            feat_sizes=sizes[-1:],
            output_dict=memory,
            num_frames=TIME_SPAN,
        )
        if t == 0:
            prompt = batch.boxes.reshape(-1, 2, 2), torch.tensor([[2, 3]]).expand(count, 2)
        else:
            prompt = torch.zeros(count, 1, 2), -torch.ones(count, 1, dtype=torch.int32)
        logits, ious, objects, present = decode(model, features, current[:2], prompt)
        visible = (batch.good if forced else present[:, 0].detach() > 0)[:, None]  # [N, 1]
        told = torch.rand(count, 1, 1, 1) < truth
        visible = torch.where(told[:, 0, 0], batch.good[:, None], visible)
        mask = torch.where(told, true_mask[:, None], logits[:, :1])
        mask = torch.where(visible[..., None, None], mask, torch.tensor(-1024.0))
        encoded, encoded_positions = model._encode_new_memory(
            current_vision_feats=tokens,
            feat_sizes=sizes,
            pred_masks_high_res=F.interpolate(mask, (model.image_size,) * 2, mode="bilinear", align_corners=False),
            object_score_logits=torch.where(visible, 10.0, -10.0),
            is_mask_from_pts=t == 0,
        )
        memory["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = {
            "maskmem_features": encoded,
            "maskmem_pos_enc": encoded_positions,
            "obj_ptr": torch.where(visible, model.obj_ptr_proj(objects[:, 0]), model.no_obj_ptr),
        }
        batches.append(batch)
        answers.append((logits, ious, present))
    columns = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in Batch.__annotations__
        if name != "images"
    }
    return Batch(images, **columns), tuple(map(torch.cat, zip(*answers, strict=True)))


def save(model: torch.nn.Module, out: Path) -> None:
    """Write `config.yaml` and `model.safetensors` (fp16) to the folder `out`."""
    with atomic_path(out / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.create({"model": MODEL}), temporary)
    with atomic_path(out / "model.safetensors") as temporary:
        save_file({name: value.detach().half().contiguous() for name, value in model.state_dict().items()}, temporary)


def _rate(step: int) -> float:
    """Share of the learning rates: a warm-up, down to a half by `IMAGE_STEPS` to twice that, to 0 at `FIRST_STEPS`;
    from there up to a half again, and to 0 at the end."""
    if step >= FIRST_STEPS:
        again = step - FIRST_STEPS
        return 0.5 * min(1.0, (again + 1) / WARM_UP) * (1 - again / (STEPS - FIRST_STEPS))
    settled = min(1.0, max(0.5, 1.5 - 0.5 * step / IMAGE_STEPS))
    return min(1.0, (step + 1) / WARM_UP) * settled * min(1.0, 4 * (1 - step / FIRST_STEPS))


def _towards(ends: tuple[float, float], step: int) -> float:
    """Between two ends, as `TRUE_STEPS` has it."""
    return ends[0] + (ends[1] - ends[0]) * min(1.0, (step - IMAGE_STEPS) / TRUE_STEPS)


def train(seed: int, work: Path, out: Path) -> None:
    """Train on one thread and write the model to `out`; goes on from what an interrupted run left in `work`."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = build().train()
    head = torch.nn.Linear(WIDTH, 1)  # thrown away afterwards
    optimizers = Optimizers([model, head], WEIGHT_DECAY)

    def step_once(step: int, rng: np.random.Generator) -> dict[str, float]:
        later = step >= FIRST_STEPS
        chances = LATER_CHANCES if later else CHANCES
        kind = 0 if step < SMALL_STEPS else rng.choice(len(chances), p=chances)
        if step % 3 == 0 if later else step < IMAGE_STEPS or step % 2:
            size, count = IMAGES[kind]
            set_size(model, size)
            batch = draw_batch(rng, size, count, ALIKE[later])
            *answer, features = predict(model, batch)
            loss, figures = losses(batch, *answer)
            inside = inside_box(head, batch, features)
            loss = loss + 2 * inside
            figures["inside"] = inside.item()
        else:
            size, count, length = (LATER_CLIPS if later else CLIPS)[kind]
            set_size(model, size)
            clips = [draw_clip(rng, size, length, ALIKE[later]) for _ in range(count)]
            tracks = [row for i, clip in enumerate(clips) for row in _clip_rows(rng, clip, i * length, size)]
            pictures = [
                cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for c in clips for frame in c.frames
            ]
            pixels = normalised(pictures, MEAN, STD)
            forced = rng.random() < _towards(TRUE_PRESENCE, step)
            batch, answer = follow(model, pixels, tracks, forced, _towards(TRUE_MEMORY, step))
            loss, figures = losses(batch, *answer)
            present = answer[2][:, 0]
            loss = loss + 0.4 * F.binary_cross_entropy_with_logits(present, batch.good.float())
            figures = {
                "clip iou": figures["iou"],
                "seen": (present[batch.good] > 0).float().mean().item(),
                "hidden": (present[~batch.good] < 0).float().mean().item(),
            }
        optimizers.step(loss, _rate(step) * LEARNING_RATE, _rate(step) * MUON_RATE)
        return figures

    parts = {"model": model, "head": head, "adamw": optimizers.adamw, "muon": optimizers.muon}
    run_steps(work / "sam2.pt", parts, STEPS, seed, step_once, every=50)
    set_size(model, SIZE)
    save(model.eval(), out)
