"""helpers/common/download.py, and the search that uses it: mirrors of every kind, from a server on this machine."""

import functools
import hashlib
import http.server
import socket
import threading
import time
from pathlib import Path

import pytest

from helpers.vit.data import DataError, download_cifar10, load_cifar10, load_images
from offline import hang_on_look_up
from test_data import check, write_archive


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of one small archive: /ok, /norange, /wrong, /short, /drop, /drop-norange, /page, /404."""
    content = (write_archive(tmp_path_factory.mktemp("served")) / "cifar-10-python.tar.gz").read_bytes()
    seen = []  # (path, Range header)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            seen.append((self.path, wanted))
            kind = self.path.split("?")[0]
            body = {"/wrong": bytes(len(content)), "/short": content[:-7], "/page": b"<html>busy</html>"}
            body = body.get(kind, content)
            if kind == "/404":
                return self.send_error(404)
            start = 0
            if wanted and "norange" not in kind:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : start + (len(body) // 3 if "drop" in kind else len(body))])
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    class Served:
        size, md5, requests = len(content), hashlib.md5(content).hexdigest(), seen
        raw = content

        @staticmethod
        def urls(*names):
            return [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]

        @classmethod
        def get(cls, dest, *names):
            seen.clear()
            return download_cifar10(dest, cls.urls(*names), md5=cls.md5, size=cls.size, progress=False)

        @classmethod
        def fails(cls, dest, *names):
            with pytest.raises(DataError) as caught:
                cls.get(dest, *names)
            assert not (dest / "cifar-10-python.tar.gz").exists()
            return str(caught.value)

    yield Served
    server.shutdown()
    server.server_close()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_writes_exactly_one_file_and_does_not_repeat_itself(tmp_path, served):
    path = served.get(tmp_path / "a" / "b", "ok")
    assert path == tmp_path / "a" / "b" / "cifar-10-python.tar.gz"
    assert path.read_bytes() == served.raw and names_in(path.parent) == [path.name]
    check(load_cifar10(path.parent))
    served.get(path.parent, "ok")
    assert served.requests == []


def test_a_broken_file_of_the_final_name_is_replaced(tmp_path, served):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    assert served.get(tmp_path, "ok").read_bytes() == served.raw


@pytest.mark.parametrize("name", ["ok", "norange"])
def test_download_resumes_or_restarts(tmp_path, served, name):
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(served.raw[:1000])
    path = served.get(tmp_path, name)
    assert served.requests == [(f"/{name}", "bytes=1000-")]
    assert path.read_bytes() == served.raw and names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("extra", [-1000, 0, 1000])
def test_a_spoilt_part_file_is_thrown_away(tmp_path, served, extra):
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(bytes(served.size + extra))
    assert served.get(tmp_path, "ok").read_bytes() == served.raw


@pytest.mark.parametrize("name", ["wrong", "short", "page", "404"])
def test_a_mirror_that_serves_something_else_is_passed_over(tmp_path, served, name):
    message = served.fails(tmp_path, name)
    assert f"/{name}" in message and "127.0.0.1" in message
    assert len(served.requests) == 1  # trying again would not help
    assert names_in(tmp_path) == []
    assert served.get(tmp_path, name, "ok").read_bytes() == served.raw
    assert names_in(tmp_path) == ["cifar-10-python.tar.gz"]


def test_a_dropped_connection_goes_on_with_the_next_mirror(tmp_path, served):
    path = served.get(tmp_path, "drop", "ok")
    third = served.size // 3
    assert served.requests == [("/drop", None), ("/ok", f"bytes={third}-")]
    assert path.read_bytes() == served.raw and names_in(tmp_path) == [path.name]


def test_a_dropped_connection_leaves_what_a_later_call_continues(tmp_path, served):
    message = served.fails(tmp_path, "drop")
    assert "ended after" in message and names_in(tmp_path) == ["cifar-10-python.tar.gz.part"]
    path = served.get(tmp_path, "ok")
    assert served.requests[0][1] == f"bytes={2 * (served.size // 3)}-"  # each of the two rounds got a third
    assert path.read_bytes() == served.raw
    path.unlink()
    served.fails(tmp_path, "drop-norange")
    assert served.get(tmp_path, "ok").read_bytes() == served.raw


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/cifar-10-python.tar.gz"


def test_without_a_network_it_gives_up_at_once(tmp_path):
    start = time.monotonic()
    with pytest.raises(DataError, match="no internet"):
        download_cifar10(tmp_path / "d", [closed_port(), "https://no-such-host.invalid/x"], connect_timeout=1.5)
    assert time.monotonic() - start < 4
    assert not (tmp_path / "d").exists()


def test_a_look_up_that_hangs_is_not_waited_for(tmp_path, monkeypatch, served):
    hang_on_look_up(monkeypatch, "hangs.invalid")
    start = time.monotonic()
    with pytest.raises(DataError, match="no internet"):
        download_cifar10(tmp_path, ["http://hangs.invalid/x"], connect_timeout=0.3)
    assert time.monotonic() - start < 2
    urls = ["http://hangs.invalid/x", *served.urls("ok")]
    path = download_cifar10(tmp_path, urls, md5=served.md5, size=served.size, connect_timeout=0.3, progress=False)
    assert path.read_bytes() == served.raw


def test_a_place_that_cannot_be_written_is_named(tmp_path, served):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be written"):
        served.get(tmp_path / "file" / "below", "ok")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to play a full disk")
def test_a_full_disk_is_named_and_given_back(tmp_path, served):
    (tmp_path / "cifar-10-python.tar.gz.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        served.get(tmp_path, "ok", "ok?again")
    assert names_in(tmp_path) == [] and len(served.requests) == 1


def test_two_processes_may_download_at_once(tmp_path, served):
    paths, threads = [], []
    served.requests.clear()
    for _ in range(2):
        call = functools.partial(download_cifar10, tmp_path, md5=served.md5, size=served.size, progress=False)
        threads.append(threading.Thread(target=lambda call=call: paths.append(call(served.urls("ok")))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(paths) == 2 and paths[0].read_bytes() == served.raw and len(served.requests) == 1


def test_a_search_that_finds_nothing_downloads(tmp_path, served, capsys):
    source = {"urls": served.urls("ok"), "md5": served.md5, "size": served.size}
    for data_root in (None, "auto"):
        to = tmp_path / f"to-{data_root}"
        check(load_images(data_root, default_roots=[tmp_path / "absent"], download_to=to, **source))
        assert names_in(to) == ["cifar-10-python.tar.gz"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cifar-10-python.tar.gz.part").write_bytes(served.raw[:99])
    for given in ("new", "empty"):  # the folder for downloads, given by name, is filled, too
        check(load_images(tmp_path / given, download_to=tmp_path / given, **source))
    with pytest.raises(DataError, match="does not exist"):  # any other path that is not there is a mistake
        load_images(tmp_path / "mistyped", download_to=tmp_path / "to-auto", **source)
    assert not (tmp_path / "mistyped").exists()
    assert "NOT CIFAR-10" not in capsys.readouterr().out


def test_a_failed_download_ends_in_shapes_only_where_nothing_was_asked_for(tmp_path, capsys):
    source = {"urls": [closed_port()], "download_to": tmp_path / "to"}
    for data_root in ("auto", tmp_path / "to"):
        with pytest.raises(DataError, match="no internet"):
            load_images(data_root, **source)
    images = load_images(None, synthetic_train=20, synthetic_test=20, **source)
    said = capsys.readouterr().out
    assert images.name == "ten shapes (synthetic)"
    assert "not downloaded" in said and "no internet" in said and "NOT CIFAR-10" in said
    assert list(tmp_path.iterdir()) == []
