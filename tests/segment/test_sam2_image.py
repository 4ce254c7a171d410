"""segment/sam2_image.py: against the package's own predictor at full size, and everything else on a miniature."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from helpers.common.device import Compute
from helpers.segment import sam2_image
from helpers.segment.sam2_image import build_model, load_sam2
from offline import blocked_network

CPU = Compute(torch.device("cpu"), "CPU", "fp32")
CONFIGS = Path(sam2.__file__).parent / "configs"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")  # in the package's predictor
SIDE = 64  # of the miniature's input


def config_of(version, letter):
    return OmegaConf.load(CONFIGS / version / f"{version}_hiera_{letter}.yaml").model


def shake(model, seed=0):
    """Random weights whose masks depend on the box, which those of a fresh model hardly do."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.sam_mask_decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(0.3)
        for embedding in model.sam_prompt_encoder.point_embeddings:
            embedding.weight.mul_(0.1)
    return model


def mini_config():
    config = config_of("sam2.1", "t")
    config.image_size = SIDE
    config.image_encoder.trunk.update(
        embed_dim=16, stages=[1, 1, 2, 1], global_att_blocks=[3], window_spec=[8, 4, 4, 2]
    )
    config.image_encoder.neck.update(d_model=32, backbone_channel_list=[128, 64, 32, 16])
    config.image_encoder.neck.position_encoding.num_pos_feats = 32
    config.memory_attention.update(d_model=32, num_layers=1)
    layer = config.memory_attention.layer
    layer.update(d_model=32, dim_feedforward=32)
    for attention in (layer.self_attention, layer.cross_attention):
        attention.update(embedding_dim=32, feat_sizes=[SIDE // 16, SIDE // 16])
    layer.cross_attention.kv_in_dim = 16
    config.memory_encoder.out_dim = 16
    config.memory_encoder.position_encoding.num_pos_feats = 16
    config.memory_encoder.fuser.layer.dim = 32
    config.memory_encoder.mask_downsampler.embed_dim = 32
    config.memory_encoder.in_dim = 32
    return config


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """A folder with config.yaml and model.safetensors."""
    folder, config = tmp_path_factory.mktemp("mini"), mini_config()
    torch.manual_seed(0)
    save_file(shake(instantiate(config)).state_dict(), folder / "model.safetensors")
    OmegaConf.save({"model": config}, folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """SAM 2.1 tiny at full size with random weights, in the format of the released checkpoints."""
    path = tmp_path_factory.mktemp("released") / "sam2.1_hiera_tiny.pt"
    torch.manual_seed(0)
    torch.save({"model": shake(instantiate(config_of("sam2.1", "t"))).state_dict()}, path)
    return path


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def some_boxes(count, height, width, seed=0):
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4) * [width, height, width, height]


@pytest.mark.slow
def test_masks_are_those_of_the_packages_predictor_at_full_size(released, monkeypatch):
    height, width = 120, 200
    image, boxes = picture(height, width), some_boxes(7, height, width)
    reference = SAM2ImagePredictor(build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", str(released), device="cpu"))
    reference.set_image(image)

    segmenter = load_sam2(released, CPU)
    assert segmenter.name == "SAM 2.1 Hiera tiny"
    encodings = []
    segmenter.model.image_encoder.register_forward_hook(lambda *_: encodings.append(1))
    (encoded,) = segmenter.encode([image])
    for count in (0, 1, 7):
        masks, scores = segmenter.masks(encoded, boxes[:count])
        assert masks.shape == (count, height, width) and masks.dtype == bool
        assert scores.shape == (count,) and scores.dtype == np.float32
        if count:
            expected, estimates, _ = reference.predict(box=boxes[:count], multimask_output=False)
            np.testing.assert_array_equal(masks, expected.reshape(masks.shape).astype(bool))
            np.testing.assert_array_equal(scores, estimates.reshape(count))
    assert 0.02 < masks.mean() < 0.98 and all((masks[0] != mask).any() for mask in masks[1:])

    monkeypatch.setattr(sam2_image, "_MOST_BOXES", 3)  # 3 + 3 + 1
    chunked, estimates = segmenter.masks(encoded, boxes)
    assert (chunked != masks).mean() < 1e-3 and np.abs(estimates - scores).max() < 1e-4
    assert len(encodings) == 1


@pytest.mark.parametrize(
    ("version", "letter"),
    [
        ("sam2.1", "t"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(["sam2", "sam2.1"], ["s", "b+", "l"])
        ),
        pytest.param("sam2", "t", marks=pytest.mark.slow),
    ],
)
def test_a_released_checkpoint_of_any_size_loads(version, letter, tmp_path):
    state = instantiate(config_of(version, letter)).state_dict()
    torch.save({"model": state}, tmp_path / "x.pt")
    model, name = build_model(tmp_path / "x.pt")
    sizes = {"t": "tiny", "s": "small", "b+": "base+", "l": "large"}
    assert name == f"{version.upper().replace('SAM', 'SAM ')} Hiera {sizes[letter]}" and not model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # as sam2's own builders set it
    assert model.sam_mask_decoder.dynamic_multimask_via_stability and model.binarize_mask_from_pts_for_mem_enc
    (tmp_path / "x.pt").unlink()  # pytest keeps the folders of its last runs


@pytest.mark.parametrize("shape", [(48, 80), (1, 1), (1, 5000), (700, 3), (65, 64)])
def test_a_model_of_ones_own_at_any_size(mini, shape):
    image, boxes = picture(*shape), some_boxes(5, *shape)
    segmenter = load_sam2(mini, CPU)
    (encoded,) = segmenter.encode([image])
    masks, scores = segmenter.masks(encoded, boxes)

    config = OmegaConf.load(mini / "config.yaml").model
    model = instantiate(config).eval()
    model.load_state_dict(load_file(mini / "model.safetensors"))
    reference = SAM2ImagePredictor(model)
    reference._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    reference.set_image(image)
    expected, estimates, _ = reference.predict(box=boxes, multimask_output=False)
    np.testing.assert_array_equal(masks, expected[:, 0] > 0)
    np.testing.assert_array_equal(scores, estimates[:, 0])
    assert segmenter.name.startswith("SAM 2, 0.") and np.isfinite(scores).all()


def test_images_together_are_as_each_alone(mini):
    segmenter, images = load_sam2(mini, CPU), [picture(48, 80), picture(70, 30, seed=1), picture(48, 80, seed=2)]
    together = segmenter.encode(images)
    found = []
    for image, encoded in zip(images, together, strict=True):
        boxes = some_boxes(5, *image.shape[:2])
        masks, scores = segmenter.masks(encoded, boxes)
        (alone,) = segmenter.encode([image])
        expected, estimates = segmenter.masks(alone, boxes)
        assert (masks != expected).mean() < 1e-3 and np.abs(scores - estimates).max() < 1e-4
        found.append(masks)
    assert (found[0] != found[2]).any()


def test_boxes_are_cut_at_the_border_and_may_be_flat(mini):
    segmenter = load_sam2(mini, CPU)
    (encoded,) = segmenter.encode([picture(40, 60)])
    inside, _ = segmenter.masks(encoded, [[0, 0, 60, 30], [20, 10, 20, 10], [60, 40, 60, 40]])
    beyond, scores = segmenter.masks(encoded, [[-500, -3.5, 1e6, 30], [20, 10, 20, 10], [70, 50, 90, 60]])
    np.testing.assert_array_equal(inside, beyond)
    assert np.isfinite(scores).all()


def test_large_images_are_decoded_in_smaller_chunks(mini, monkeypatch):
    segmenter = load_sam2(mini, CPU)
    (encoded,) = segmenter.encode([picture(50, 70)])
    boxes = some_boxes(6, 50, 70)
    expected, _ = segmenter.masks(encoded, boxes)
    assert segmenter.masks(encoded, [])[0].shape == (0, 50, 70)
    sizes = []
    segmenter.model.sam_prompt_encoder.register_forward_hook(lambda _, __, output: sizes.append(len(output[0])))
    for pixels, wanted in ((50 * 70 * 4, [4, 2]), (50 * 70 - 1, [1] * 6)):
        monkeypatch.setattr(sam2_image, "_MOST_PIXELS", pixels)
        sizes.clear()
        masks, _ = segmenter.masks(encoded, boxes)
        assert sizes == wanted and (masks != expected).mean() < 1e-3


def test_every_layout_of_the_array_gives_the_same(mini):
    image, boxes = picture(30, 40), [[3, 4, 20, 22]]
    segmenter = load_sam2(mini, CPU)
    (encoded,) = segmenter.encode([image])
    expected, _ = segmenter.masks(encoded, boxes)
    frozen = image.copy()
    frozen.flags.writeable = False
    for same in (frozen, image[:, :, ::-1].copy()[:, :, ::-1], np.asfortranarray(image), np.repeat(image, 2, 0)[::2]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (encoded,) = segmenter.encode([same])
            np.testing.assert_array_equal(segmenter.masks(encoded, boxes)[0], expected)


def test_half_precision_is_used_and_near(mini):
    image, boxes = picture(40, 60), some_boxes(4, 40, 60)
    seen, found = [], []
    for precision in ("fp32", "bf16", "fp16"):
        segmenter = load_sam2(mini, Compute(torch.device("cpu"), "CPU", precision))
        convolution = segmenter.model.image_encoder.neck.convs[0].conv
        convolution.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        (encoded,) = segmenter.encode([image])
        masks, scores = segmenter.masks(encoded, boxes)
        assert masks.dtype == bool and scores.dtype == np.float32
        found.append(masks)
    assert seen == [torch.float32, torch.bfloat16, torch.float16]
    assert all((found[0] != other).mean() < 0.1 for other in found[1:])


def test_loading_and_predicting_are_quiet(mini, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter = load_sam2(mini, CPU)
        (encoded,) = segmenter.encode([picture(20, 20)])
        segmenter.masks(encoded, [[1, 2, 10, 12]])
    assert capfd.readouterr() == ("", "")


def test_half_precision_tensors_fill_a_single_precision_model(mini, tmp_path):
    state = {key: value.half() for key, value in load_file(mini / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text((mini / "config.yaml").read_text())
    model, _ = build_model(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_model_serves_videos_too_and_is_as_its_configuration_says(mini):
    model, _ = build_model(mini)
    assert isinstance(model, SAM2VideoPredictor)
    assert not model.sam_mask_decoder.dynamic_multimask_via_stability
    assert not model.binarize_mask_from_pts_for_mem_enc


def test_the_compiled_encoder_gives_the_same_masks(mini, monkeypatch):
    options, compiler = [], torch.compile

    def graph_only(function, **given):  # traced as for a compiler, run without one
        options.append(given)
        return compiler(function, backend="eager", **given)

    monkeypatch.setattr(torch, "compile", graph_only)
    plain, compiled = load_sam2(mini, CPU), load_sam2(mini, CPU, compile=True)
    image, boxes = picture(60, 80), some_boxes(3, 60, 80)
    masks = [segmenter.masks(segmenter.encode([image])[0], boxes)[0] for segmenter in (plain, compiled)]
    np.testing.assert_array_equal(*masks)
    assert options == [{"dynamic": False}]  # no CUDA graphs, whose outputs the next image overwrites


def test_what_cannot_be_compiled_runs_as_it_is(mini, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    segmenter = load_sam2(mini, CPU, compile=True)
    assert "going on without: no compiler found" in capsys.readouterr().out
    (encoded,) = segmenter.encode([picture(60, 80)])
    assert segmenter.masks(encoded, some_boxes(2, 60, 80))[0].shape == (2, 60, 80)


# --- files that are not what they should be ----------------------------------------------------------------------


def fails(weights, *parts, kind=ValueError):
    with pytest.raises(kind) as caught:
        build_model(weights)
    message = str(caught.value)
    assert "\n" not in message and "weights_only" not in message and all(part in message for part in parts), message


def test_a_file_that_is_no_sam2_is_named_with_what_was_expected(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {"image_encoder.neck": torch.ones(9)}}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>busy</html>", whole[:100]):
        path.write_bytes(content)
        fails(path, str(path), f"{len(content):,} bytes", "truncated", "Expected: a SAM 2")
    patches = "image_encoder.trunk.patch_embed.proj.weight"
    for content in ({"model": {"backbone.0.body": torch.ones(1)}}, {"model": {patches: torch.ones(100, 3, 7, 7)}}):
        torch.save(content, path)
        fails(path, str(path), "another model's", "Expected: a SAM 2")
    for content in ({"weights": {}}, [1, 2], {"model": [1]}, torch.ones(3)):
        torch.save(content, path)
        fails(path, str(path), "another model's", "Expected: a SAM 2")


def test_tensors_that_do_not_fit_are_named(mini, tmp_path):
    state = load_file(mini / "model.safetensors")
    (tmp_path / "config.yaml").write_text((mini / "config.yaml").read_text())
    key = "sam_mask_decoder.iou_token.weight"
    for wrong, part in (
        ({name: value for name, value in state.items() if name != key}, f'Missing key(s) in state_dict: "{key}"'),
        ({**state, "extra": torch.ones(1)}, 'Unexpected key(s) in state_dict: "extra"'),
        ({**state, key: torch.ones(2, 32)}, f"size mismatch for {key}"),
    ):
        save_file(wrong, tmp_path / "model.safetensors")
        fails(tmp_path, str(tmp_path), part, "does not fit SAM 2", "Expected: a SAM 2")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_or_configuration_is_executed(mini, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "x.pt"
    torch.save({"model": Payload(trace)}, path)
    fails(path, str(path), "Expected: a SAM 2")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((mini / "model.safetensors").read_bytes())
    touch = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(trace)]}}
    system = {"_target_": "sam2.build_sam.os.system", "command": f"touch {trace}"}  # below sam2., and yet another's
    for place in ("", "image_encoder", "memory_encoder.fuser"):
        for node, name in ((touch, "pathlib.Path"), (system, "os.system")):
            config = OmegaConf.load(mini / "config.yaml")
            OmegaConf.update(config, f"model.{place}".rstrip("."), node, merge=False)
            OmegaConf.save(config, folder / "config.yaml")
            fails(folder, f"{folder}/config.yaml", name, "no part of SAM 2")
    torch.save(Payload(trace), path)
    for argument, value in (("weights_path", str(path)), ("_args_", [16, 1, 0.0, 2, [2, 2], str(path)])):
        config = OmegaConf.load(mini / "config.yaml")
        config.model.image_encoder.trunk[argument] = value
        OmegaConf.save(config, folder / "config.yaml")
        fails(folder, f"{folder}/config.yaml", argument, "no part of SAM 2")
    (folder / "config.yaml").write_text(f"model: !!python/object/apply:pathlib.Path.touch ['{trace}']")
    fails(folder, str(folder), "cannot be read as SAM 2")
    assert not trace.exists()


def test_a_folder_that_is_no_model_is_named(mini, tmp_path):
    fails(tmp_path, str(tmp_path / "config.yaml"), "No such file", "Expected: a SAM 2")
    (tmp_path / "config.yaml").write_bytes((mini / "config.yaml").read_bytes())
    fails(tmp_path, str(tmp_path / "model.safetensors"), "No such file")
    (tmp_path / "model.safetensors").write_bytes((mini / "model.safetensors").read_bytes())
    build_model(tmp_path)
    whole = (mini / "model.safetensors").read_bytes()
    for content in (whole[:-9], whole[:5], b""):
        (tmp_path / "model.safetensors").write_bytes(content)
        fails(tmp_path, str(tmp_path), "cannot be read as SAM 2")
    (tmp_path / "model.safetensors").write_bytes(whole)
    for text in ("model: [", "models: {}", "model: 3", "", "\udcff"):
        (tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
        fails(tmp_path, str(tmp_path))
    config = mini_config()
    config.image_encoder.trunk.stages = [1, 1, 3, 1]
    OmegaConf.save({"model": config}, tmp_path / "config.yaml")
    fails(tmp_path, str(tmp_path), "does not fit", "Missing key(s)")


def test_nothing_is_asked_of_the_network(mini, tmp_path):
    with blocked_network() as attempts:
        assert build_model(mini)[1].startswith("SAM 2, ")
        for weights in ("tiny", "facebook/sam2.1-hiera-tiny", tmp_path / "none.pt"):
            fails(weights, str(weights), kind=FileNotFoundError)
    assert attempts == []
