"""Which models a run uses, and where they come from.

    found = find_models()                                # search, then download, then the embedded tiny models
    found = find_models("full", sam2_weights="large")    # the real ones, or a WeightsError that says what to do
    found.dino, found.sam2, found.clipseg, found.bert    # local paths: loading them needs no network any more

Each of GroundingDINO, SAM 2, CLIPSeg and (where GroundingDINO comes as its authors' file) BERT's vocabulary is looked
for in this order: what was given; attached Kaggle inputs and `./weights`; the local caches; a download. The caches are
those that other tools share, and downloads go there, too: the Hugging Face hub's, and `torch.hub`'s for single files
(`~/.cache/torch/hub/checkpoints`, or below TORCH_HOME).
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from helpers.common.download import download as download_file
from helpers.common.download import reachable
from helpers.common.environment import where
from helpers.common.files import DataError, some
from helpers.segment.hub import model_type, reason

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"
KAGGLE_INPUT = Path("/kaggle/input")
DEPTH = 4  # folders below ./weights or a given folder
KAGGLE_DEPTH = 7  # models/<owner>/<model>/<framework>/<variation>/<version>/<a folder of its own>
MAX_ENTRIES, MAX_BRANCHES = 1000, 100  # a folder with more entries or sub-folders is a data set's, and not entered
MAX_FOLDERS = 1000  # looked at below one root
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 4.0, 5.0  # seconds, after which the hub counts as unreachable


class WeightsError(ValueError):
    """A model is missing or broken; the message names the parameter, the path and the next step."""


@dataclass(frozen=True)
class Release:
    """A file as its authors released it, and the hub's repository with the same bytes under the same name."""

    name: str
    size: int
    md5: str
    url: str
    hub_id: str

    @property
    def urls(self) -> tuple[str, str]:
        return self.url, f"https://huggingface.co/{self.hub_id}/resolve/main/{self.name}"


def _sam2(size: str, length: int, md5: str) -> Release:
    name = f"sam2.1_hiera_{size}.pt"
    url = f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{name}"
    return Release(name, length, md5, url, f"facebook/sam2.1-hiera-{size.replace('_', '-')}")


GROUNDINGDINO = Release(
    "groundingdino_swint_ogc.pth",
    693_997_677,
    "075ebfa7242d913f38cb051fe1a128a2",
    "https://github.com/IDEA-Research/GroundingDINO/releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth",
    "ShilongLiu/GroundingDINO",
)
SAM2 = {
    "tiny": _sam2("tiny", 156_008_466, "6aa6761c9da74fbaa74b4c790a0a2007"),
    "small": _sam2("small", 184_416_285, "51713b3d1994696d27f35f9c6de6f5ef"),
    "base+": _sam2("base_plus", 323_606_802, "ec7bd7d23d280d5e3cfa45984c02eda5"),
    "large": _sam2("large", 898_083_611, "2b30654b6112c42a115563c638d238d9"),
}
# By the table in SAM 2's README (J&F on MOSE; frames a second on an A100): tiny 71.8, 47.2; small 73.5, 43.3;
# base+ 73.7, 34.8; large 74.6, 24.2. On a T4, and beside GroundingDINO, small is the best bargain.
SAM2_DEFAULT = "small"


@dataclass(frozen=True)
class Part:
    """One of the models: how it is recognised on disk, and named on the hub."""

    title: str
    parameter: str
    expected: str
    file: str = ""  # pattern of the names of its single files
    model_type: str = ""  # in the config.json of its folders
    beside: str = ""  # pattern of what those hold beside it
    hub_ids: tuple[str, ...] = ()  # of its folders; the first is fetched, all are looked for in the cache
    hub_files: tuple[str, ...] = ()


