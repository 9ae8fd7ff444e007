import json
import random
from collections import Counter
from pathlib import Path

import pytest

from swiftplug.plugin import Prompt, Sampling, UserError
from swiftplug_plugins_example.engine import SimilarQuestion

KNOWN = {"How many apples has Ana?": "3", "How many pears has Ben?": "4", "Who is Zoe?": "a friend"}


@pytest.fixture
def known(tmp_path: Path) -> str:
    file = tmp_path / "known.jsonl"
    turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in KNOWN.items()]
    file.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in turns))
    return str(file)


def sampling(count: int, temperature: float, top_k: int = 0) -> Sampling:
    return Sampling(
        num_return_sequences=count, max_new_tokens=9, temperature=temperature, top_p=1.0, top_k=top_k, seed=1
    )


def answers(file: str, question: str, how: Sampling, prompt_id: str = "id") -> list[str]:
    engine = SimilarQuestion(file)
    engine.open(None, how)
    other = Prompt("other", [{"role": "user", "content": "Who?"}])
    answered = list(engine.generate([other, Prompt(prompt_id, [{"role": "user", "content": question}])]))
    assert [it.id for it in answered] == ["other", prompt_id]
    assert {it.finish_reason for it in answered[1].completions} == {"stop"}
    return [it.text for it in answered[1].completions]


def test_without_temperature_the_most_similar_question_answers(known: str) -> None:
    assert answers(known, "how many APPLES has Eva", sampling(2, 0.0)) == ["3", "3"]
    assert answers(known, "Who is Max?", sampling(1, 0.0)) == ["a friend"]


def test_a_candidate_is_drawn_by_its_own_seed(known: str) -> None:
    four = answers(known, "How many?", sampling(4, 1.0))
    assert answers(known, "How many?", sampling(2, 1.0)) == four[:2]
    many = sampling(3000, 0.5)
    expected = random.Random(many.seed_of("id", 7)).choices(["3", "4", "a friend"], [1, 1, 2.718281828 ** (-0.4 / 0.5)])
    drawn = answers(known, "How many?", many)
    assert drawn[7] == expected[0]
    assert drawn != answers(known, "How many?", many, prompt_id="another")


def test_draws_follow_the_similarities_and_top_k(known: str) -> None:
    # "How many" is two of the five words of the first two questions, and none of those of the third.
    counts = Counter(answers(known, "How many?", sampling(3000, 0.5)))
    total = 2 + 2.718281828 ** (-0.4 / 0.5)
    assert counts["3"] / 3000 == pytest.approx(1 / total, abs=0.03)
    assert counts["a friend"] / 3000 == pytest.approx(1 - 2 / total, abs=0.03)
    assert set(answers(known, "How many?", sampling(300, 0.5, top_k=2))) == {"3", "4"}


@pytest.mark.parametrize("text", [None, "", "{", '{"messages": []}', '{"question": "?"}'])
def test_a_file_without_questions_is_one_line(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "it.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"^engine\.file: .*it\.jsonl.*$"):
        SimilarQuestion(str(file)).open(None, sampling(1, 0.0))
