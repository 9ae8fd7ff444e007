"""From texts to drawn tokens: where the rewards of steps are given, and what a loss scale leaves out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from swiftplug.builtin.prms.arithmetic import Arithmetic, normalize
from swiftplug.builtin.tasks.online import GRPO
from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.plugin import PRM, ContextType, InferRequest, LossScale
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.sampling.rows import Row
from swiftplug.sampling.scoring import Scorer
from swiftplug.testing import check_plugin
from swiftplug.training.online.record import DrawnCandidate
from swiftplug.training.online.steps import token_rewards
from swiftplug.training.online.weights import left_out_tokens
from swiftplug.training.setup import set_up

DATA = Path(__file__).parents[1] / "data/gsm8k/test.jsonl"
STEPS = "Step 1: 2 + 2 = 4\r\n\n**Step 2:** it is more: 4 × 3 = 11 🙂 \n\nStep 3: nothing\nStep 4: \\frac{8}{2} = 4"


def rewards(text: str) -> Any:
    return Arithmetic()([InferRequest([{"role": "assistant", "content": text}])])[0]


def test_a_text_up_to_the_end_of_a_step_has_the_rewards_up_to_it() -> None:
    solutions = [json.loads(line)["messages"][-1]["content"] for line in DATA.read_text().splitlines()[:300]]
    several = 0
    for text in [STEPS, *solutions]:
        ends, found = Arithmetic().step_ends(text), rewards(text)
        if found == 0.0:
            assert ends == []
            continue
        several += len(ends) > 1
        assert [rewards(text[:end]) for end in ends] == [found[: count + 1] for count in range(len(found))]
        assert all(not text[end - 1].isspace() for end in ends)
    assert several > 150
    assert [STEPS[:end].rpartition("\n")[2] for end in Arithmetic().step_ends(STEPS)] == [
        "Step 1: 2 + 2 = 4",
        "**Step 2:** it is more: 4 × 3 = 11 🙂",
        "Step 4: \\frac{8}{2} = 4",
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\v", "\x85"])
def test_normalizing_keeps_lines(end: str) -> None:
    text = end.join(["1 234 × 2", "½ {3", "4} \\frac{1", "2}{3}", "－5 => 6", "$7 /", "hour", "10:30", "  - **a**"])
    assert len(normalize(text).splitlines()) == len(text.splitlines())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level pieces, many of which begin within one step and end in the next, or within a character."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([STEPS, "= 4\n", "4\r\n\n*", "🙂 \n\nS", "步 7 = 7。\n🙂"] * 9, trainer)
    return made


def placed(tokenizer: Tokenizer, text: str, opened: str = "", **changes: Any) -> list[float]:
    plugin = Registry.discover(allow=[]).resolve("prm", PluginChoice(name="arithmetic"), "--prm")
    ids = tokenizer.encode(text).ids
    given = {"arithmetic": changes.pop("reward", rewards(opened + text))}
    candidate = DrawnCandidate(0, opened + text, "stop", rewards=given, ids=ids, opened=opened)
    candidate.drawn = changes.pop("trains", [True] * len(ids))
    decode = lambda part: tokenizer.decode(list(part), skip_special_tokens=False)  # noqa: E731
    return token_rewards(Row("1", "here:1"), candidate, [Scorer("arithmetic", "prm", 2.0, plugin)], decode)


@pytest.mark.parametrize("text", [STEPS, "1 + 1 = 2\n步 7 = 7。\n3 + 4 = 7🙂\n5 + 5 = 10", "4 + 4 = 8"])
def test_rewards_are_at_the_tokens_with_the_last_characters(tokenizer: Tokenizer, text: str) -> None:
    """Against the tokenizer's own offsets."""
    offsets = tokenizer.encode(text).offsets
    expected = [0.0] * len(offsets)
    for end, reward in zip(Arithmetic().step_ends(text), rewards(text), strict=True):
        # Pieces of one character have all its offsets; the last of them completes it.
        expected[max(index for index, (start, stop) in enumerate(offsets) if start < end <= stop)] += 2 * reward
    assert placed(tokenizer, text) == expected


def test_what_the_prompt_opens_is_no_token_of_the_answer(tokenizer: Tokenizer) -> None:
    text = "3 + 3 = 6\n4 + 5 = 9"
    assert placed(tokenizer, text, "<think>\n") == placed(tokenizer, text)
    opened = placed(tokenizer, text, "1 + 1 = 2\n")  # a step within the prompt goes to the first token
    assert opened == [2.0 + first if index == 0 else first for index, first in enumerate(placed(tokenizer, text))]


