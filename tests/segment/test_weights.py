"""helpers/segment/weights.py: miniature files in every place where a model may lie, and a hub on this machine."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from helpers.common import hub
from helpers.common.device import pick_compute
from helpers.segment import clipseg, grounding_dino, sam2_image, weights
from helpers.segment.weights import WeightsError, find_models
from offline import blocked_network, hang_on_look_up, hub_server, snapshot, use_hub

FOLDERS = {  # what lies beside config.json
    "grounding-dino": ["model.safetensors", "vocab.txt"],
    "mm-grounding-dino": ["model.safetensors", "vocab.txt"],
    "clipseg": ["model.safetensors", "vocab.json"],
    "bert": ["vocab.txt"],
}
HUB_IDS = {
    "grounding-dino": "IDEA-Research/grounding-dino-tiny",
    "clipseg": "CIDAS/clipseg-rd64-refined",
    "bert": "google-bert/bert-base-uncased",
}
FILES = {
    "dino": ("ShilongLiu/GroundingDINO", "groundingdino_swint_ogc.pth"),
    "sam2": ("facebook/sam2.1-hiera-small", "sam2.1_hiera_small.pt"),
}


def checkpoint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {spec.tensor: torch.ones(3) for spec in weights.PARTS.values() if spec.tensor}}, path)
    return path


def folder(path, kind):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    for name in FOLDERS[kind]:
        if name.endswith(".safetensors"):
            save_file({"x": torch.ones(3)}, path / name)
        else:
            (path / name).write_text("[CLS]")
    return path


def set_up(tmp_path, monkeypatch, url=None):
    """An empty working folder, cache and inputs of its own, and the embedded models."""
    work, inputs = tmp_path / "work", tmp_path / "input"
    work.mkdir()
    inputs.mkdir()
    monkeypatch.chdir(work)
    use_hub(monkeypatch, tmp_path / "hub", url)
    monkeypatch.setattr(weights, "TINY", tmp_path / "tiny")
    for part in ("groundingdino", "sam2", "clipseg"):
        (tmp_path / "tiny" / part).mkdir(parents=True)
    monkeypatch.setattr(weights, "KAGGLE_INPUT", inputs)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    return SimpleNamespace(weights=work / "weights", inputs=inputs, tiny=tmp_path / "tiny", hub=tmp_path / "hub")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without internet; `asked` lists the attempts."""
    machine = set_up(tmp_path, monkeypatch)
    with blocked_network() as machine.asked:
        yield machine


def in_hub(machine, hub_id):
    return snapshot(machine.hub, hub_id)


def fill(root):
    """All four models below `root`."""
    return {
        "dino": checkpoint(root / "groundingdino_swint_ogc.pth"),
        "sam2": checkpoint(root / "sam2.1_hiera_small.pt"),
        "clipseg": folder(root / "clipseg", "clipseg"),
        "bert": folder(root / "bert", "bert"),
    }


def is_found(found, expected):
    assert found.kind == "full"
    assert {part: getattr(found, part) for part in expected} == {
        part: path if path is None else Path(os.path.relpath(path)) if not getattr(found, part).is_absolute() else path
        for part, path in expected.items()
    }


def fails(*parts, **arguments):
    with pytest.raises(WeightsError) as caught:
        find_models(**arguments)
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    return message


# --- where they lie ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", ["auto", "full"])
def test_models_in_the_weights_folder_are_found(machine, models):
    expected = fill(machine.weights / "any" / "folder")
    found = find_models(models)
    is_found(found, expected)
    assert found.sources["sam2"] == "weights/any/folder/sam2.1_hiera_small.pt (./weights)" and found.notes == ()
    assert list(found.sources) == ["groundingdino", "sam2", "clipseg", "bert"]
    assert machine.asked == []


