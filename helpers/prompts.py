"""A text prompt as phrases, and phrases as captions that GroundingDINO reads in one pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SEPARATORS = re.compile("[.,\n。、｡､\uff0e\uff0c]")  # the last two are the full-width . and ,
# GroundingDINO lets the tokens up to one of these attend to each other, and to no others.
BREAKS = re.compile(r"[.?]")


@dataclass(frozen=True, eq=False)  # no `==`: it has no single answer for arrays
class Caption:
    """The text of one pass, `cat . red dog .`, and which phrase each of its tokens belongs to."""

    text: str
    phrases: tuple[str, ...]
    token_phrase: np.ndarray  # int64 [T]: index into `phrases`, -1 for [CLS], [SEP] and the full stops


def parse_phrases(prompt: str) -> list[str]:
    """Split `prompt` at `.`, `,` (half or full width) and new lines into lower-case phrases, each once, in order.

    Raises `TypeError` if `prompt` is no text and `ValueError` if it holds no phrase.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"The prompt is of type {type(prompt).__name__}: give text, such as 'cat. red dog.'")
    text = prompt.encode("utf-8", "ignore").decode()  # a shell of another encoding leaves lone surrogates
    phrases = [" ".join(part.split()) for part in SEPARATORS.split(text.lower())]
    phrases = list(dict.fromkeys(filter(None, phrases)))
    if not phrases:
        raise ValueError(
            f"The prompt {_brief(prompt)!r} names nothing to look for: give phrases, such as 'cat. red dog.'"
        )
    return phrases


def caption_passes(phrases: Sequence[str], tokenizer: Any, max_tokens: int) -> list[Caption]:
    """Spread `phrases` over as few captions of at most `max_tokens` tokens as keeping their order allows.

    `tokenizer` is BERT's, slow or fast. Phrases that it cannot read (see `unreadable`) are left out. Raises
    `ValueError` for a phrase that is too long for a caption of its own.
    """
    captions: list[Caption] = []
    group: list[str] = []
    used = ends = 2  # [CLS] and [SEP]
    for phrase, ids in zip(phrases, _token_ids(phrases, tokenizer), strict=True):
        if not _readable(ids, tokenizer):
            continue
        cost = len(ids) + 1  # its full stop
        if ends + cost > max_tokens:
            raise ValueError(
                f"The phrase {_brief(phrase)!r} has {len(ids)} tokens, and the detector reads {max_tokens - ends - 1} "
                "at most: shorten it, or split it with '.' or ','."
            )
        if used + cost > max_tokens:
            captions.append(_caption(group, tokenizer))
            group, used = [], ends
        group.append(phrase)
        used += cost
    if group:
        captions.append(_caption(group, tokenizer))
    return captions


def unreadable(phrases: Sequence[str], tokenizer: Any) -> list[str]:
    """Those of `phrases` of which the tokenizer's vocabulary has nothing: no token at all, or only `[UNK]`."""
    ids = _token_ids(phrases, tokenizer)
    return [phrase for phrase, its in zip(phrases, ids, strict=True) if not _readable(its, tokenizer)]


def _token_ids(phrases: Sequence[str], tokenizer: Any) -> list[list[int]]:
    if not phrases:
        return []
    return tokenizer([_spoken(p) for p in phrases], add_special_tokens=False, verbose=False)["input_ids"]


def _readable(ids: list[int], tokenizer: Any) -> bool:
    return any(token != tokenizer.unk_token_id for token in ids)


def _spoken(phrase: str) -> str:
    """The phrase as it stands in a caption: a '?' or '.' within it would cut it in two for the detector."""
    return " ".join(BREAKS.sub(" ", phrase).split())


def _brief(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _caption(phrases: list[str], tokenizer: Any) -> Caption:
    text = " . ".join(map(_spoken, phrases)) + " ."
    ids = np.asarray(tokenizer(text)["input_ids"])
    stop = tokenizer.convert_tokens_to_ids(".")
    token_phrase = np.cumsum(ids == stop)  # the full stops so far are the phrases that have ended
    outside = {stop, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    token_phrase[np.isin(ids, list(outside))] = -1
    if not np.array_equal(np.unique(token_phrase[token_phrase >= 0]), np.arange(len(phrases))):
        raise ValueError(f"The tokenizer ({type(tokenizer).__name__}) has no token for '.': GroundingDINO needs BERT's")
    return Caption(text, tuple(phrases), token_phrase)
