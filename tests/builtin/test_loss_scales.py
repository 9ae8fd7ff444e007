"""The built-in loss scales: parts and weights written by hand, and a brute-force reading of the rules."""

import random
from importlib.metadata import entry_points
from typing import Any

import pytest
import yaml

from swiftplug.builtin.loss_scales.keywords import Keywords, WeightTable
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale
from swiftplug.plugin.registry import PluginChoice, Registry, fields_of

TABLES = ["react", "alpha_umi", "agentflan", "hermes", "qwen", "ignore_empty_think", "ignore_think_prefix"]
RESPONSE = ContextType.RESPONSE
Part = tuple[str, float]


def scale(name: str) -> LossScale:
    """The built-in of a name, as its entry point gives it."""
    [found] = entry_points(group="swiftplug.loss_scales", name=name)
    built: LossScale = found.load()()
    return built


def weigh(loss_scale: LossScale, answer: str, **kwargs: Any) -> list[Part]:
    parts, weights = loss_scale.get_loss_scale(answer, RESPONSE, True, **{"query": "", **kwargs})
    assert "".join(parts) == answer
    return list(zip(parts, weights, strict=True))


EXPECTED: dict[str, list[list[Part]]] = {
    "react": [
        [
            ("好的。\n", 1),
            ("Thought:", 1),
            (" look it up\n", 1),
            ("Action:", 2),
            (" search\n", 2),
            ("Action Input:", 2),
            (' {"q": "天气"}\n', 2),
            ("Observation:", 2),
            (" 晴 ☀️\n", 0),
            ("Final Answer:", 1),
            (" 晴", 1),
        ],
        [("no keyword, no action: here", 1)],
        [("Action:", 2)],
        [("Action:", 2), ("Action:", 2), ("Observation:", 2)],
        [("the end is ", 1), ("Observation:", 2)],
        [("Next: x", 1)],
    ],
    "alpha_umi": [
        [("Thought:", 1), (" a ", 1), ("Next:", 2), (" caller", 2)],
        [("Action Input:", 2), ("{}", 2), ("Observation:", 2), ("r", 0), ("Next:", 2), (" conclusion", 2)],
    ],
    "agentflan": [
        [
            ("I will. ", 1),
            ("Name:", 1),
            (" a ", 3),
            ("ACTION:", 1),
            (" b ", 3),
            ("Tool:", 1),
            (" c ", 3),
            ("Command", 1),
            (": d ", 3),
            ("Arguments:", 1),
            (" e ", 3),
            ("action input", 1),
            (": f ", 3),
            ("ACTION_INPUT:", 1),
            (" g ", 3),
            ("Action Input:", 1),
            (" h ", 3),
            ("Observation:", 2),
            (" i ", 0),
            ("Thought:", 1),
            (" j ", 1),
            ("Action:", 1),
            (" k ", 3),
            ("Final Answer:", 1),
            (" l", 1),
        ]
    ],
    "qwen": [
        [
            ("看。", 1),
            ("✿FUNCTION✿:", 2),
            (" 查天气\n", 2),
            ("✿ARGS✿:", 2),
            (" {}\n", 2),
            ("✿RESULT✿:", 2),
            (" 晴\n", 0),
            ("✿RETURN✿:", 1),
            (" 晴天", 1),
        ]
    ],
    "hermes": [
        [
            ("先查:", 1),
            ('<tool_call>\n{"name": "a"}\n</tool_call>', 2),
            ("\n", 1),
            ("<tool_call>b</tool_call>", 2),
            (" ok", 1),
        ],
        [("<tool_call></tool_call> and <tool_call>", 1)],
        # There must be text between the tags, so here the match extends to the next closing tag.
        [("<tool_call></tool_call>x</tool_call>", 2)],
    ],
    "ignore_empty_think": [
        [("<think>\n\n</think>\n\n", 0), ("答案是 4。", 1)],
        [("<think></think>", 0), ("4", 1)],
        [("<think> \n </think>", 0)],
        [("<think>\n想\n</think>\n\n4", 1)],
        [("so: <think></think>4", 1)],
        [("\n<think></think>4", 1)],
        [("<think></think>", 0), ("4<think></think>", 1)],
    ],
    "ignore_think_prefix": [
        [("<think>\n", 0), ("\nwhy", 1)],
        [("<think>", 0), ("想</think>4", 1)],
        [("4\n<think>\n", 1)],
    ],
}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param(name, parts, id=f"{name}-{index}")
        for name in EXPECTED
        for index, parts in enumerate(EXPECTED[name])
    ],
)
def test_weighs_answers_by_the_table_of_its_paper(name: str, parts: list[Part]) -> None:
    assert weigh(scale(name), "".join(text for text, _ in parts)) == parts