def test_models_of_attached_inputs_come_first(machine):
    fill(machine.weights)
    deep = machine.inputs / "models" / "facebook" / "sam" / "pytorch" / "small" / "1"
    expected = {
        "dino": checkpoint(machine.inputs / "groundingdino" / "groundingdino_swint_ogc.pth"),
        "sam2": checkpoint(deep / "checkpoints" / "sam2.1_hiera_small.pt"),
        "clipseg": folder(machine.inputs / "datasets" / "someone" / "clipseg" / "rd64", "clipseg"),
        "bert": folder(machine.inputs / "bert-base-uncased" / "uncased", "bert"),
    }
    found = find_models()
    is_found(found, expected)
    assert found.sources["clipseg"].endswith("rd64 (attached input)") and machine.asked == []


def test_inputs_are_looked_through_on_kaggle_only(machine, monkeypatch):
    fill(machine.inputs / "x")
    expected = fill(machine.weights)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.delenv("KAGGLE_URL_BASE", raising=False)
    is_found(find_models(), expected)


def test_models_in_the_hubs_cache_are_found(machine):
    expected = {part: checkpoint(in_hub(machine, hub_id) / name) for part, (hub_id, name) in FILES.items()}
    for kind in ("clipseg", "bert"):
        expected[kind] = folder(in_hub(machine, HUB_IDS[kind]), kind)
    for download in (True, False):
        found = find_models("full", download=download)
        is_found(found, expected)
        assert found.sources["bert"].endswith("(hub's cache)")

    expected["dino"].unlink()
    port = folder(in_hub(machine, HUB_IDS["grounding-dino"]), "grounding-dino")
    is_found(find_models("full"), expected | {"dino": port, "bert": None})
    assert machine.asked == []
    (port / "model.safetensors").unlink()  # another program had only the configuration fetched
    fails("cache: GroundingDINO. ", models="full")


def test_the_port_of_transformers_needs_no_vocabulary(machine):
    expected = fill(machine.weights)
    port = folder(machine.weights / "port", "grounding-dino")
    is_found(find_models(), expected)
    expected["dino"].unlink()
    is_found(find_models(), expected | {"dino": port, "bert": None})
    assert machine.asked == []


def test_the_default_size_is_preferred_and_any_other_accepted(machine):
    expected = fill(machine.weights)
    large = checkpoint(machine.inputs / "x" / "sam2.1_hiera_large.pt")
    base = checkpoint(machine.weights / "sam2.1_hiera_base_plus.pt")
    is_found(find_models(), expected)
    is_found(find_models(sam2_weights="base+"), expected | {"sam2": base})
    expected["sam2"].unlink()
    is_found(find_models(), expected | {"sam2": large})
    fails("cache: SAM 2 tiny. ", "download=False", sam2_weights="tiny", download=False)
    checkpoint(in_hub(machine, FILES["sam2"][0]) / FILES["sam2"][1])
    is_found(find_models(), expected | {"sam2": large})  # the user's own before the cache's


