"""The user's pictures and the competition's test images: read as the training images were, named by the model."""

import csv
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.common.device import Compute
from helpers.vit import checkpoint as ckpt
from helpers.vit import evaluate, figures, predict
from nbload import ROOT
from test_recipe import CLASSES, make_run
from test_transfer import SCORES

CPU = Compute(torch.device("cpu"), "CPU", "fp32")


class Brightness(torch.nn.Module):
    """Ten classes: how bright an image of pixels from 0 to 1 is, in tenths."""

    def forward(self, x):
        return 50.0 * torch.eye(10)[(x.mean((1, 2, 3)) * 9.99).long()]


BRIGHT = {"model": Brightness(), "prepare": lambda images: images.float() / 255, "compute": CPU}


def gradient(width, height):
    """uint8 [height, width, 3] that grows from left to right."""
    return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 3)).copy()


# ------------------------------------------------------------------------------------------ reading


def test_a_picture_is_resized_and_its_middle_cut_out(tmp_path):
    Image.fromarray(gradient(300, 100)).save(tmp_path / "wide.png")
    pixels = predict.read_picture(tmp_path / "wide.png", 48)
    assert pixels.shape == (3, 48, 48) and pixels.dtype == torch.uint8
    assert pixels[0, 0, 0] == pytest.approx(85, abs=4) and pixels[0, 0, -1] == pytest.approx(170, abs=4)
    small = gradient(32, 32)
    Image.fromarray(small).save(tmp_path / "cifar.png")
    assert torch.equal(predict.read_picture(tmp_path / "cifar.png", 48), torch.from_numpy(small).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_is_the_same_picture(tmp_path, mode):
    grey = Image.fromarray(gradient(40, 40)[..., 0])
    path = tmp_path / f"picture.{'tif' if mode in ('CMYK', 'I', 'F') else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
    elif mode in "IF":
        Image.fromarray(np.asarray(grey).astype({"I": np.int32, "F": np.float32}[mode])).save(path)
    else:
        (grey.convert("RGB") if mode in ("CMYK", "RGBA") else grey).convert(mode).save(path)
    expected = gradient(40, 40)[..., 0] if mode != "1" else 255 * np.asarray(grey.convert("1"))
    pixels = predict.read_picture(path, 40)
    assert pixels.shape == (3, 40, 40)
    np.testing.assert_allclose(pixels[1].numpy().astype(int), expected.astype(int), atol=1)


def test_transparent_parts_are_white_and_turned_pictures_upright(tmp_path):
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert predict.read_picture(tmp_path / "clear.png", 40).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(gradient(40, 40)).save(tmp_path / "turned.png", exif=exif)
    pixels = predict.read_picture(tmp_path / "turned.png", 40)[0]
    assert pixels[0].float().mean() < 20 and pixels[-1].float().mean() > 235


# ------------------------------------------------------------------------------------------ answers


@pytest.fixture
def photos(tmp_path):
    """Pictures of several sizes, each of one brightness, and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(32, 32), (300, 200), (32, 32), (50, 90)]):
        Image.new("RGB", size, (60 * number,) * 3).save(folder / f"{number}.png")
    (folder / "2b.png").write_bytes(b"no picture")
    return folder


def test_pictures_are_named_and_broken_ones_skipped(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 3)
    answers = list(predict.classify(photos, **BRIGHT, size=40))
    assert [answer.path.name for answer in answers] == ["0.png", "1.png", "2.png", "3.png"]
    assert [CLASSES[answer.probabilities.argmax()] for answer in answers] == ["a", "c", "e", "h"]
    assert [answer.image.shape[-1] for answer in answers] == [32, 40, 32, 40]
    assert re.search(r"warning: skipped: .*2b\.png is no image", capsys.readouterr().out)
    monkeypatch.setattr(predict, "SHOWN", 2)
    first = predict.tell(iter(answers), CLASSES, tmp_path / "predictions.csv")
    said = capsys.readouterr().out
    assert len(first) == 2 and "1.png: c 100.0 %, " in said and said.count(" %,") == 8 and "and 2 more" in said
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["a", "c", "e", "h"] and float(rows[0]["percent"]) == 100
    figure = figures.answers(answers, CLASSES)
    assert [axis.get_title() for axis in figure.axes][:2] == ["a 100 %\n0.png", "c 100 %\n1.png"]
    plt.close(figure)


def test_only_broken_pictures_are_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 pictures could be read"):
        list(predict.classify(tmp_path / "a.png", **BRIGHT, size=32))


def test_two_classes_have_no_five_best(photos, tmp_path, capsys):
    answer = predict.Answer(Path("a.png"), torch.zeros(3, 32, 32, dtype=torch.uint8), torch.tensor([0.25, 0.75]))
    predict.tell(iter([answer]), ("cat", "dog"), tmp_path / "predictions.csv")
    assert "a.png: dog 75.0 %, cat 25.0 %\n" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ the competition


@pytest.mark.parametrize("place", ["", "inner/", "cifar-10/inner/"])
@pytest.mark.parametrize("table", ["trainLabels.csv", "sampleSubmission.csv"])
def test_submission_has_a_label_for_every_unlabelled_image(tmp_path, place, table, monkeypatch, capsys):
    monkeypatch.setattr(predict, "BATCH", 4)
    folder = tmp_path / place / "test"
    folder.mkdir(parents=True)
    (folder.parent / table).write_text("id,label\n")
    for number in range(1, 12):
        Image.new("RGB", (32, 32), (20 * number,) * 3).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"no picture")
    guess = partial(evaluate.predict, **BRIGHT, shift=1)
    assert predict.write_submission(tmp_path / "submission.csv", [tmp_path], CLASSES, guess, 32)
    expected = [CLASSES[int(20 * number / 255 * 9.99)] for number in range(1, 12)]
    expected[4] = "a"
    rows = list(csv.reader((tmp_path / "submission.csv").open(newline="")))
    assert rows == [["id", "label"], *([str(number), expected[number - 1]] for number in range(1, 12))]
    said = capsys.readouterr().out
    assert "5.png gets the label 'a' unseen" in said and "the labels of 11 images" in said


def test_without_unlabelled_images_there_is_no_submission(tmp_path):
    guess = partial(evaluate.predict, **BRIGHT)
    for name in ("test/cat", "train"):  # class folders are no unlabelled images
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "trainLabels.csv").write_text("")
    for roots in ([tmp_path], [tmp_path / "nowhere"], []):
        assert not predict.write_submission(tmp_path / "submission.csv", roots, CLASSES, guess, 32)
    assert not (tmp_path / "submission.csv").exists()


# ------------------------------------------------------------------------------------------ outside the notebook


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_weights_used_by_timm_answer_as_the_notebooks_model(q1, photos, tmp_path, pool):
    run = make_run(q1, pool=pool, img_size=48)
    for parameter in run.ema.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ckpt.save_best(run, SCORES, tmp_path / "b.pth")
    *inputs, classes = predict.load(tmp_path / "b.pth")
    assert classes == CLASSES
    prepare = partial(q1.normalise, cfg=run.cfg, scale=run.scale)
    theirs = list(predict.classify(photos, *inputs))
    ours = list(predict.classify(photos, run.ema, prepare, CPU, 48))
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-5, rtol=0)


def test_overlapping_patches_are_refused_outside_the_notebook(q1, tmp_path):
    run = make_run(q1, patch_stride=4)
    ckpt.save_best(run, SCORES, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b\.pth has overlapping patches: use it in q1\.ipynb"):
        predict.load(tmp_path / "b.pth")


@pytest.mark.slow
def test_the_readmes_script_names_a_picture(q1, photos, tmp_path):
    readme = (ROOT / "README.md").read_text()
    script = re.search(r"```python\n(from helpers\.vit import predict\n.*?)```", readme, re.S)[1]
    assert len(script.splitlines()) <= 10
    run = make_run(q1)
    path = tmp_path / "outputs" / "q1" / ckpt.BEST
    path.parent.mkdir(parents=True)
    ckpt.save_best(run, SCORES, path)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^photos/1\.png: [a-j] \d+\.\d %$", done.stdout, re.M)