@pytest.mark.parametrize(
    "query",
    [
        "What is the tool you want to use?",
        "Now: What are the required parameter names for it",
        "用户: What is the value of `city`?",
    ],
)
def test_agentflan_weighs_answers_to_questions_of_tools_whole(query: str) -> None:
    answer = "Action: 查 Observation: x"
    assert weigh(scale("agentflan"), answer, query=query) == [(answer, 3)]
    assert weigh(scale("agentflan"), answer, query="what is the value of") != [(answer, 3)]
    assert scale("agentflan").get_loss_scale(query, ContextType.OTHER, True, query=query) == ([query], [0])


@pytest.mark.parametrize("name", [*TABLES, "default"])
def test_a_suffix_weighs_1_and_all_that_is_no_response_nothing(name: str) -> None:
    text = "<think></think>Action: 学习 ✿ARGS✿: <tool_call>a</tool_call>"
    assert scale(name).get_loss_scale(text, ContextType.SUFFIX, True, query="q") == ([text], [1.0])
    assert scale(name).get_loss_scale(text, ContextType.OTHER, True, query="q") == ([text], [0.0])


@pytest.mark.parametrize("name", [*TABLES, "default", "all", "last_round"])
def test_an_empty_answer_keeps_a_weight_for_its_suffix(name: str) -> None:
    assert weigh(scale(name), "") == [("", 1.0)]


@pytest.mark.parametrize("name", [*TABLES, "default"])
def test_earlier_rounds_weigh_as_the_last(name: str) -> None:
    text = "<think></think>Action: 学习 ✿ARGS✿: <tool_call>a</tool_call>"
    asked = scale(name)
    first = asked.get_loss_scale(text, RESPONSE, False, query="q")
    assert first == asked.get_loss_scale(text, RESPONSE, True, query="q")


def test_last_round_trains_the_last_response_and_its_suffix_alone() -> None:
    chosen = {
        (kind, last)
        for kind in ContextType
        for last in (False, True)
        if scale("last_round").get_loss_scale("文", kind, last, query="") == (["文"], [1.0])
    }
    assert chosen == {(RESPONSE, True), (ContextType.SUFFIX, True)}
    assert scale("last_round").get_loss_scale("文", RESPONSE, False, query="") == (["文"], [0.0])


def test_all_trains_every_context() -> None:
    for kind in ContextType:
        assert scale("all").get_loss_scale("文", kind, False, query="") == (["文"], [1.0])


