"""Which models a run uses, and where they come from.

found = find_models("full", sam2_weights="large")    # or a WeightsError that says what to do
found.dino, found.sam2, found.clipseg, found.bert    # local paths: loading them needs no network any more
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open

from helpers.common.environment import KAGGLE_INPUT, where
from helpers.common.files import peek, reason, some
from helpers.common.hub import HubError, cached, fetch
from helpers.segment import grounding_dino, sam2_image
from helpers.segment.pretrained import load_checkpoint, model_type, tensor_files

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"
DEPTH = 7  # as Kaggle has it: models/<owner>/<model>/<framework>/<variation>/<version>/<a folder of its own>
MOST_FOLDERS = 100  # looked into at one depth, those of few siblings first: a data set has many of a kind

# By the table in SAM 2's README (J&F on MOSE; frames a second on an A100): tiny 71.8, 47.2; small 73.5, 43.3;
# base+ 73.7, 34.8; large 74.6, 24.2. On a T4, and beside GroundingDINO, small is the best bargain: it is the default.
SAM2 = {size: f"facebook/sam2.1-hiera-{size.replace('+', '-plus')}" for size in ("small", "tiny", "base+", "large")}
SAM2_IDS = (*SAM2.values(), *(hub_id.replace("2.1", "2") for hub_id in SAM2.values()))
# The same architecture with other weights: they find more (README.md has the figures), at other thresholds.
MM_DINO_IDS = (
    *(f"iSEE-Laboratory/llmdet_{size}" for size in ("tiny", "base", "large")),
    *(
        f"openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg{data}"
        for data in ("_grit_v3det", "_v3det", "_grit", "")
    ),
    *(f"openmmlab-community/mm_grounding_dino_base_{data}" for data in ("all", "o365v1_goldg_v3det")),
    *(f"openmmlab-community/mm_grounding_dino_large_{data}" for data in ("all", "o365v2_oiv6_goldg")),
)
DINO_IDS = ("ShilongLiu/GroundingDINO", "IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base")
DINO_IDS += MM_DINO_IDS
BERT_IDS = ("google-bert/bert-base-uncased", "bert-base-uncased")
# The checkpoint that is wanted of its authors' repository; of every other one a folder is.
CHECKPOINTS = {hub_id: hub_id.split("/")[1].replace("-", "_") + ".pt" for hub_id in SAM2_IDS}
CHECKPOINTS["ShilongLiu/GroundingDINO"] = "groundingdino_swint_ogc.pth"

LIKE_AN_ID = r"[\w.-]+/[\w.-]+(?<!\.pth)(?<!\.pt)"
BANNER = f"""{"=" * 100}
THESE ARE TINY STAND-INS, NOT THE REAL GroundingDINO, SAM 2 AND CLIPSeg. They know drawn shapes and their colours
('a red circle'), nothing else. For the real models: models='full', which downloads them or says what to attach.
{"=" * 100}"""
Hit = tuple[Path, str]  # a file or folder, and how it came here


class WeightsError(ValueError):
    """A model is missing; the message names the parameter, the path and the next step."""


@dataclass(frozen=True)
class Part:
    """One of the models: how it is recognised on disk, and named on the hub."""

    title: str
    parameter: str
    hub_ids: tuple[str, ...]  # the first is fetched, all are looked for in the cache
    file: str = ""  # pattern of the names of its checkpoints
    tensor: str = ""  # that all of those hold
    model_types: tuple[str, ...] = ()  # in the config.json of its folders, the usual one first
    main: str = "model.safetensors"  # the largest file of those folders
    hint: str = ""  # more on what it may be

    @property
    def address(self) -> str:
        """Where a person downloads it."""
        hub_id = self.hub_ids[0]
        page = f"https://huggingface.co/{hub_id}"
        if hub_id in CHECKPOINTS:
            return f"{page}/resolve/main/{CHECKPOINTS[hub_id]}"
        return f"{self.main}, *.json and *.txt of {page}/tree/main, in a folder"

    @property
    def expected(self) -> str:
        """Text that says what the parameter may be."""
        types = " or ".join(self.model_types)
        config = f"config.json (model_type {types})" if types else "config.yaml"
        kinds = f"a folder with {config} and {self.main}, or a hub id like {self.hub_ids[0]}"
        return (f"a file like {CHECKPOINTS[self.hub_ids[0]]}, {kinds}" if self.file else kinds) + self.hint


PARTS = {
    "groundingdino": Part(
        "GroundingDINO",
        "dino_weights",
        DINO_IDS,
        r"groundingdino_swin\w+\.pth",
        grounding_dino.PATCH_EMBED,
        ("grounding-dino", "mm-grounding-dino"),
        hint=f" (MM-Grounding-DINO and LLMDet converted for transformers, as {MM_DINO_IDS[0]} or {MM_DINO_IDS[3]}; "
        "mmdetection's own .pth files are not read)",
    ),
    "sam2": Part("SAM 2", "sam2_weights", SAM2_IDS, r"sam2(\.1)?_hiera_\w+\.pt", sam2_image.PATCH_EMBED),
    "clipseg": Part("CLIPSeg", "clipseg_weights", ("CIDAS/clipseg-rd64-refined",), model_types=("clipseg",)),
    "bert": Part("BERT's vocabulary", "bert_path", BERT_IDS, model_types=("bert",), main="vocab.txt"),
}


@dataclass(frozen=True)
class Found:
    """Local paths of the models, {part: which path it is and where from}, and notes for the reader of the results."""

    dino: Path
    sam2: Path
    clipseg: Path
    bert: Path | None  # where GroundingDINO does not bring its own vocabulary
    kind: str  # "full" or "tiny"
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

    `"full"`: what was given, attached Kaggle inputs and ./weights, the Hugging Face hub's cache, a download. `"auto"`:
    the same, but all are the embedded tiny ones where any is missing and none was given. `"tiny"`: those. What is given
    (a file, a folder that holds it, a hub id, a size of SAM 2) is used, or it is a `WeightsError`, and that before
    what is missing. Of several detectors in ./weights and inputs GroundingDINO comes before those of another type."""
    if models not in ("auto", "full", "tiny"):
        raise ValueError(f"models={models!r}: expected 'auto', 'full' or 'tiny'")
    values = dict(zip(PARTS, (dino_weights, sam2_weights, clipseg_weights, bert_path), strict=True))
    given = {part: str(value) for part, value in values.items() if value not in (None, "")}
    if models == "tiny":
        if given:
            parameters = ", ".join(PARTS[part].parameter for part in given)
            raise WeightsError(f"models='tiny' uses the embedded models only: leave it out, or else {parameters}.")
        return _embedded()

    wanted = dict(PARTS)
    if (size := given.get("sam2")) in SAM2:  # that one alone, wherever it is
        file = CHECKPOINTS[SAM2[size]]
        wanted["sam2"] = replace(PARTS["sam2"], title=f"SAM 2 {size}", hub_ids=(SAM2[size],), file=file)
    hits = {part: _given(part, value, download) for part, value in given.items() if wanted[part] is PARTS[part]}
    places = functools.cache(lambda: [(*entry, origin) for root, origin in _roots().items() for entry in _walk(root)])
    missing, problem = [], ""
    for part, spec in wanted.items():
        if part == "bert" and "groundingdino" in hits and hits["groundingdino"][0].is_dir():
            hits.pop("bert", None)  # transformers' port has a vocabulary of its own
        elif part not in hits:
            try:
                hits[part] = _find(spec, places, download and not problem)
            except HubError as error:
                problem = problem or str(error)
                missing.append(spec)
    if not missing:
        sources = {part: f"{hits[part][0]} ({hits[part][1]})" for part in PARTS if part in hits}
        return Found(*(hits[part][0] if part in hits else None for part in PARTS), "full", sources)

    titles = ", ".join(spec.title for spec in missing)
    note = f"Not found in {', '.join(map(str, _roots()))} and the hub's cache: {titles}. Not fetched: {problem}"
    if models == "auto" and not given:
        return _embedded(note)
    wanted_files = "\n".join(f"  {spec.title} ({spec.parameter}): {spec.address}" for spec in missing)
    raise WeightsError(
        f"{note}\nOr put these into ./weights or an attached input, or give their paths:\n{wanted_files}\n"
        "Is it for drawn shapes? models='tiny' (make q2 MODELS=tiny) needs none of them, and knows nothing else."
    )


