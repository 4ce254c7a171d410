"""helpers/prompts.py, with BERT's tokenizers as the installed transformers has them."""

import itertools
import random

import numpy as np
import pytest

from helpers.prompts import Caption, caption_passes, parse_phrases, unreadable

SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
WORDS = ["a", "the", "on", "left", "cat", "dog", "red", "un", "##ic", "##yc", "##list", "t", "-", "shirt", "'", "s"]


def write_vocabulary(folder, size):
    """A `vocab.txt` of `size` tokens in which the special ones have the numbers of bert-base-uncased."""
    words = {**SPECIAL, **dict(enumerate(WORDS, start=1005 - len(WORDS)))}
    (folder / "vocab.txt").write_text("".join(f"{words.get(i, f'[unused{i}]')}\n" for i in range(size)))


@pytest.fixture(scope="module", params=["BertTokenizer", "BertTokenizerFast"])
def tokenizer(request, tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    write_vocabulary(folder, 1040)
    return getattr(transformers, request.param).from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("cat", ["cat"]),
        ("cat. red dog.", ["cat", "red dog"]),
        ("Cat, RED  dog\nThe\tcat on the left", ["cat", "red dog", "the cat on the left"]),
        (" . ,cat ..,\r\n dog ,. ", ["cat", "dog"]),
        ("cat. dog. CAT. Dog. cat", ["cat", "dog"]),
        ("猫。红狗\uff0c鸟、cat\uff0edog｡ox､", ["猫", "红狗", "鸟", "cat", "dog", "ox"]),
        ("u.s. flag", ["u", "s", "flag"]),
        ("t-shirt. dog's bowl. who?", ["t-shirt", "dog's bowl", "who?"]),
        ("ÉCLAIR. Straße. ПЁС", ["éclair", "straße", "пёс"]),
        ("🦊. red 🦊", ["🦊", "red 🦊"]),
        ("caf\udce9. cat", ["caf", "cat"]),
        ("a\u00a0red\u3000cat", ["a red cat"]),
    ],
)
def test_parse_phrases(prompt, phrases):
    assert parse_phrases(prompt) == phrases


@pytest.mark.parametrize("prompt", ["", "   ", ".", " . , \n . ", "。\uff0c、", "\udce9"])
def test_a_prompt_without_phrases(prompt):
    with pytest.raises(ValueError, match=r"names nothing to look for: give phrases, such as 'cat\. red dog\.'"):
        parse_phrases(prompt)


@pytest.mark.parametrize(("prompt", "kind"), [(None, "NoneType"), (["cat"], "list"), (b"cat", "bytes"), (3, "int")])
def test_a_prompt_that_is_no_text(prompt, kind):
    with pytest.raises(TypeError, match=f"of type {kind}: give text, such as"):
        parse_phrases(prompt)


def test_messages_stay_short():
    with pytest.raises(ValueError) as caught:
        parse_phrases("." * 100_000)
    assert len(str(caught.value)) < 150


def tokens_of(caption, tokenizer):
    return tokenizer.convert_ids_to_tokens(tokenizer(caption.text)["input_ids"])


def test_one_caption(tokenizer):
    phrases = ["cat", "a unicyclist", "red t-shirt", "dog's", "cat on the left"]
    (caption,) = caption_passes(phrases, tokenizer, 256)
    assert caption.text == "cat . a unicyclist . red t-shirt . dog's . cat on the left ."
    assert caption.phrases == tuple(phrases)
    expected = [
        *[("[CLS]", -1), ("cat", 0), (".", -1)],
        *[("a", 1), ("un", 1), ("##ic", 1), ("##yc", 1), ("##list", 1), (".", -1)],
        *[("red", 2), ("t", 2), ("-", 2), ("shirt", 2), (".", -1)],
        *[("dog", 3), ("'", 3), ("s", 3), (".", -1)],
        *[("cat", 4), ("on", 4), ("the", 4), ("left", 4), (".", -1), ("[SEP]", -1)],
    ]
    assert list(zip(tokens_of(caption, tokenizer), caption.token_phrase.tolist(), strict=True)) == expected
    assert caption.token_phrase.dtype == np.int64


