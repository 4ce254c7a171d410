"""Predictions and what is read from them, against scikit-learn, plain loops and hand-made cases."""

import math
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from helpers.common.device import Compute, pick_compute
from helpers.common.figures import finish
from helpers.vit import evaluate, figures
from helpers.vit.data import Split
from helpers.vit.predict import Answer

CPU = Compute(torch.device("cpu"), "CPU", "fp32")
NAMES = tuple("abcdefghij")


@pytest.fixture
def predictions():
    probabilities = torch.randn(997, 10).mul(2).softmax(-1)
    return probabilities, torch.where(torch.rand(997) < 0.5, probabilities.argmax(-1), torch.randint(0, 10, (997,)))


def test_accuracy_and_confusion_equal_scikit_learn(predictions):
    probabilities, labels = predictions
    guess = probabilities.argmax(-1)
    results, confusion, bins = evaluate.report(probabilities[None], labels, NAMES)
    assert results["test_accuracy"] == pytest.approx(100 * accuracy_score(labels, guess))
    np.testing.assert_array_equal(confusion, confusion_matrix(labels, guess, labels=range(10)))
    recall = 100 * recall_score(labels, guess, average=None)
    assert results["per_class_accuracy"] == pytest.approx(dict(zip(NAMES, recall, strict=True)))
    assert results["test_accuracy_tta"] is None
    assert (results["expected_calibration_error"], bins) == evaluate.calibration(probabilities, labels)


def test_views_are_averaged(predictions):
    probabilities, labels = predictions
    views = torch.stack([probabilities, probabilities.roll(1, 0)])
    results = evaluate.report(views, labels, NAMES)[0]
    assert results["test_accuracy_tta"] == pytest.approx(100 * accuracy_score(labels, views.mean(0).argmax(-1)))
    assert results["test_accuracy"] == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(-1)))


def test_calibration_equals_its_definition(predictions):
    probabilities, labels = predictions
    confidence, guess = probabilities.double().max(-1)
    expected = 0.0
    for k in range(15):
        inside = [i for i in range(997) if k / 15 < confidence[i] <= (k + 1) / 15]
        if inside:
            right = sum(int(guess[i] == labels[i]) for i in inside) / len(inside)
            expected += len(inside) / 997 * abs(right - sum(float(confidence[i]) for i in inside) / len(inside))
    error, bins = evaluate.calibration(probabilities, labels)
    assert error == pytest.approx(100 * expected, abs=1e-6)
    assert sum(entry["share"] for entry in bins) == pytest.approx(1)


@pytest.mark.parametrize(("right", "error"), [(1.0, 0.0), (0.0, 100.0), (0.75, 25.0)])
def test_calibration_of_a_model_that_is_always_sure(right, error):
    labels = (torch.arange(100) >= 100 * right).long()
    assert evaluate.calibration(torch.tensor([[1.0, 0.0]]).expand(100, 2), labels)[0] == pytest.approx(error)


def test_views_are_the_image_its_shifts_and_their_mirrors():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for shift, count in ((0, 1), (1, 6), (2, 10)):
        views = evaluate.shifted_views(images, shift)
        assert views.shape == (count, 3, 3, 32, 32) and views.dtype == torch.uint8
        assert torch.equal(views[0], images)
    assert torch.equal(views[1], images.flip(-1))
    inner = slice(4, -4)
    offsets = [(d, d) for d in (0, -1, 1, -2, 2)]
    for view, mirrored, (dy, dx) in zip(views[::2], views[1::2], offsets, strict=True):
        assert torch.equal(view[..., inner, inner], images[..., 4 + dy : 28 + dy, 4 + dx : 28 + dx])
        assert torch.equal(mirrored, view.flip(-1))


