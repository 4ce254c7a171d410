"""Trains the tiny CLIPSeg: the architecture of `transformers`, on scenes of shapes and colours.

Both towers are trained here from nothing together with the decoder, on one loss; in the published model they are CLIP's
and frozen (Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022, section 3). `forward()`
runs them without gradients, so training calls their parts.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from phrases import WORDS, make_phrases, scene_size
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

from common import Optimizers, Sample, draw_sample, normalised, run_steps
from helpers.common.files import atomic_path
from helpers.shapes.draw import COLOURS
from helpers.shapes.scenes import SCENE_SHAPES, make_scene

STAGES = ((96, 7000), (128, 800), (192, 850))  # pixels and steps: what is learned on few patches serves on many
SIZE, STEPS = STAGES[-1][0], sum(steps for _, steps in STAGES)  # SIZE is also the processor's
PATCH = 8
SCENES = 12  # a step; all phrases of a scene share one pass of the vision tower
PRESENT, ABSENT = 3, 5  # phrases a scene, at most
SMALLEST = 5.5  # least diameter of an object, in pixels of the model's input
LEARNING_RATE, MUON_RATE, WARMUP, WEIGHT_DECAY = 1e-3, 2.5e-3, 100, 0.02
MEAN, STD = [0.5] * 3, [0.25] * 3  # of the pixels in [0, 1]
THRESHOLD = 0.4  # at which the progress is measured
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


# --- The folder: tokenizer, processor, model -----------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE in which every word of the phrases is one token and all other text falls into pieces."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator(
        [" ".join(WORDS)], trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]
    ]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(m.replace(" ", "") for m in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def write_processor(folder: Path) -> None:
    """Write what `CLIPSegProcessor.from_pretrained` reads of every version: images are stretched to a square."""
    processor = {
        "processor_class": "CLIPSegProcessor",
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    tokenizer = {
        "processor_class": "CLIPSegProcessor",
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    for name, content in (("preprocessor_config", processor), ("tokenizer_config", tokenizer)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def build_model(tokenizer: CLIPTokenizer) -> CLIPSegForImageSegmentation:
    """The untrained model. Each linear map keeps the variance of what enters it: with the default initial weights
    (0.02) it stays at segmenting every object, whatever the phrase."""
    config = CLIPSegConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        projection_dim=64,
        reduce_dim=64,
        extract_layers=[2, 5],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=192,
    )
    model = CLIPSegForImageSegmentation(config)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
    nn.init.normal_(model.clip.text_model.embeddings.token_embedding.weight, std=0.5)
    nn.init.ones_(model.decoder.film_mul.bias)
    nn.init.normal_(model.decoder.transposed_convolution.weight, std=config.reduce_dim**-0.5)
    nn.init.constant_(model.decoder.transposed_convolution.bias, -2.0)
    return model


def save_folder(model: CLIPSegForImageSegmentation, out: Path) -> None:
    """Write the model in float16 beside what `write_tokenizer` and `write_processor` wrote; it loads as float32."""
    config = model.config.to_dict() | {"architectures": ["CLIPSegForImageSegmentation"], "dtype": "float32"}
    with atomic_path(out / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(out / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


# --- Training ------------------------------------------------------------------------------------------------------


def maps_for(model, pixels, owner, tokens):
    """Logits [P, S, S] of P phrases, `owner` [P] being the image of each; also the vision tower's last layer. The same
    numbers as from `forward()`, with gradients."""
    features = model.clip.vision_model(pixels, output_hidden_states=True).hidden_states  # [0] enters the first layer
    text = model.clip.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    activations = [features[i + 1][owner] for i in model.config.extract_layers]
    return model.decoder(activations, model.clip.text_projection(text)).logits, features[-1]


def _draw_phrases(rng, scene):
    """(text, indices of the objects named) for a scene: as many absent ones as present ones, some of unknown words."""
    phrases = [(p.text, p.objects) for p in make_phrases(rng, scene, PRESENT, ABSENT)]
    if rng.random() < 0.15:
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 9)))
        phrases.append((f"{('', 'a ', 'the ')[rng.integers(3)]}{word}", ()))
    return phrases


def _weights(sample: Sample) -> np.ndarray:
    """How much each pixel counts, float32 [S, S], the sum being 1: the surroundings of every object alike, whatever its
    size, since a small object is a thousandth of the pixels."""
    size = len(sample.image)
    weights = np.full((size, size), 1 / size**2, np.float32)
    for x0, y0, x1, y1 in sample.boxes * size:
        margin = 3 + 0.15 * max(x1 - x0, y1 - y0)
        rows, columns = (
            slice(max(round(float(low - margin)), 0), round(float(high + margin))) for low, high in ((y0, y1), (x0, x1))
        )
        weights[rows, columns] += 1 / weights[rows, columns].size
    return weights / weights.sum()


def _patch_labels(sample: Sample) -> np.ndarray:
    """For each patch the index of the object that covers it, -1 where there is none, -2 where it is not clear."""
    grid = len(sample.image) // PATCH
    masks = sample.masks.reshape(-1, grid, PATCH, grid, PATCH).mean((2, 4))
    best = masks.argmax(0) if len(masks) else np.zeros((grid, grid), int)
    cover = masks.max(0) if len(masks) else np.zeros((grid, grid))
    return np.where(cover >= 0.35, best, np.where(cover == 0, -1, -2)).reshape(-1)


def _stage(step):
    """The size of the images at a step, and the share of the learning rate: it falls with the pixels still to come."""
    sizes = np.repeat(*np.array(STAGES).T)
    left = np.square(sizes[step:]).sum() / np.square(sizes).sum()
    return int(sizes[step]), min((step + 1) / WARMUP, 1) * float(left)


def _step(step, rng, model, probe, tokenizer, optimizers):
    size, rate = _stage(step)
    images, owner, texts, targets, weights, kinds = [], [], [], [], [], []
    for i in range(SCENES):
        sample = draw_sample(
            rng, size, size, 14 if step < 3000 else 9 if size == 96 else SMALLEST, aspect=2 ** rng.uniform(-1, 1)
        )
        images.append(sample.image)
        for text, named in _draw_phrases(rng, sample.scene):
            owner.append(i)
            texts.append(text)
            targets.append(sample.masks[list(named)].any(0))
        weights.append(_weights(sample))
        # class 0 is the background, -100 is left out by cross_entropy
        shapes, colours = (
            np.array([1 + names.index(getattr(item, kind)) for item in sample.scene.objects] + [-100, 0])
            for kind, names in (("shape", list(SCENE_SHAPES)), ("colour", list(COLOURS)))
        )
        labels = _patch_labels(sample)  # -2 and -1 are the last two of these lists
        counts = np.bincount(labels + 2, minlength=2)
        kinds.append(np.stack([shapes[labels], colours[labels], (labels != -2) / counts[labels + 2]]))
    pixels = normalised(images, MEAN, STD)
    target = torch.from_numpy(np.stack(targets)).float()
    owner, kinds = torch.tensor(owner), torch.from_numpy(np.stack(kinds))
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    logits, last = maps_for(model, pixels, owner, tokens)

    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross_entropy = (cross_entropy * torch.from_numpy(np.stack(weights))[owner]).sum((1, 2)).mean()
    present = target.amax((1, 2)) > 0
    chance, wanted = logits[present].sigmoid().flatten(1), target[present].flatten(1)
    dice = (1 - 2 * (chance * wanted).sum(1) / (chance.sum(1) + wanted.sum(1))).mean()
    shape, colour = probe(last[:, 1:]).split((len(SCENE_SHAPES) + 1, len(COLOURS) + 1), -1)
    share = kinds[:, 2].flatten().float()  # every object counts alike, and so does all of the background
    named = sum(
        (F.cross_entropy(part.flatten(0, 1), kinds[:, k].flatten().long(), reduction="none") * share).sum()
        / share.sum()
        for k, part in enumerate((shape, colour))
    )

    optimizers.step(2 * cross_entropy + 0.5 * dice + 2 * named, rate * LEARNING_RATE, rate * MUON_RATE)

    with torch.no_grad():
        hot = (chance > THRESHOLD).float()
        overlap = (hot * wanted).sum(1) / torch.maximum(hot, wanted).sum(1)
        fires = (logits[~present].amax((1, 2)).sigmoid() > THRESHOLD).float()
    return {
        "bce": cross_entropy.item(),
        "dice": dice.item(),
        "named": named.item(),
        "IoU": overlap.mean().item(),
        "absent fires": fires.mean().item(),
    }


@torch.inference_mode()
def held_out(model, tokenizer: CLIPTokenizer, seed: int = 999, scenes: int = 30) -> tuple[float, float]:
    """On scenes of every size, none of them trained on: the mean IoU of the map at `THRESHOLD` with what a phrase
    names, in the image's own pixels, and the share of absent phrases for which a pixel reaches it."""
    rng = np.random.default_rng(seed)
    overlaps, fires = [], []
    for _ in range(scenes):
        height, width = scene_size(rng)
        scene = make_scene(rng, height, width)
        phrases = make_phrases(rng, scene, 4, 4)
        shrink = cv2.INTER_AREA if height * width > SIZE**2 else cv2.INTER_LINEAR
        image = cv2.resize(scene.image, (SIZE, SIZE), interpolation=shrink)
        tokens = tokenizer([phrase.text for phrase in phrases], padding=True, return_tensors="pt")
        logits, _ = maps_for(model, normalised([image], MEAN, STD), torch.zeros(len(phrases), dtype=torch.long), tokens)
        for phrase, chance in zip(phrases, logits.sigmoid().numpy(), strict=True):
            hot = cv2.resize(chance, (width, height), interpolation=cv2.INTER_LINEAR) >= THRESHOLD
            if phrase.objects:
                wanted = np.any([scene.objects[i].mask for i in phrase.objects], axis=0)
                overlaps.append((hot & wanted).sum() / (hot | wanted).sum())
            else:
                fires.append(hot.any())
    return float(np.mean(overlaps)), float(np.mean(fires))


