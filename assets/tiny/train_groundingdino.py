"""A GroundingDINO of 1.3 million parameters, trained on drawn scenes.

transformers' own loss did not learn at this size: nothing of it reaches the head that proposes the queries. Here the
proposals have a loss of their own, besides that of each decoder layer. Even so the text stayed without effect for the
first thousand steps, until two things were added: throw-away heads that name the shape and colour of what a query
holds, and a start at which every score is low, so that the first steps are not spent on that. Colours were learned
then, but no shapes, until the image's features had to name at every place what is there.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from phrases import WORDS, Phrase, make_phrases
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SwinConfig,
)

from common import Optimizers, Sample, draw_sample, normalised, run_steps
from helpers.shapes.draw import COLOURS
from helpers.shapes.scenes import SCENE_SHAPES

STEPS = 13000
LEARNING_RATE, MUON_RATE = 1e-3, 2.5e-3
PIXELS_A_STEP = 16 * 128 * 128
SHORTEST, LONGEST = 256, 512  # what the processor brings an image to, in pixels
SMALLEST = 8.0  # diameter of an object at that size; what is smaller hardly shows its shape
# The ids of [CLS], [SEP], "." and "?" are fixed in the model's code, as those of BERT's English vocabulary.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def make_tokenizer(folder: Path) -> BertTokenizerFast:
    """A vocabulary of whole words, those of the scenes' phrases; any other word is unknown."""
    words = iter(sorted(set(WORDS)))
    lines = [SPECIAL.get(i, f"[unused{i}]") for i in range(1030)] + list(words)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(vocabulary), do_lower_case=True, model_max_length=256)


def make_config(vocabulary: int) -> GroundingDinoConfig:
    """The architecture of GroundingDINO with Swin, every width and depth cut down."""
    backbone = SwinConfig(
        image_size=SHORTEST,
        embed_dim=32,
        depths=[1, 1, 3, 1],
        num_heads=[2, 2, 4, 8],
        window_size=5,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        out_indices=[2, 3, 4],
    )
    text = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=20,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        d_model=64,
        dropout=0.0,
        num_feature_levels=4,
        fusion_droppath=0.0,
    )


def make_model(vocabulary: int) -> GroundingDinoForObjectDetection:
    """With random weights, the text mixed into the image from the start (its layer scale is 0.0001 else).

    A score is the product of a query and a token, both of them the output of a layer norm. These start with gains that
    make the products small, and with opposite offsets in one direction that make them all about -3.
    """
    model = GroundingDinoForObjectDetection(make_config(vocabulary))
    for name, parameter in model.named_parameters():
        if name.endswith(("vision_param", "text_param")):
            nn.init.constant_(parameter, 0.1)
    inner = model.model
    direction = torch.randn(model.config.d_model)
    direction *= 3**0.5 / direction.norm()
    queries = (inner.enc_output_norm, inner.decoder.layer_norm)
    for norm, sign in ((inner.encoder.layers[-1].text_enhancer_layer.layer_norm_after, -1), *((n, 1) for n in queries)):
        nn.init.constant_(norm.weight, 0.35)
        norm.bias.data.copy_(sign * direction)
    return model


class KindHead(nn.Module):
    """Names shape and colour from a query [N, D], or that there is no object; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape, self.colour = nn.Linear(width, len(SCENE_SHAPES) + 1), nn.Linear(width, len(COLOURS) + 1)

    def loss(self, hidden: Tensor, kinds: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of both; kinds int64 [N, 2]; weights [N], whose sum is what the sum is divided by."""
        entropy = nn.functional.cross_entropy
        each = entropy(self.shape(hidden), kinds[:, 0], reduction="none")
        each = each + entropy(self.colour(hidden), kinds[:, 1], reduction="none")
        return each.mean() if weights is None else (each * weights).sum() / weights.sum()


def kinds_of(sample: Sample) -> np.ndarray:
    """Index of shape and colour of each object, int64 [N, 2]."""
    kinds = [(SCENE_SHAPES.index(o.shape), list(COLOURS).index(o.colour)) for o in sample.scene.objects]
    return np.array(kinds, np.int64).reshape(-1, 2)