@pytest.mark.parametrize("phrase", ["who? cat", "cat?", "?cat", "a.cat", "cat ? dog . red"])
def test_breaks_within_a_phrase(tokenizer, phrase):
    """'?' and '.' divide phrases for the detector: they are not spoken, and the label keeps them."""
    (caption,) = caption_passes([phrase, "dog"], tokenizer, 256)
    assert caption.phrases == (phrase, "dog")
    tokens = tokens_of(caption, tokenizer)
    assert "?" not in tokens and tokens.count(".") == 2
    stop = tokens.index(".")
    assert caption.token_phrase.tolist() == [-1] + [0] * (stop - 1) + [-1, 1, -1, -1]


@pytest.mark.parametrize("max_tokens", [12, 13, 40, 256])
def test_many_phrases_lose_nothing(tokenizer, max_tokens):
    """Every phrase's own tokens, in order, whatever the limit; no pass that could have taken the next phrase."""
    draw = random.Random(0)
    phrases = [" ".join(draw.choices(["a", "red", "cat", "unicyclist", "t-shirt"], k=2)) for _ in range(300)]
    captions = caption_passes(phrases, tokenizer, max_tokens)
    assert [phrase for caption in captions for phrase in caption.phrases] == phrases
    for caption in captions:
        ids = np.asarray(tokenizer(caption.text)["input_ids"])
        assert len(ids) == len(caption.token_phrase) <= max_tokens
        for index, phrase in enumerate(caption.phrases):
            alone = tokenizer(phrase, add_special_tokens=False)["input_ids"]
            assert ids[caption.token_phrase == index].tolist() == alone
        rest = tokenizer.convert_ids_to_tokens(ids[caption.token_phrase < 0].tolist())
        assert rest == ["[CLS]", *["."] * len(caption.phrases), "[SEP]"]
    for caption, following in itertools.pairwise(captions):
        first = len(tokenizer(following.phrases[0], add_special_tokens=False)["input_ids"])
        assert len(caption.token_phrase) + first + 1 > max_tokens


def test_exactly_full(tokenizer):
    (caption,) = caption_passes(["cat"] * 19, tokenizer, 40)
    assert len(caption.token_phrase) == 40
    assert [len(c.phrases) for c in caption_passes(["cat"] * 20, tokenizer, 40)] == [19, 1]
    (caption,) = caption_passes([" ".join(["cat"] * 37)], tokenizer, 40)
    assert len(caption.token_phrase) == 40


def test_a_phrase_that_is_too_long(tokenizer):
    phrase = " ".join(["red"] * 38)
    with pytest.raises(ValueError, match=r"'red red .*…' has 38 tokens, and the detector reads 37 at most") as caught:
        caption_passes(["cat", phrase], tokenizer, 40)
    assert len(str(caught.value)) < 200


def test_unreadable_phrases(tokenizer):
    phrases = ["🦊", "red 🦊", "пёс", "?", "\u200b", "cat", "zebra"]
    gone = ["🦊", "пёс", "?", "\u200b", "zebra"]
    assert unreadable(phrases, tokenizer) == gone
    (caption,) = caption_passes(phrases, tokenizer, 40)
    assert caption.phrases == ("red 🦊", "cat")
    assert tokens_of(caption, tokenizer) == ["[CLS]", "red", "[UNK]", ".", "cat", ".", "[SEP]"]
    assert caption.token_phrase.tolist() == [-1, 0, 0, -1, 1, -1, -1]
    assert caption_passes(gone, tokenizer, 40) == [] == caption_passes([], tokenizer, 40)
    assert unreadable([], tokenizer) == []


def test_no_character_but_these_divides(tokenizer):
    """Whatever else the tokenizer makes of a letter or sign, it makes no break of it."""
    breaks = set(tokenizer.convert_tokens_to_ids([".", "?"]))
    signs = [chr(c) for c in range(0x20, 0x30000) if not 0xD800 <= c < 0xE000 and chr(c) not in ".?"]
    ids = tokenizer(" ".join(signs), add_special_tokens=False, verbose=False)["input_ids"]
    assert not breaks & set(ids)


def test_a_tokenizer_without_a_full_stop(tmp_path):
    from transformers import BertTokenizerFast

    write_vocabulary(tmp_path, 1000)
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    with pytest.raises(ValueError, match=r"no token for '\.'"):
        caption_passes(["cat", "dog"], tokenizer, 40)


def test_captions_are_fixed():
    with pytest.raises(AttributeError):
        Caption("cat .", ("cat",), np.zeros(3)).text = "dog ."