PARTS = {
    "groundingdino": Part(
        "GroundingDINO",
        "dino_weights",
        "groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth, a folder of transformers' port (model_type "
        "grounding-dino), or a hub id like IDEA-Research/grounding-dino-tiny",
        file=r"groundingdino_swin[tb]\w*\.pth",
        model_type="grounding-dino",
        beside=r"model.*\.safetensors",
        hub_ids=("IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base"),
        hub_files=("*.json", "vocab.txt", "model*.safetensors"),
    ),
    "sam2": Part(
        "SAM 2",
        "sam2_weights",
        f"a checkpoint like sam2.1_hiera_small.pt, {', '.join(SAM2)}, a hub id like facebook/sam2.1-hiera-small, or a "
        "folder of one's own with config.yaml and model.safetensors",
        file=r"sam2(\.1)?_hiera_\w+\.pt",
    ),
    "clipseg": Part(
        "CLIPSeg",
        "clipseg_weights",
        "a folder of transformers' layout (model_type clipseg), or a hub id like CIDAS/clipseg-rd64-refined",
        model_type="clipseg",
        beside=r"model.*\.safetensors|pytorch_model.*\.bin",
        hub_ids=("CIDAS/clipseg-rd64-refined",),
        hub_files=("*.json", "*.txt", "model*.safetensors"),
    ),
    "bert": Part(
        "BERT's vocabulary",
        "bert_path",
        "a folder of bert-base-uncased (model_type bert) with vocab.txt or tokenizer.json",
        model_type="bert",
        beside=r"vocab\.txt|tokenizer\.json",
        hub_ids=("google-bert/bert-base-uncased", "bert-base-uncased"),
        hub_files=("config.json", "vocab.txt", "tokenizer*.json"),
    ),
}


@dataclass(frozen=True)
class Hit:
    """A file or folder, and how it came here."""

    path: Path
    origin: str


@dataclass(frozen=True)
class Found:
    """Local paths of the models; `bert` is None where GroundingDINO brings its own vocabulary.

    `kind` is `"full"`, or `"tiny"` for the embedded models. `sources` says of each model which path it is and where
    from; `notes` are for the reader of the results, such as the embedded models' banner.
    """

    dino: Path
    sam2: Path
    clipseg: Path
    bert: Path | None
    kind: str
    sources: dict[str, str]
    notes: tuple[str, ...]


def find_models(
    models: str = "auto",
    dino_weights: str | Path | None = None,
    sam2_weights: str | Path | None = None,
    clipseg_weights: str | Path | None = None,
    bert_path: str | Path | None = None,
    download: bool = True,
) -> Found:
    """Find the three models, or fetch them.

    models="auto"   the search and the download; where that leaves one of them missing, the embedded tiny models. All
                    three then: they know drawn shapes and colours only, and are of no use beside a real one. But where
                    any was given, a missing one is an error
    models="full"   the same without the tiny models
    models="tiny"   the embedded ones

    What is given is used, or it is an error; nothing ever takes its place. It may be a file, a folder that holds it up
    to four folders deep, a hub id, and for SAM 2 also a size: `"tiny"`, `"small"`, `"base+"` or `"large"`. The network
    is asked only for what is not on this machine, never with `download=False` or `models="tiny"`, and given up within
    seconds where there is no internet.

    Raises `WeightsError`, and `ValueError` for any other `models`.
    """
    if models not in ("auto", "full", "tiny"):
        raise ValueError(f"models={models!r}: expected 'auto', 'full' or 'tiny'")
    values = dict(zip(PARTS, (dino_weights, sam2_weights, clipseg_weights, bert_path), strict=True))
    given = {part: value for part, value in values.items() if value not in (None, "")}
    if models == "tiny":
        if given:
            parameters = ", ".join(PARTS[part].parameter for part in given)
            raise WeightsError(f"models='tiny' uses the embedded models only: leave it out, or else {parameters}.")
        return _embedded(())

    size = str(given.get("sam2")) if str(given.get("sam2")) in SAM2 else None
    hits = {part: _given(part, value, download) for part, value in given.items() if part != "sam2" or size is None}
    notes: list[str] = []
    missing, reason = _search(hits, size, notes), "download=False forbids it"
    if download:
        missing, reason = _fetch_all(hits, size, missing)
    if not missing:
        if "bert" not in given and hits["groundingdino"].path.is_dir():
            hits.pop("bert", None)
        sources = {part: f"{hits[part].path} ({hits[part].origin})" for part in PARTS if part in hits}
        bert = hits["bert"].path if "bert" in hits else None
        paths = (hits[part].path for part in ("groundingdino", "sam2", "clipseg"))
        return Found(*paths, bert, "full", sources, tuple(notes))
    titles = ", ".join(PARTS[part].title + (f" {size}" if size and part == "sam2" else "") for part in missing)
    looked = ", ".join(str(root) for root in _roots())
    notes.append(f"Not found in {looked} and the caches: {titles}. Not fetched: {reason}.")
    if models == "auto" and not given:
        return _embedded(tuple(notes))
    wanted = "; ".join(f"{PARTS[part].parameter}: {PARTS[part].expected}" for part in missing)
    raise WeightsError(
        f"{' '.join(notes)} Let them be fetched, attach them as an input, put them into ./weights, or give their paths "
        f"({wanted}). models='tiny' alone needs none of them."
    )


