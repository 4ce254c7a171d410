"""helpers/segment/weights.py: miniature files in every place where a model may lie, and a hub on this machine."""

import hashlib
import http.server
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import torch
from safetensors.torch import save_file

from helpers.segment import weights
from helpers.segment.weights import Release, WeightsError, find_models
from offline import blocked_network, hang_on_look_up

COMMIT = "0" * 40
FOLDERS = {  # what lies beside config.json
    "grounding-dino": ["model.safetensors", "vocab.txt"],
    "clipseg": ["model.safetensors", "vocab.json"],
    "bert": ["vocab.txt"],
}
HUB_IDS = {
    "grounding-dino": "IDEA-Research/grounding-dino-tiny",
    "clipseg": "CIDAS/clipseg-rd64-refined",
    "bert": "google-bert/bert-base-uncased",
}


def checkpoint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"x": torch.ones(3)}}, path)
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


def set_up(tmp_path, monkeypatch):
    """An empty working folder, caches and inputs of its own, and the embedded models."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "TINY", tmp_path / "tiny")
    for part in ("groundingdino", "sam2", "clipseg"):
        (tmp_path / "tiny" / part).mkdir(parents=True)
    inputs = tmp_path / "input"
    inputs.mkdir()
    monkeypatch.setattr(weights, "KAGGLE_INPUT", inputs)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    return SimpleNamespace(
        weights=work / "weights",
        inputs=inputs,
        tiny=tmp_path / "tiny",
        checkpoints=tmp_path / "torch" / "hub" / "checkpoints",
        hub=tmp_path / "hub",
    )


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without internet; `asked` lists the attempts."""
    machine = set_up(tmp_path, monkeypatch)
    with blocked_network() as machine.asked:
        yield machine


def in_hub(machine, hub_id):
    """The snapshot folder of a repository in the hub's cache."""
    repository = machine.hub / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


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


def test_models_in_the_shared_caches_are_found(machine, monkeypatch):
    monkeypatch.setattr(weights, "GROUNDINGDINO", sized(weights.GROUNDINGDINO, 10))
    monkeypatch.setitem(weights.SAM2, "small", sized(weights.SAM2["small"], 12))
    machine.checkpoints.mkdir(parents=True)
    dino, sam2 = machine.checkpoints / "groundingdino_swint_ogc.pth", machine.checkpoints / "sam2.1_hiera_small.pt"
    dino.write_bytes(bytes(10))
    sam2.write_bytes(bytes(12))
    expected = {"dino": dino, "sam2": sam2}
    for part, kind in (("clipseg", "clipseg"), ("bert", "bert")):
        expected[part] = folder(in_hub(machine, HUB_IDS[kind]), kind)
    found = find_models("full")
    is_found(found, expected)
    assert found.sources["bert"].endswith("(local cache)") and machine.asked == []

    dino.unlink()  # the hub's copies do as well
    sam2.unlink()
    for release in (weights.GROUNDINGDINO, weights.SAM2["small"]):
        copy = in_hub(machine, release.hub_id) / release.name
        copy.parent.mkdir(parents=True)
        copy.write_bytes(bytes(release.size))
        expected["dino" if release is weights.GROUNDINGDINO else "sam2"] = copy
    is_found(find_models("full"), expected)

    expected["dino"].write_bytes(b"short")
    port = folder(in_hub(machine, HUB_IDS["grounding-dino"]), "grounding-dino")
    is_found(find_models("full"), expected | {"dino": port, "bert": None})
    assert machine.asked == []


def sized(release, size):
    return Release(release.name, size, release.md5, release.url, release.hub_id)


def test_the_port_of_transformers_needs_no_vocabulary(machine):
    expected = fill(machine.weights)
    port = folder(machine.weights / "port", "grounding-dino")
    is_found(find_models(), expected)  # the nearest, as BERT is there
    for path in expected["bert"].iterdir():
        path.unlink()
    is_found(find_models(), expected | {"dino": port, "bert": None})
    expected["dino"].unlink()
    folder(machine.weights / "bert", "bert")
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
    fails("caches: SAM 2 tiny. ", "download=False", sam2_weights="tiny", download=False)


