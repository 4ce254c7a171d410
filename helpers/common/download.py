"""Fetch one file of known size and md5 from the first mirror that has it: resumable, and quick to give up offline."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from tqdm.auto import tqdm

from helpers.common.files import DataError

READ_TIMEOUT = 20.0  # seconds of silence, after which a mirror is given up


class _MirrorError(Exception):
    """One URL's failure; `final` where asking it again is of no use."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def download(
    urls: Sequence[str], dest: str | Path, *, size: int, md5: str, connect_timeout: float = 4.0, progress: bool = True
) -> Path:
    """Fetch the file `dest`, unless it is there already, and return its path.

    Bytes go to `….part` (continued by the next URL or the next call where the server allows it) and get the final name
    only with the right `size` and `md5`. Raises `DataError` with each URL's failure: within `connect_timeout` seconds
    when none can be reached (no internet).
    """
    dest = Path(dest).expanduser()
    if _is_whole(dest, size, md5):
        return dest
    answering = reachable(urls, connect_timeout)
    if not answering:
        hosts = ", ".join(dict.fromkeys(urlsplit(url).netloc for url in urls)) or "any host (no URL given)"
        step = "Turn it on, or give the path of a copy (on Kaggle: Add Input)."
        raise DataError(f"No connection to {hosts} within {connect_timeout:g} s: no internet? {step}")
    part, lock = dest.with_name(f"{dest.name}.part"), dest.with_name(f".{dest.name}.lock")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # several processes of one launch must not write the same .part
            if not _is_whole(dest, size, md5):
                _fill(part, answering, size, md5, progress)
                part.replace(dest)
    except OSError as error:  # of the disk, which no other mirror could help: the network's are _MirrorErrors by now
        if error.errno == errno.ENOSPC:
            part.unlink(missing_ok=True)
        step = f"{size:,} bytes are needed; free some space or choose another folder."
        raise DataError(f"{dest.parent}: cannot be written ({error.strerror or error}). {step}") from error
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
    return dest


def _is_whole(path: Path, size: int, md5: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    from torchvision.datasets.utils import check_integrity  # takes a second to import

    return check_integrity(path, md5)


def reachable(urls: Sequence[str], timeout: float) -> list[str]:
    """Those of `urls` whose host, or the proxy in front of it, accepts a connection; all are asked at once."""
    accepted: set[str] = set()

    def ask(url: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            parts = urlsplit(url)
            proxy = urllib.request.getproxies().get(parts.scheme)
            if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
                parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
            accepted.add(url)

    # daemon threads: without internet a name look-up can hang for longer than anyone wants to wait
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [url for url in urls if url in accepted]


def _fill(part: Path, urls: Sequence[str], size: int, md5: str, progress: bool) -> None:
    """Fill `part` from the first of `urls` that serves the right bytes; DataError with every failure if none does."""
    failures: dict[str, _MirrorError] = {}
    for url in (*urls, *urls):  # the second round continues what a dropped connection left
        if url in failures and failures[url].final:
            continue
        try:
            kept = True
            while kept:  # wrong, with earlier bytes in it: the fault may lie in those, so once more without them
                kept = _fetch(url, part, size, progress)
                if _is_whole(part, size, md5):
                    return
                part.unlink()
            raise _MirrorError(f"wrong md5, expected {md5}", final=True)
        except _MirrorError as error:
            failures[url] = error
    listed = "; ".join(f"{url}: {error}" for url, error in failures.items())
    raise DataError(f"{part.stem} could not be fetched: {listed}. Try again later, or give the path of a copy.")


@contextlib.contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _MirrorError(f"HTTP {error.code} {error.reason}", final=error.code < 500) from error
    except (OSError, http.client.HTTPException) as error:  # no route, time out, TLS, dropped, …
        raise _MirrorError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _fetch(url: str, part: Path, size: int, progress: bool) -> bool:
    """Bring `part` to `size` bytes from `url`; True if bytes that were there before were kept."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return True
    headers = {"User-Agent": "Mozilla/5.0", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with _network():
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=READ_TIMEOUT)
    with response:
        if response.status != 206:  # the server knows no ranges and sends all of it
            have = 0
        if response.length is not None and have + response.length != size:
            raise _MirrorError(f"serves {have + response.length:,} bytes, expected {size:,}", final=True)
        kept = have > 0
        what = f"{part.stem} from {urlsplit(url).hostname}"
        bar = tqdm(total=size, initial=have, desc=what, unit="B", unit_scale=True, disable=not progress)
        with bar, part.open("ab" if kept else "wb") as file:
            while have < size:
                with _network():
                    block = response.read(min(1 << 18, size - have))
                if not block:
                    raise _MirrorError(f"the connection ended after {have:,} of {size:,} bytes")
                file.write(block)
                have += len(block)
                bar.update(len(block))
    return kept