class TestKeywords:
    def test_expresses_six_words_with_six_weights(self) -> None:
        words = {"学习": 1.0, "好": 0.5, "数学": 2.0, "是": 0.5, "重要": 2.0, "的": 0.1}
        loss_scale = Keywords(words)
        parts, weights = loss_scale.get_loss_scale("学习好数学是重要的", RESPONSE, True, query="")
        assert parts == ["学习", "好", "数学", "是", "重要", "的"]
        assert weights == [1.0, 0.5, 2.0, 0.5, 2.0, 0.1]

    def test_is_written_in_yaml_and_resolved_as_any_plugin(self) -> None:
        written = r"""
            name: keywords
            words: {学习: 1.0, 好: 0.5, 数学: 2, 是: 5e-1, 重要: 2.0, 的: 0.1, "Answer:": [2, 3]}
            patterns: {'\d+': 4}
            default: 0
        """
        choice = PluginChoice.model_validate(fields_of(yaml.safe_load(written)))
        loss_scale = Registry.discover().resolve("loss_scale", choice, "train.yaml: loss_scale").bound
        parts = [("学习", 1), ("好", 0.5), ("数学", 2), ("是", 0.5), ("重要", 2), ("的", 0.1), ("吗", 0)]
        parts += [("Answer:", 2), ("是", 0.5), (" ", 3), ("18", 4), ("。", 3)]
        assert weigh(loss_scale, "学习好数学是重要的吗Answer:是 18。") == parts

    def test_a_pair_weighs_what_follows_up_to_the_next_pair(self) -> None:
        loss_scale = Keywords({"A:": (2, 3), "B:": (0, 0), "好": 0.5}, default=7)
        assert weigh(loss_scale, "x好xA:y好yB:zA:A:") == [
            ("x", 7),
            ("好", 0.5),
            ("x", 7),
            ("A:", 2),
            ("y", 3),
            ("好", 0.5),
            ("y", 3),
            ("B:", 0),
            ("z", 0),
            ("A:", 2),
            ("A:", 2),
        ]

    def test_the_longest_word_wins_whatever_the_order(self) -> None:
        for words in ({"ab": 2.0, "abc": 3.0, "bcd": 4.0}, {"bcd": 4.0, "abc": 3.0, "ab": 2.0}):
            assert weigh(Keywords(words), "abcd abd bcd") == [
                ("abc", 3),
                ("d ", 1),
                ("ab", 2),
                ("d ", 1),
                ("bcd", 4),
            ]

    def test_words_are_literal(self) -> None:
        assert weigh(Keywords({"a.c*": 2.0, "(": 3.0}), "abc a.c*(") == [("abc ", 1), ("a.c*", 2), ("(", 3)]

    def test_patterns_weigh_what_they_match(self) -> None:
        loss_scale = Keywords(patterns={r"\d+": 2.0, r"^(好|吗)\1": 0.0, "(?i)answer:": (0.5, 4.0), "x*": 9.0})
        assert weigh(loss_scale, "好好 18吗吗xxANSWER:42元") == [
            ("好好", 0),
            (" ", 1),
            ("18", 2),
            ("吗吗", 1),
            ("xx", 9),
            ("ANSWER:", 0.5),
            ("42", 2),
            ("元", 4),
        ]

    def test_a_longer_pattern_wins_over_a_word_and_a_word_over_an_equal_pattern(self) -> None:
        loss_scale = Keywords({"1": 5.0}, {r"\d+": 2.0})
        assert weigh(loss_scale, "1 12 21") == [("1", 5), (" ", 1), ("12", 2), (" ", 1), ("21", 2)]

    def test_emoji_of_several_code_points_stay_whole(self) -> None:
        assert weigh(Keywords({"👩‍🚀": 2.0}), "👩‍🚀👩👩‍🚀") == [("👩‍🚀", 2), ("👩", 1), ("👩‍🚀", 2)]

    def test_default_weighs_the_answer_without_a_word(self) -> None:
        assert weigh(Keywords({"好": 2.0}, default=0), "没有") == [("没有", 0)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "nothing to look for; expected 'words' or 'patterns'"),
            ({"words": {}}, "nothing to look for"),
            ({"words": {"": 1.0}}, "words has an empty word"),
            ({"patterns": {"(好": 1.0}}, r"pattern '\(好' is not a regular expression: missing \)"),
            ({"words": {"好": float("nan")}}, "words.好 is nan, expected a finite weight"),
            ({"patterns": {"好+": (1.0, float("inf"))}}, r"patterns.好\+ is inf, expected a finite weight"),
            ({"words": {"好": 1.0}, "default": float("inf")}, "default is inf, expected a finite weight"),
        ],
    )
    def test_refuses_a_table_that_says_nothing_certain(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match="keywords: " + message):
            Keywords(**options)


def brute_force(text: str, words: dict[str, tuple[float, float]]) -> list[Part]:
    """The rule read literally: at each character the longest keyword, or else one more character of the rest."""
    parts: list[Part] = []
    rest, following, position = "", 1.0, 0
    while position < len(text):
        here = [word for word in words if text.startswith(word, position)]
        if here:
            word = max(here, key=len)
            parts += [(rest, following)] * bool(rest) + [(word, words[word][0])]
            rest, following = "", words[word][1]
            position += len(word)
        else:
            rest += text[position]
            position += 1
    return parts + [(rest, following)] * bool(rest)


def test_cuts_random_texts_as_the_rule_read_literally_does() -> None:
    draw = random.Random(0)
    for _ in range(500):
        words = {
            "".join(draw.choices("ab好🙂\n", k=draw.randint(1, 4))): (draw.random(), draw.random())
            for _ in range(draw.randint(1, 8))
        }
        text = "".join(draw.choices("ab好🙂\nc", k=draw.randint(1, 40)))
        parts, weights = WeightTable(words).split(text)
        assert list(zip(parts, weights, strict=True)) == brute_force(text, words)


def test_parts_of_random_answers_join_and_none_is_empty() -> None:
    draw = random.Random(1)
    pieces = [
        *(text for rows in EXPECTED.values() for row in rows for text, _ in row),
        "<think>",
        "</tool_call>",
        " ",
        "💡",
    ]
    scales = [scale(name) for name in TABLES] + [Keywords({"Action": (2, 0)}, {r"\s*": 3.0, r"(?=a)|好+": (0.5, 2)})]
    for _ in range(300):
        answer = "".join(draw.choices(pieces, k=draw.randint(1, 12)))
        for loss_scale in scales:
            assert all(text for text, _ in weigh(loss_scale, answer))
