"""segment/grounding_dino.py: both packages with the same weights against each other; bad files."""

import copy
import itertools
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_prompts import write_vocabulary

from helpers.common.device import Compute
from helpers.segment import grounding_dino
from helpers.segment.grounding_dino import HEADS, PATCH_EMBED, build_original, load, mend_positions, resized_shape
from offline import blocked_network

CPU = Compute(torch.device("cpu"), "CPU", "fp32")
CAPTION = "cat . red dog . unicyclist on the left ."

SWIN = "model.backbone.conv_encoder.model."
# The authors' names as regular expressions -> transformers'. Applied in turn, each to what the others made of the name.
NAMES = [
    # Swin
    (r"^backbone\.0\.norm(\d)\.", lambda m: f"{SWIN}hidden_states_norms.stage{int(m[1]) + 1}."),
    (r"^backbone\.0\.patch_embed\.proj\.", SWIN + "embeddings.patch_embeddings.projection."),
    (r"^backbone\.0\.patch_embed\.norm\.", SWIN + "embeddings.norm."),
    (r"^backbone\.0\.layers\.", SWIN + "encoder.layers."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"(blocks\.\d+)\.attn\.", r"\1.attention.self."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    # text and projections
    (r"^bert\.", "model.text_backbone."),
    (r"^feat_map\.", "model.text_projection."),
    (r"^input_proj\.", "model.input_proj_vision."),
    # encoder: deformable, text and fusion layers
    (r"^transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer."),
    (r"(fusion_layer)\.gamma_v$", r"\1.vision_param"),
    (r"(fusion_layer)\.gamma_l$", r"\1.text_param"),
    (r"(fusion_layer\.layer_norm)_v\.", r"\1_vision."),
    (r"(fusion_layer\.layer_norm)_l\.", r"\1_text."),
    (r"(fusion_layer\.attn\.\w*?)v_proj\.", r"\1vision_proj."),
    (r"(fusion_layer\.attn\.\w*?)l_proj\.", r"\1text_proj."),
    (r"^transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer."),
    (r"(text_enhancer_layer)\.norm1\.", r"\1.layer_norm_before."),
    (r"(text_enhancer_layer)\.norm2\.", r"\1.layer_norm_after."),
    (r"^transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer."),
    (r"(deformable_layer)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(deformable_layer)\.norm2\.", r"\1.final_layer_norm."),
    # decoder
    (r"^transformer\.decoder\.norm\.", "model.decoder.layer_norm."),
    (r"^transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
    (r"^transformer\.decoder\.", "model.decoder."),
    (r"(decoder\.layers\.\d+)\.norm1\.", r"\1.encoder_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"(decoder\.layers\.\d+)\.catext_norm\.", r"\1.encoder_attn_text_layer_norm."),
    (r"(decoder\.layers\.\d+)\.ca_text\.", r"\1.encoder_attn_text."),
    (r"(decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
    (r"(layers\.\d+(?:\.\w+_layer)?)\.linear(\d)\.", r"\1.fc\2."),
    # the rest
    (r"^transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (r"^transformer\.tgt_embed\.", "model.query_position_embeddings."),
    (r"^transformer\.", "model."),
]


def converted(state):
    """The authors' tensors under the names of transformers; stacked projections become query, key and value."""
    new = {}
    for key, value in state.items():
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        if stacked := re.fullmatch(r"(model\..*)\.(?:qkv\.|in_proj_)(weight|bias)", key):
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                new[f"{stacked[1]}.{part}.{stacked[2]}"] = tensor.clone()
        elif "relative_position_index" not in key:
            new[key] = value
    return new


def randomised(model, step=0.01):
    """Weights of about unit gain, also where the code starts from zeros, so that every part has a say.

    Boxes change little from layer to layer: within a thousandth of the image's edge the packages differ by intent
    (the original takes logits of at least 0.001, the port of at least 0.00001).
    """
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if re.search(r"norm[\w.]*weight$", name.lower()):
            tensor.data = 1 + 0.1 * noise
        elif re.search(r"bbox_embed\S*layers\.2\.", name):
            tensor.data = step * noise
        elif "embeddings" in name or "tgt_embed" in name:
            tensor.data = noise
        elif tensor.dim() > 1:
            tensor.data = noise / tensor[0].numel() ** 0.5
        else:
            tensor.data = 0.1 * noise
    return model


SWINS = {  # the published settings of both packages
    "T": ("GroundingDINO_SwinT_OGC", {"window_size": 7, "embed_dim": 96, "depths": [2, 2, 6, 2], "image_size": 224}),
    "B": ("GroundingDINO_SwinB_cfg", {"window_size": 12, "embed_dim": 128, "depths": [2, 2, 18, 2], "image_size": 384}),
}


FEWER = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 50}
SMALL_BERT = {"vocab_size": 1040, "hidden_size": 32, "num_hidden_layers": 2}
SMALL_BERT |= {"num_attention_heads": 2, "intermediate_size": 32}


def both_ways(variant, folder, bert=None, **layers):
    """One set of random weights as an authors' file and as a folder of transformers: load the one, then the other."""
    from transformers import BertConfig, BertTokenizerFast, GroundingDinoConfig, GroundingDinoImageProcessor, SwinConfig

    settings, swin = SWINS[variant]
    bert_config = BertConfig(**bert or {})
    bert_config.save_pretrained(folder / "bert")
    for place in (folder, folder / "bert"):
        write_vocabulary(place, bert_config.vocab_size)
    tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    model = randomised(build_original(settings, tokenizer, bert_config), step=0.05 if layers else 0.01)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    del model
    extra = {"label_enc.weight": torch.zeros(2, 3), "bert.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({"model": {f"module.{key}": value for key, value in {**state, **extra}.items()}}, folder / "swin.pth")
    yield small(load(folder / "swin.pth", folder / "bert", CPU))

    heads = [swin["embed_dim"] * 2**stage // 32 for stage in range(4)]
    backbone = SwinConfig(**swin, num_heads=heads, out_indices=[2, 3, 4])
    GroundingDinoConfig(backbone_config=backbone, text_config=bert_config, **layers).save_pretrained(folder)
    GroundingDinoImageProcessor().save_pretrained(folder)
    shared = re.compile(r"(model\.decoder\.bbox_embed|bbox_embed\.[1-5])\.")  # left out where a name stands for another
    tensors = {key: value.contiguous() for key, value in converted(state).items() if not shared.match(key)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    del state, tensors
    yield small(load(folder, None, CPU))
    (folder / "model.safetensors").unlink()  # pytest keeps the folders of its last runs


def small(detector):
    detector.size = {"shortest_edge": 256, "longest_edge": 427}  # for speed
    return detector


@pytest.fixture(scope="module")
def original_file(tmp_path_factory):
    return tmp_path_factory.mktemp("swin_t") / "swin.pth"


@pytest.fixture(scope="module")
def pair(original_file):
    """A Swin-T of few layers, by both packages."""
    from groundingdino.config import GroundingDINO_SwinT_OGC as settings

    names = ("enc_layers", "dec_layers", "dim_feedforward", "num_queries")
    with pytest.MonkeyPatch.context() as patch, blocked_network() as attempts:
        for name, value in zip(names, (1, 2, 64, 50), strict=True):
            patch.setattr(settings, name, value)
        yield tuple(both_ways("T", original_file.parent, SMALL_BERT, **FEWER))
    assert attempts == []
    original_file.unlink()


@pytest.fixture
def same_ties(monkeypatch):
    """The second network takes the first one's order of proposals, if that is right by its own scores but for rounding.

    Each place in the order has its own query embedding, so the order of two equal scores would change the outcome.
    """
    first, topk = [], torch.topk

    def replay(scores, k, dim):
        values, order = topk(scores, k, dim=dim)
        if not first:
            first.append(order)
        again = scores.gather(dim, first[0])
        torch.testing.assert_close(again, values, atol=1e-3, rtol=0)
        return again, first[0]

    monkeypatch.setattr(torch, "topk", replay)
    return first


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def predict(detector):
    logits, boxes = detector.network(detector.preprocess([random_image(256, 320)]), CAPTION)
    return logits[0], boxes[0]


def forward(detector, image, caption):
    """Of one image."""
    scores, boxes = detector.forward([image], caption)
    return scores[0], boxes[0]


def check_agreement(detectors, same_ties, queries=900, spread=0.03):
    (logits, boxes), (port_logits, port_boxes) = map(predict, detectors)
    assert len(same_ties) == 1 and same_ties[0].shape == (1, queries)
    torch.testing.assert_close(port_logits, logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(port_boxes, boxes, atol=1e-4, rtol=0)
    tokens = 15  # [CLS] cat . red dog . un ##ic ##yc ##list on the left . [SEP]
    assert logits.shape == (queries, 256) and logits[:, tokens:].isneginf().all()
    # what is compared is not all the same
    assert logits[:, :tokens].std(0).min() > 0.5 and logits[:, :tokens].std(1).median() > 0.5
    assert boxes.std(0).min() > spread and boxes.min() > 1e-3 and boxes.max() < 1 - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["T", "B"])
def test_both_packages_agree_at_full_size(tmp_path, same_ties, variant):
    check_agreement(both_ways(variant, tmp_path), same_ties)  # one in memory at a time
    (tmp_path / "swin.pth").unlink()


def test_both_packages_agree(pair, same_ties):
    check_agreement(pair, same_ties, queries=50, spread=0.004)
    assert pair[0].name == "GroundingDINO Swin-T (swin.pth, groundingdino-py)"


def test_forward(pair, same_ties):
    image = random_image(300, 200)
    (scores, boxes), (port_scores, port_boxes) = (forward(detector, image, CAPTION) for detector in pair)
    assert scores.shape == port_scores.shape == (50, 15) and boxes.shape == port_boxes.shape == (50, 4)
    assert {x.dtype for x in (scores, boxes, port_scores, port_boxes)} == {torch.float32}
    torch.testing.assert_close(port_scores, scores, atol=1e-3, rtol=0)
    torch.testing.assert_close(port_boxes, boxes, atol=1e-2, rtol=0)  # pixels
    x0, y0, x1, y1 = boxes.T
    assert (x0 >= 0).all() and (x0 < x1).all() and (x1 <= 200).all()
    assert (y0 >= 0).all() and (y0 < y1).all() and (y1 <= 300).all()
    assert y1.max() > 250  # not x for y
    assert [d.max_tokens for d in pair] == [256, 256]


def test_images_together_are_as_each_alone(pair):
    images = [random_image(256, 320, seed=0), random_image(512, 640, seed=1), random_image(128, 160, seed=2)]
    for detector in pair:
        scores, boxes = detector.forward(images, CAPTION)
        for image, own_scores, own_boxes in zip(images, scores, boxes, strict=True):
            alone_scores, alone_boxes = forward(detector, image, CAPTION)
            torch.testing.assert_close(own_scores, alone_scores, atol=1e-4, rtol=0)
            torch.testing.assert_close(own_boxes, alone_boxes, atol=0.05, rtol=0)  # pixels
        assert (scores[0] - scores[1]).abs().max() > 0.01  # else nothing is compared
        with pytest.raises(ValueError, match="group them by `resized`"):
            detector.forward([images[0], random_image(100, 320)], CAPTION)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(pair, shape):
    for detector in pair:
        scores, boxes = forward(detector, random_image(*shape), "cat .")
        assert scores.isfinite().all() and boxes.isfinite().all()
        height, width = shape
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_low_precision(pair, precision):
    for detector in pair:
        detector.compute = Compute(torch.device("cpu"), "CPU", precision)
        try:
            scores, boxes = forward(detector, random_image(256, 320), CAPTION)
        finally:
            detector.compute = CPU
        assert scores.dtype == boxes.dtype == torch.float32
        assert scores.isfinite().all() and boxes.isfinite().all() and scores.std() > 0.1


def test_quiet(pair, capfd, recwarn):
    for detector in pair:
        forward(detector, random_image(256, 320), "cat .")
    assert capfd.readouterr() == ("", "") and not recwarn.list


# --- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(480, 640), (1080, 1920), (1333, 800), (300, 2000), (801, 799)])
def test_preprocessing_is_the_authors(pair, monkeypatch, shape):
    from groundingdino.datasets import transforms

    steps = [
        transforms.RandomResize([800], max_size=1333),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    image = random_image(*shape)
    expected, _ = transforms.Compose(steps)(Image.fromarray(image), None)
    for detector in pair:
        monkeypatch.setattr(detector, "size", {"shortest_edge": 800, "longest_edge": 1333})
        torch.testing.assert_close(detector.preprocess([image])[0], expected, atol=0, rtol=0)


def test_resized_shape_is_the_authors(monkeypatch):
    from groundingdino.datasets import transforms

    monkeypatch.setattr(transforms.F, "resize", lambda image, size: tuple(size))
    compared = 0
    for height, width in np.random.default_rng(0).integers(1, 3000, (2000, 2)).tolist():
        expected, _ = transforms.resize(types.SimpleNamespace(size=(width, height)), None, 800, 1333)
        if min(expected) >= 40:  # 900 cells and more
            assert resized_shape(height, width, {"shortest_edge": 800, "longest_edge": 1333}) == expected
            compared += 1
    assert compared > 1800


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1800), (3, 4000), (1, 10**6)])
def test_resized_shape_of_a_line(shape):
    new = resized_shape(*shape, {"shortest_edge": 800, "longest_edge": 1333})
    assert sum(-(-new[0] // s) * -(-new[1] // s) for s in (8, 16, 32, 64)) >= 900
    assert min(new) < 50 and max(new) <= 2 * 1333
    assert (new[0] < new[1]) == (shape[0] < shape[1])


def test_resized_shape_of_a_fixed_size():
    assert resized_shape(300, 500, {"height": 96, "width": 64}) == (96, 64)


def test_sixty_megapixels(tiny):
    detector = load(tiny, None, CPU)
    image = np.zeros((6000, 10000, 3), np.uint8)
    image[:, 5000:] = 255
    assert detector.preprocess([image]).shape == (1, 3, 64, 106)
    scores, boxes = forward(detector, image, "cat .")
    assert scores.shape == (10, 4) and boxes[:, 2].max() > 1000  # pixels of the image given


def test_the_package_is_left_as_it_was(pair):
    from groundingdino.models.GroundingDINO import bertwarper, groundingdino
    from groundingdino.util import get_tokenlizer

    assert groundingdino.BertModelWarper is bertwarper.BertModelWarper
    assert groundingdino.get_tokenlizer is get_tokenlizer


# --- the port, any size -----------------------------------------------------------------------------------------------


def tiny_config(kind, swin=None, num_feature_levels=3, **more):
    """Settings of the class `kind`: 10 queries, captions of 40 tokens, two decoder layers."""
    from transformers import BertConfig, SwinConfig

    backbone = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    backbone |= {"window_size": 4, "out_indices": [2, 3, 4], **(swin or {})}
    return kind(
        backbone_config=SwinConfig(**backbone),
        text_config=BertConfig(
            vocab_size=1040, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=10,
        num_feature_levels=num_feature_levels,
        max_text_len=40,
        **more,
    )


def write_processors(folder):
    """For images of 64 to 128 pixels."""
    from transformers import GroundingDinoImageProcessor

    GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    write_vocabulary(folder, 1040)


def copied(files, folder):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """A folder of transformers."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    folder = tmp_path_factory.mktemp("tiny")
    randomised(GroundingDinoForObjectDetection(tiny_config(GroundingDinoConfig))).save_pretrained(folder)
    write_processors(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def tiny(tiny_files, tmp_path):
    """A fresh copy of the folder, to be damaged at will."""
    return copied(tiny_files, tmp_path / "tiny")


def right(model):
    """A model of transformers by which others can be judged: in 5.0 to 5.22 it has a caption's positions wrong."""
    if (5, 0) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        mend_positions(model.model)
    return model.eval()


def test_boxes_and_scores_are_those_of_transformers_processor(tiny):
    from transformers import BertTokenizerFast, GroundingDinoForObjectDetection, GroundingDinoImageProcessor
    from transformers import GroundingDinoProcessor as Processor

    image = random_image(64, 96)
    scores, boxes = forward(load(tiny, None, CPU), image, CAPTION)

    tokenizer = BertTokenizerFast.from_pretrained(tiny, local_files_only=True)
    processor = Processor(GroundingDinoImageProcessor.from_pretrained(tiny, local_files_only=True), tokenizer)
    model = right(GroundingDinoForObjectDetection.from_pretrained(tiny, local_files_only=True))
    inputs = processor(images=Image.fromarray(image), text=CAPTION, return_tensors="pt")
    assert inputs["pixel_values"].shape[2:] == image.shape[:2]  # no resizing, which the processor does in its own way
    with torch.no_grad():
        output = model(**inputs)
    found = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[image.shape[:2]]
    )[0]
    torch.testing.assert_close(scores.max(1).values, found["scores"], atol=1e-5, rtol=0)
    limit = torch.tensor([96.0, 64.0, 96.0, 64.0])
    torch.testing.assert_close(boxes, found["boxes"].clamp(min=0).minimum(limit), atol=1e-3, rtol=0)
    assert scores.max(1).values.std() > 0.01 and boxes.std(0).min() > 1


def test_half_precision_files_are_computed_in_float32(tiny):
    image = random_image(64, 96)
    tensors = load_file(tiny / "model.safetensors")
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    save_file({k: v.half() for k, v in tensors.items()}, tiny / "model.safetensors", {"format": "pt"})
    scores, _ = forward(load(tiny, None, CPU), image, CAPTION)
    save_file({k: v.half().float() for k, v in tensors.items()}, tiny / "model.safetensors", {"format": "pt"})
    expected, _ = forward(load(tiny, None, CPU), image, CAPTION)
    assert torch.equal(scores, expected)


def test_positions_in_a_caption_are_the_right_ones_under_every_transformers(tiny, monkeypatch):
    """5.0 to 5.22 number the full stop 0, and some of them round the sines to integers: both faults are made here."""
    from transformers.models.grounding_dino import modeling_grounding_dino as modeling

    image = random_image(64, 96)
    expected, _ = forward(load(tiny, None, CPU), image, CAPTION)
    real_masks = modeling.generate_masks_with_special_tokens_and_transfer_map
    real_sines = modeling.GroundingDinoEncoderLayer.get_text_position_embeddings

    def masks(input_ids, **others):
        mask, positions = real_masks(input_ids, **others)
        return mask, positions.masked_fill(input_ids == 1012, 0)

    def sines(self, features, embedding, positions):
        return real_sines(self, features, embedding, positions).to(positions.dtype)

    monkeypatch.setattr(modeling, "generate_masks_with_special_tokens_and_transfer_map", masks)
    monkeypatch.setattr(modeling.GroundingDinoEncoderLayer, "get_text_position_embeddings", sines)
    scores, _ = forward(load(tiny, None, CPU), image, CAPTION)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    monkeypatch.setattr(grounding_dino, "mend_positions", lambda model: None)
    assert (forward(load(tiny, None, CPU), image, CAPTION)[0] - expected).abs().max() > 1e-3


# --- MM-Grounding-DINO and LLMDet -------------------------------------------------------------------------------------

OWN = {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}  # as the hub's config.json has it


def write_mm(folder, **settings):
    """A folder of MM-Grounding-DINO whose decoder layers have different heads, and the model that it was made of."""
    from transformers import MMGroundingDinoConfig, MMGroundingDinoForObjectDetection

    folder.mkdir(exist_ok=True)
    model = MMGroundingDinoForObjectDetection(tiny_config(MMGroundingDinoConfig, **{**OWN, **settings}))
    for name in ("bbox_embed", "class_embed"):  # which some versions share, whatever the settings say
        heads = torch.nn.ModuleList(copy.deepcopy(head) for head in getattr(model, name))
        setattr(model, name, heads)
        setattr(model.model.decoder, name, heads)
    randomised(model, step=0.05)
    assert model.class_embed[0].bias != model.class_embed[1].bias
    model.config.save_pretrained(folder)
    write_processors(folder)
    write_tensors(folder, model)
    return right(model)


def write_tensors(folder, model, first=1):
    """As transformers 4 saves it: heads once, from decoder layer `first` on by the decoder's names."""
    state = {}
    for key, value in model.state_dict().items():
        head = HEADS.fullmatch(key)
        if not head or key.startswith("model.decoder.") == (int(head[2]) >= first):
            state[key] = value.contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def mm_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mm")
    model = write_mm(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, model


@pytest.fixture
def mm(mm_files, tmp_path):
    """A fresh copy of the folder, and the model."""
    return copied(mm_files[0], tmp_path / "mm"), mm_files[1]


def check_mm(folder, model, tolerance=1e-5):
    """The class's own output for the model in memory is that of what was loaded from the folder."""
    detector = load(folder, None, CPU)
    image = random_image(64, 96)
    scores, boxes = forward(detector, image, CAPTION)
    inputs = {"pixel_values": detector.preprocess([image]), **detector.tokenizer(CAPTION, return_tensors="pt")}
    with torch.no_grad():
        output = model(**inputs)
    expected = output.logits[0][:, : scores.shape[1]].sigmoid()
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=0)
    x0, y0, x1, y1 = boxes.T
    width, height = output.pred_boxes[0, :, 2], output.pred_boxes[0, :, 3]
    inside = (x0 > 0) & (y0 > 0) & (x1 < 96) & (y1 < 64)  # the others are cut off
    assert inside.sum() > 2
    torch.testing.assert_close((x1 - x0)[inside] / 96, width[inside], atol=tolerance, rtol=0)
    torch.testing.assert_close((y1 - y0)[inside] / 64, height[inside], atol=tolerance, rtol=0)
    assert scores.std() > 0.01
    return detector


def test_mm_grounding_dino_is_loaded(mm):
    folder, model = mm
    detector = check_mm(folder, model)
    assert detector.name == "MM-Grounding-DINO (mm, transformers)" and detector.max_tokens == 40


@pytest.mark.parametrize(
    "settings",
    [
        {"swin": {"depths": [2, 2, 6, 2], "window_size": 7}, "num_feature_levels": 4},  # T
        {"swin": {"depths": [2, 2, 18, 2], "window_size": 12}, "num_feature_levels": 4},  # B
        {"swin": {"depths": [2, 2, 18, 2], "window_size": 12, "out_indices": [1, 2, 3, 4]}, "num_feature_levels": 5},
    ],
    ids=["T", "B", "L"],
)
def test_mm_grounding_dino_of_each_size(tmp_path, settings):
    """Depths, windows and levels are those of the published ones, widths are not."""
    check_mm(tmp_path / "mm", write_mm(tmp_path / "mm", **settings))


@pytest.mark.parametrize("first", [1, 9], ids=["as transformers 4 saves them", "as transformers 5 does"])
@pytest.mark.parametrize("flags", [True, False, None])
def test_heads_of_each_layer_are_its_own_whatever_the_configuration_says(mm, first, flags):
    """Without both flags false transformers 5.21 and later share them; 5.0 to 5.20 do so even then."""
    folder, model = mm
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in OWN}
    (folder / "config.json").write_text(json.dumps(config | (dict.fromkeys(OWN, flags) if flags is not None else {})))
    write_tensors(folder, model, first)
    check_mm(folder, model)


def tie_heads(monkeypatch):
    """transformers loads the first decoder layer's heads in place of the others'."""
    from transformers import AutoModelForZeroShotObjectDetection

    real = AutoModelForZeroShotObjectDetection.from_pretrained

    def tied(*args, **options):
        model, report = real(*args, **options)
        for module in (model, model.model.decoder):
            module.bbox_embed[1], module.class_embed[1] = model.bbox_embed[0], model.class_embed[0]
        return model, report

    monkeypatch.setattr(AutoModelForZeroShotObjectDetection, "from_pretrained", tied)


def test_heads_that_transformers_ties_are_mended(mm, monkeypatch):
    folder, model = mm
    tie_heads(monkeypatch)
    check_mm(folder, model)


def in_parts(folder, state):
    names = dict(zip(sorted(state), itertools.cycle(["model-1.safetensors", "model-2.safetensors"])))
    for part in set(names.values()):
        save_file({key: state[key] for key in names if names[key] == part}, folder / part, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def pickled(folder, state):
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("save", [None, in_parts, pickled])
def test_heads_that_stay_tied_are_refused(mm, monkeypatch, save):
    folder, model = mm
    if save:
        save(folder, load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").unlink()
    check_mm(folder, model)
    tie_heads(monkeypatch)
    monkeypatch.setattr(grounding_dino, "own_heads", lambda model, tensors: set())
    with pytest.raises(
        ValueError, match=r"tensors of the model are not as in its files: (model\.decoder\.)?bbox_embed\.1\."
    ):
        load(folder, None, CPU)


def test_heads_that_a_file_lacks_are_named(mm):
    folder, _ = mm
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.bbox_embed.1.layers.2.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors .* not as in its files: bbox_embed\.1\.layers\.2\.bias"):
        load(folder, None, CPU)


def test_heads_that_a_file_holds_once_are_those_of_all_layers(mm):
    """So do versions that tie them save what was trained with them tied."""
    folder, model = mm
    tensors = {key: value for key, value in load_file(folder / "model.safetensors").items() if "embed.1." not in key}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = copy.deepcopy(model)
    model.bbox_embed[1], model.class_embed[1] = model.bbox_embed[0], model.class_embed[0]
    check_mm(folder, model)


def test_half_precision_files_of_mm_grounding_dino(mm):
    folder, model = mm
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value.half() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    check_mm(folder, model, tolerance=5e-3)
    rounded = copy.deepcopy(model)
    rounded.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    check_mm(folder, rounded)


def test_older_files_of_llmdet_are_refused(tiny):
    """They are converted for a changed class: without the biases the scores would be meaningless."""
    with_tensor("class_embed.0.bias", torch.zeros(1))(tiny)
    with pytest.raises(ValueError, match=r"not as in its files: class_embed\.0\.bias.*iSEE-Laboratory/llmdet_tiny"):
        load(tiny, None, CPU)


@pytest.mark.parametrize("meta", [{"epoch": 12}, types.SimpleNamespace(epoch=12)])
def test_mmdetections_own_files_are_refused(tmp_path, meta):
    state = {"backbone.patch_embed.projection.weight": torch.zeros(96, 3, 4, 4)}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "swin-t.pth")
    with pytest.raises(
        ValueError, match=r"swin-t\.pth.*iSEE-Laboratory/llmdet_tiny.*mmdetection's own \.pth"
    ) as caught:
        load(tmp_path / "swin-t.pth", None, CPU)
    assert "openmmlab-community/mm_grounding_dino_tiny" in str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tiny, tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth") as caught:
        load(tmp_path / "evil.pth", None, CPU)
    assert "weights_only" not in str(caught.value)  # no advice to switch it off
    torch.save({"model.level_embed": Evil()}, tiny / "pytorch_model.bin")
    assert load(tiny, None, CPU).max_tokens == 40
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="tiny cannot be loaded"):
        load(tiny, None, CPU)
    assert "executed" not in capsys.readouterr().out


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["config.json", "preprocessor_config.json", "vocab.txt", "model.safetensors"])
def test_a_folder_without_a_file(tiny, gone):
    (tiny / gone).unlink()
    with pytest.raises(ValueError, match="tiny"):
        load(tiny, None, CPU)


def truncated(tiny):
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def of_another_kind(tiny):
    (tiny / "config.json").write_text('{"model_type": "clipseg"}')


def no_json(tiny):
    (tiny / "config.json").write_text("<html>busy</html>")


def with_tensor(key, value):
    def damage(tiny):
        tensors = {**load_file(tiny / "model.safetensors"), key: value}
        tensors = {key: value for key, value in tensors.items() if value is not None}
        save_file(tensors, tiny / "model.safetensors", {"format": "pt"})

    return damage


def too_many_words(tiny):
    write_vocabulary(tiny, 1050)


def numbered_otherwise(tiny):
    lines = (tiny / "vocab.txt").read_text().splitlines()
    lines[1012], lines[1013] = lines[1013], lines[1012]
    (tiny / "vocab.txt").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "cannot be loaded"),
        (of_another_kind, "says model_type 'clipseg'"),
        (no_json, "is missing, broken or without a model_type"),
        (with_tensor("model.level_embed", None), "1 tensors .* not as in its files: model.level_embed"),
        (with_tensor("model.level_embed", torch.zeros(4, 32)), "1 tensors .* not as in its files: model.level_embed"),
        # a variant's: transformers leaves it out with a warning
        (with_tensor("bbox_embed.0.layers.0.scale", torch.zeros(1)), "1 tensors .* files: bbox_embed.0.layers.0.scale"),
        (too_many_words, "vocabulary of 1050 tokens is not .* bert-base-uncased's of 1040"),
        (numbered_otherwise, "vocabulary of 1040 tokens is not .* bert-base-uncased's"),
    ],
)
def test_a_broken_folder(tiny, damage, message):
    damage(tiny)
    with pytest.raises(ValueError, match=f"tiny.*{message}") as caught:
        load(tiny, None, CPU)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_does_not_arrive_is_noticed(tiny, monkeypatch):
    """As in some versions of transformers, which take heads of their own for shared ones."""
    from transformers import AutoModelForZeroShotObjectDetection

    real = AutoModelForZeroShotObjectDetection.from_pretrained

    def other_bias(*args, **options):
        model, report = real(*args, **options)
        model.bbox_embed[0].layers[2].bias.data += 1
        return model, report

    monkeypatch.setattr(AutoModelForZeroShotObjectDetection, "from_pretrained", other_bias)
    with pytest.raises(ValueError, match=r"not as in its files: bbox_embed\.0\.layers\.2\.bias"):
        load(tiny, None, CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>busy</html>", "truncated or not a checkpoint"),
        (b"", "truncated or not a checkpoint"),
        ({"state_dict": {}}, "another model's checkpoint"),
        ([1, 2], "another model's checkpoint"),
        ({"model": {"image_encoder.trunk.pos_embed": torch.zeros(3)}}, "another model's checkpoint"),
        ({"model": {PATCH_EMBED: torch.zeros(192, 3, 4, 4)}}, "another model's checkpoint"),
    ],
)
def test_a_bad_checkpoint(tmp_path, content, message):
    path = tmp_path / "some.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"some\.pth.*{message}.*Expected: .*groundingdino_swint_ogc\.pth") as caught:
        load(path, tmp_path, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("transformer.level_embed", None, r"Missing key\(s\) in state_dict: .transformer.level_embed"),
        # another depth of the same widths: not to be loaded in part
        ("transformer.encoder.layers.6.norm1.weight", torch.zeros(256), r"Unexpected key\(s\) .*layers.6.norm1.weight"),
        ("transformer.level_embed", torch.zeros(5, 256), "size mismatch for transformer.level_embed: .*5, 256"),
    ],
)
def test_a_checkpoint_of_other_tensors(original_file, pair, tmp_path, key, value, message):
    state = {**torch.load(original_file, weights_only=True)["model"], f"module.{key}": value}
    torch.save({"model": {key: value for key, value in state.items() if value is not None}}, tmp_path / "some.pth")
    with pytest.raises(
        ValueError, match=rf"some\.pth does not fit GroundingDINO Swin-T: {message}.*swint_ogc"
    ) as caught:
        load(tmp_path / "some.pth", original_file.parent / "bert", CPU)
    (tmp_path / "some.pth").unlink()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_bad_bert_paths(tmp_path):
    torch.save({"model": {PATCH_EMBED: torch.zeros(96, 3, 4, 4)}}, tmp_path / "some.pth")
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{folder}/config.json"):
            load(tmp_path / "some.pth", folder, CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):  # without a vocabulary
        load(tmp_path / "some.pth", tmp_path, CPU)
    write_vocabulary(tmp_path, 1050)  # cut off
    with pytest.raises(ValueError, match=r"vocabulary of 1050 tokens is not .* bert-base-uncased's of 30522"):
        load(tmp_path / "some.pth", tmp_path, CPU)