# --- what is on this machine -------------------------------------------------------------------------------------


def _search(hits: dict[str, Hit], size: str | None, notes: list[str]) -> list[str]:
    """Add to `hits` what is on this machine, and return the parts that are still missing."""
    if not _missing(hits):
        return []
    shelves = [_survey(root, *how, notes) for root, how in _roots().items()]
    for part in ("bert", "sam2", "clipseg", "groundingdino"):
        if part in hits:
            continue
        found = [hit for shelf in shelves for hit in shelf[part]]
        if part == "sam2":
            found.sort(key=lambda hit: hit.path.name != SAM2[size or SAM2_DEFAULT].name)
        found += _cached(part, size)
        if part == "sam2" and size is not None:
            found = [hit for hit in found if hit.path.name == SAM2[size].name]
        if part == "groundingdino" and "bert" not in hits:
            found.sort(key=lambda hit: hit.path.is_file())  # transformers' port needs no BERT
        if found:
            hits[part] = found[0]
    return _missing(hits)


def _missing(hits: dict[str, Hit]) -> list[str]:
    dino = hits.get("groundingdino")
    own_vocabulary = dino is not None and dino.path.is_dir()
    return [part for part in PARTS if part not in hits and not (part == "bert" and own_vocabulary)]


def _roots() -> dict[Path, tuple[str, int]]:
    """Where to look, with its name and how deep."""
    kaggle = {KAGGLE_INPUT: ("attached input", KAGGLE_DEPTH)} if where() == "kaggle" else {}
    return {**kaggle, Path("weights"): ("./weights", DEPTH)}


def _survey(root: Path, origin: str, depth: int, notes: list[str]) -> dict[str, list[Hit]]:
    """What lies at `root` or below it, nearest first; `notes` says what looks like a model but is broken."""
    hits: dict[str, list[Hit]] = {part: [] for part in PARTS}
    level, looked = [root], 0
    for _ in range(depth + 1):
        level, current = [], level
        for folder in current[: MAX_FOLDERS - looked]:
            looked += 1
            folders, files = _entries(folder)
            level += folders if len(folders) <= MAX_BRANCHES else []
            for part, path in _candidates(folder, files):
                if problem := _problem(part, path):
                    notes.append(f"{path} is skipped: {problem}.")
                else:
                    hits[part].append(Hit(path, origin))
    return hits


def _entries(folder: Path) -> tuple[list[Path], list[str]]:
    """(sub-folders, names of files), sorted; nothing for a folder that is absent, locked or a data set's."""
    try:
        with os.scandir(folder) as entries:
            first = list(itertools.islice(entries, MAX_ENTRIES + 1))
        if len(first) > MAX_ENTRIES:
            return [], []
        first = sorted((entry for entry in first if not entry.name.startswith(".")), key=lambda entry: entry.name)
        return [folder / entry.name for entry in first if entry.is_dir()], [e.name for e in first if e.is_file()]
    except OSError:
        return [], []


