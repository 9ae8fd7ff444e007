"""The candidates of an online run as its page shows them: of all steps, or of the most telling and some between."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from swiftplug.runs.page.page import clipped, escaped_json
from swiftplug.sampling.page.page import message_texts
from swiftplug.sampling.rows import Reward
from swiftplug.training.online.record import RecordedStep

_PAGE_CHARACTERS = 400_000
"""Number of characters of candidates in a page, about."""

_STEP_CHARACTERS = 60_000
"""Number of characters of the candidates of a step at most, if it has more than one prompt."""

_HEAD, _TAIL = 1_500, 1_000  # of a longer text, so many characters are shown


def shown_steps(
    path: Path, steps: Sequence[RecordedStep], judges: Mapping[str, float], reduce: Callable[[Reward], float]
) -> list[dict[str, Any]]:
    """Steps as the script of the page reads them.

    If not all fit, there are the first and the newest, those with the highest and the lowest mean reward, and as many
    between as fit.

    Args:
        path: `candidates.jsonl`.
        steps: Where steps are in it.
        judges: By scorer that judges, the least reward of a right candidate.
        reduce: Makes one number of the rewards of an answer's steps.
    """
    if not steps:
        return []
    places = range(len(steps))
    rated = sorted((place for place in places if steps[place].reward is not None), key=lambda it: steps[it].reward or 0)
    shown: dict[int, dict[str, Any]] = {}
    room, largest = _PAGE_CHARACTERS, 1

    def add(place: int) -> None:
        nonlocal room, largest
        if place not in shown:
            shown[place] = _read(path, steps[place], judges, reduce)
            size = len(escaped_json(shown[place]))
            room, largest = room - size, max(largest, size)

    for place in (0, places[-1], *rated[:1], *rated[-1:]):
        add(place)
    while room >= largest and len(shown) < len(steps):
        start, end = max(pairwise(sorted(shown)), key=lambda pair: pair[1] - pair[0])
        add((start + end) // 2)
    if rated and steps[rated[0]].reward != steps[rated[-1]].reward:
        shown[rated[0]]["is"], shown[rated[-1]]["is"] = "the lowest", "the highest"
    return [shown[place] for place in sorted(shown)]


def _read(
    path: Path, step: RecordedStep, judges: Mapping[str, float], reduce: Callable[[Reward], float]
) -> dict[str, Any]:
    """A step: its figures, and those of its prompts that fit, each with its candidates."""
    with path.open("rb") as file:
        file.seek(step.start)
        lines = [json.loads(line) for line in file.read(step.size).splitlines()]
    # A prompt may come twice in a step; each has its own candidate 0.
    starts = [place for place, line in enumerate(lines) if "failure" in line or line["index"] == 0]
    groups = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    rows: list[dict[str, Any]] = []
    size = 0
    for position, group in enumerate(groups):
        row = _row(position, group, judges, reduce)
        size += len(escaped_json(row))
        if rows and size > _STEP_CHARACTERS:
            break
        rows.append(row)
    return {
        "step": step.step,
        "reward": step.reward,
        "prompts": len(groups),
        "teaching": sum(len({line.get("reward") for line in group} - {None}) > 1 for group in groups),
        "missing": sum("failure" not in line and line["reward"] is None for line in lines),
        "failed": sum("failure" in line for line in lines),
        "rows": rows,
    }


def _row(
    position: int, group: Sequence[Mapping[str, Any]], judges: Mapping[str, float], reduce: Callable[[Reward], float]
) -> dict[str, Any]:
    first, reference = group[0], group[0]["reference"]
    asked = first["messages"] if "failure" in first else first["messages"][: _first_turn(first)]
    return {
        "position": position,
        "id": first["id"],
        "prompt": message_texts(asked, _shortened),
        "reference": None if reference is None else _shortened(str(reference)),
        "problem": first.get("failure", ""),
        "candidates": [_candidate(line, judges, reduce) for line in group if "failure" not in line],
    }


def _candidate(
    line: Mapping[str, Any], judges: Mapping[str, float], reduce: Callable[[Reward], float]
) -> dict[str, Any]:
    """A candidate; what it has not is left out."""
    rewards = line["scores"]
    scores = {name: round(reduce(reward), 4) for name, reward in rewards.items()}
    right = all(scores[name] >= least for name, least in judges.items()) if judges.keys() <= scores.keys() else None
    found = {
        "index": line["index"],
        "turns": message_texts(line["messages"][_first_turn(line) : -1], _shortened),
        "text": _shortened(line["messages"][-1]["content"]),
        "finish": line["finish_reason"],
        "scores": scores,
        "steps": {name: reward for name, reward in rewards.items() if isinstance(reward, list)},
        "right": right if judges else None,
        "score": None if line["reward"] is None else round(line["reward"], 4),
        "advantage": None if line["advantage"] is None else round(line["advantage"], 4),
        "reasons": line["reasons"],
    }
    return {name: value for name, value in found.items() if value not in (None, {}, [])}


def _first_turn(line: Mapping[str, Any]) -> int:
    """Where the messages of a candidate begin, behind those of the prompt."""
    answers = [place for place, message in enumerate(line["messages"]) if message["role"] == "assistant"]
    first: int = answers[-line.get("turns", 1)]
    return first


def _shortened(text: str) -> str | list[str | int]:
    return clipped(text, _HEAD, _TAIL)
