"""Weights: how a loss scale weighs characters, what reaches the tokens, and what is refused."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from swiftplug.builtin.tasks.language import SupervisedFineTuning
from swiftplug.config.schema import DataOptions
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.segments import Rendered, Segment
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import Conversation, RowOrigin
from swiftplug.data.read.report import SplitReport
from swiftplug.data.weights import CombinedLossScale, WeightedSpan, lay_weights, token_weights
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["学习 数学 是 the answer is, well, 42.\n", " weights 🎉 of words\n\n", "Action: Thought:  x\ty\n"] * 3


class Parts(LossScale):
    """Cuts responses into the given parts."""

    def __init__(self, parts: list[str], weights: list[float]) -> None:
        self.parts, self.weights = parts, weights

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        if context_type is ContextType.RESPONSE:
            return self.parts, self.weights
        return super().get_loss_scale(context, context_type, is_last_round, **kwargs)


class Letters(LossScale):
    """Weighs each character of a response by a table; the parts are single characters."""

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        return list(context), [self.table.get(letter, 1.0) for letter in context]


class Everything(LossScale):
    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        return [context], [1.0]


def _fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = CHATML
    return fast


def _byte_level(trim_offsets: bool, template: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trimming = processors.ByteLevel(trim_offsets=trim_offsets)
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([trimming, bos]) if template else trimming
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, bos_token="<s>", eos_token="<|im_end|>")


def _metaspace() -> PreTrainedTokenizerFast:
    """Like a SentencePiece unigram model: `▁` in front of every word, the first too."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "<|im_start|>", "<|im_end|>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, unk_token="<unk>", eos_token="<|im_end|>")


def _byte_fallback() -> PreTrainedTokenizerFast:
    """Like Llama 2's: spaces are normalized to `▁`, what is unknown falls back to the tokens of its bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *sorted(set("".join(CORPUS)))]
    tokens = [token for token in dict.fromkeys(tokens) if token not in "\n\t🎉 "]
    merges = [("▁", "w"), ("o", "f"), ("▁", "of"), ("学", "习")]
    vocab = {token: index for index, token in enumerate([*tokens, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _conversation(answer: str, **message: Any) -> Conversation:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **message}]
    return Conversation(turns, RowOrigin("rows.jsonl", 7))


def _encode(conversation: Conversation, tokenizer: PreTrainedTokenizerFast, scale: LossScale) -> dict[str, Any]:
    report = SplitReport()
    examples = RowEncoder(tokenizer, None, scale, SupervisedFineTuning(), DataOptions(max_length=4096)).encode(
        [(conversation,)], report
    )
    assert report.dropped == {}
    return examples[0]


def _characters(rendered: Rendered, spans: list[WeightedSpan]) -> list[float]:
    weights = [math.nan] * len(rendered.text)
    for start, end, weight in spans:
        weights[start:end] = [weight] * (end - start)
    return weights


def test_the_example_of_six_words() -> None:
    words, weights = ["学习", "好", "数学", "是", "重要", "的"], [1.0, 0.5, 2.0, 0.5, 2.0, 0.1]
    tokenizer = _byte_level(trim_offsets=True)
    example = _encode(_conversation("".join(words)), tokenizer, Parts(words, weights))
    ids = tokenizer.apply_chat_template(_conversation("".join(words)).messages, return_dict=False)
    assert example["input_ids"].tolist() == ids
    # Every token is decoded alone, as bytes; the character that its first byte belongs to has the token's weight.
    text = tokenizer.apply_chat_template(_conversation("".join(words)).messages, tokenize=False)
    by_character = [0.0] * len(text)
    position = text.index(words[0])
    for word, weight in zip(words, weights, strict=True):
        by_character[position : position + len(word)] = [weight] * len(word)
        position += len(word)
    by_character[position] = 1.0  # the end-of-turn token
    expected = [by_character[place] for place in _first_characters(tokenizer, ids, text)]
    np.testing.assert_allclose(example["loss_scale"], expected, rtol=1e-6)
    assert example["labels"].tolist() == [
        token if weight else -100 for token, weight in zip(ids, expected, strict=True)
    ]


def _first_characters(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[int]:
    """For a byte-level tokenizer, the place of the character that holds each token's first byte, without offsets."""
    owner = [place for place, character in enumerate(text) for _ in character.encode()]
    found, position = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        found.append(owner[position])
        position += len(token)  # in a byte-level vocabulary a character is a byte; special tokens are ASCII
    assert position == len(owner)
    return found


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize("template", [True, False])
def test_byte_level_tokens_have_the_weight_of_their_first_byte(trim_offsets: bool, template: bool) -> None:
    """White space that a token begins with counts, though trimmed offsets leave it out; an emoji is several tokens."""
    tokenizer = _byte_level(trim_offsets, template)
    before = tokenizer.backend_tokenizer.to_str()
    table = {letter: float(place + 2) for place, letter in enumerate("学习 🎉\n.,wot")}
    chance = random.Random(3)
    for _ in range(40):
        answer = "".join(
            chance.choice(["学习", " ", " the", " answer", "🎉", "\n", "\n\n", ".", ", ", "two"]) for _ in range(9)
        )
        conversation = _conversation(answer)
        example = _encode(conversation, tokenizer, Letters(table))
        rendered = ChatRenderer(tokenizer).render(conversation)
        ids = tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
        assert example["input_ids"].tolist() == ids
        expected = [table.get(rendered.text[place], 1.0) for place in _first_characters(tokenizer, ids, rendered.text)]
        end = max(place for place, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("<|im_end|>"))
        expected[end] = 1.0
        assert example["loss_scale"].tolist() == expected
    assert tokenizer.backend_tokenizer.to_str() == before  # the tokenizer is left as it was


