"""Which models a run uses, and where they come from.

found = find_models()                                # search, then download, then the embedded tiny models
found = find_models("full", sam2_weights="large")    # the real ones, or a WeightsError that says what to do
found.dino, found.sam2, found.clipseg, found.bert    # local paths: loading them needs no network any more
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.common.environment import KAGGLE_INPUT, where
from helpers.common.files import peek, some
from helpers.common.hub import HubError, cached, fetch
from helpers.segment.pretrained import model_type

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"
DEPTH = 7  # as Kaggle has it: models/<owner>/<model>/<framework>/<variation>/<version>/<a folder of its own>
MOST_FOLDERS = 100  # looked into at one depth, those of few siblings first: a data set has many of a kind

# By the table in SAM 2's README (J&F on MOSE; frames a second on an A100): tiny 71.8, 47.2; small 73.5, 43.3;
# base+ 73.7, 34.8; large 74.6, 24.2. On a T4, and beside GroundingDINO, small is the best bargain: it is the default.
SAM2 = {size: f"facebook/sam2.1-hiera-{size.replace('+', '-plus')}" for size in ("small", "tiny", "base+", "large")}
SAM2_IDS = (*SAM2.values(), *(hub_id.replace("2.1", "2") for hub_id in SAM2.values()))
# The checkpoint that is wanted of its authors' repository; of every other one a folder is.
CHECKPOINTS = {hub_id: hub_id.split("/")[1].replace("-", "_") + ".pt" for hub_id in SAM2_IDS}
CHECKPOINTS["ShilongLiu/GroundingDINO"] = "groundingdino_swint_ogc.pth"

CACHE = "hub's cache"
Hit = tuple[Path, str]  # a file or folder, and how it came here


class WeightsError(ValueError):
    """A model is missing; the message names the parameter, the path and the next step."""


@dataclass(frozen=True)
class Part:
    """One of the models: how it is recognised on disk, and named on the hub."""

    title: str
    parameter: str
    expected: str
    hub_ids: tuple[str, ...]  # the first is fetched, all are looked for in the cache
    file: str = ""  # pattern of the names of its checkpoints
    model_type: str = ""  # in the config.json of its folders
    main: str = "model.safetensors"  # the largest file of those folders on the hub


PARTS = {
    "groundingdino": Part(
        "GroundingDINO",
        "dino_weights",
        "groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth, a folder of transformers' port (model_type "
        "grounding-dino), or a hub id like IDEA-Research/grounding-dino-tiny",
        ("ShilongLiu/GroundingDINO", "IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base"),
        r"groundingdino_swin[tb]\w*\.pth",
        "grounding-dino",
    ),
    "sam2": Part(
        "SAM 2",
        "sam2_weights",
        f"a checkpoint like sam2.1_hiera_small.pt, {', '.join(SAM2)}, a hub id like facebook/sam2.1-hiera-small, or a "
        "folder of one's own with config.yaml and model.safetensors",
        SAM2_IDS,
        r"sam2(\.1)?_hiera_\w+\.pt",
    ),
    "clipseg": Part(
        "CLIPSeg",
        "clipseg_weights",
        "a folder of transformers' layout (model_type clipseg), or a hub id like CIDAS/clipseg-rd64-refined",
        ("CIDAS/clipseg-rd64-refined",),
        model_type="clipseg",
    ),
    "bert": Part(
        "BERT's vocabulary",
        "bert_path",
        "a folder of bert-base-uncased (model_type bert) with vocab.txt or tokenizer.json",
        ("google-bert/bert-base-uncased", "bert-base-uncased"),
        model_type="bert",
        main="vocab.txt",
    ),
}


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
    notes: tuple[str, ...] = ()


def find_models(
    models: str = "auto",
    dino_weights: str | Path | None = None,
    sam2_weights: str | Path | None = None,
    clipseg_weights: str | Path | None = None,
    bert_path: str | Path | None = None,
    download: bool = True,
) -> Found:
    """Find the three models (and BERT's vocabulary, for GroundingDINO as its authors' file), or fetch them.

    models="auto"   what was given; attached Kaggle inputs and ./weights; the Hugging Face hub's cache; a download.
                    Where one is missing then, all three are the embedded tiny models, which know drawn shapes and
                    colours only; but where any was given, a missing one is an error
    models="full"   the same without the tiny models
    models="tiny"   the embedded ones

    What is given is used, or it is an error; nothing ever takes its place. It may be a file, a folder that holds it up
    to seven folders deep, a hub id, and for SAM 2 also a size: `"tiny"`, `"small"`, `"base+"` or `"large"`.

    Raises `WeightsError`, and `ValueError` for any other `models`.
    """
    if models not in ("auto", "full", "tiny"):
        raise ValueError(f"models={models!r}: expected 'auto', 'full' or 'tiny'")
    values = dict(zip(PARTS, (dino_weights, sam2_weights, clipseg_weights, bert_path), strict=True))
    given = {part: str(value) for part, value in values.items() if value not in (None, "")}
    if models == "tiny":
        if given:
            parameters = ", ".join(PARTS[part].parameter for part in given)
            raise WeightsError(f"models='tiny' uses the embedded models only: leave it out, or else {parameters}.")
        return _embedded()

    size = given["sam2"] if given.get("sam2") in SAM2 else None
    hits = {part: _given(part, value, download) for part, value in given.items() if part != "sam2" or not size}
    _search(hits, size)
    problem = ""
    try:
        for part in _missing(hits):
            usual = SAM2[size or "small"] if part == "sam2" else PARTS[part].hub_ids[0]
            hits[part] = _from_hub(part, usual, download)
    except HubError as error:
        problem = str(error)
    missing = _missing(hits)
    if not missing:
        if hits["groundingdino"][0].is_dir():
            hits.pop("bert", None)
        sources = {part: f"{hits[part][0]} ({hits[part][1]})" for part in PARTS if part in hits}
        return Found(*(hits[part][0] if part in hits else None for part in PARTS), "full", sources)

    titles = ", ".join(PARTS[part].title + (f" {size}" if size and part == "sam2" else "") for part in missing)
    looked = ", ".join(str(root) for root in _roots())
    note = f"Not found in {looked} and the hub's cache: {titles}. Not fetched: {problem}"
    if models == "auto" and not given:
        return _embedded(note)
    wanted = "; ".join(f"{PARTS[part].parameter}: {PARTS[part].expected}" for part in missing)
    raise WeightsError(
        f"{note} Let them be fetched, attach them as an input, put them into ./weights, or give their paths "
        f"({wanted}). models='tiny' alone needs none of them."
    )


def _missing(hits: dict[str, Hit]) -> list[str]:
    own_vocabulary = "groundingdino" in hits and hits["groundingdino"][0].is_dir()
    return [part for part in PARTS if part not in hits and not (part == "bert" and own_vocabulary)]


def _given(part: str, value: str, download: bool) -> Hit:
    """Return the model that the user named; never another one in its place."""
    spec, path = PARTS[part], Path(value).expanduser()
    start, expected = f"{spec.parameter}={value!r}", f"Expected: {spec.expected}."
    if path.is_dir():
        if part == "sam2" and all((path / name).is_file() for name in ("config.yaml", "model.safetensors")):
            return path, "given"
        for kind, found in _survey(path):
            if kind == part:
                return found, "given"
        there = some(sorted(entry.name for entry in path.iterdir()), 8) or "nothing"
        raise WeightsError(f"{start} holds no {spec.title}; found there: {there}. {expected}")
    if path.is_file() and spec.file:
        return path, "given"

    # no model here, so perhaps the hub's; but where its first part is a folder here, it was meant as a path
    like_an_id = re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]*/[\w.-]*\w(?<!\.pth)(?<!\.pt)", value)
    known = part != "sam2" or value in spec.hub_ids
    if path.exists() or path.parent.is_dir() or not like_an_id or not known:
        problem = "is a file" if path.exists() else f"does not exist (looked for from {Path.cwd()})"
        raise WeightsError(f"{start} {problem}. {expected}")
    try:
        found, origin = _from_hub(part, value, download)
        return found, f"given, {origin}"
    except HubError as error:
        raise WeightsError(f"{start} is no folder here, and not fetched: {error} {expected}") from error


def _search(hits: dict[str, Hit], size: str | None) -> None:
    """Add to `hits` what else is on this machine; SAM 2 only in `size`, unless that is None."""
    if not _missing(hits):
        return
    found: dict[str, list[Hit]] = {part: [] for part in PARTS}
    for root, origin in _roots().items():
        for part, path in _survey(root):
            found[part].append((path, origin))
    for part, spec in PARTS.items():
        found[part] += [(path, CACHE) for hub_id in spec.hub_ids if (path := _in_cache(part, hub_id))]

    usual = CHECKPOINTS[SAM2[size or "small"]]
    if size:
        found["sam2"] = [hit for hit in found["sam2"] if hit[0].name == usual]
    else:  # the user's own of another size come before the cache's of the usual one
        found["sam2"].sort(key=lambda hit: (hit[1] == CACHE, hit[0].name != usual))
    if not found["bert"] and "bert" not in hits:
        found["groundingdino"].sort(key=lambda hit: hit[0].is_file())  # transformers' port needs no BERT
    for part in PARTS:
        if found[part]:
            hits.setdefault(part, found[part][0])


def _roots() -> dict[Path, str]:
    """Return the folders to look through, and what they are called."""
    attached = {KAGGLE_INPUT: "attached input"} if where() == "kaggle" else {}
    return {**attached, Path("weights"): "./weights"}


def _survey(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (part, path) of what by its name or its config.json is a model, at `root` or below it, nearest first."""
    level = [(1, root)]  # number of siblings, folder
    for _ in range(DEPTH + 1):
        below: list[tuple[int, Path]] = []
        for _, folder in sorted(level)[:MOST_FOLDERS]:
            folders, files = peek(folder)
            below += [(len(folders), path) for path in folders.values()]
            kind = model_type(folder) if "config.json" in files else None
            for part, spec in PARTS.items():
                yield from ((part, files[name]) for name in sorted(files) if re.fullmatch(spec.file, name))
                if kind and kind == spec.model_type:
                    yield part, folder
        level = below


def _from_hub(part: str, hub_id: str, download: bool) -> Hit:
    """Return the checkpoint or folder from the hub's cache, else fetched into it."""
    if path := _in_cache(part, hub_id):
        return path, CACHE
    if not download:
        raise HubError("download=False forbids it.")
    fetch(hub_id, [CHECKPOINTS[hub_id]] if hub_id in CHECKPOINTS else [PARTS[part].main, "*.json", "*.txt"])
    if path := _in_cache(part, hub_id):
        return path, "downloaded"
    raise HubError(f"{hub_id} on the hub holds no {PARTS[part].title}.")


def _in_cache(part: str, hub_id: str) -> Path | None:
    if hub_id in CHECKPOINTS:
        return cached(hub_id, CHECKPOINTS[hub_id])
    main = cached(hub_id, PARTS[part].main)
    return main.parent if main and model_type(main.parent) == PARTS[part].model_type else None


def _embedded(*notes: str) -> Found:
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
