"""q1's figures: each function returns one, `finish` saves and shows it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from helpers.common.figures import PALETTE, PLAIN, image_grid, new_figure
from helpers.vit.image_set import ImageSet
from helpers.vit.predict import Answer

FEW = 20  # images, of which a share says little
NAMED = 20  # classes whose names and numbers have room in a figure


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def schedule(rate: Callable[[float], float], epochs: float) -> Figure:
    """Learning rate over a run that has time for all its epochs; `rate` maps progress, 0 to 1, to it."""
    figure, axis = new_figure(8, 2.6)
    progress = np.linspace(0, 1, 400)
    axis.plot(epochs * progress, [rate(p) for p in progress])
    axis.set(title="Learning rate", xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    return figure


def learning_curves(history: Sequence[dict[str, float]], test: float) -> Figure:
    """Loss, validation accuracy of raw and EMA weights, and learning rate over epochs, from rows of `history.csv`; and
    the accuracy `test`, in percent, of the weights that were kept."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right, rate) = new_figure(11, 3.6, 1, 3)
    left.plot(epochs, [row["loss"] for row in history], marker="o", markersize=3)
    left.set(title="Training loss (on augmented images)", xlabel="epoch", ylabel="cross-entropy (nats)")
    for key, label in (("val_accuracy", "raw weights"), ("ema_accuracy", "EMA weights")):
        accuracy = np.array([row[key] for row in history], float)  # None, where no images are held out, is NaN
        right.plot(epochs, accuracy, marker="o", markersize=3, label=label)
    right.axhline(test, color="0.3", linestyle="--", linewidth=1, label=f"test images: {test:.2f} %")
    right.set(title="Accuracy on validation images", xlabel="epoch", ylabel="accuracy (%)")
    right.legend(frameon=False)
    rate.plot(epochs, [row["lr"] for row in history], marker="o", markersize=3)
    rate.set(title="Learning rate at an epoch's end", xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    for axis in (left, right, rate):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def class_report(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Accuracy per class beside the confusion matrix: counts `[C, C]`, rows are the true class. Of more than
    `NAMED` classes the least accurate ones are named, and the matrix has no numbers."""
    figure, (left, right) = new_figure(12, 5.2, 1, 2)
    share, few = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1), len(classes) <= NAMED
    shown = np.arange(len(classes)) if few else share.diagonal().argsort(kind="stable")[:NAMED]
    bars = left.barh(range(len(shown)), share.diagonal()[shown])
    left.set_yticks(range(len(shown)), [_short(classes[k]) for k in shown], **PLAIN)
    left.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    title = "Accuracy per class" if few else f"The {len(shown)} least accurate of {len(classes)} classes"
    left.set(title=title, xlabel="accuracy (%)", xlim=(0, 108), xticks=range(0, 101, 20))
    left.invert_yaxis()
    right.imshow(share, cmap="Blues", vmin=0, vmax=100)
    right.grid(False)
    if few:
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if share[row, column] > 55 else "black"
            right.text(column, row, f"{count:d}", ha="center", va="center", fontsize=8, color=colour)
        names = [_short(name) for name in classes]
        right.set_xticks(range(len(classes)), names, rotation=45, ha="right", **PLAIN)
        right.set_yticks(range(len(classes)), names, **PLAIN)
    right.set(title=f"Confusion matrix ({'images' if few else '% of a class'})")
    right.set(xlabel="predicted class", ylabel="true class")
    return figure


def reliability(bins: Sequence[dict[str, float]], error: float) -> Figure:
    """Accuracy over confidence, a bar per bin {`accuracy`, `share`, `count`}, faded where it has few images; `error` is
    the ECE in percent."""
    figure, (left, right) = new_figure(10, 4, 1, 2)
    width = 1 / len(bins)
    centres = (np.arange(len(bins)) + 0.5) * width
    accuracy, count = (np.array([entry[key] for entry in bins]) for key in ("accuracy", "count"))
    for chosen, alpha, label in ((count >= FEW, 1, "measured"), (count < FEW, 0.25, f"on fewer than {FEW} images")):
        if count[chosen].any():
            left.bar(centres[chosen], accuracy[chosen], width * 0.9, color=PALETTE[0], alpha=alpha, label=label)
    left.plot([0, 1], [0, 1], "--", color="0.3", label="perfectly calibrated")
    left.set(title=f"Calibration, ECE {error:.1f} %", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False)
    right.bar(centres, [100 * entry["share"] for entry in bins], width * 0.9, color=PALETTE[5])
    right.set(title="How sure the model is", xlabel="confidence", ylabel="share of the test images (%)", xlim=(0, 1))
    return figure


def pictures(images: Tensor, titles: Sequence[str], title: str) -> Figure:
    """Images `[N, 3, H, W]` (uint8, or float from 0 to 1), ten in a row, each under its title."""
    images = images if images.dtype == torch.uint8 else images.clamp(0, 1)
    return image_grid(images.permute(0, 2, 3, 1).cpu().numpy(), [*map(_short, titles)], 10, title)


def mistakes(dataset: ImageSet, probabilities: Tensor, count: int) -> Figure:
    """The `count` test images wrongly classified by `[N, classes]` with the largest confidence, surest first."""
    confidence, guesses = probabilities.max(-1)
    order = confidence.argsort(descending=True, stable=True)
    worst = order[(guesses != dataset.test_labels)[order]][:count]
    rows = zip(confidence[worst], guesses[worst], dataset.test_labels[worst], strict=True)
    names = [_short(name) for name in dataset.classes]
    titles = [f"{names[guess]} {100 * sure:.0f} %\ntrue: {names[true]}" for sure, guess, true in rows]
    images = dataset.test_images[worst].permute(0, 2, 3, 1).numpy()
    return image_grid(images, titles, 10, "Most confident mistakes: what they are taken for, and the true class")


def answers(entries: Sequence[Answer], classes: Sequence[str]) -> Figure:
    """The user's pictures as the model sees them, each under its class, how sure that is, and its name."""
    images = [entry.image.permute(1, 2, 0).numpy() for entry in entries]
    surest = [entry.probabilities.max(-1) for entry in entries]
    titles = [
        f"{_short(classes[int(k)])} {100 * p:.0f} %\n{_short(entry.path.name)}"
        for entry, (p, k) in zip(entries, surest, strict=True)
    ]
    return image_grid(images, titles, max(3, min(10, len(images))), "Your pictures")


def attention_overlays(dataset: ImageSet, probabilities: Tensor, shown: Sequence[int], maps: Tensor) -> Figure:
    """The test images `shown`, and below them under their attention maps `[N, g, g]`, each scaled to its peak; a wrong
    prediction is written in another colour, with the true class."""
    guesses, true = probabilities[shown].argmax(-1).tolist(), dataset.test_labels[shown].tolist()
    images, size = dataset.test_images[shown].permute(0, 2, 3, 1).numpy(), dataset.test_images.shape[-1]
    figure, axes = new_figure(max(6, 1.35 * len(images)), 3.5, 2, len(images))
    for column, (image, weights) in enumerate(zip(images, maps.cpu().numpy(), strict=True)):
        for axis in axes[:, column]:
            axis.imshow(image)
            axis.axis("off")
        extent = (-0.5, size - 0.5, size - 0.5, -0.5)
        axes[1, column].imshow(weights, cmap="inferno", alpha=0.55, extent=extent)
        guess, label = (_short(dataset.classes[k[column]]) for k in (guesses, true))
        is_right = guess == label
        title = guess if is_right else f"{guess}\ntrue: {label}"
        axes[0, column].set_title(title, fontsize=8, color="black" if is_right else PALETTE[1], **PLAIN)
    figure.suptitle("The first test image of each class, and its prediction")
    return figure
