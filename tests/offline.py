"""Networks that are cut off, or do not answer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest


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
    """Connecting to `host` takes three seconds, and then fails."""
    real = socket.create_connection

    def hang(address, *args, **kwargs):
        if address[0] == host:
            time.sleep(3)
            raise OSError("too late")
        return real(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", hang)