@pytest.mark.parametrize("weights", ["weights/none.pth", "/nowhere/at/all", "~/nowhere", "nobody/no-such-dino"])
def test_a_path_that_is_not_there(weights):
    with pytest.raises(FileNotFoundError, match=f"No such file .*{weights.lstrip('~')}"):
        load(weights, None, CPU)


# --- no network, no surprises -----------------------------------------------------------------------------------------


def test_nothing_is_asked_of_the_network(tiny, pair):
    with blocked_network() as attempts:
        forward(load(tiny, None, CPU), random_image(64, 64), "cat .")
        forward(pair[0], random_image(256, 320), "cat .")  # loaded with the network blocked, too
    assert attempts == []


def test_a_snapshot_of_the_hub_has_the_name_of_its_id(tiny, tmp_path):
    snapshots = tmp_path / "models--somebody--tiny-dino" / "snapshots"
    snapshots.mkdir(parents=True)
    tiny.rename(snapshots / ("0" * 40))
    assert load(snapshots / ("0" * 40), None, CPU).name == "GroundingDINO (somebody/tiny-dino, transformers)"


def test_importing_is_light():
    code = (
        "import sys, socket, torch; socket.socket.connect = None; "
        "import helpers.segment.prompts, helpers.segment.grounding_dino; "
        "print([m for m in ('transformers', 'groundingdino', 'timm') if m in sys.modules], torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[] False", done.stderr