def dense_targets(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """What is at each cell of the four levels of features (strides 8, 16, 32, 64): kinds [B, S, 2], the last index of
    each for the background, and weights [B, S], with which every object counts alike, and all of the background as
    much as one."""
    kinds, weights = [], []
    for sample in samples:
        height, width = sample.image.shape[:2]
        ids = np.full((height, width), len(sample.masks))
        for i, mask in enumerate(sample.masks):
            ids[mask] = i
        cells = []
        for stride in (8, 16, 32, 64):
            rows, columns = (
                ((np.arange(n) + 0.5) * side / n).astype(int) for side in (height, width) for n in (-(-side // stride),)
            )
            cells.append(ids[rows[:, None], columns].ravel())
        cells = np.concatenate(cells)
        kinds.append(np.vstack([kinds_of(sample), [len(SCENE_SHAPES), len(COLOURS)]])[cells])
        weights.append(1 / np.bincount(cells, minlength=1)[cells])
    return torch.from_numpy(np.stack(kinds)), torch.from_numpy(np.stack(weights)).float()


def canvas(rng: np.random.Generator, progress: float) -> tuple[int, int, int]:
    """Images a step, their height and width: small ones at first, at the end as the processor makes them."""
    ratio = 2 ** rng.uniform(0, 1)
    if progress < 0.75:
        short = math.exp(rng.uniform(math.log(88), math.log(128 + 160 * min(1, 1.5 * progress))))
    else:
        short = rng.uniform(0.7, 1.1) * SHORTEST
    height, width = (16 * max(4, round(side / 16)) for side in rng.permutation([short, ratio * short]))
    return min(16, max(3, round(PIXELS_A_STEP / (height * width)))), height, width


def token_targets(tokenizer, samples: list[Sample], prompts: list[list[Phrase]]):
    """The captions' tokens, and for each image, of the objects that have a phrase: classes [N, T] (1 at the tokens of
    the phrase), boxes [N, 4] (cx, cy, w, h, relative) and kinds [N, 2] (index of shape and colour)."""
    separator = tokenizer.convert_tokens_to_ids(".")
    rows, targets = [], []
    for sample, phrases in zip(samples, prompts, strict=True):
        row, spans = [tokenizer.cls_token_id], {}
        for phrase in phrases:
            ids = tokenizer(phrase.text, add_special_tokens=False)["input_ids"]
            spans |= dict.fromkeys(phrase.objects, (len(row), len(row) + len(ids)))
            row += [*ids, separator]
        rows.append([*row, tokenizer.sep_token_id])
        named = sorted(spans)
        boxes = box_convert(torch.from_numpy(sample.boxes[named]), "xyxy", "cxcywh")
        targets.append((named, spans, boxes, torch.from_numpy(kinds_of(sample)[named])))
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    truth = []
    for named, spans, boxes, kinds in targets:
        wanted = torch.zeros(len(named), length)
        for k, i in enumerate(named):
            wanted[k, spans[i][0] : spans[i][1]] = 1
        truth.append((wanted, boxes, kinds))
    return ids, mask, truth


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Elementwise, with alpha 0.25 and gamma 2 (Lin et al., 2017, section 3)."""
    probability = logits.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = targets * probability + (1 - targets) * (1 - probability)
    return (0.25 * targets + 0.75 * (1 - targets)) * (1 - right) ** 2 * entropy


def detection_loss(
    logits: Tensor, boxes: Tensor, hidden: Tensor, text_mask: Tensor, truth: list, head: KindHead, copies: int
) -> dict[str, Tensor]:
    """Focal loss on every token; L1, GIoU and the head's loss on the queries that are matched to an object: the
    `copies` of least cost each, exclusively by the Hungarian algorithm (Carion et al., 2020, section 3.1) if it is one.

    logits [B, Q, T], boxes [B, Q, 4] (cx, cy, w, h), hidden [B, Q, D], text_mask bool [B, T].
    """
    wanted = torch.zeros_like(logits)
    predicted, matched, states, kinds = [], [], [], []
    for i, (words, target, kind) in enumerate(truth):
        if not len(target):
            continue
        with torch.no_grad():
            score = logits[i].sigmoid() @ (words / words.sum(1, keepdim=True)).T  # [Q, N]
            overlap = generalized_box_iou(
                box_convert(boxes[i], "cxcywh", "xyxy"), box_convert(target, "cxcywh", "xyxy")
            )
            cost = 5 * torch.cdist(boxes[i], target, p=1) - 2 * overlap - 2 * score
            if copies == 1:
                queries, objects = map(torch.as_tensor, linear_sum_assignment(cost))
            else:
                queries = cost.topk(copies, dim=0, largest=False).indices  # [copies, N]
                objects = torch.arange(len(target)).expand_as(queries).flatten()
                queries = queries.flatten()
        wanted[i, queries] = words[objects]
        predicted.append(boxes[i, queries])
        states.append(hidden[i, queries])
        matched.append(target[objects])
        kinds.append(kind[objects])
    count = max(1, sum(map(len, matched)))
    loss = {"class": (focal_loss(logits, wanted) * text_mask[:, None]).sum() / count}
    if matched:
        predicted, matched = torch.cat(predicted), torch.cat(matched)
        loss["l1"] = (predicted - matched).abs().sum() / count
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (predicted, matched)]
        loss["giou"] = (1 - generalized_box_iou(*corners).diagonal()).sum() / count
        loss["kind"] = head.loss(torch.cat(states), torch.cat(kinds))
    return loss


WEIGHTS = {"class": 4.0, "l1": 5.0, "giou": 2.0, "kind": 0.5}


def total_loss(model, heads, samples, pixels, ids, mask, truth) -> tuple[Tensor, dict[str, float]]:
    """Sum over both decoder layers, the proposals and the image's features, and what to log of it."""
    out = model.model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    text, known = out.encoder_last_hidden_state_text, mask.bool()
    length = ids.shape[1]
    parts = [
        detection_loss(
            out.enc_outputs_class[..., :length].masked_fill(~known[:, None], 0),
            out.enc_outputs_coord_logits.sigmoid(),
            out.encoder_last_hidden_state_vision,
            known,
            truth,
            heads[0],
            copies=5,
        )
    ]
    for layer in range(out.intermediate_hidden_states.shape[1]):
        hidden = out.intermediate_hidden_states[:, layer]
        reference = out.intermediate_reference_points[:, layer - 1] if layer else out.init_reference_points
        logits = model.class_embed[layer](hidden, text, known)[..., :length].masked_fill(~known[:, None], 0)
        boxes = (model.bbox_embed[layer](hidden) + torch.logit(reference, eps=1e-5)).sigmoid()
        parts.append(detection_loss(logits, boxes, hidden, known, truth, heads[layer + 1], copies=1))
    kinds, weights = dense_targets(samples)
    hidden = out.encoder_last_hidden_state_vision
    dense = heads[-1].loss(hidden.flatten(0, 1), kinds.flatten(0, 1), weights.flatten())
    loss = sum(WEIGHTS[name] * value for part in parts for name, value in part.items()) + 2 * dense
    figures = {
        "dense": dense.item(),
        "proposal": parts[0]["class"].item(),
        **{name: value.item() for name, value in parts[-1].items()},
    }
    return loss, {"loss": loss.item(), **figures}


def train(seed: int, work: Path, out: Path, steps: int = STEPS, torch_muon: bool = False) -> None:
    """Train from `seed`, going on from the state in `work` if there is one, and write the transformers folder `out`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(work)
    model = make_model(len(tokenizer)).train()
    print(f"GroundingDINO: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    heads = nn.ModuleList(KindHead(model.config.d_model) for _ in range(2 + model.config.decoder_layers))
    # Where a query looks, and its box, are small changes of what they were: not for Muon's steps of one size.
    plain = ("sampling_offsets", "attention_weights", "bbox_embed")
    optimizers = Optimizers([model, heads], 1e-4, plain, torch_muon)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": SHORTEST, "longest_edge": LONGEST})

    def step_once(step: int, rng: np.random.Generator) -> dict[str, float]:
        count, height, width = canvas(rng, step / steps)
        smallest = 14 if step < 0.2 * steps else SMALLEST  # shapes are learned sooner on large objects
        samples = [draw_sample(rng, height, width, smallest) for _ in range(count)]
        prompts = [make_phrases(rng, s.scene, rng.integers(1, 6), rng.integers(0, 5)) for s in samples]
        ids, mask, truth = token_targets(tokenizer, samples, prompts)
        pixels = normalised((s.image for s in samples), processor.image_mean, processor.image_std)
        rate = min(1, (step + 1) / 200, 1 - step / steps)
        loss, figures = total_loss(model, heads, samples, pixels, ids, mask, truth)
        optimizers.step(loss, rate * LEARNING_RATE, rate * MUON_RATE)
        return figures

    parts = {"model": model, "heads": heads, "adamw": optimizers.adamw, "muon": optimizers.muon}
    run_steps(work / "groundingdino.pt", parts, steps, seed, step_once)
    save(model, tokenizer, processor, out)


def save(model, tokenizer, processor, out: Path) -> None:
    """Write the folder, weights in half precision."""
    model.half().save_pretrained(out, safe_serialization=True)
    model.float()
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(out)
    processor.save_pretrained(out)  # under the name that transformers 4 looks for