def _candidates(folder: Path, files: list[str]) -> Iterator[tuple[str, Path]]:
    """(part, path) of what by its name, or by the config.json, is one of the models."""
    kind = model_type(folder) if "config.json" in files else None
    for part, spec in PARTS.items():
        yield from ((part, folder / name) for name in files if re.fullmatch(spec.file, name))
        if kind and kind == spec.model_type:
            yield part, folder


def _problem(part: str, path: Path) -> str | None:
    """What is wrong with a file or folder, as far as that shows without loading it."""
    spec = PARTS[part]
    if path.is_dir():
        beside = sorted(entry for entry in path.iterdir() if re.fullmatch(spec.beside, entry.name))
        if not beside or not all(entry.is_file() for entry in beside):
            return f"it has no {spec.beside.replace(chr(92), '')}"
        return next((f"{entry.name} is truncated" for entry in beside if not _whole_safetensors(entry)), None)
    official = [release.size for release in (GROUNDINGDINO, *SAM2.values()) if release.name == path.name]
    # torch's files are zips, whose directory comes last; the older ones of its formats are told by their size alone
    if path.stat().st_size in official or zipfile.is_zipfile(path):
        return None
    return f"{path.stat().st_size:,} bytes, which is no whole checkpoint"


def _whole_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _cached(part: str, size: str | None) -> Iterator[Hit]:
    """Copies in the caches of torch.hub and of the Hugging Face hub, the usual one first."""
    from huggingface_hub import try_to_load_from_cache

    releases = {
        "groundingdino": [GROUNDINGDINO],
        "sam2": [SAM2[size or SAM2_DEFAULT], *SAM2.values()],
    }
    for release in releases.get(part, []):
        for path in (_checkpoints() / release.name, try_to_load_from_cache(release.hub_id, release.name)):
            if isinstance(path, str | Path) and Path(path).is_file() and Path(path).stat().st_size == release.size:
                yield Hit(Path(path), "local cache")
    for hub_id in PARTS[part].hub_ids:
        if path := _hub_copy(part, hub_id):
            yield Hit(path, "local cache")


def _checkpoints() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


# --- what was given ----------------------------------------------------------------------------------------------


def _given(part: str, value: str | Path, download: bool) -> Hit:
    """The model that the user named, or a `WeightsError`."""
    spec, path = PARTS[part], Path(value).expanduser()
    start = f"{spec.parameter}={str(value)!r}"
    if path.is_dir():
        if part == "sam2" and all((path / name).is_file() for name in ("config.yaml", "model.safetensors")):
            return Hit(path, "given")
        notes: list[str] = []
        if hits := _survey(path, "given", DEPTH, notes)[part]:
            return hits[0]
        names = [entry.name for entry in sorted(path.iterdir())]
        there = f"{start} holds no {spec.title}; found there: {some(names, 8) or 'nothing'}."
        raise WeightsError(" ".join([there, *notes, f"Expected: {spec.expected}."]))
    if path.is_file() and spec.file:
        return Hit(path, "given")
    like_an_id = re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]*/[\w.-]*\w", str(value)) and not path.parent.is_dir()
    if path.exists() or not like_an_id or path.suffix in (".pth", ".pt"):
        lies = "is a file" if path.exists() else f"does not exist (looked for from {Path.cwd()})"
        raise WeightsError(f"{start} {lies}. Expected: {spec.expected}.")
    if part == "sam2" and not _sam2_file(str(value)):
        raise WeightsError(f"{start} is no folder here and no SAM 2 of the hub. Expected: {spec.expected}.")
    if copy := _hub_copy(part, str(value)):
        return Hit(copy, "given, local cache")
    if not download:
        raise WeightsError(f"{start} is neither a folder here nor in the hub's cache, and download=False forbids more.")
    try:
        return Hit(_from_hub(part, str(value)), "given, downloaded")
    except WeightsError as error:
        raise WeightsError(
            f"{start} is no folder here and could not be fetched: {error}. Expected: {spec.expected}."
        ) from error