def test_what_is_broken_is_passed_over_and_named(machine):
    expected = fill(machine.weights / "good")
    bad = machine.weights / "bad"
    fill(bad)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 693997677\n"
    (bad / "groundingdino_swint_ogc.pth").write_bytes(pointer)
    whole = (bad / "sam2.1_hiera_small.pt").read_bytes()
    (bad / "sam2.1_hiera_small.pt").write_bytes(whole[: len(whole) // 2])
    tensors = bad / "clipseg" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    (bad / "bert" / "vocab.txt").unlink()
    found = find_models()
    is_found(found, expected)
    assert len(found.notes) == 4 and all("is skipped" in note for note in found.notes)
    assert any("model.safetensors is truncated" in note for note in found.notes)
    assert any(f"{len(whole) // 2:,} bytes" in note for note in found.notes)


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


def test_the_search_stops_at_its_depth_and_at_large_folders(machine, monkeypatch):
    deep = machine.weights / "1" / "2" / "3" / "4"
    expected = fill(deep)
    found = find_models(download=False)
    assert found.kind == "tiny"  # clipseg and bert lie at depth 5
    for part, kind in (("clipseg", "clipseg"), ("bert", "bert")):
        expected[part] = folder(deep.parent / part, kind)
    is_found(find_models(), expected)
    monkeypatch.setattr(weights, "MAX_FOLDERS", 4)
    assert find_models(download=False).kind == "tiny"


def test_a_data_set_is_not_walked(machine, monkeypatch):
    expected = fill(machine.inputs / "z" / "deeper" / "still")
    flat, classes = machine.inputs / "a" / "flat", machine.inputs / "b" / "classes"
    flat.mkdir(parents=True)
    for n in range(weights.MAX_ENTRIES + 1):
        (flat / f"{n}.jpg").touch()
    for n in range(weights.MAX_BRANCHES + 1):
        (classes / f"class{n}").mkdir(parents=True)
    (flat / "folder").mkdir()
    for place in (flat / "folder", classes / "class0"):
        checkpoint(place / "sam2.1_hiera_small.pt")
    entered, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(Path(path)) or real(path))
    is_found(find_models(), expected)
    assert flat in entered and classes in entered
    assert not any(path.parent in (flat, classes) for path in entered)


# --- what was given ----------------------------------------------------------------------------------------------


def test_given_paths_are_used_without_a_search_or_a_network(machine, tmp_path, monkeypatch):
    mine = fill(tmp_path / "mine")
    own = tmp_path / "own"
    own.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (own / name).touch()
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
    odd = tmp_path / "my model.bin"
    odd.write_bytes(b"not a zip: only loading can tell")
    is_found(find_models(dino_weights=odd, sam2_weights=odd), expected | {"dino": odd, "sam2": odd})


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


def test_a_broken_model_in_a_given_folder_is_named(machine, tmp_path):
    fill(machine.weights)
    mine = folder(tmp_path / "mine", "clipseg")
    (mine / "model.safetensors").write_bytes(b"")
    fails(mine, "model.safetensors is truncated", clipseg_weights=mine)
    (mine / "model.safetensors").unlink()
    fails(mine, "it has no model", clipseg_weights=mine)
    other = folder(tmp_path / "other", "grounding-dino")
    fails("holds no CLIPSeg", "model.safetensors", clipseg_weights=other)
    (other / "config.yaml").touch()
    (other / "model.safetensors").unlink()
    fails("holds no SAM 2", "config.yaml and model.safetensors", sam2_weights=other)
    mine = checkpoint(other / "sam2.1_hiera_tiny.pt")
    assert find_models(sam2_weights=other).sam2 == mine


def test_ids_of_the_hub_come_from_its_cache(machine):
    expected = fill(machine.weights)
    port = folder(in_hub(machine, "me/my-dino"), "grounding-dino")
    refined = folder(in_hub(machine, "me/clipseg"), "clipseg")
    sam2 = checkpoint(in_hub(machine, "facebook/sam2-hiera-large") / "sam2_hiera_large.pt")
    found = find_models(
        dino_weights="me/my-dino", clipseg_weights="me/clipseg", sam2_weights="facebook/sam2-hiera-large"
    )
    is_found(found, expected | {"dino": port, "clipseg": refined, "sam2": sam2, "bert": None})
    assert found.sources["sam2"].endswith("(given, local cache)") and machine.asked == []
    fails("dino_weights='me/clipseg'", "download=False", dino_weights="me/clipseg", download=False)
    fails("sam2_weights='me/sam2'", "no SAM 2 of the hub", sam2_weights="me/sam2")
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
    (machine.tiny / "sam2").rmdir()
    fails(machine.tiny / "sam2", models="tiny")
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
        f"Not found in {machine.inputs}, weights and the caches: {spec.title}. " in found.notes[0]
        and "download=False" in found.notes[0]
    )
    assert "NOT THE REAL" in found.notes[-1]
    fails(
        f"caches: {spec.title}",
        f"{spec.parameter}: {spec.expected}",
        "download=False",
        models="full",
        download=False,
    )
    other = "clipseg_weights" if absent != "clipseg" else "sam2_weights"
    value = paths["clipseg"] if absent != "clipseg" else "small"
    fails(f"caches: {spec.title}", spec.expected, download=False, **{other: value})
    assert machine.asked == []

    found = find_models()  # blocked sockets look like no internet
    assert found.kind == "tiny" and "no internet" in found.notes[0] and machine.asked != []
    fails("no internet", "./weights", models="full")