def _given(part: str, value: str, download: bool) -> Hit:
    """Return the model that the user named; never another one in its place. One that is broken or another's is refused
    as far as can be told without reading its numbers, before time goes into the others."""
    spec = PARTS[part]
    hit = _named(part, value, download)
    if flaw := _flaw(spec, hit[0]):
        raise WeightsError(f"{spec.parameter}={value!r}: {flaw}. Expected: {spec.expected}.")
    return hit


def _flaw(spec: Part, path: Path) -> str:
    """Say what is wrong with a file or folder; "" where its names and headers are as they must be."""
    try:
        if path.is_file():
            names = {key.removeprefix("module.") for key in load_checkpoint(path, "", mmap=True)}
            return "" if spec.tensor in names else f"{path} is another model's checkpoint"
        if spec.main == "vocab.txt":
            files = [name for name in (spec.main, "tokenizer.json") if (path / name).is_file()]
        else:
            files = tensor_files(path)
            for file in files:
                if file.suffix == ".safetensors":
                    with safe_open(file, "pt"):  # compares the file's size with its header
                        pass
        return "" if files else f"{path} holds no {spec.main}"
    except (OSError, ValueError) as error:
        return reason(error)
    except Exception as error:  # safetensors has a type of its own
        return f"{path} cannot be loaded: {reason(error)}"


