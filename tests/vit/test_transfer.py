"""Weights of a file put into a ViT of these or of other measures, against timm where it does the same."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from helpers.vit import checkpoint as ckpt
from helpers.vit import transfer
from test_recipe import CLASSES, make_run

SCORES = dict.fromkeys(("val_accuracy", "ema_accuracy", "val_loss", "ema_loss"), 1.0)


def source(q1, tmp_path, **changes):
    """A run whose weights are unlike fresh ones, and its file."""
    run = make_run(q1, **changes)
    for parameter in run.ema.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    run.model.load_state_dict(run.ema.state_dict())
    ckpt.save_best(run, SCORES, tmp_path / "best.pth")
    return run, tmp_path / "best.pth"


def same(model, other, names):
    return {name for name in names if torch.equal(model.state_dict()[name], other.state_dict()[name])}


def test_a_run_of_the_same_measures_begins_with_all_weights(q1, tmp_path, capsys):
    old, path = source(q1, tmp_path)
    run = make_run(q1, seed=1, init_weights=str(path), resume=False, checkpoint=None)
    ckpt.begin(run, tmp_path)
    names = [*run.model.state_dict()]
    for model in (run.model, run.ema):
        assert same(model, old.model, names) == {*names}
    assert f"begun from {path}: {len(names)} of {len(names)} weights taken, fresh: none" in capsys.readouterr().out
    q1.train(run, tmp_path / "out")  # and learns on from there


def test_a_run_that_is_resumed_does_not_begin_anew(q1, tmp_path):
    _, path = source(q1, tmp_path)
    run = make_run(q1)
    q1.train(run, tmp_path)
    again = make_run(q1, init_weights=str(path), resume=True, checkpoint=None)
    ckpt.begin(again, tmp_path)
    assert again.step == run.step and same(again.model, run.model, ["head.weight"])


def test_other_classes_size_and_depth(q1, tmp_path, capsys):
    """The head is left out, positions are resampled as timm does, blocks that are not there stay fresh."""
    old, path = source(q1, tmp_path)
    cfg = vars(make_run(q1, img_size=48, depth=3).cfg)
    run = make_run(q1)
    run = q1.Run(type(run.cfg)(**cfg), run.compute, run.train, run.val, run.scale, ("cat", "dog"))
    fresh = {name: value.clone() for name, value in run.model.state_dict().items()}
    transfer.begin_from(run, path)
    weights, before = run.model.state_dict(), old.model.state_dict()
    expected = resample_abs_pos_embed(before["pos_embed"], [6, 6], num_prefix_tokens=1, verbose=False)
    torch.testing.assert_close(weights["pos_embed"], expected, atol=1e-5, rtol=0)
    for name in weights:
        if name.startswith(("head.", "blocks.2.")):
            assert torch.equal(weights[name], fresh[name])
        elif name != "pos_embed":
            assert torch.equal(weights[name], before[name])
    assert "fresh: blocks.2.norm1.weight" in capsys.readouterr().out


def test_a_head_of_classes_with_other_names_is_left_out(q1, tmp_path):
    old, path = source(q1, tmp_path)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"classes": CLASSES[::-1]}, path)
    run = make_run(q1, seed=1)
    transfer.begin_from(run, path)
    assert not same(run.model, old.model, ["head.weight"]) and same(run.model, old.model, ["norm.weight"])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_of_timm_whatever_wrapped_it(q1, tmp_path, prefix, key):
    run = make_run(q1)
    theirs = VisionTransformer(
        img_size=64, patch_size=8, num_classes=1000, embed_dim=32, depth=4, num_heads=2, mlp_ratio=2.0
    )
    weights = {prefix + name: value.half() for name, value in theirs.state_dict().items()}
    torch.save({key: weights} if key else weights, tmp_path / "vit.pth")
    transfer.begin_from(run, tmp_path / "vit.pth")
    expected = theirs.state_dict()["blocks.1.attn.qkv.weight"].half().float()
    assert torch.equal(run.model.blocks[1].attn.qkv.weight, expected) and run.model.pos_embed.shape == (1, 17, 32)


def test_what_fits_nowhere_is_an_error(q1, tmp_path):
    _, path = source(q1, tmp_path, embed_dim=48)
    run = make_run(q1)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"best\.pth' fits nowhere: a first layer is \[144, 48\] there, \[96, 32\] here"
    ):
        transfer.begin_from(run, path)
    torch.save({"model": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match="fits nowhere: a first layer is absent there"):
        transfer.begin_from(run, path)
    path.write_text("no checkpoint")
    with pytest.raises(ValueError, match="truncated or not a checkpoint: give the checkpoint of a ViT"):
        transfer.begin_from(run, path)
    _, path = source(q1, tmp_path)
    content = torch.load(path, weights_only=True)
    content["model"]["norm.bias"][0] = float("nan")
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights are not finite: norm\.bias"):
        transfer.begin_from(run, path)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_other_heads_are_warned_of(q1, tmp_path, capsys):
    _, path = source(q1, tmp_path)
    transfer.begin_from(make_run(q1, num_heads=4), path)
    assert "has num_heads=2, this run 4" in capsys.readouterr().out


def test_weights_to_be_tested_have_to_be_all_of_the_model(q1):
    run, other = make_run(q1), make_run(q1, depth=3)
    weights = run.model.state_dict()
    transfer.load_all(run.model, {f"module.{name}": value for name, value in weights.items()}, "a.pth")
    said = r'a\.pth: weights and config disagree: {} key\(s\) in state_dict: "blocks\.2\.norm1\.weight"'
    with pytest.raises(ValueError, match=said.format("Missing")):
        transfer.load_all(other.model, weights, "a.pth")
    with pytest.raises(ValueError, match=said.format("Unexpected")):
        transfer.load_all(run.model, other.model.state_dict(), "a.pth")


@pytest.mark.parametrize(("before", "after"), [(8, 12), (14, 8), (4, 4), (7, 3)])
def test_positions_are_resampled_as_timm_does(before, after):
    positions = torch.randn(1, 1 + before**2, 16)
    expected = resample_abs_pos_embed(positions, [after, after], num_prefix_tokens=1, verbose=False)
    ours = transfer.resample_positions(positions, 1 + after**2)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    odd = torch.randn(1, 2 + before**2, 16)  # a distillation token: not known here
    assert transfer.resample_positions(odd, 1 + after**2) is odd
