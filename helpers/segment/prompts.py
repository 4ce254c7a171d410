"""A text prompt as phrases, and phrases as captions that GroundingDINO reads in one pass."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# What ends a phrase, in the text after NFKC, which makes full-width signs plain ones; the last are Arabic, Urdu, Hindi.
SEPARATORS = re.compile("[.,;|\n。、\u060c\u061b\u06d4\u0964]")
BULLETS = re.compile("[\u2460-\u2473•‣◦▪●■►]")  # ① to ⑳, and signs that stand for nothing else: each begins a phrase
NUMBER = r"\(?\d{1,3}[.):、](?!\d)"  # of a list: "1. cat", "(2) dog"
EDGES = " \t-\u2013—*+_·\"'`“”\u2018\u2019„«»"  # bullets, quotation marks and Markdown's emphasis around a phrase
# A full stop or comma after which the phrase goes on.
INNER = re.compile(
    r"(?<=\d)[.,](?=\d)|(?<!\S)\.(?=\d)"  # 2.5 inch, 1,000, .5 inch
    r"|(?<=\b[^\W\d_])\.(?=[^\W\d_]\.)|(?<=\b[^\W\d_]\.[^\W\d_])\."  # U.S. flag, e.g.
    r"|\b(?:capt|dr|ft|gen|jr|lt|mr|mrs|ms|mt|prof|sgt|sr|st|vs)\.(?= *\w)"  # St. Bernard
    r"|\b(?:fig|no|nr|vol)\.(?= *\d)"  # No. 5
    r"|(?<=\d) ?(?:ft|gal|in|lb|lbs|oz)\.(?= *\w)"  # 12 oz. can
)
# GroundingDINO lets the tokens up to one of these attend to each other, and to no others.
BREAKS = re.compile(r"[.?]")


@dataclass(frozen=True, eq=False)  # no `==`: it has no single answer for arrays
class Caption:
    """The text of one pass, `cat . red dog .`, and which phrase each of its tokens belongs to."""

    text: str
    phrases: tuple[str, ...]
    token_phrase: np.ndarray  # int64 [T]: index into `phrases`, -1 for [CLS], [SEP] and the full stops


def parse_phrases(prompt: str | Sequence[str]) -> list[str]:
    """The phrases of `prompt` in lower case, each once, in order.

    A text is split at `SEPARATORS`, except where a number or an abbreviation goes on; list numbers, bullets and
    quotation marks are dropped, and so is what cannot be seen (zero-width signs). Of a list, or a text that is one in
    Python or JSON, each item is a phrase, whatever it holds; but a list of one text is that text.

    Raises `TypeError` if `prompt` is neither text nor a list of texts, and `ValueError` if it holds no phrase.
    """
    given = _as_list(prompt) if isinstance(prompt, str) else prompt
    while isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    several = isinstance(given, list | tuple)
    for text in given if several else [given]:
        if not isinstance(text, str):
            kind = f"{'a list with an item ' if several else ''}of type {type(text).__name__}"
            raise TypeError(f"The prompt is {kind}: give text, such as 'cat. red dog.', or a list of texts")
    parts = [_line(_visible(text)) for text in given] if several else _split(_visible(given))
    phrases = list(dict.fromkeys(filter(None, (" ".join(part.strip(EDGES).split()) for part in parts))))
    if not phrases:
        raise ValueError(
            f"The prompt {_brief(str(prompt))!r} names nothing to look for: give phrases, such as 'cat. red dog.'"
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


def _as_list(text: str) -> Any:
    """The list that a text is in JSON or Python, else the text, without brackets around it."""
    inner = text.strip().rstrip(";")
    if inner[:1] + inner[-1:] not in ("[]", "()"):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(inner)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list | tuple) and all(isinstance(item, str | list | tuple) for item in found):
            return found
    return text if set("[]()") & set(inner[1:-1]) else inner[1:-1]


def _visible(text: str) -> str:
    """The text in lower case and one spelling (NFKC), without signs that leave no mark, and lone surrogates, which a
    shell of another encoding leaves; all line ends are new lines."""
    text = "\n".join(BULLETS.sub("\n", text).splitlines())
    seen = (sign for sign in text if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf", "Cs"))
    return re.sub("[\ufe00-\ufe0f]", "", unicodedata.normalize("NFKC", "".join(seen)).lower())


def _split(text: str) -> list[str]:
    """The parts of a text between its separators."""
    lines = []
    for line in text.split("\n"):
        line = re.sub(r"^[\s*+\u2013—-]+\[[ x]?\]", "", line)  # Markdown's check boxes
        numbered = re.match(rf"[{re.escape(EDGES)}]*{NUMBER}", line)  # then each number in the line begins a phrase
        lines.append(re.sub(rf"(?<!\w){NUMBER}", "\n", line) if numbered else line)
    kept = INNER.sub(lambda found: found[0].replace(".", "\ue000").replace(",", "\ue001"), "\n".join(lines))
    return [part.replace("\ue000", ".").replace("\ue001", ",") for part in SEPARATORS.split(kept)]


def _line(text: str) -> str:
    """An item of a list without its number, and without separators at its ends."""
    text = re.sub(rf"^\s*{NUMBER}", "", text)
    return re.sub(rf"^(?:{SEPARATORS.pattern}|\s)+|(?:{SEPARATORS.pattern}|\s)+$", "", text)


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
