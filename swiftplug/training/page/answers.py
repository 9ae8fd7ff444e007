"""Answers that were generated at evaluations: the first few of each, in `answers.jsonl`, and as the page shows them."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.runs.folder import write_atomically
from swiftplug.runs.page.page import clipped

SHOWN_ANSWERS = 10  # of an evaluation
_SHOWN_EVALUATIONS = 6


class AnsweredRow(NamedTuple):
    """A row of the evaluation set.

    Attributes:
        prompt: What the model was given; a very long text as `clipped` has it, and so are the others.
        reference: What it should answer.
        answers: The step of each evaluation and what it answered there, the last first.
    """

    prompt: Any
    reference: Any
    answers: list[tuple[int, Any, bool]]


def add_answers(path: Path, step: int, answers: Iterable[tuple[str, str, str]]) -> None:
    """Add the answers of an evaluation to `answers.jsonl`, each as prompt, reference and answer."""
    with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for row, (prompt, reference, answer) in enumerate(answers):
            line = {"step": step, "row": row, "prompt": prompt, "reference": reference, "answer": answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def forget_answers(path: Path, after: int) -> None:
    """Remove the answers of later steps: a run that goes on from this step gives them again."""
    if path.is_file():
        lines = [line for line in _lines(path) if line["step"] <= after]
        write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_answers(path: Path) -> list[AnsweredRow]:
    """The rows, each with its answers at the last evaluation, and at some that are spread over those before."""
    by_row: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in _lines(path) if path.is_file() else ():
        by_row[line["row"]].append(line)
    return [_answered(lines) for _, lines in sorted(by_row.items())]


def _answered(lines: list[dict[str, Any]]) -> AnsweredRow:
    last = len(lines) - 1
    places = {round(last * place / (_SHOWN_EVALUATIONS - 1)) for place in range(_SHOWN_EVALUATIONS)}
    shown = [lines[place] for place in sorted(places, reverse=True)]
    reference = lines[-1]["reference"]
    answers = [(each["step"], clipped(each["answer"]), each["answer"].strip() == reference.strip()) for each in shown]
    return AnsweredRow(clipped(lines[-1]["prompt"]), clipped(reference), answers)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a file; one that a killed run has not finished is left out."""
    for line in path.read_text(encoding="utf-8").split("\n"):  # answers may have other ends of lines in them
        try:
            found = json.loads(line)
        except ValueError:
            continue
        yield found