def test_a_token_that_straddles_two_parts_has_the_weight_of_the_first() -> None:
    tokenizer = _byte_level(trim_offsets=True)
    assert " weights" in [tokenizer.decode([token]) for token in tokenizer("of weights")["input_ids"]]
    space_first = _encode(_conversation("of weights"), tokenizer, Parts(["of ", "weights"], [3.0, 5.0]))
    word_first = _encode(_conversation("of weights"), tokenizer, Parts(["of", " weights"], [3.0, 5.0]))
    assert space_first["loss_scale"].tolist()[-4:] == [3.0, 3.0, 1.0, 0.0]
    assert word_first["loss_scale"].tolist()[-4:] == [3.0, 5.0, 1.0, 0.0]


@pytest.mark.parametrize("make", [_metaspace, _byte_fallback])
def test_tokens_of_sentence_piece_like_tokenizers(make: Any) -> None:
    tokenizer = make()
    answer = "学习 of words 🎉 ﬁ 好"
    conversation = _conversation(answer)
    table = {"学": 2.0, "习": 3.0, " ": 4.0, "o": 5.0, "w": 6.0, "🎉": 7.0, "ﬁ": 8.0, "好": 9.0}
    example = _encode(conversation, tokenizer, Letters(table))
    text = ChatRenderer(tokenizer).render(conversation).text
    assert example["input_ids"].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    # Decoded token by token; the text that a token adds begins with the character that weighs it.
    weights = example["loss_scale"].tolist()
    tokens = tokenizer.convert_ids_to_tokens(example["input_ids"].tolist())
    for token, weight in zip(tokens, weights, strict=True):
        letter = token[0].replace("▁", " ")
        if letter in table and token not in ("<unk>", "▁"):
            assert weight == table[letter] or (letter == " " and weight == table.get(token[1:2], 1.0)), token
    if make is _byte_fallback:
        assert [weights[tokens.index(f"<0x{byte:02X}>")] for byte in "🎉".encode()] == [7.0] * 4


def test_labels_are_ignored_exactly_where_the_weight_is_zero() -> None:
    tokenizer = _byte_level(trim_offsets=False)
    scale = Parts(["a", "b", "c", "d"], [0.0, 1.5, 0.25, 0])
    example = _encode(_conversation("abcd"), tokenizer, scale)
    assert example["loss_scale"].dtype == np.float32
    assert example["labels"].dtype == example["input_ids"].dtype == np.int32
    np.testing.assert_array_equal(example["labels"] == -100, example["loss_scale"] == 0)
    trained = example["labels"] != -100
    np.testing.assert_array_equal(example["labels"][trained], example["input_ids"][trained])
    assert example["loss_scale"][trained].tolist() == [1.5, 0.25, 1]  # and the suffix


def _rendered(*segments: tuple[str, ContextType, int]) -> Rendered:
    text, laid = "", []
    for words, kind, message in segments:
        role = ("", "user", "assistant", "assistant")[message + 1]
        laid.append(Segment(len(text), len(text) + len(words), kind, False, "the query", message, role))
        text += words
    return Rendered(text, laid, [])


TWO_ANSWERS = _rendered(
    ("<s>", ContextType.OTHER, -1),
    ("q", ContextType.OTHER, 0),
    ("one", ContextType.RESPONSE, 1),
    ("</s>", ContextType.SUFFIX, 1),
    ("\n", ContextType.OTHER, -1),
    ("two", ContextType.RESPONSE, 2),
    ("</s>", ContextType.SUFFIX, 2),
)


