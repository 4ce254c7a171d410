"""What the tiny models are trained with (assets/tiny): the optimizer, and phrases for drawn scenes."""

import numpy as np
import phrases
import pytest
import torch

import common
from helpers.shapes.scenes import make_scene


def test_phrases_name_what_they_say_and_no_two_the_same_object():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, 150, 200)
        made = phrases.make_phrases(rng, scene, 3, 2)
        named = [i for phrase in made for i in phrase.objects]
        assert len(named) == len(set(named)) and len({phrase.text for phrase in made}) == len(made)
        assert sum(not phrase.objects for phrase in made) <= 2
        for phrase in made:
            words = set(phrase.text.split())
            assert words <= set(phrases.WORDS)
            for item in (scene.objects[i] for i in phrase.objects):
                assert words & {item.colour, item.shape, f"{item.shape}s", f"{item.shape}es"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon, to compare with, came with PyTorch 2.9")
def test_muon_takes_the_steps_of_torchs_own():
    start = [torch.randn(shape) for shape in ((8, 24), (24, 8), (8, 24), (5, 5))]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    muon = common.Muon(ours, weight_decay=0.02)
    reference = torch.optim.Muon(theirs, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for group in (*muon.param_groups, *reference.param_groups):
        group["lr"] = 0.05
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        muon.step()
        reference.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.03 * (one - before).norm()  # torch's is rounded to bfloat16 on the way
        assert (one - before).norm() > 0.1


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 6, 40)
    for given in (matrices, matrices.mT):
        values = torch.linalg.svdvals(common.orthogonalised(given))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_matrices_of_layers_go_to_muon_and_all_else_to_adamw():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LayerNorm(4), torch.nn.Linear(4, 6))
    network.add_module("box", torch.nn.Linear(6, 4))
    optimizers = common.Optimizers([network], 0.01, plain=("box",))
    assert [p.shape for p in optimizers.muon.param_groups[0]["params"]] == [(6, 4)]
    assert len(optimizers.adamw.param_groups[0]["params"]) == len(list(network.parameters())) - 1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with PyTorch 2.9")
def test_pytorchs_own_muon_can_be_taken():
    network = torch.nn.Linear(4, 6)
    optimizers = common.Optimizers([network], 0.01, torch_muon=True)
    assert isinstance(optimizers.muon, torch.optim.Muon)
    before = network.weight.clone()
    optimizers.step(network(torch.ones(1, 4)).square().sum(), 1e-3, 1e-2)
    assert not torch.equal(before, network.weight)
