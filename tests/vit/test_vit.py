"""The notebook's ViT against timm's with the same weights, and what is its own: overlap, pooling, initial weights."""

from types import SimpleNamespace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

SMALL = {
    "img_size": 32,
    "patch_stride": None,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "drop_path": 0.0,
}


def config(**changes):
    return SimpleNamespace(**SMALL | {"patch_size": 4, "pool": "cls"} | changes)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_equals_timm_forward_and_gradient(q1, patch_size, pool):
    cfg = config(patch_size=patch_size, pool=pool)
    ours = q1.ViT(cfg, 10)
    theirs = VisionTransformer(
        img_size=32, patch_size=patch_size, num_classes=10, embed_dim=48, depth=3, num_heads=3,
        global_pool="token" if pool == "cls" else "avg", class_token=True, fc_norm=False,
    )  # fmt: skip
    for parameter in ours.parameters():  # nothing may hide behind zeros
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(5, 3, 32, 32), torch.tensor([0, 3, 9, 1, 1])
    for model in (ours, theirs):
        torch.nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("img_size", "patch_size", "stride", "grid"),
    [(32, 4, 4, 8), (48, 4, 4, 12), (64, 8, 8, 8), (32, 8, 4, 8), (32, 4, 2, 16), (32, 7, 5, 6)],
)
def test_tokens(q1, img_size, patch_size, stride, grid):
    model = q1.ViT(config(img_size=img_size, patch_size=patch_size, patch_stride=stride), 10)
    assert model.pos_embed.shape == (1, grid**2 + 1, 48)
    assert model(torch.randn(2, 3, img_size, img_size)).shape == (2, 10)


def test_overlapping_patches_see_their_neighbours(q1):
    embed = q1.PatchEmbed(32, 8, 4, 16)
    x = torch.zeros(1, 3, 32, 32)
    touched = x.clone()
    touched[..., 17, 17] = 1
    changed = (embed(touched) != embed(x)).any(-1).view(8, 8).nonzero().tolist()
    assert changed == [[3, 3], [3, 4], [4, 3], [4, 4]]  # a patch covers 8 pixels, one starts every 4


def test_drop_path_grows_with_depth_and_rests_in_eval(q1):
    model = q1.ViT(config(depth=5, drop_path=0.2), 10)
    assert [round(1 - block.drop_path.keep.item(), 3) for block in model.blocks] == [0, 0.05, 0.1, 0.15, 0.2]
    x = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_dropped_branches_are_made_up_for(q1):
    block = q1.Block(48, 3, 4.0, 0.5).train()
    x = torch.randn(4000, 1, 48)
    mean = (block(x) - x).mean(0)
    expected = (block.eval()(x) - x).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.03, rtol=0)


def test_a_permutation_of_patches_matters_only_through_positions(q1):
    model = q1.ViT(config(pool="mean"), 10).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
    x = torch.randn(2, 3, 32, 32)
    tiles = x.unfold(2, 4, 4).unfold(3, 4, 4)  # (2, 3, 8, 8, 4, 4)
    moved = tiles.flip(2, 3).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model(moved), atol=1e-5, rtol=0)
    torch.nn.init.normal_(model.pos_embed)
    assert not torch.allclose(model(x), model(moved), atol=1e-3)


def test_initial_attention_is_near_multiples_of_the_identity(q1):
    """Per head query' key is 0.7 (I + noise) cut to the head's rank; proj value is 0.4 (noise - I)."""
    attn = q1.ViT(config(embed_dim=96, mimetic=True), 10).blocks[1].attn
    query, key, value = attn.qkv.weight.detach().split(96)
    product = attn.proj.weight.detach() @ value
    assert product.diagonal().mean() == pytest.approx(-0.4, abs=0.02)
    off = product - product.diagonal().diag()
    assert off.mean().abs() < 0.01 and off.std() == pytest.approx(0.4 / 96**0.5, rel=0.1)
    for head in range(3):
        rows = slice(32 * head, 32 * head + 32)
        product = query[rows].T @ key[rows]
        assert torch.linalg.matrix_rank(product) == 32
        assert product.diagonal().mean() > 5 * (product - product.diagonal().diag()).mean().abs() + 0.2


def test_initial_positions_are_alike_where_patches_are_near(q1):
    positions = q1.ViT(config(), 10).pos_embed[0, 1:].detach().view(8, 8, 48)
    distance = (positions[3, 3] - positions).norm(dim=-1)
    assert distance[3, 4] < distance[3, 5] < distance[3, 7] and distance[4, 3] < distance[7, 3]
    assert distance[3, 4] == pytest.approx(distance[4, 3])
    assert len(positions.view(64, 48).unique(dim=0)) == 64


def exported(model, how, x, tmp_path):
    """The model in another form, made from a batch `x`, that takes batches of any size."""
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    if how == "trace":
        return torch.jit.trace(model, x)
    if how == "export":
        return torch.export.export(model, (x,), dynamic_shapes=free).module()
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    assert onnx
    path, names = tmp_path / "vit.onnx", {"input_names": ["x"], "output_names": ["y"]}
    if how == "onnx":
        pytest.importorskip("onnxscript")
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=free, **names)
    else:
        torch.onnx.export(model, (x,), path, dynamo=False, dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, **names)
    session = runtime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("how", ["trace", "export", "onnx", "onnx by TorchScript"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_it_is_exported_with_a_free_batch_size(q1, how, pool, tmp_path):
    model = q1.ViT(config(pool=pool, embed_dim=24, depth=2, drop_path=0.1), 10).eval()
    with torch.no_grad():
        other = exported(model, how, torch.randn(2, 3, 32, 32), tmp_path)
        for count in (1, 2, 5):
            x = torch.randn(count, 3, 32, 32)
            torch.testing.assert_close(other(x), model(x), atol=1e-5, rtol=0)