def test_predictions_keep_order_over_batches():
    images = torch.randint(0, 256, (1203, 3, 8, 8), dtype=torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    views = evaluate.predict(model, images, lambda x: x / 255, CPU, shift=1)
    assert views.shape == (6, 1203, 10)
    torch.testing.assert_close(views[0], model(images / 255).softmax(-1))
    torch.testing.assert_close(views[1], model(images.flip(-1) / 255).softmax(-1))


def test_mistakes_are_shown_the_surest_first():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.05, 0.95]])
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 0, 0, 0])
    dataset = SimpleNamespace(test_images=images, test_labels=labels, classes=("cat", "dog"))
    for count, surest in ((2, ["95", "90"]), (9, ["95", "90", "70"])):
        figure = figures.mistakes(dataset, probabilities, count)
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        assert [title.split()[1] for title in titles] == surest
        assert titles[0].startswith("dog 95 %\ntrue: cat")
        plt.close(figure)


class Constant(torch.nn.Module):
    """A model whose logits are a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_accuracy_and_loss_of_held_out_images_are_those_of_the_predictions():
    torch.manual_seed(0)
    model, compute = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)), pick_compute("fp32", "cpu")
    held_out = Split(torch.randint(0, 256, (1001, 3, 4, 4), dtype=torch.uint8), torch.randint(0, 3, (1001,)))
    prepare = lambda images: images.float() / 255  # noqa: E731
    logits = model(prepare(held_out.images))
    expected = accuracy_score(held_out.labels, logits.argmax(-1))
    accuracy, loss = evaluate.held_out_scores(model, held_out, prepare, compute)
    assert accuracy == pytest.approx(100 * expected)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, held_out.labels).item(), rel=1e-5)
    assert evaluate.held_out_scores(model, held_out.first(0), prepare, compute) == (None, None)
    sure = lambda images: 1e4 * torch.eye(3)[torch.zeros(len(images), dtype=torch.long)]  # noqa: E731
    assert math.isfinite(evaluate.held_out_scores(Constant(sure), held_out, prepare, compute)[1])


def test_first_of_each_class():
    assert evaluate.first_of_each_class(torch.tensor([3, 0, 3, 0, 5])) == [1, 0, 4]


def test_figures_of_many_classes_with_long_names():
    """A matrix of 300 classes has no room for their names and numbers, nor a figure for 300 columns."""
    classes = [f"a$b$ {'long ' * 10}{k}" for k in range(300)]
    confusion = np.eye(300, dtype=int) * 2
    confusion[7] = 1
    figure = figures.class_report(confusion, classes)
    left, right = figure.axes
    assert len(left.get_yticklabels()) == figures.NAMED and left.get_yticklabels()[0].get_text().endswith("…")
    assert "20 least accurate of 300" in left.get_title() and not right.texts
    figure.canvas.draw()
    plt.close(figure)
    assert len(evaluate.first_of_each_class(torch.arange(300))) == 10
    small = figures.class_report(np.eye(3, dtype=int), ["$a", "b$", "c"])
    assert [label.get_text() for label in small.axes[1].get_xticklabels()] == ["$a", "b$", "c"]
    plt.close(small)


def test_dollar_signs_in_paths_and_names_are_no_formulas(tmp_path):
    odd = r"\\nas\c$\data\d$"
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    finish(figures.pictures(images, [odd, "a$b$"], odd), tmp_path / "a.png", f"from {odd}")
    answer = Answer(Path(odd), images[0], torch.tensor([0.5, 0.5]))
    finish(figures.answers([answer], [odd, "b"]), tmp_path / "b.png", odd)
    dataset = SimpleNamespace(test_images=images, test_labels=torch.tensor([0, 1]), classes=(odd, "$x^$"))
    probabilities = torch.tensor([[0.1, 0.9], [0.1, 0.9]])
    finish(figures.mistakes(dataset, probabilities, 2), tmp_path / "c.png", odd)
    finish(figures.attention_overlays(dataset, probabilities, [0, 1], torch.rand(2, 2, 2)), tmp_path / "d.png", odd)
    finish(figures.class_report(np.eye(2, dtype=int), dataset.classes), tmp_path / "e.png", odd)
    assert len([*tmp_path.glob("*.png")]) == 5
