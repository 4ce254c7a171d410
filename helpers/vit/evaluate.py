"""Predictions, and accuracy, calibration and the worst mistakes from them."""

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

    With `shift` above 0 also moved by 1..`shift` pixels along both diagonals (borders reflected), and each of them
    mirrored: V = 2 (1 + 2 `shift`), as in Jordan's airbench (arXiv 2404.00498, section 3.5).
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
    model: nn.Module, images: Tensor, prepare: Callable[[Tensor], Tensor], compute: Compute, shift: int = 0
) -> Tensor:
    """Class probabilities float32 `[V, N, classes]` on the CPU, one row of V per view of `shifted_views`; `prepare`
    maps uint8 `[B, 3, H, W]` to the model's input."""
    model.eval()
    parts = []
    for chunk in images.split(500):
        views = shifted_views(chunk.to(compute.device), shift)
        with compute.autocast():
            logits = [model(prepare(view)) for view in views]
        parts.append(torch.stack(logits).float().softmax(-1).cpu())
    return torch.cat(parts, dim=1)


def held_out_scores(
    model: nn.Module, held_out: Split, prepare: Callable[[Tensor], Tensor], compute: Compute
) -> tuple[float | None, float | None]:
    """Accuracy in percent and mean cross-entropy over the images of all processes, each of which tries its share;
    `None` for both without images."""
    if not len(held_out):
        return None, None
    part = distributed.shard(len(held_out))
    images, labels = held_out.images[part], held_out.labels[part].cpu()
    sums = torch.zeros(2, dtype=torch.float64)
    if len(images):
        probabilities = predict(model, images, prepare, compute)[0].double()
        true = probabilities.gather(1, labels[:, None]).clamp_min(1e-45)  # float32's least: the loss stays finite
        sums = torch.stack([(probabilities.argmax(-1) == labels).double().sum(), -true.log().sum()])
    sums = sums.float() if compute.device.type == "mps" else sums  # which has no float64
    right, loss = distributed.all_reduce_sum(sums.to(compute.device)).tolist()
    return 100 * right / len(held_out), loss / len(held_out)


def report(
    views: Tensor, labels: Tensor, classes: Sequence[str]
) -> tuple[dict[str, Any], np.ndarray, list[dict[str, float]]]:
    """Test results from the probabilities `[V, N, classes]` of V views, of which the first is the images themselves:
    what run_summary.json says of them (in percent), the confusion matrix (counts int64 `[classes, classes]`, rows are
    the true class), and the bins of `calibration`."""
    right = [(p.argmax(-1) == labels.cpu()).sum().item() for p in (views[0], views.mean(0))]
    plain, tta = (100 * count / len(labels) for count in right)
    several = len(views) > 1
    pairs = labels.cpu() * len(classes) + views[0].argmax(-1)
    confusion = torch.bincount(pairs, minlength=len(classes) ** 2).view(len(classes), -1).numpy()
    error, bins = calibration(views[0], labels)
    results = {
        "test_accuracy": plain,
        "test_accuracy_tta": tta if several else None,
        "per_class_accuracy": {n: 100 * confusion[k, k] / max(1, confusion[k].sum()) for k, n in enumerate(classes)},
        "expected_calibration_error": error,
    }
    return results, confusion, bins


def calibration(probabilities: Tensor, labels: Tensor) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error in percent, and for each of 15 bins of confidence {`accuracy`, `share`} (0 to 1) and
    the `count` of its images.

    ECE is the mean over images of |accuracy - confidence| of the image's bin, in equal-width bins that contain their
    upper edge (Guo et al. 2017, arXiv 1706.04599, section 2).
    """
    confidence, predicted = probabilities.double().max(-1)
    index = (confidence * 15).ceil().long().clamp(1, 15) - 1
    count = torch.bincount(index, minlength=15)
    sure = torch.bincount(index, confidence, 15) / count.clamp(min=1)
    right = torch.bincount(index, (predicted == labels.cpu()).double(), 15) / count.clamp(min=1)
    share = count / len(labels)
    error = 100 * (share * (sure - right).abs()).sum().item()
    rows = zip(right.tolist(), share.tolist(), count.tolist(), strict=True)
    return error, [{"accuracy": a, "share": b, "count": c} for a, b, c in rows]


def first_of_each_class(labels: Tensor) -> list[int]:
    """Indices of the first image of every class that has any, by class; of ten classes at most."""
    return [int((labels == label).nonzero()[0]) for label in labels.unique()[:10]]