# --- the network -------------------------------------------------------------------------------------------------


def _fetch_all(hits: dict[str, Hit], size: str | None, missing: list[str]) -> tuple[list[str], str]:
    """Add to `hits` what can be fetched, up to the first failure; returns what is missing then, and why."""
    for part in ("bert", "clipseg", "sam2", "groundingdino"):  # the hub's first, since the others are of no use alone
        if part in missing:
            try:
                if part in ("bert", "clipseg"):
                    path = _from_hub(part, PARTS[part].hub_ids[0])
                else:
                    release = GROUNDINGDINO if part == "groundingdino" else SAM2[size or SAM2_DEFAULT]
                    path = download_file(
                        release.urls, _checkpoints() / release.name, size=release.size, md5=release.md5
                    )
            except (DataError, WeightsError) as error:
                return _missing(hits), str(error).rstrip(".")
            hits[part] = Hit(path, "downloaded")
    return [], ""


def _sam2_file(hub_id: str) -> str:
    """Name of the checkpoint in a repository of Meta's, nothing for any other repository."""
    known = re.fullmatch(r"facebook/(sam2(?:\.1)?-hiera-(?:tiny|small|base-plus|large))", hub_id)
    return f"{known[1].replace('-', '_')}.pt" if known else ""


def _hub_copy(part: str, hub_id: str) -> Path | None:
    """The hub's file or folder where it lies in the cache, whole."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, _sam2_file(hub_id) if part == "sam2" else "config.json")
    if not isinstance(cached, str):
        return None
    path = Path(cached) if part == "sam2" else Path(cached).parent
    if path.is_dir() and model_type(path) != PARTS[part].model_type:
        return None
    return None if _problem(part, path) else path


def _from_hub(part: str, hub_id: str) -> Path:
    """Fetch the hub's file or folder into its cache, resumable by its own client."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise WeightsError("HF_HUB_OFFLINE is set")
    _require_answer(f"{constants.ENDPOINT}/api/models/{hub_id}")
    try:
        snapshot_download(
            hub_id, allow_patterns=[_sam2_file(hub_id)] if part == "sam2" else list(PARTS[part].hub_files)
        )
    except Exception as error:  # no such repository, gated, dropped, disk full: each has its own type
        raise WeightsError(f"{hub_id}: {reason(error)}") from error
    if path := _hub_copy(part, hub_id):
        return path
    raise WeightsError(f"{hub_id} on the hub holds no {PARTS[part].title}")


def _require_answer(url: str) -> None:
    """Raise `WeightsError` unless the host answers within seconds: the hub's client waits minutes for a silent one."""
    host = urlsplit(url).netloc
    if not reachable([url], CONNECT_TIMEOUT):
        raise WeightsError(f"no connection to {host} within {CONNECT_TIMEOUT:g} s (no internet?)")
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # an answer, of which the client makes more
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"no answer from {host}: {getattr(error, 'reason', error)}") from error


# --- the embedded models -----------------------------------------------------------------------------------------


def _embedded(notes: tuple[str, ...]) -> Found:
    folders = {part: TINY / part for part in ("groundingdino", "sam2", "clipseg")}
    if absent := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise WeightsError(f"{some(absent)} with the embedded tiny models: not there. Fetch the whole project again.")
    line = "=" * 100
    banner = (
        f"{line}\nTHESE ARE TINY STAND-INS, NOT THE REAL GroundingDINO, SAM 2 AND CLIPSeg. They know drawn shapes and "
        "their colours\n('a red circle'), nothing else: the run shows that everything works, on photographs it finds "
        f"nothing of use.\nFor the real models: models='full', which downloads them or says what to attach.\n{line}"
    )
    sources = {part: f"{folder.relative_to(TINY.parents[1])} (embedded)" for part, folder in folders.items()}
    return Found(*folders.values(), None, "tiny", sources, (*notes, banner))
