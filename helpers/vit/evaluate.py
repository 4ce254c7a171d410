"""Predictions, and what can be read from them: accuracy per class, calibration, the worst mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.common import distributed
from helpers.common.device import Compute
from helpers.vit.data import Split


def shifted_views(images: Tensor, shift: int) -> Tensor:
    """Views of uint8 `[B, C, H, W]` for test-time augmentation: `[V, B, C, H, W]`, the first one the images themselves.

    `shift=0`: only that one. Otherwise also moved by 1..`shift` pixels along both diagonals (borders reflected), and
    each of them mirrored: V = 2 (1 + 2 `shift`), as in Jordan's airbench (arXiv 2404.00498, section 3.5).
    """
    if not shift:
        return images[None]
    height, width = images.shape[-2:]
    padded = F.pad(images.float(), (shift,) * 4, mode="reflect").to(images.dtype)
    offsets = [0] + [sign * pixels for pixels in range(1, shift + 1) for sign in (-1, 1)]
    views = [padded[..., shift + d : shift + d + height, shift + d : shift + d + width] for d in offsets]
    return torch.stack([view for moved in views for view in (moved, moved.flip(-1))])


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    prepare: Callable[[Tensor], Tensor],
    compute: Compute,
    shift: int = 0,
    batch: int = 500,
) -> Tensor:
    """Class probabilities float32 `[V, N, classes]` on the CPU, one row of V per view of `shifted_views`.

    `prepare` maps uint8 `[B, 3, H, W]` to the model's input. Leaves the model in evaluation mode.
    """
    model.eval()
    parts = []
    for chunk in images.split(batch):
        views = shifted_views(chunk.to(compute.device), shift)
        with compute.autocast():
            logits = [model(prepare(view)) for view in views]
        parts.append(torch.stack(logits).float().softmax(-1).cpu())
    return torch.cat(parts, dim=1)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of rows of `[N, classes]` whose largest entry is the label's, in percent."""
    return 100 * (probabilities.argmax(-1) == labels.cpu()).double().mean().item()


def held_out_accuracy(
    model: nn.Module, held_out: Split, prepare: Callable[[Tensor], Tensor], compute: Compute
) -> float | None:
    """Accuracy in percent over the images of all processes, each of which tries its share; `None` without images."""
    part = distributed.shard(len(held_out))
    images, labels = held_out.images[part], held_out.labels[part]
    right = torch.zeros((), dtype=torch.long, device=compute.device)
    if len(images):
        right += (predict(model, images, prepare, compute)[0].argmax(-1) == labels.cpu()).sum().to(compute.device)
    return 100 * distributed.all_reduce_sum(right).item() / len(held_out) if len(held_out) else None


def report(views: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What a summary says of test images with the probabilities `[V, N, classes]`; prints the accuracies (percent)."""
    plain, tta = accuracy(views[0], labels), accuracy(views.mean(0), labels) if len(views) > 1 else None
    print(f"test accuracy {plain:.2f} %" + (f", {tta:.2f} % with TTA over {len(views)} views" if tta else ""))
    confusion = confusion_matrix(views[0], labels)
    per_class = {name: 100 * confusion[k, k] / max(1, confusion[k].sum()) for k, name in enumerate(classes)}
    return {
        "test_accuracy": plain,
        "test_accuracy_tta": tta,
        "per_class_accuracy": per_class,
        "expected_calibration_error": calibration(views[0], labels)[0],
    }


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> np.ndarray:
    """Counts int64 `[classes, classes]`; rows are the true class, columns the predicted one."""
    classes = probabilities.shape[-1]
    pairs = labels.cpu() * classes + probabilities.argmax(-1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error in percent, and per confidence bin {`accuracy`, `share`} (each 0 to 1).

    ECE is the mean over images of |accuracy - confidence| of the image's bin, in equal-width bins that contain their
    upper edge (Guo et al. 2017, arXiv 1706.04599, section 2).
    """
    confidence, predicted = probabilities.double().max(-1)
    correct = (predicted == labels.cpu()).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index, minlength=bins)
    sums = [torch.bincount(index, weights, bins) / count.clamp(min=1) for weights in (confidence, correct)]
    share = count / len(labels)
    error = 100 * (share * (sums[0] - sums[1]).abs()).sum().item()
    return error, [{"accuracy": a, "share": b} for a, b in zip(sums[1].tolist(), share.tolist(), strict=True)]


def most_confident_mistakes(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """Indices int64 of up to `count` wrongly classified rows, the surest one first."""
    confidence, predicted = probabilities.max(-1)
    order = confidence.argsort(descending=True, stable=True)
    return order[(predicted != labels.cpu())[order]][:count]