def test_every_context_is_asked_for() -> None:
    asked = []

    class Asks(LossScale):
        def get_loss_scale(self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any) -> Any:
            asked.append((context, context_type, is_last_round, kwargs))
            return [context], [0.5]

    spans = lay_weights(TWO_ANSWERS, Asks())
    assert [(context, kind.value, kwargs["role"]) for context, kind, _, kwargs in asked] == [
        ("<s>", "other", ""),
        ("q", "other", "user"),
        ("one", "response", "assistant"),
        ("</s>", "suffix", "assistant"),
        ("\n", "other", ""),
        ("two", "response", "assistant"),
        ("</s>", "suffix", "assistant"),
    ]
    assert all((last, kwargs["query"], len(kwargs)) == (False, "the query", 2) for _, _, last, kwargs in asked)
    assert _characters(TWO_ANSWERS, spans) == [0.5] * len(TWO_ANSWERS.text)


@pytest.mark.parametrize(
    ("message", "scale", "expected"),
    [
        ({}, LossScale(), [1, 1]),
        ({"loss": True}, LossScale(), [1, 1]),
        ({"loss": False}, LossScale(), [0, 1]),
        ({"loss_scale": 0.5}, LossScale(), [0.5, 1]),
        ({"loss_scale": 0}, LossScale(), [0, 1]),
        ({"loss": False, "loss_scale": 3}, LossScale(), [0, 1]),
        ({"loss": True, "loss_scale": 3}, LossScale(), [3, 1]),
        ({"loss": True}, Letters(dict.fromkeys("onetw", 0)), [1, 0]),  # trains what would not train
        ({"loss": True}, Letters(dict.fromkeys("onetw</s>", 2)), [2, 2]),  # and keeps what would
        ({"loss_scale": 2}, Letters(dict.fromkeys("onetw</s>", 2)), [4, 2]),
    ],
)
def test_what_a_message_says_of_training(message: dict[str, Any], scale: LossScale, expected: list[float]) -> None:
    weights = _characters(TWO_ANSWERS, lay_weights(TWO_ANSWERS, scale, [{}, message, {}]))
    one, two = TWO_ANSWERS.text.index("one"), TWO_ANSWERS.text.index("two")
    assert weights[one : one + 7] == [expected[0]] * 7  # the suffix with it
    assert weights[two : two + 7] == [expected[1]] * 7


def test_loss_true_trains_a_query_too() -> None:
    weights = _characters(TWO_ANSWERS, lay_weights(TWO_ANSWERS, LossScale(), [{"loss": True}, {}, {}]))
    assert weights[3] == 1