# --- the network -------------------------------------------------------------------------------------------------


class Hub:
    """A hub of `repositories` {id: {name: bytes}} and a server of `files` {name: bytes}; `requests` lists its work."""

    def __init__(self):
        self.repositories, self.files, self.requests = {}, {}, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, body, kind="application/octet-stream", status=200):
                start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
                self.send_response(206 if start else status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body) - start))
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[start:])

            def do_GET(self):
                path = self.path.split("?")[0][1:]
                hub.requests.append(f"{self.command} {path}")
                if path in hub.files:
                    return self.reply(hub.files[path])
                for hub_id, files in hub.repositories.items():
                    if path.startswith(f"{hub_id}/resolve/") and path.split("/", 4)[4] in files:
                        return self.reply(files[path.split("/", 4)[4]])
                    if path == f"api/models/{hub_id}/tree/{COMMIT}":
                        tree = [
                            {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                            for name, body in files.items()
                        ]
                        return self.reply(json.dumps(tree).encode(), "application/json")
                    if path in (f"api/models/{hub_id}", f"api/models/{hub_id}/revision/main"):
                        info = {"id": hub_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                        return self.reply(json.dumps(info).encode(), "application/json")
                return self.reply(b"{}", "application/json", 404)

            do_HEAD = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def use_endpoint(monkeypatch, url):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # versions before 1.0 copy it
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A machine with internet, which is a hub and a file server here."""
    machine, hub = set_up(tmp_path, monkeypatch), Hub()
    use_endpoint(monkeypatch, hub.url)
    for kind, hub_id in HUB_IDS.items():
        path = folder(tmp_path / "originals" / kind, kind)
        hub.repositories[hub_id] = {file.name: file.read_bytes() for file in path.iterdir()}
        hub.repositories[hub_id] |= {
            "README.md": b"not needed",
            "flax_model.msgpack": b"not needed",
            "x.h5": b"neither",
        }

    def serve(release):
        content = checkpoint(tmp_path / "originals" / release.name).read_bytes()
        hub.files[release.name] = content
        return Release(
            release.name, len(content), hashlib.md5(content).hexdigest(), f"{hub.url}/{release.name}", "no/no"
        )

    monkeypatch.setattr(weights, "GROUNDINGDINO", serve(weights.GROUNDINGDINO))
    for size, release in weights.SAM2.items():
        monkeypatch.setitem(weights.SAM2, size, serve(release))
    machine.served = hub
    yield machine
    hub.server.shutdown()
    hub.server.server_close()


def test_what_is_missing_is_fetched_once(online):
    found = find_models()
    assert found.kind == "full" and found.notes == ()
    assert found.dino == online.checkpoints / "groundingdino_swint_ogc.pth"
    assert found.sam2 == online.checkpoints / "sam2.1_hiera_small.pt"
    assert found.clipseg == in_hub(online, HUB_IDS["clipseg"]) and found.bert == in_hub(online, HUB_IDS["bert"])
    assert all(source.endswith("(downloaded)") for source in found.sources.values())
    assert sorted(path.name for path in found.clipseg.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]
    assert found.dino.read_bytes() == online.served.files["groundingdino_swint_ogc.pth"]

    online.served.requests.clear()
    again = find_models()
    assert again.dino == found.dino and again.sources["sam2"].endswith("(local cache)")
    assert online.served.requests == []


def test_only_what_is_missing_is_fetched(online):
    expected = fill(online.weights)
    expected["sam2"].unlink()
    expected["sam2"] = online.checkpoints / "sam2.1_hiera_large.pt"
    is_found(find_models(sam2_weights="large"), expected)
    assert all("large" in request for request in online.served.requests)


def test_ids_of_the_hub_are_fetched(online):
    expected = fill(online.weights)
    release = weights.SAM2["tiny"]
    online.served.repositories["facebook/sam2.1-hiera-tiny"] = {
        release.name: online.served.files[release.name],
        "model.safetensors": b"for another library",
    }
    port, tiny = HUB_IDS["grounding-dino"], "facebook/sam2.1-hiera-tiny"
    found = find_models(dino_weights=port, sam2_weights=tiny)
    is_found(
        found, expected | {"dino": in_hub(online, port), "sam2": in_hub(online, tiny) / release.name, "bert": None}
    )
    assert found.sources["sam2"].endswith("(given, downloaded)")
    assert not any(request.endswith("model.safetensors") and tiny in request for request in online.served.requests)
    for wrong in ("me/unknown", HUB_IDS["clipseg"]):
        fails(f"dino_weights={wrong!r}", "could not be fetched", "Expected: ", dino_weights=wrong)


def test_nothing_is_fetched_where_it_is_forbidden(online, monkeypatch):
    assert find_models(download=False).kind == find_models("tiny").kind == "tiny"
    assert online.served.requests == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = find_models()
    assert found.kind == "tiny" and "HF_HUB_OFFLINE is set" in found.notes[0] and online.served.requests == []


def test_a_spoilt_download_is_no_model(online, monkeypatch):
    online.served.files["sam2.1_hiera_small.pt"] = bytes(len(online.served.files["sam2.1_hiera_small.pt"]))
    found = find_models()
    assert found.kind == "tiny" and "wrong md5" in found.notes[0]
    assert not (online.checkpoints / "sam2.1_hiera_small.pt").exists()
    fails("wrong md5", "sam2_weights: ", models="full")


def test_a_folder_of_the_hub_that_is_incomplete_is_no_model(online):
    del online.served.repositories[HUB_IDS["clipseg"]]["model.safetensors"]
    found = find_models()
    assert found.kind == "tiny" and "holds no CLIPSeg" in found.notes[0]


def test_a_host_that_accepts_and_never_answers_is_given_up_within_seconds(online, monkeypatch):
    monkeypatch.setattr(weights, "ANSWER_TIMEOUT", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        found = find_models()
        assert time.monotonic() - start < 5
    assert found.kind == "tiny" and "no answer from 127.0.0.1" in found.notes[0]


def test_a_look_up_that_hangs_is_given_up_within_seconds(online, monkeypatch):
    monkeypatch.setattr(weights, "CONNECT_TIMEOUT", 0.5)
    use_endpoint(monkeypatch, "https://hangs.invalid")
    hang_on_look_up(monkeypatch, "hangs.invalid")
    start = time.monotonic()
    assert "no connection to hangs.invalid" in find_models().notes[0]
    assert time.monotonic() - start < 2.5
