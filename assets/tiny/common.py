"""What the three trainings share: scenes as the models meet them, and a loop that can be interrupted."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
# for the other scripts too, which import this module first
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import nbload  # noqa: F401 (for them)
from helpers.common.boxes import mask_box
from helpers.common.files import atomic_path
from helpers.shapes.scenes import Scene, make_scene


@dataclass
class Sample:
    """A scene at the resolution of a model's input.

    `image` is uint8 [H, W, 3], `masks` bool [N, H, W], `boxes` float32 [N, 4] (x0, y0, x1, y1) relative to the image;
    `scene` the original, for its phrases.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    scene: Scene


def draw_sample(
    rng: np.random.Generator, height: int, width: int, smallest: float, aspect: float | None = None, largest=0.55
) -> Sample:
    """Draw a scene and bring it to height x width pixels as a processor would: from a larger or a smaller image, and,
    given an `aspect` (width to height of the original), stretched. `smallest` is the least diameter at that size, in
    pixels; `largest` the greatest, as a share of the shorter side."""
    scale = math.exp(rng.uniform(math.log(0.6), math.log(1.8)))
    aspect = aspect or width / height
    tall = round(scale * math.sqrt(height * width / aspect))
    wide = round(scale * math.sqrt(height * width * aspect))
    scene = make_scene(rng, tall, wide, min_diameter=max(8.0, smallest * scale), max_share=largest)
    image = scene.image
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 96))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    if rng.random() < 0.2:
        image = np.clip(image * rng.uniform(0.85, 1.1) + rng.uniform(-15, 15), 0, 255).astype(np.uint8)
    shrink = cv2.INTER_AREA if tall * wide > height * width else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=shrink)
    masks = [cv2.resize(item.mask.astype(np.float32), (width, height), interpolation=shrink) for item in scene.objects]
    boxes = np.array([mask_box(item.mask) for item in scene.objects], np.float32).reshape(-1, 4)
    masks = np.array(masks, np.float32).reshape(-1, height, width) >= 0.5
    return Sample(image, masks, boxes / np.array([wide, tall, wide, tall], np.float32), scene)


def normalised(images: Iterable[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What a processor makes of uint8 images [H, W, 3] of one size: float32 [B, 3, H, W]."""
    pixels = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al., 2024, kellerjordan.github.io/posts/muon), for matrices: the steps of
    `torch.optim.Muon` with adjust_lr_fn="match_rms_adamw". That one multiplies in bfloat16, which on a CPU without
    instructions for it takes 45 times as long as float32, and most of a training's time."""

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": 1e-3, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                mean = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(mean, group["momentum"])  # Nesterov's
                updates.setdefault(matrix.shape, []).append((matrix, update))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
            for shape, pairs in updates.items():  # those of one shape in one multiplication
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                ways = orthogonalised(torch.stack([update for _, update in pairs]))
                for (matrix, _), way in zip(pairs, ways, strict=True):
                    matrix.sub_(way, alpha=rate)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [N, R, C] with their singular values brought near 1, by Newton and Schulz's iteration with the quintic
    of Jordan et al."""
    flipped = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if flipped else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if flipped else x


class Optimizers:
    """Muon for the matrices of a network's layers, AdamW for everything else: embeddings, convolutions, norms, biases,
    and the layers with one of `plain` in their names. With AdamW alone, shapes took several times as many steps to be
    learned. `torch_muon` takes PyTorch's own Muon (2.9 and newer) instead of the one above."""

    def __init__(
        self, networks: Sequence[nn.Module], weight_decay: float, plain: Sequence[str] = (), torch_muon: bool = False
    ) -> None:
        matrices = {}
        for network in networks:
            for name, layer in network.named_modules():
                if isinstance(layer, nn.Linear) and not any(part in name for part in plain):
                    matrices[layer.weight] = None
        self.parameters = [parameter for network in networks for parameter in network.parameters()]
        others = [parameter for parameter in self.parameters if parameter not in matrices]
        self.adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=weight_decay)
        if torch_muon:
            self.muon = torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        else:
            self.muon = Muon(matrices, weight_decay)

    def step(self, loss: Tensor, learning_rate: float, muon_rate: float) -> None:
        """One step down the gradient of `loss`, whose norm is cut at 1."""
        for optimizer, rate in ((self.adamw, learning_rate), (self.muon, muon_rate)):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adamw.step()
        self.muon.step()


def run_steps(
    state_file: Path,
    parts: dict[str, torch.nn.Module | torch.optim.Optimizer],
    steps: int,
    seed: int,
    step_once: Callable[[int, np.random.Generator], dict[str, float]],
    every: int = 100,
) -> None:
    """Call `step_once(step, rng)` for each step, print the mean of what it returns, and save `parts` every `every`
    steps; a run that was interrupted goes on from there. Each step has a generator of its own, so that the scenes are
    the same however often the run was interrupted."""
    first = 0
    if state_file.is_file():
        saved = torch.load(state_file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["step"]
        print(f"going on from step {first}", flush=True)
    sums, start, begun = {}, time.perf_counter(), first
    for step in range(first, steps):
        torch.manual_seed(1_000_003 * seed + step)
        for name, value in step_once(step, np.random.default_rng((seed, step))).items():
            sums.setdefault(name, []).append(value)
        if (step + 1) % every == 0 or step + 1 == steps:
            seconds = time.perf_counter() - start
            figures = "  ".join(f"{name} {np.nanmean(values):.4f}" for name, values in sums.items())
            print(f"step {step + 1}/{steps}  {figures}  {seconds / (step + 1 - begun):.3f} s a step", flush=True)
            sums = {}
            with atomic_path(state_file) as temporary:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step + 1, **state}, temporary)