class Suffix(LossScale):
    """Weighs suffixes, and otherwise the assistant's `one` alone. Has no `role`, as in SWIFT 3."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def get_loss_scale(  # type: ignore[override]
        self, context: str, context_type: ContextType, is_last_round: bool, *, query: str
    ) -> tuple[list[str], list[float]]:
        return [context], [self.weight if context_type is ContextType.SUFFIX else float(context == "one")]


@pytest.mark.parametrize(
    ("weight", "message", "expected"),
    [
        (3.0, {}, [3, 0]),  # "two" is not trained, so its suffix is not
        (0.0, {}, [0, 0]),
        (3.0, {"loss_scale": 2}, [6, 0]),
        (3.0, {"loss": False}, [0, 0]),
        (0.0, {"loss": True}, [0, 0]),  # "one" trains anyway, with the loss scale's weights
    ],
)
def test_a_suffix_weighs_what_the_loss_scale_says_if_its_response_trains(
    weight: float, message: dict[str, Any], expected: list[float]
) -> None:
    weights = _characters(TWO_ANSWERS, lay_weights(TWO_ANSWERS, Suffix(weight), [{}, message, {}]))
    suffixes = [s for s in TWO_ANSWERS.segments if s.type is ContextType.SUFFIX]
    assert [set(weights[s.start : s.end]) for s in suffixes] == [{each} for each in expected]


def test_the_suffix_of_an_answer_of_several_parts_or_none() -> None:
    rendered = _rendered(("ab", ContextType.RESPONSE, 0), ("</s>", ContextType.SUFFIX, 0))
    assert _characters(rendered, lay_weights(rendered, Parts(["a", "b", ""], [2, 0, 0])))[2:] == [1] * 4
    assert _characters(rendered, lay_weights(rendered, Parts(["ab", ""], [0, 2])))[2:] == [0] * 4
    empty = _rendered(("", ContextType.RESPONSE, 0), ("</s>", ContextType.SUFFIX, 0))
    assert _characters(empty, lay_weights(empty, LossScale())) == [1] * 4
    assert _characters(empty, lay_weights(empty, Parts([], []))) == [0] * 4


def test_combined_loss_scales_multiply_on_the_union_of_their_cuts() -> None:
    first = Parts(["abc", "def", "ghi"], [1.0, 2.0, 0.0])
    second = Parts(["a", "", "bcde", "fghi"], [3.0, 9.0, 1.0, 0.5])
    parts, weights = CombinedLossScale([first, second]).get_loss_scale(
        "abcdefghi", ContextType.RESPONSE, True, query=""
    )
    assert "".join(parts) == "abcdefghi"
    assert "".join(str(weight) * len(part) for part, weight in zip(parts, weights, strict=True)) == (
        "3.0" + "1.0" * 2 + "2.0" * 2 + "1.0" + "0.0" * 3
    )


def test_combined_loss_scales_ask_the_first_alone_for_what_is_neither_response_nor_suffix() -> None:
    spans = lay_weights(TWO_ANSWERS, CombinedLossScale([Everything(), LossScale(), Letters({"o": 4})]))
    expected = [4.0 if TWO_ANSWERS.text[place] == "o" else 1.0 for place in range(len(TWO_ANSWERS.text))]
    assert _characters(TWO_ANSWERS, spans) == expected


def test_random_combinations_against_products_by_character() -> None:
    chance = random.Random(5)
    for _ in range(200):
        text = "".join(chance.choice("ab好 \n") for _ in range(chance.randrange(12)))
        scales, by_character = [], np.ones(len(text))
        for _ in range(chance.randint(1, 4)):
            edges = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(5)))
            parts = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
            weights = [chance.choice([0.0, 0.5, 1.0, 2.0, 1.5]) for _ in parts]
            scales.append(Parts(parts, weights))
            by_character *= np.repeat(weights, [len(part) for part in parts])
        parts, weights = CombinedLossScale(scales).get_loss_scale(text, ContextType.RESPONSE, True, query="")
        assert "".join(parts) == text
        np.testing.assert_array_equal(np.repeat(weights, [len(part) for part in parts]), by_character)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Parts(["hel", "lo"], [1, 1]), "parts do not join to the response they were cut from: at character 5 found ''"),
        (Parts(["hello there!"], [1]), "found '!', expected ''"),
        (Parts(["Hello there"], [1]), "at character 0 found 'Hello there', expected 'hello there'"),
        (Parts(["hello", " there"], [1]), "found 2 parts and 1 weights, expected one weight per part"),
        (Parts(["hello there"], [math.nan]), "found the weight nan, expected a finite number"),
        (Parts(["hello there"], [-1]), "found the weight -1, expected a finite number of at least 0"),
        (Parts("hello there", 1), "returned ('hello there', 1), expected a list of texts and a list of weights"),  # type: ignore[arg-type]
        (Parts(["hello there"], ["much"]), "found the weight 'much', expected a finite number"),  # type: ignore[list-item]
    ],
)
@pytest.mark.parametrize("combined", [False, True])
def test_a_loss_scale_that_breaks_its_contract_is_reported_with_the_row(
    scale: LossScale, expected: str, combined: bool
) -> None:
    scale = CombinedLossScale([LossScale(), scale]) if combined else scale
    with pytest.raises(UserError) as error:
        _encode(_conversation("hello there"), _byte_level(trim_offsets=False), scale)
    message = str(error.value)
    assert message.startswith("rows.jsonl:7: loss scale Parts: ")
    assert expected in message
    assert "\n" not in message


def test_token_weights_of_positions_by_hand() -> None:
    spans = [WeightedSpan(0, 2, 1.0), WeightedSpan(2, 2, 9.0), WeightedSpan(2, 5, 0.5)]
    weights = token_weights(np.array([0, 1, 2, 2, 4, 5]), spans)
    assert weights.tolist() == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert weights.dtype == np.float32
    assert token_weights(np.array([0]), [WeightedSpan(0, 0, 7.0)]).tolist() == [0.0]
    assert token_weights(np.array([0, 3]), [WeightedSpan(0, 4, 3.0)]).tolist() == [3.0, 3.0]
    assert token_weights(np.zeros(0, dtype=np.int64), []).tolist() == []


def test_weights_do_not_change_the_ids(tmp_path: Path) -> None:
    tokenizer = _byte_level(trim_offsets=True)
    answer = "the answer is, well, 42."
    scales = [LossScale(), Everything(), Letters({" ": 3}), Parts(list(answer), [0.5] * len(answer))]
    encoded = {json.dumps(_encode(_conversation(answer), tokenizer, scale)["input_ids"].tolist()) for scale in scales}
    assert len(encoded) == 1
