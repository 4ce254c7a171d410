"""The weights in assets/ have on real images the accuracy that the summary of their run says."""

import json
import tarfile
from functools import partial
from types import SimpleNamespace

import pytest

from helpers.common.device import pick_compute
from helpers.vit import best_weights, evaluate, transfer
from helpers.vit.data import load_images
from nbload import ROOT

COPY = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
EACH = 100  # test images of each class


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    if not COPY.is_file():
        pytest.skip(f"needs CIFAR-10 in {COPY}")
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(COPY) as archive:
        for member in archive:
            path = root / member.name
            if member.isfile() and member.name.startswith("test/") and int(path.stem) < EACH:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    return load_images(root, False, training=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "summary"), [("q1_vit_cpu.pth", "q1_cpu_run.json"), ("q1_vit_h100.pth", "q1_gpu_run.json")]
)
def test_given_weights_reach_what_is_said_of_them(q1, thousand, weights, summary):
    assert len(thousand.test_labels) == 10 * EACH
    path, said = ROOT / "assets" / weights, json.loads((ROOT / "assets" / "measured" / summary).read_text())
    best = best_weights.load_best(path, thousand, None)
    stored, compute = SimpleNamespace(**best["config"]), pick_compute("fp32")
    model = q1.ViT(stored, len(thousand.classes)).to(compute.device)
    transfer.load_all(model, best["model"], path)
    prepare = partial(q1.normalise, cfg=stored, scale=[best[name].to(compute.device) for name in ("mean", "std")])
    views = evaluate.predict(model, thousand.test_images, prepare, compute)
    results, *_ = evaluate.report(views, thousand.test_labels, thousand.classes)
    assert sum(p.numel() for p in model.parameters()) == said["parameters"]
    # three standard errors of a share of 1,000 images are 3 to 4 points
    assert results["test_accuracy"] == pytest.approx(said["test_accuracy"], abs=4)