def test_what_is_broken_is_named_by_its_loader(machine):
    real = Path(weights.__file__).parents[2] / "assets" / "tiny" / "clipseg"
    expected = fill(machine.weights)
    shutil.copytree(real, expected["clipseg"], dirs_exist_ok=True)
    expected["dino"].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 693997677\n")
    for path in (expected["sam2"], expected["clipseg"] / "model.safetensors"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, compute = find_models(), pick_compute()
    is_found(found, expected)
    for load, *names in (
        (lambda: grounding_dino.load(found.dino, found.bert, compute), expected["dino"].name, "truncated"),
        (lambda: sam2_image.load_sam2(found.sam2, compute), expected["sam2"].name, "truncated"),
        (lambda: clipseg.load_clipseg(found.clipseg, compute), "weights/clipseg", "cannot be loaded"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load()
        assert all(name in str(caught.value) for name in names), str(caught.value)


def test_only_models_of_the_right_kind_are_taken(machine):
    expected = fill(machine.weights / "z")
    for name in ("sam_vit_h_4b8939.pth", "groundingdino.txt", "my_sam2.1_hiera_small.pt", "sam2.1_hiera_small.pt.part"):
        checkpoint(machine.weights / name)
    for kind, text in (("clip", '{"model_type": "clip"}'), ("list", "[]"), ("broken", "{")):
        path = folder(machine.weights / kind, "clipseg")
        (path / "config.json").write_text(text)
    found = find_models()
    is_found(found, expected)
    assert found.notes == ()


def test_the_search_stops_at_its_depth(machine):
    deep = machine.weights / "1" / "2" / "3" / "4" / "5" / "6" / "7"
    expected = fill(deep)
    found = find_models(download=False)
    assert found.kind == "tiny"  # clipseg and bert lie at depth 8
    for part, kind in (("clipseg", "clipseg"), ("bert", "bert")):
        expected[part] = folder(deep.parent / part, kind)
    is_found(find_models(), expected)


def test_a_data_set_is_not_walked(machine, monkeypatch):
    expected = fill(machine.inputs / "z" / "deeper" / "still")
    monkeypatch.setattr(weights, "MOST_FOLDERS", 30)
    for n, m in itertools.product(range(20), range(20)):
        (machine.inputs / "a" / f"person{n}" / f"clip{m}").mkdir(parents=True)
    entered, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(Path(path)) or real(path))
    is_found(find_models(), expected)
    assert len(entered) < 80


# --- what was given ----------------------------------------------------------------------------------------------


def test_given_paths_are_used_without_a_search_or_a_network(machine, tmp_path, monkeypatch):
    mine = fill(tmp_path / "mine")
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.yaml").touch()
    save_file({"x": torch.ones(3)}, own / "model.safetensors")
    monkeypatch.setattr(weights, "_roots", lambda: pytest.fail("searched"))
    names = dict(zip(mine, ("dino_weights", "sam2_weights", "clipseg_weights", "bert_path"), strict=True))
    for models in ("auto", "full"):
        is_found(find_models(models, **{names[part]: str(path) for part, path in mine.items()}), mine)
        found = find_models(models, **{names[part]: tmp_path / "mine" for part in mine}, download=True)
        is_found(found, mine)  # a folder that holds it
    port = folder(tmp_path / "port", "grounding-dino")
    found = find_models(dino_weights=port, sam2_weights=own, clipseg_weights=mine["clipseg"])
    is_found(found, {"dino": port, "sam2": own, "clipseg": mine["clipseg"], "bert": None})
    assert found.sources["sam2"] == f"{own} (given)" and machine.asked == []


def test_a_file_of_any_name_may_be_given(machine, tmp_path):
    expected = fill(machine.weights)
    odd = checkpoint(tmp_path / "my model.bin")
    expected |= {"dino": odd, "sam2": odd}
    is_found(find_models(dino_weights=odd, sam2_weights=odd), expected)
    is_found(find_models(dino_weights=odd, sam2_weights=odd, bert_path=expected["bert"]), expected)


@pytest.mark.parametrize("models", ["auto", "full"])
@pytest.mark.parametrize("parameter", ["dino_weights", "sam2_weights", "clipseg_weights", "bert_path"])
def test_what_was_given_wrongly_is_an_error_although_all_else_is_there(machine, tmp_path, models, parameter):
    fill(machine.weights)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").touch()
    for value in (tmp_path / "none.pth", "weights/none", "./none", "nonsense"):
        fails(f"{parameter}={str(value)!r}", "does not exist", "Expected: ", models=models, **{parameter: value})
    message = fails(f"{parameter}={str(empty)!r} holds no", "readme.txt", models=models, **{parameter: empty})
    assert weights.PARTS[next(p for p in weights.PARTS if weights.PARTS[p].parameter == parameter)].expected in message
    if parameter in ("clipseg_weights", "bert_path"):
        fails("is a file", models=models, **{parameter: empty / "readme.txt"})
    assert machine.asked == []


def test_what_a_given_folder_lacks_is_named(machine, tmp_path):
    fill(machine.weights)
    other = folder(tmp_path / "other", "grounding-dino")
    fails("holds no CLIPSeg", "model.safetensors", clipseg_weights=other)
    (other / "config.yaml").touch()
    (other / "model.safetensors").unlink()
    fails("holds no SAM 2", "config.yaml and model.safetensors", sam2_weights=other)
    mine = checkpoint(other / "sam2.1_hiera_tiny.pt")
    assert find_models(sam2_weights=other).sam2 == mine


def test_the_wrong_one_that_was_given_is_named_before_what_is_missing(machine):
    fails("clipseg_weights='./none' does not exist", clipseg_weights="./none", download=False)
    fails("bert_path='./none' does not exist", clipseg_weights=fill(machine.weights)["clipseg"], bert_path="./none")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 693997677\n")


def others(path):
    torch.save({"state_dict": {"backbone.patch_embed.projection.weight": torch.ones(3)}}, path)


@pytest.mark.parametrize("models", ["auto", "full"])
@pytest.mark.parametrize("damage", [cut, pointer, others])
@pytest.mark.parametrize("parameter", ["dino_weights", "sam2_weights"])
def test_a_broken_file_that_was_given_is_named_before_what_is_missing(machine, tmp_path, models, damage, parameter):
    damage(path := checkpoint(tmp_path / "mine.pth"))
    problem = "is another model's checkpoint" if damage is others else "is truncated or not a checkpoint"
    message = fails(f"{parameter}={str(path)!r}", problem, "Expected: a file like", models=models, **{parameter: path})
    assert "Not found in" not in message and machine.asked == []
    if parameter == "dino_weights":  # where mmdetection's own files lead
        assert "iSEE-Laboratory/llmdet_tiny" in message and "mmdetection's own .pth files are not read" in message


@pytest.mark.parametrize("models", ["auto", "full"])
@pytest.mark.parametrize(
    ("parameter", "kind"),
    [
        ("dino_weights", "mm-grounding-dino"),
        ("clipseg_weights", "clipseg"),
        ("bert_path", "bert"),
        ("sam2_weights", ""),
    ],
)
def test_a_broken_folder_that_was_given_is_named_before_what_is_missing(machine, tmp_path, models, parameter, kind):
    mine = folder(tmp_path / "mine", kind or "clipseg")
    (mine / "config.yaml").touch()
    given = {"models": models, parameter: mine}
    assert "Not found in" not in fails("'./none' does not exist", **(given | {parameter: "./none"}))
    if kind != "bert":
        cut(mine / "model.safetensors")
        fails(f"{parameter}={str(mine)!r}", "mine cannot be loaded: ", "Expected: ", **given)
        (mine / "model.safetensors").unlink()
        problem = "holds no model.safetensors" if kind else "holds no SAM 2"
    else:
        (mine / "vocab.txt").unlink()
        problem = "holds no vocab.txt"
    assert "Not found in" not in fails(parameter, problem, "Expected: ", **given)
    (mine / "config.json").write_text('{"model_type": "owlv2"}')
    assert "Not found in" not in fails(parameter, "holds no ", "Expected: ", **given)
    assert machine.asked == []


def test_mm_grounding_dino_and_llmdet_are_found_where_grounding_dino_is(machine):
    expected = fill(machine.weights) | {"bert": None}
    (machine.weights / "groundingdino_swint_ogc.pth").unlink()
    cached = folder(in_hub(machine, "iSEE-Laboratory/llmdet_base"), "mm-grounding-dino")
    is_found(find_models(), expected | {"dino": cached})
    mine = folder(machine.weights / "a" / "llmdet", "mm-grounding-dino")
    is_found(find_models(), expected | {"dino": mine})
    for value in (mine, mine.parent, "iSEE-Laboratory/llmdet_base"):
        is_found(find_models(dino_weights=value), expected | {"dino": mine if isinstance(value, Path) else cached})
    attached = folder(machine.inputs / "x" / "llmdet", "mm-grounding-dino")
    is_found(find_models(), expected | {"dino": attached})
    port = folder(machine.weights / "z" / "port", "grounding-dino")  # the usual one first
    is_found(find_models(), expected | {"dino": port})
    is_found(find_models(dino_weights="weights/a"), expected | {"dino": mine})
    assert machine.asked == []


def test_ids_of_the_hub_come_from_its_cache(machine):
    expected = fill(machine.weights)
    port = folder(in_hub(machine, "me/my-dino"), "grounding-dino")
    refined = folder(in_hub(machine, "me/clipseg"), "clipseg")
    sam2 = checkpoint(in_hub(machine, "facebook/sam2-hiera-large") / "sam2_hiera_large.pt")
    found = find_models(
        dino_weights="me/my-dino", clipseg_weights="me/clipseg", sam2_weights="facebook/sam2-hiera-large"
    )
    is_found(found, expected | {"dino": port, "clipseg": refined, "sam2": sam2, "bert": None})
    assert found.sources["sam2"].endswith("(given, hub's cache)") and machine.asked == []
    fails("dino_weights='me/clipseg'", "download=False", dino_weights="me/clipseg", download=False)
    fails("sam2_weights='me/sam2'", "does not exist", "a hub id like facebook/", sam2_weights="me/sam2")
    assert machine.asked == []


def test_tiny_takes_the_embedded_models_whatever_else_is_there(machine):
    fill(machine.weights)
    found = find_models("tiny")
    assert found.kind == "tiny" and found.bert is None
    assert (found.dino, found.sam2, found.clipseg) == tuple(
        machine.tiny / part for part in ("groundingdino", "sam2", "clipseg")
    )
    assert "NOT THE REAL" in found.notes[-1] and all(source.endswith("(embedded)") for source in found.sources.values())
    fails("sam2_weights", "models='tiny'", models="tiny", sam2_weights="small")
    assert machine.asked == []


def test_an_empty_value_is_none(machine):
    expected = fill(machine.weights)
    is_found(find_models("auto", "", "", "", ""), expected)


def test_another_value_of_models_is_refused():
    with pytest.raises(ValueError, match="'big': expected 'auto', 'full' or 'tiny'"):
        find_models("big")


# --- all or nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", ["dino", "sam2", "clipseg", "bert"])
def test_with_one_missing_none_of_the_real_ones_is_used(machine, absent):
    paths = fill(machine.weights)
    if paths[absent].is_dir():
        (paths[absent] / "config.json").unlink()
    else:
        paths[absent].unlink()
    part = {"dino": "groundingdino"}.get(absent, absent)
    spec = weights.PARTS[part]

    found = find_models(download=False)
    assert found.kind == "tiny" and found.sam2 == machine.tiny / "sam2"
    assert (
        f"Not found in {machine.inputs}, weights and the hub's cache: {spec.title}. " in found.notes[0]
        and "download=False" in found.notes[0]
    )
    assert "NOT THE REAL" in found.notes[-1]
    fails(
        f"cache: {spec.title}",
        f"({spec.parameter}): {spec.address}",
        "download=False",
        models="full",
        download=False,
    )
    other = "clipseg_weights" if absent != "clipseg" else "sam2_weights"
    value = paths["clipseg"] if absent != "clipseg" else "small"
    fails(f"cache: {spec.title}", spec.address, download=False, **{other: value})
    assert machine.asked == []

    found = find_models()  # blocked sockets look like no internet
    assert found.kind == "tiny" and "no internet" in found.notes[0] and machine.asked != []
    fails("no internet", "./weights", models="full")


# --- the network -------------------------------------------------------------------------------------------------


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A machine with internet, which is a hub here."""
    with hub_server() as (url, repositories, requests):
        machine = set_up(tmp_path, monkeypatch, url)
        machine.repositories, machine.requests = repositories, requests
        for kind, hub_id in HUB_IDS.items():
            path = folder(tmp_path / "originals" / kind, kind)
            repositories[hub_id] = {file.name: file.read_bytes() for file in path.iterdir()}
            repositories[hub_id] |= {"README.md": b"not needed", "flax_model.msgpack": b"neither"}
        for hub_id, name in (*FILES.values(), ("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt")):
            content = checkpoint(tmp_path / "originals" / name).read_bytes()
            repositories[hub_id] = {name: content, "model.safetensors": b"for another library"}
        yield machine


def test_what_is_missing_is_fetched_once(online):
    found = find_models()
    assert found.kind == "full" and found.notes == ()
    for part, (hub_id, name) in FILES.items():
        assert getattr(found, part) == in_hub(online, hub_id) / name
        assert getattr(found, part).read_bytes() == online.repositories[hub_id][name]
    assert found.clipseg == in_hub(online, HUB_IDS["clipseg"]) and found.bert == in_hub(online, HUB_IDS["bert"])
    assert all(source.endswith("(downloaded)") for source in found.sources.values())
    names = sorted(path.name for path in online.hub.glob("*/snapshots/*/*"))
    assert names == sorted(
        ["config.json", "model.safetensors", "vocab.json", "config.json", "vocab.txt"]
        + [name for _, name in FILES.values()]
    )

    online.requests.clear()
    again = find_models()
    assert again.dino == found.dino and again.sources["sam2"].endswith("(hub's cache)")
    assert online.requests == []


def test_only_what_is_missing_is_fetched(online):
    expected = fill(online.weights)
    expected["sam2"] = in_hub(online, "facebook/sam2.1-hiera-base-plus") / "sam2.1_hiera_base_plus.pt"
    is_found(find_models(sam2_weights="base+"), expected)
    assert all("base-plus" in request for request in online.requests)


def test_ids_of_the_hub_are_fetched(online):
    expected = fill(online.weights)
    port, small = HUB_IDS["grounding-dino"], FILES["sam2"][0]
    found = find_models(dino_weights=port, sam2_weights=small)
    sam2 = in_hub(online, small) / FILES["sam2"][1]
    is_found(found, expected | {"dino": in_hub(online, port), "sam2": sam2, "bert": None})
    assert found.sources["sam2"].endswith("(given, downloaded)")
    for wrong in ("me/unknown", HUB_IDS["clipseg"]):
        fails(f"dino_weights={wrong!r}", "not fetched", wrong, "Expected: ", dino_weights=wrong)


def test_llmdet_is_fetched_by_its_id(online, tmp_path):
    expected = fill(online.weights)
    files = folder(tmp_path / "llmdet", "mm-grounding-dino")
    online.repositories["iSEE-Laboratory/llmdet_tiny"] = {path.name: path.read_bytes() for path in files.iterdir()}
    found = find_models(dino_weights="iSEE-Laboratory/llmdet_tiny")
    is_found(found, expected | {"dino": in_hub(online, "iSEE-Laboratory/llmdet_tiny"), "bert": None})
    assert found.sources["groundingdino"].endswith("(given, downloaded)")


def test_nothing_is_fetched_where_it_is_forbidden(online, monkeypatch):
    assert find_models(download=False).kind == find_models("tiny").kind == "tiny"
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    found = find_models()
    assert found.kind == "tiny" and "HF_HUB_OFFLINE is set" in found.notes[0] and online.requests == []


def test_a_folder_of_the_hub_that_is_incomplete_is_no_model(online):
    del online.repositories[HUB_IDS["clipseg"]]["model.safetensors"]
    found = find_models()
    assert found.kind == "tiny" and "holds no CLIPSeg" in found.notes[0]


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(online, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_TIMEOUT", 0.5)
    use_hub(monkeypatch, online.hub, "https://hangs.invalid")
    hang_on_look_up(monkeypatch, "hangs.invalid")
    start = time.monotonic()
    assert "no answer within 0.5 s" in find_models().notes[0]
    assert time.monotonic() - start < 2.5
