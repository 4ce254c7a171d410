"""Files of the Hugging Face hub: those in its cache on this machine, and others fetched into it."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from helpers.common.files import reason

ANSWER_TIMEOUT = 6.0  # seconds, after which the hub counts as unreachable


class HubError(Exception):
    """A download failed or is forbidden; the message says why, and the next step."""


def cached(repo_id: str, name: str, repo_type: str = "model") -> Path | None:
    """Return the path of a repository's file where the cache holds it, else `None`; never asks the network."""
    path = try_to_load_from_cache(repo_id, name, repo_type=repo_type)
    return Path(path) if isinstance(path, str) else None


def fetch(repo_id: str, patterns: Iterable[str], repo_type: str = "model", local_dir: Path | None = None) -> Path:
    """Fetch what is missing of a repository's files that match `patterns`, and return the folder they are in:
    `local_dir`, or a snapshot in the hub's cache. Raises `HubError`, without internet within seconds."""
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set: unset it and restart the kernel.")
    try:
        _ask(repo_id, repo_type)
        kind = {"repo_type": repo_type, "allow_patterns": list(patterns)}
        return Path(snapshot_download(repo_id, etag_timeout=ANSWER_TIMEOUT, local_dir=local_dir, **kind))
    except HubError:
        raise
    except Exception as error:  # the client's, its HTTP library's, the disk's: each has types of its own
        raise HubError(f"{repo_id} could not be fetched: {_explain(error, repo_id, repo_type)}") from error


def _ask(repo_id: str, repo_type: str) -> None:
    """Raise `HubError` unless the hub answers within seconds, and the client's own error where it refuses."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().repo_info(repo_id, repo_type=repo_type, timeout=ANSWER_TIMEOUT))
        except Exception as error:
            answers.append(error)

    # a daemon thread, since without internet a name's look-up can hang, and the client would wait for minutes
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_TIMEOUT)
    answer = answers[0] if answers else TimeoutError(f"no answer within {ANSWER_TIMEOUT:g} s")
    if isinstance(answer, HfHubHTTPError):
        raise answer
    if isinstance(answer, Exception):
        step = "Turn it on (on Kaggle under Settings), or give the path of a copy."
        raise HubError(f"{constants.ENDPOINT} cannot be reached ({reason(answer)}): no internet? {step}")


def _explain(error: Exception, repo_id: str, repo_type: str) -> str:
    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    if isinstance(error, GatedRepoError):
        return f"accept its terms on {page}, and log in by `hf auth login` or the variable HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {page}, or it is private. Check its name, or log in by `hf auth login`."
    if getattr(error, "errno", None) or "No space left" in str(error):  # of the disk; the network's have no number
        return f"{reason(error)}. Free some space, or set HF_HOME to a folder on another disk."
    return f"{reason(error)}. Try again: files that came whole are kept."
