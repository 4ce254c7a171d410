"""A text prompt as phrases, and phrases as captions that GroundingDINO reads in one pass."""

from __future__ import annotations

import ast
import contextlib
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# What ends a phrase, in the text after NFKC, which makes full-width signs plain ones; the last are Arabic, Urdu, Hindi.
SEPARATORS = ".,;|\n。、\u060c\u061b\u06d4\u0964"
BULLETS = "[\u2460-\u2473•‣◦▪●■►]"  # ① to ⑳, and signs that stand for nothing else: each begins a phrase
NUMBER = r"\(?\d{1,3}[.):、](?!\d)"  # of a list: "1. cat", "(2) dog"
EDGES = " \t-\u2013—*+_·\"'`“”\u2018\u2019„«»"  # bullets, quotation marks and Markdown's emphasis around a phrase
# A full stop or comma after which the phrase goes on.
INNER = (
    r"(?<=\d)[.,](?=\d)|(?<!\S)\.(?=\d)"  # 2.5 inch, 1,000, .5 inch
    r"|(?<=\b[^\W\d_])\.(?=[^\W\d_]\.)|(?<=\b[^\W\d_]\.[^\W\d_])\."  # U.S. flag, e.g.
    r"|\b(?:capt|dr|ft|gen|jr|lt|mr|mrs|ms|mt|prof|sgt|sr|st|vs)\.(?= *\w)"  # St. Bernard
    r"|\b(?:fig|no|nr|vol)\.(?= *\d)|(?<=\d) ?(?:ft|gal|in|lb|lbs|oz)\.(?= *\w)"  # No. 5, 12 oz. can
)


@dataclass(frozen=True, eq=False)  # no `==`: it has no single answer for arrays
class Caption:
    """The text of one pass, `cat . red dog .`, and which phrase each of its tokens belongs to."""

    text: str
    phrases: tuple[str, ...]
    token_phrase: np.ndarray  # int64 [T]: index into `phrases`, -1 for [CLS], [SEP] and the full stops


def parse_phrases(prompt: str | Sequence[str]) -> list[str]:
    """The phrases of `prompt` in lower case, each once, in order.

    A text is split at `SEPARATORS`, except where a number or an abbreviation goes on. Of a list, or a text that is one
    in Python, each item is a phrase, but a list of one text is that text. List numbers, bullets, quotation marks and
    signs of no width are dropped. Raises `TypeError` for what is no text, and `ValueError` where there is no phrase.
    """
    given = _as_list(prompt) if isinstance(prompt, str) else prompt
    while isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    texts = given if isinstance(given, list | tuple) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"The prompt is {prompt!r}: give text, such as 'cat. red dog.', or a list of texts")
    if len(texts) == 1:
        parts = _split(_visible(texts[0]))
    else:
        parts = [re.sub(rf"^\s*{NUMBER}", "", _visible(text)).strip(SEPARATORS + EDGES) for text in texts]
    phrases = list(dict.fromkeys(filter(None, (" ".join(part.strip(EDGES).split()) for part in parts))))
    if not phrases:
        raise ValueError(f"{str(prompt)[:40]!r} names nothing to look for: give phrases, such as 'cat. red dog.'")
    return phrases


def _as_list(text: str) -> Any:
    """The list that a text is in Python, else the text, without brackets around it."""
    inner = text.strip().rstrip(";")
    if inner[:1] + inner[-1:] not in ("[]", "()"):
        return text
    with contextlib.suppress(ValueError, SyntaxError):
        if isinstance(found := ast.literal_eval(inner), list | tuple):
            return found
    return text if set("[]()") & set(inner[1:-1]) else inner[1:-1]


def _visible(text: str) -> str:
    """The text in lower case and one spelling (NFKC), without signs that leave no mark; all line ends are new lines."""
    text = re.sub("[\ufe00-\ufe0f]", "", "\n".join(re.sub(BULLETS, "\n", text).splitlines()))
    seen = (sign for sign in text if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf", "Cs"))
    return unicodedata.normalize("NFKC", "".join(seen)).lower()


def _split(text: str) -> list[str]:
    """The parts of a text between its separators; where a line begins with a list's number, each one begins a part."""
    numbered = rf"^[{re.escape(EDGES)}]*{NUMBER}.*"
    text = re.sub(numbered, lambda line: re.sub(rf"(?<!\w){NUMBER}", "\n", line[0]), text, flags=re.MULTILINE)
    return re.findall(f"(?:{INNER}|[^{SEPARATORS}])+", text)


def caption_passes(phrases: Sequence[str], tokenizer: Any, max_tokens: int) -> list[Caption]:
    """Spread `phrases` over as few captions of at most `max_tokens` tokens as keeping their order allows; those that
    BERT's `tokenizer` cannot read are left out. `ValueError` for one that is too long for any caption."""
    groups: list[list[str]] = []
    used, gone = max_tokens, unreadable(phrases, tokenizer)
    for phrase in (phrase for phrase in phrases if phrase not in gone):
        length = len(tokenizer.tokenize(_spoken(phrase)))
        if length > max_tokens - 3:  # [CLS], [SEP] and its full stop
            shown = textwrap.shorten(phrase, 40, placeholder=" …")
            limit = f"the detector reads {max_tokens - 3} at most: shorten it, or split it with '.' or ','."
            raise ValueError(f"The phrase {shown!r} has {length} tokens, and {limit}")
        if used + length + 1 > max_tokens:
            groups.append([])
            used = 2
        groups[-1].append(phrase)
        used += length + 1
    return [_caption(group, tokenizer) for group in groups]


def unreadable(phrases: Sequence[str], tokenizer: Any) -> list[str]:
    """Phrases of which the tokenizer's vocabulary has nothing: no token at all, or only `[UNK]`."""
    return [phrase for phrase in phrases if set(tokenizer.tokenize(_spoken(phrase))) <= {tokenizer.unk_token}]


def _spoken(phrase: str) -> str:
    """The phrase as it stands in a caption: a '?' or '.' within it would cut it in two for the detector."""
    return " ".join(re.sub("[.?]", " ", phrase).split())


def _caption(phrases: list[str], tokenizer: Any) -> Caption:
    text = " . ".join(map(_spoken, phrases)) + " ."
    ids = np.asarray(tokenizer(text)["input_ids"])
    is_stop = ids == tokenizer.convert_tokens_to_ids(".")
    token_phrase = np.cumsum(is_stop)  # the full stops so far are the phrases that have ended
    token_phrase[is_stop] = -1
    token_phrase[[0, -1]] = -1  # [CLS] and [SEP]
    return Caption(text, tuple(phrases), token_phrase)
