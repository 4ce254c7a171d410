"""helpers/segment/clipseg.py: against transformers' own processor and model, a phrase at a time, and on a miniature."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
from transformers.utils import logging

from helpers.common.device import Compute
from helpers.segment import clipseg
from helpers.segment.clipseg import load_clipseg
from offline import blocked_network

CPU = Compute(torch.device("cpu"), "CPU", "fp32")
PHRASES = ["a red circle", "A DOG", "собака 😀", "", "the large blue square . left of " * 9]


def write_processor(folder, side, vocabulary):
    """A byte-level CLIP tokenizer without merges, and the image processor of the released models."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [f"<unused{n}>" for n in range(vocabulary - len(tokens) - 2)]
    start, end = "<|startoftext|>", "<|endoftext|>"
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate([*tokens, start, end])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})
    )
    normalise = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}, **normalise})
    )


def write_model(folder, side, **config):
    torch.manual_seed(0)
    config = CLIPSegConfig(**config)
    write_processor(folder, side, config.text_config.vocab_size)
    model = CLIPSegForImageSegmentation(config)
    with torch.no_grad():  # so that the map depends on the phrase and stays clear of 0 and 1
        model.clip.text_model.embeddings.token_embedding.weight.normal_()
        for layer in model.decoder.reduces:
            layer.weight.normal_(std=0.02)
        for layer in (model.decoder.film_mul, model.decoder.film_add):
            layer.weight.normal_(std=5 / config.projection_dim**0.5)
        for layer in model.decoder.transposed_convolution.modules():
            if hasattr(layer, "weight"):
                layer.weight.normal_(std=1.4 / layer.weight[:, 0].numel() ** 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The size of clipseg-rd64-refined, with random weights."""
    return write_model(
        tmp_path_factory.mktemp("full"),
        352,
        vision_config={"patch_size": 16},
        use_complex_transposed_convolution=True,
    )


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return write_model(
        tmp_path_factory.mktemp("mini"),
        64,
        text_config={"vocab_size": 600, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
        | {"intermediate_size": 32, "bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 599},
        vision_config={"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 32}
        | {"image_size": 64, "patch_size": 8},
        projection_dim=32,
        reduce_dim=16,
        extract_layers=[0, 1, 3],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def one_by_one(folder, image, phrases):
    """What transformers makes of each phrase on its own."""
    processor = CLIPSegProcessor.from_pretrained(folder)
    model = CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    maps = []
    for phrase in phrases:
        inputs = processor(text=[phrase], images=Image.fromarray(image), return_tensors="pt")
        if inputs["input_ids"].shape[1] > 77:  # what the tokenizer's own cut must come to: the end token stays
            inputs["input_ids"] = torch.cat([inputs["input_ids"][:, :76], inputs["input_ids"][:, -1:]], dim=1)
            inputs["attention_mask"] = inputs["attention_mask"][:, :77]
        with torch.no_grad():
            maps.append(model(**inputs).logits.sigmoid().numpy())
    return np.concatenate([map.reshape(1, *map.shape[-2:]) for map in maps])


def heatmaps(model, image, phrases):
    """Of one image."""
    (maps,) = model.heatmaps([image], [phrases])
    return maps


def test_images_together_each_with_phrases_of_its_own_are_as_each_alone(mini, monkeypatch):
    monkeypatch.setattr(clipseg, "_MOST_PHRASES", 3)  # which are then of several images
    model, images = load_clipseg(mini, CPU), [picture(48, 80), picture(30, 40, seed=1), picture(50, 50, seed=2)]
    wanted = [PHRASES[:2], [], PHRASES[1:]]
    found = model.heatmaps(images, wanted)
    for image, phrases, maps in zip(images, wanted, found, strict=True):
        assert maps.shape == (len(phrases), 64, 64)
        assert not phrases or np.abs(maps - heatmaps(model, image, phrases)).max() < 1e-5
    assert np.abs(found[0][1] - found[2][0]).max() > 0.01  # of one phrase in two images


@pytest.mark.slow
def test_maps_are_those_of_transformers_at_full_size(full, monkeypatch):
    image = picture(60, 90)
    expected = one_by_one(full, image, PHRASES)
    assert all(np.abs(expected[0] - other).max() > 0.01 for other in expected[1:])  # else nothing is tested

    model = load_clipseg(full, CPU)
    monkeypatch.setattr(clipseg, "_MOST_PHRASES", 2)
    maps = heatmaps(model, image, PHRASES)
    assert maps.shape == (5, 352, 352) and maps.dtype == np.float32 and 0 <= maps.min() < maps.max() <= 1
    assert np.abs(maps - expected).max() < 1e-5


@pytest.mark.parametrize("shape", [(48, 80), (3, 90), (90, 3), (700, 500)])
def test_the_folders_processor_decides_on_the_size(mini, shape):
    image = picture(*shape)
    maps = heatmaps(load_clipseg(mini, CPU), image, PHRASES[:3])
    assert maps.shape == (3, 64, 64)
    if min(shape) > 3:  # transformers 4 takes three rows for three channels
        assert np.abs(maps - one_by_one(mini, image, PHRASES[:3])).max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 40), (1, 3)])
def test_images_that_could_be_taken_for_channels(mini, shape):
    """Rows or columns that are all alike make the map of a constant image along the other axis."""
    model = load_clipseg(mini, CPU)
    thin = picture(*shape)
    if 1 in shape:
        thick = np.repeat(np.repeat(thin, 4 if shape[0] == 1 else 1, 0), 4 if shape[1] == 1 else 1, 1)
    else:
        thick = np.repeat(np.repeat(thin, 2, 0), 2, 1)
    tolerance = 1e-5 if 1 in shape else 0.2  # doubled pixels are interpolated a little differently
    maps = heatmaps(model, thin, ["a"]), heatmaps(model, thick, ["a"])
    assert np.isfinite(maps[0]).all() and np.abs(maps[0] - maps[1]).max() < tolerance


def test_three_hundred_phrases_are_as_good_as_one(mini):
    model, image = load_clipseg(mini, CPU), picture(30, 30)
    phrases = [f"thing {n}" * (1 + n % 9) for n in range(300)]
    maps = heatmaps(model, image, phrases)
    assert maps.shape == (300, 64, 64)
    for n in (0, 15, 16, 123, 299):
        assert np.abs(maps[n] - heatmaps(model, image, [phrases[n]])[0]).max() < 1e-5


def test_a_phrase_is_cut_where_the_text_tower_ends(mini):
    model, image = load_clipseg(mini, CPU), picture(30, 30)
    kept = "abcde" * 15  # a token a letter, and the start and the end: 77
    phrases = [kept + "f", kept + "xyz" * 500, kept[:-1] + "zf"]
    one, longer, other = heatmaps(model, image, phrases)
    assert np.abs(one - longer).max() < 1e-6 < 1e-5 < np.abs(one - other).max()


def test_lower_precision_is_used_and_near(mini):
    image, found = picture(40, 60), []
    for precision in ("fp32", "bf16", "fp16"):
        model = load_clipseg(mini, Compute(torch.device("cpu"), "CPU", precision))
        found.append(heatmaps(model, image, PHRASES))
        assert found[-1].dtype == np.float32
    assert all(0 < np.abs(found[0] - other).mean() < 0.02 for other in found[1:])


def test_half_precision_tensors_are_computed_in_single_precision(mini, tmp_path):
    model = CLIPSegForImageSegmentation.from_pretrained(mini).half()
    write_processor(tmp_path, 64, 600)
    model.save_pretrained(tmp_path)
    half, single = load_clipseg(tmp_path, CPU), load_clipseg(mini, CPU)
    image = picture(40, 40)
    assert np.abs(heatmaps(half, image, ["a"]) - heatmaps(single, image, ["a"])).max() < 0.02


def test_every_layout_of_the_array_gives_the_same_and_nothing_is_said(mini, capfd):
    image = picture(30, 40)
    frozen = image.copy()
    frozen.flags.writeable = False
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_clipseg(mini, CPU)
        expected = heatmaps(model, image, ["a", "b"])
        for same in (frozen, image[:, :, ::-1].copy()[:, :, ::-1], np.asfortranarray(image)):
            np.testing.assert_array_equal(heatmaps(model, same, ["a", "b"]), expected)
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == verbosity and logging.is_progress_bar_enabled()


# --- folders that are not what they should be --------------------------------------------------------------------


def fails(weights, *parts):
    with pytest.raises(ValueError) as caught:
        load_clipseg(weights, CPU)
    message = str(caught.value)
    assert "\n" not in message and "Expected: a folder with config.json" in message
    assert all(part in message for part in parts), message


@pytest.fixture
def copy(mini, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in mini.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    load_clipseg(folder, CPU)
    return folder


def test_what_is_not_there_is_named(tmp_path, mini):
    for weights in (tmp_path / "none", "none.pth", "CIDAS/clipseg-rd64-refined", mini / "config.json", tmp_path):
        fails(weights, f"{Path(weights) / 'config.json'} is missing")


def test_another_models_folder_is_named(copy):
    config = json.loads((copy / "config.json").read_text())
    for kind in ("clip", "grounding-dino", None):
        (copy / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        fails(copy, str(copy), f"says model_type {kind!r}" if kind else "without a model_type")
    for text in ("{", "[]", ""):
        (copy / "config.json").write_text(text)
        fails(copy, str(copy))


def test_broken_or_incomplete_tensors_are_named(copy):
    from safetensors.torch import load_file, save_file

    path = copy / "model.safetensors"
    whole = path.read_bytes()
    state = {name: value.clone() for name, value in load_file(path).items()}  # not a map of the file
    for content in (whole[:-9], whole[:100], b""):
        path.write_bytes(content)
        fails(copy, str(copy))
    key = "decoder.film_mul.weight"
    save_file({name: value for name, value in state.items() if name != key}, path, metadata={"format": "pt"})
    fails(copy, str(copy), f"1 tensors of the model are not as in its files: {key}")
    for change in ({key: torch.ones(3, 3)}, {"decoder.film_mul.scale": torch.ones(3)}):
        save_file(state | change, path, metadata={"format": "pt"})
        fails(copy, str(copy), f"1 tensors of the model are not as in its files: {next(iter(change))}")
    path.unlink()
    fails(copy, str(copy))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "vocab.json"])
def test_a_missing_part_of_the_processor_is_named(copy, name):
    (copy / name).unlink()
    fails(copy, str(copy))


def test_nothing_is_asked_of_the_network_and_a_snapshot_has_the_name_of_its_id(mini, tmp_path):
    snapshots = tmp_path / "models--CIDAS--clipseg-rd64-refined" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / ("0" * 40)).symlink_to(mini)
    image = picture(20, 20)
    with blocked_network() as attempts:
        expected = heatmaps(load_clipseg(mini, CPU), image, ["a"])
        model = load_clipseg(snapshots / ("0" * 40), CPU)
        np.testing.assert_array_equal(heatmaps(model, image, ["a"]), expected)
        assert model.name == "CLIPSeg (CIDAS/clipseg-rd64-refined)"
        fails("CIDAS/clipseg-rd16")
    assert attempts == []
