"""Networks that are cut off, that do not answer, or that are a hub on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator

import huggingface_hub
import huggingface_hub.file_download
import pytest

COMMIT = "0" * 40


@contextlib.contextmanager
def blocked_network() -> Iterator[list]:
    """Nothing gets out. Yields the list of attempts: their error alone may be caught by what is tested."""
    attempts = []

    def refuse(*args, **_):
        attempts.append(args)
        raise OSError("the network is blocked")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket, "create_connection", refuse)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield attempts


def hang_on_look_up(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Looking up the name `host` takes three seconds, and then fails."""
    real = socket.getaddrinfo

    def hang(name, *args, **kwargs):
        if name == host:
            time.sleep(3)
            raise OSError("too late")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)


def use_hub(monkeypatch: pytest.MonkeyPatch, cache, url: str | None = None) -> None:
    """The hub's client has its cache in the folder `cache`, and its server at `url`."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("no_proxy", "*")
    if url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, huggingface_hub.file_download):  # versions before 1.0 copy it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def snapshot(cache, hub_id: str, kind: str = "models"):
    """The folder of a repository in the hub's cache, made if it is not there."""
    repository = cache / f"{kind}--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    return repository / "snapshots" / COMMIT


@contextlib.contextmanager
def hub_server(gated: str = "") -> Iterator[tuple[str, dict[str, dict[str, bytes]], list[str]]]:
    """A hub on this machine: its URL, its `repositories` {id, or datasets/id: {name: content}}, and its requests.

    The files of the repository `gated` are not given to anybody.
    """
    repositories: dict[str, dict[str, bytes]] = {}
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, body, status=200, **headers):
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else status)
            headers |= {"Content-Length": len(body) - start, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
            for name, value in (headers | {"X-Repo-Commit": COMMIT}).items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[start:])

        def do_GET(self):
            path = self.path.split("?")[0][1:]
            requests.append(path)
            for hub_id, files in repositories.items():
                api = f"api/{hub_id if hub_id.startswith('datasets/') else f'models/{hub_id}'}"
                name = path.removeprefix(f"{hub_id}/resolve/").partition("/")[2]
                if path.startswith(f"{hub_id}/resolve/") and hub_id == gated:
                    return self.reply(b"", 403, X_Error_Code="GatedRepo")
                if path.startswith(f"{hub_id}/resolve/") and name in files:
                    return self.reply(files[name])
                if path == f"{api}/tree/{COMMIT}":
                    entries = [
                        {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                        for name, body in files.items()
                    ]
                    return self.reply(json.dumps(entries).encode(), Content_Type="application/json")
                if path in (api, f"{api}/revision/main"):
                    info = {"id": hub_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                    return self.reply(json.dumps(info).encode(), Content_Type="application/json")
            return self.reply(b"", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", repositories, requests
    server.shutdown()
    server.server_close()
