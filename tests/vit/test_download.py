"""helpers/common/hub.py, and the search for CIFAR-10 that uses it: a hub on this machine, or none that answers."""

import socket
import time

import pytest

from helpers.common import hub
from helpers.common.hub import HubError, fetch
from helpers.vit import data
from helpers.vit.data import DataError, load_images
from offline import blocked_network, hang_on_look_up, hub_server, snapshot, use_hub
from test_data import check, write_parquet

CIFAR10 = "datasets/uoft-cs/cifar10"


@pytest.fixture
def online(tmp_path, monkeypatch):
    """(repositories, requests) of a hub that serves a small CIFAR-10; the working folder and the cache are empty."""
    original = write_parquet(tmp_path / "original", shards=1)
    files = {f"plain_text/{path.name}": path.read_bytes() for path in original.iterdir()}
    assert set(files) == set(data.HUB_FILES)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with hub_server(gated="me/gated") as (url, repositories, requests):
        use_hub(monkeypatch, tmp_path / "cache", url)
        repositories[CIFAR10] = files | {"README.md": b"not needed"}
        repositories["me/gated"] = {"config.json": b"{}"}
        yield repositories, requests


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without internet; the list of attempts."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    use_hub(monkeypatch, tmp_path / "cache")
    with blocked_network() as attempts:
        yield attempts


@pytest.mark.parametrize("data_root", [None, "auto"])
def test_a_search_that_finds_nothing_downloads_once(online, tmp_path, data_root, capsys):
    images = load_images(data_root, default_roots=["absent"])
    check(images)
    assert str(tmp_path / "cache") in images.source and not any(tmp_path.joinpath("work").iterdir())
    requests = online[1]
    assert not any("README" in path for path in requests)
    requests.clear()
    check(load_images(data_root, default_roots=["absent"], download=False))
    assert requests == [] and "NOT CIFAR-10" not in capsys.readouterr().out


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "half a download"])
def test_the_data_folder_given_by_name_is_filled(online, tmp_path, there):
    folder = tmp_path / "work" / "data"
    if there != "nothing":
        folder.mkdir()
    if there == "half a download":
        (folder / "plain_text").mkdir()
        (folder / data.HUB_FILES[0]).write_bytes(online[0][CIFAR10][data.HUB_FILES[0]])
    check(load_images("./data"))
    assert all((folder / name).is_file() for name in data.HUB_FILES)
    online[1].clear()
    check(load_images("data"))
    with pytest.raises(DataError, match="does not exist"):  # any other path that is not there is a mistake
        load_images("mistyped")
    assert online[1] == []


def test_a_failed_download_ends_in_shapes_only_where_nothing_was_asked_for(offline, tmp_path, capsys):
    for data_root in ("auto", "data"):
        with pytest.raises(DataError, match="no internet"):
            load_images(data_root)
    images = load_images(None)
    said = capsys.readouterr().out
    assert images.name == "ten shapes (synthetic)" and offline != []
    assert "not downloaded" in said and "no internet" in said and "NOT CIFAR-10" in said
    assert list(tmp_path.joinpath("work").iterdir()) == []


def test_what_the_cache_holds_needs_no_network(offline, tmp_path):
    write_parquet(snapshot(tmp_path / "cache", "uoft-cs/cifar10", "datasets") / "plain_text", shards=1)
    check(load_images("auto"))
    check(load_images(None, download=False))
    assert offline == []


def test_the_network_is_not_asked_where_that_is_forbidden(offline, monkeypatch):
    with pytest.raises(DataError, match="download=False"):
        load_images("auto", download=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        fetch("me/model", ["*"])
    assert offline == []


@pytest.mark.parametrize("silence", ["no route", "a look-up that hangs", "a host that never answers"])
def test_without_an_answer_it_gives_up_within_seconds(tmp_path, monkeypatch, silence):
    monkeypatch.setattr(hub, "ANSWER_TIMEOUT", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if silence != "no route":
            silent.listen(8)
        host = "hangs.invalid" if silence == "a look-up that hangs" else "127.0.0.1"
        use_hub(monkeypatch, tmp_path / "cache", f"http://{host}:{silent.getsockname()[1]}")
        hang_on_look_up(monkeypatch, "hangs.invalid")
        start = time.monotonic()
        with pytest.raises(HubError, match=rf"http://{host}.* cannot be reached .*no internet\?"):
            fetch("me/model", ["*"])
        assert time.monotonic() - start < 2


def test_what_the_hub_refuses_is_explained(online):
    with pytest.raises(HubError, match=r"accept its terms on http://127.*/me/gated, and log in"):
        fetch("me/gated", ["*"])
    with pytest.raises(HubError, match=r"there is no http://127.*/me/unknown, or it is private"):
        fetch("me/unknown", ["*"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device.* Free some space, or set HF_HOME"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "Free some space"),
        (PermissionError(13, "Permission denied", "/cache"), "/cache'. Free some space, or set HF_HOME"),
        (ConnectionError("peer closed the connection.\nMore"), "peer closed the connection. Try again"),
    ],
)
def test_what_breaks_off_is_explained(online, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(HubError, match=f"uoft-cs/cifar10 could not be fetched: .*{words}"):
        fetch("uoft-cs/cifar10", ["*"], "dataset")