def _named(part: str, value: str, download: bool) -> Hit:
    """Return the file or folder that the user named."""
    spec, path = PARTS[part], Path(value).expanduser()
    if path.is_dir():
        if part == "sam2" and all((path / name).is_file() for name in ("config.yaml", "model.safetensors")):
            return path, "given"
        for folder, files in _walk(path):
            for match in _matches(spec, folder, files):
                return match, "given"
        there = some(sorted(entry.name for entry in path.iterdir()), 8) or "nothing"
        problem = f"holds no {spec.title}; found there: {there}"
    elif path.is_file() and spec.file:
        return path, "given"
    # perhaps the hub's; but where its first part is a folder here, it was meant as a path
    elif path.parent.is_dir() or not (value in SAM2_IDS if part == "sam2" else re.fullmatch(LIKE_AN_ID, value)):
        problem = "is a file" if path.is_file() else f"does not exist (looked for from {Path.cwd()})"
    else:
        try:
            found, origin = _from_hub(spec, value, download)
            return found, f"given, {origin}"
        except HubError as error:
            problem = f"is no folder here, and not fetched: {error}"
    sizes = f", or {', '.join(SAM2)}" if part == "sam2" else ""
    raise WeightsError(f"{spec.parameter}={value!r} {problem}. Expected: {spec.expected}{sizes}.")


def _find(spec: Part, places: Callable[[], list[tuple[Path, dict[str, Path], str]]], download: bool) -> Hit:
    """Return what is on this machine, the user's own before the hub's cache and the usual size first, else fetch it."""
    hits = [(path, origin) for folder, files, origin in places() for path in _matches(spec, folder, files)]
    usual = CHECKPOINTS.get(spec.hub_ids[0])
    hits.sort(key=lambda hit: (model_type(hit[0]) in spec.model_types[1:], hit[0].name != usual))
    hits += [(path, "hub's cache") for hub_id in spec.hub_ids if (path := _in_cache(spec, hub_id))]
    return hits[0] if hits else _from_hub(spec, spec.hub_ids[0], download)


def _roots() -> dict[Path, str]:
    """Return the folders to look through, and what they are called."""
    return ({KAGGLE_INPUT: "attached input"} if where() == "kaggle" else {}) | {Path("weights"): "./weights"}


def _walk(root: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Yield `root` and the folders below it, each with its files, nearest first."""
    level = [(1, root)]  # number of siblings, folder
    for _ in range(DEPTH + 1):
        below: list[tuple[int, Path]] = []
        for _, folder in sorted(level)[:MOST_FOLDERS]:
            folders, files = peek(folder)
            yield folder, files
            below += [(len(folders), path) for path in folders.values()]
        level = below


def _matches(spec: Part, folder: Path, files: dict[str, Path]) -> list[Path]:
    """Return what in a folder is the model by its name, or the folder itself by its config.json."""
    is_one = spec.model_types and "config.json" in files and model_type(folder) in spec.model_types
    return [files[name] for name in sorted(files) if re.fullmatch(spec.file, name)] + ([folder] if is_one else [])


def _from_hub(spec: Part, hub_id: str, download: bool) -> Hit:
    """Return the checkpoint or folder from the hub's cache, else fetched into it."""
    if path := _in_cache(spec, hub_id):
        return path, "hub's cache"
    if not download:
        raise HubError("download=False forbids it.")
    fetch(hub_id, [CHECKPOINTS[hub_id]] if hub_id in CHECKPOINTS else [spec.main, "*.json", "*.txt"])
    if path := _in_cache(spec, hub_id):
        return path, "downloaded"
    raise HubError(f"{hub_id} on the hub holds no {spec.title}.")


def _in_cache(spec: Part, hub_id: str) -> Path | None:
    if hub_id in CHECKPOINTS:
        return cached(hub_id, CHECKPOINTS[hub_id])
    main = cached(hub_id, spec.main)
    return main.parent if main and model_type(main.parent) in spec.model_types else None


def _embedded(*notes: str) -> Found:
    folders = {part: TINY / part for part in ("groundingdino", "sam2", "clipseg")}
    sources = {part: f"{folder.relative_to(TINY.parents[1])} (embedded)" for part, folder in folders.items()}
    return Found(*folders.values(), None, "tiny", sources, (*notes, BANNER))


if __name__ == "__main__":  # fetches the real models, or says in a sentence why it cannot
    try:
        find_models("full")
    except WeightsError as error:
        sys.exit(str(error))