def train(seed: int, work: Path, out: Path) -> None:
    """Train from `seed` for `STEPS` steps and write the folder `out`; a run that was interrupted goes on from `work`.
    Every 500 steps the folder is written, and measured, as it is by then."""
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    write_tokenizer(out)
    write_processor(out)
    tokenizer = CLIPTokenizer.from_pretrained(out)
    torch.manual_seed(seed)
    model = build_model(tokenizer)
    # Thrown away afterwards: it has the vision tower tell shapes and colours before the maps can.
    probe = nn.Linear(model.config.vision_config.hidden_size, len(SCENE_SHAPES) + len(COLOURS) + 2)
    optimizers = Optimizers([model, probe], WEIGHT_DECAY)

    def step_once(step, rng):
        figures = _step(step, rng, model, probe, tokenizer, optimizers)
        if (step + 1) % 500 == 0 or step + 1 == STEPS:
            overlap, fires = held_out(model, tokenizer)
            print(
                f"held out after {step + 1} steps: IoU {overlap:.3f}, absent phrases that fire {fires:.3f}", flush=True
            )
            save_folder(model, out)
        return figures

    parts = {"model": model, "probe": probe, "adamw": optimizers.adamw, "muon": optimizers.muon}
    run_steps(work / "clipseg.pt", parts, STEPS, seed, step_once)
    save_folder(model, out)
