"""helpers/segment/prompts.py, with BERT's tokenizers as the installed transformers has them."""

import contextlib
import itertools
import json
import random
import re
import time

import numpy as np
import pytest

from helpers.segment.prompts import caption_passes, parse_phrases, unreadable

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
        ("t-shirt. dog's bowl. who?", ["t-shirt", "dog's bowl", "who?"]),
        ("ÉCLAIR. Straße. ПЁС", ["éclair", "straße", "пёс"]),
        ("🦊. red 🦊", ["🦊", "red 🦊"]),
        ("a\u00a0red\u3000cat", ["a red cat"]),
    ],
)
def test_parse_phrases(prompt, phrases):
    assert parse_phrases(prompt) == phrases


@pytest.mark.parametrize(
    "sign", [*".,;|\n\r\v", "\r\n", *"、\uff0c\uff1b\uff5c。\uff0e｡､…", *"\u060c\u061b\u06d4\u0964\u2028", *"•①⑳"]
)
@pytest.mark.parametrize("space", ["", " "])
def test_what_separates_phrases(sign, space):
    assert parse_phrases(f"cat{space}{sign}{space}red dog{space}{sign}") == ["cat", "red dog"]


@pytest.mark.parametrize("sign", [*"/&+-_:!?'·()", " and ", "\t", " - "])
def test_what_does_not(sign):
    assert len(parse_phrases(f"cat{sign}dog")) == 1


@pytest.mark.parametrize("items", [
    "1. {}\n2. {}\n3. {}", "1. {} 2. {} 3. {}", "1) {}, 2) {}, 3) {}", "(1) {}; (2) {}; (3) {};",
    "1: {}\n2: {}\n3: {}",
    "9. {}\n10. {}\n11. {}", "\uff11\uff0e{}\u3000\uff12\uff0e{}\u3000\uff13\uff0e{}",
    "1、{} 2、{} 3、{}", "①{}②{}③{}", "1. {}.\n\n2. {}.\n\n3. {}.",
    "- {}\n- {}\n- {}", " * {}\n * {}\n * {}", "+ {}\n+ {}\n+ {}", "\u2013 {}\n\u2013 {}\n\u2013 {}",
    "• {} • {} • {}", "•{}\n•{}\n•{}",
    "1. **{}**\n2. *{}*\n3. `{}`", "- 1. {}\n- 2. {}\n- 3. {}",
])  # fmt: skip
@pytest.mark.parametrize("phrases", [["cat", "red dog", "t-shirt"], ["猫", "a 2.5 inch screw", "u.s. flag"]])
def test_list_numbers_and_bullets_are_dropped(items, phrases):
    assert parse_phrases(items.format(*phrases)) == phrases


@pytest.mark.parametrize("phrase", [
    "a 2.5 inch screw", "a .5 inch nail", "1,000 bees", "16:9 screen", "3 cats", "u.s. flag", "u.s.a. map",
    "e.g. a cat", "d.c. sign", "st. bernard", "dr. pepper can", "no. 5 jersey", "no.5 jersey",
    "12 oz. can", "6 ft. ladder",
])  # fmt: skip
def test_a_number_or_an_abbreviation_goes_on(phrase):
    for text in ("cat. {}. dog.", "cat, {}, dog", "{}\ncat\ndog", "1. cat 2. {} 3. dog", "['cat', '{}', 'dog']"):
        assert sorted(parse_phrases(text.format(phrase.upper()))) == sorted(["cat", phrase, "dog"])


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a. b. c.", ["a", "b", "c"]),  # letters to look for, no abbreviation
        ("vitamin c. cat", ["vitamin c", "cat"]),
        ("cat. 7. dog", ["cat", "7", "dog"]),  # a list that does not begin with a number is not numbered
        ("player 5. player 6.", ["player 5", "player 6"]),
        ("dog no. cat", ["dog no", "cat"]),
        ("cat.2 dogs", ["cat", "2 dogs"]),
        ("cat.x.dog", ["cat", "x", "dog"]),
        ("1,2 cats", ["1,2 cats"]),
        ("flag of the U.S.", ["flag of the u.s."]),
        ("St.Bernard, wall st.\nno.\n5", ["st.bernard", "wall st", "no", "5"]),
        ("a 12 oz. cat. dog", ["a 12 oz. cat", "dog"]),
        ("(cat, dog)", ["cat", "dog"]),
        ("(red) cat, dog (black)", ["(red) cat", "dog (black)"]),
    ],
)
def test_what_could_mean_either(prompt, phrases):
    assert parse_phrases(prompt) == phrases


@pytest.mark.parametrize("given", [
    ["cat", "red, round ball"], ("cat", "red, round ball"), [["cat", "red, round ball"]],
    ["1. cat", "- Red,  round ball."], ["cat", "cat.", "CAT", "red, round ball"],
])  # fmt: skip
def test_each_item_of_a_list_is_a_phrase(given):
    expected = ["cat", "red, round ball"]
    assert parse_phrases(given) == parse_phrases(json.dumps(given)) == parse_phrases(f" {given}\n") == expected


def test_a_list_of_one_text_is_that_text_and_json_keeps_its_letters():
    assert parse_phrases(["a cat. a remote control."]) == ["a cat", "a remote control"]
    assert parse_phrases(json.dumps(["пёс", "кот"])) == ["пёс", "кот"]
    for text in (
        "[cat, dog]",
        '"cat", "dog"',
        "“cat”; \u2018dog\u2019",
        "('cat', 'dog')",
        "['cat',\n 'dog',]",
        '["cat", dog]',
    ):
        assert [phrase.strip('[]"') for phrase in parse_phrases(text)] == ["cat", "dog"]


@pytest.mark.parametrize("code", [0x200B, 0x200C, 0x200D, 0x200E, 0x2060, 0xFEFF, 0xAD, 0xFE0F, 0x202A, 0x00, 0x1B])
def test_what_cannot_be_seen_makes_no_phrase_twice(code):
    unseen = chr(code)
    assert parse_phrases(f"{unseen}red cat. red{unseen} cat. red ca{unseen}t. {unseen}. red\u00a0cat") == ["red cat"]


def test_one_spelling_of_a_letter_is_another():
    assert parse_phrases("cafe\u0301. CAFÉ. \uff43\uff41\uff46é") == ["café"]


@pytest.mark.parametrize("text", ["[" * 10_000, "1." * 50_000, " " * 100_000])
def test_odd_texts_take_no_time_and_crash_nothing(text):
    start = time.perf_counter()
    with contextlib.suppress(ValueError):
        parse_phrases(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("prompt", ["", "   ", ".", " . , \n . ", [], ["", " "], "[]", "\u200b", "。\uff0c、"])
def test_a_prompt_without_phrases(prompt):
    with pytest.raises(ValueError, match=r"names nothing to look for: give phrases, such as 'cat\. red dog\.'"):
        parse_phrases(prompt)


@pytest.mark.parametrize("prompt", [None, {"cat"}, b"cat", 3])
def test_a_prompt_that_is_no_text(prompt):
    for given in (prompt, ["cat", prompt]):
        with pytest.raises(TypeError, match=f"The prompt is {re.escape(repr(given))}: give text, such as"):
            parse_phrases(given)


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
    with pytest.raises(ValueError, match=r"'red red .* …' has 38 tokens, and the detector reads 37 at most") as caught:
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