def test_one_reward_for_the_answer_is_at_its_last_token_that_trains(tokenizer: Tokenizer) -> None:
    text = "no calculation"
    trains = [True] * len(tokenizer.encode(text).ids)
    trains[-1] = False
    assert placed(tokenizer, text, reward=0.5, trains=trains) == [*[0.0] * (len(trains) - 2), 1.0, 0.0]


def test_a_count_that_is_not_that_of_the_rewards_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"arithmetic.*returned 2 ends from step_ends for 3 .*here:1"):
        placed(tokenizer, "1 + 1 = 2\n2 + 2 = 4", reward=[1.0, 1.0, 0.0])


def test_a_prm_that_places_no_steps_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from swiftplug.plugin import PRM, register_prm\n@register_prm('mine')\nclass Mine(PRM):\n"
        "    def __call__(self, infer_requests, **kwargs):\n        return [1.0] * len(infer_requests)\n"
    )
    given = {"task": "ppo", "model": "/nowhere", "dataset": ["/nowhere.jsonl"], "prm": ["mine"]}
    with pytest.raises(UserError, match=r"'mine'.* does not say where the steps end that it rewards") as error:
        set_up(load_train_config(None, {**given, "plugins.files": [str(file)], "output_dir": str(tmp_path)}, []).config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([], "returned 0 ends from step_ends for"),
        ([0], "expected ascending numbers from 1"),
        ([10_000_000], "expected ascending numbers from 1"),
        (3, "expected a list of integers"),
    ],
)
def test_check_plugin_tells_wrong_ends(ends: Any, words: str) -> None:
    class Wrong(PRM):
        def __call__(self, infer_requests: Any, **kwargs: Any) -> Any:
            return [[1.0]] * len(infer_requests)

        def step_ends(self, text: str) -> Any:
            return ends

    with pytest.raises(AssertionError, match=words):
        check_plugin("prm", Wrong)


@pytest.mark.parametrize("turns", [["So: 步 7 🙂🙂 = 7<end>"], ["🙂 步 4\n<end>", "S🙂4 步 S = 4 4<end>", "S4"]])
def test_a_loss_scale_weighs_the_turns_of_a_candidate(tokenizer: Tokenizer, turns: list[str]) -> None:
    """Against the tokenizer's own offsets; what the environment says between turns never trains."""
    asked: list[tuple[str, str, bool]] = []

    class Odd(LossScale):
        """Leaves out every second pair of characters, and ends of turns but the first."""

        def get_loss_scale(
            self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
        ) -> tuple[list[str], list[float]]:
            if context_type is ContextType.SUFFIX:
                return [context], [float(kwargs["query"] == "why?")]
            asked.append((context, kwargs["query"], is_last_round))
            parts = [context[start : start + 2] for start in range(0, len(context), 2)]
            return parts, [float(number % 2) for number in range(len(parts))]

    class EndsAtTag:
        def answer(self, ids: Sequence[int], opened: str = "") -> str:
            return opened + tokenizer.decode(list(ids)).partition("<end>")[0]

    candidate = DrawnCandidate(0, "", "stop", opened="><", asked=[[{"role": "user", "content": "why?"}]])
    expected: list[bool] = []
    for number, turn in enumerate(turns):
        if number:
            candidate.asked.append([{"role": ("tool", "user")[number - 1], "content": f"reply {number}"}])
            reply = tokenizer.encode("reply").ids
            candidate.ids, candidate.drawn = candidate.ids + reply, candidate.drawn + [False] * len(reply)
            expected += [False] * len(reply)
        encoding = tokenizer.encode(turn)
        end = len(turn.partition("<end>")[0])
        # The turn begins with two characters that the prompt has opened.
        expected += [(start + 2) // 2 % 2 == 0 if start < end else number > 0 for start, _ in encoding.offsets]
        candidate.ids, candidate.drawn = candidate.ids + encoding.ids, candidate.drawn + [True] * len(encoding.ids)
    decode = lambda part: tokenizer.decode(list(part), skip_special_tokens=False)  # noqa: E731
    found = left_out_tokens(candidate, Odd(), GRPO(), cast(Any, EndsAtTag()), decode)
    assert found == expected
    answers = ["><" + turn.partition("<end>")[0] for turn in turns]
    known = [("why?", len(turns) < 3), ("reply 1", False), ("reply 2", True)]
    assert asked == [(answer, *each) for answer, each in zip(answers, known, strict=False)]
