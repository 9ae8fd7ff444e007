"""How a run calls its scorers: in the main thread, within a time limit, and only if the rows have what they need."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from swiftplug.cli.main import app
from swiftplug.errors import UserError
from swiftplug.runs.time_limit import call_within
from tests.sampling.conftest import DICE, lines


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Score candidates in this process with the ORMs of a plugin file; returns the lines of `candidates.jsonl`."""
    monkeypatch.chdir(tmp_path)

    def run(plugin: str, candidates: list[dict[str, Any]], *arguments: str) -> list[dict[str, Any]]:
        Path("mine.py").write_text(f"from swiftplug.plugin import ORM, orms\n{plugin}")
        Path("given.jsonl").write_text("".join(json.dumps(each) + "\n" for each in candidates))
        given = ("--engine", "none", "--candidates-file", "given.jsonl", "--output-dir", "run", "--plugin", "mine.py")
        app(["sample", *given, *arguments], standalone_mode=False)
        return lines(Path("run/candidates.jsonl"))

    return run


def candidate(answer: str, **columns: Any) -> dict[str, Any]:
    """A candidate of a question of its own."""
    question = {"role": "user", "content": f"{answer}?"}
    return {"messages": [question, {"role": "assistant", "content": answer}], **columns}


def test_references_are_texts_as_the_row_wrote_them(sample: Callable[..., Any]) -> None:
    plugin = "orms['x'] = lambda infer_requests, ground_truths: [len(it) for it in ground_truths]"
    references = [18, 18.5, True, ["a", "ü"], "  text "]
    rows = [candidate(str(index), reference=it) for index, it in enumerate(references)]
    lengths = [it["scores"]["x"] for it in sample(plugin, rows, "--orm", "x")]
    assert lengths == [len(it) for it in ("18", "18.5", "true", '["a", "ü"]', "  text ")]


def test_a_missing_reward_is_recorded(sample: Callable[..., Any]) -> None:
    plugin = "orms['x'] = lambda completions, level, **kwargs: [None if it is None else 1.0 for it in level]"
    first, second = sample(plugin, [candidate("a", level=1), candidate("b")], "--orm", "x")
    assert (first["scores"], first["reasons"]) == ({"x": 1.0}, [])
    assert (second["scores"], second["reasons"]) == ({}, ["x: gave no score"])


def test_an_orm_that_exits_is_named(sample: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"orm 'x' of mine.py raised SystemExit: 3 \(mine.py:2\)$"):
        sample("orms['x'] = lambda completions: exit(3)", [candidate("a")], "--orm", "x")


@pytest.mark.parametrize("reason", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}])
def test_an_answer_that_another_tool_calls_cut_off_is_not_kept(
    sample: Callable[..., Any], reason: dict[str, str]
) -> None:
    plugin = "orms['x'] = lambda completions: [1.0] * len(completions)"
    cut_off, finished = sample(plugin, [candidate("a", **reason), candidate("b", stop_reason=None)], "--orm", "x")
    assert (cut_off["reasons"], finished["reasons"]) == (["cut off at the token limit"], [])


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_column_that_no_row_has_is_asked_for_before_anything_is_scored(
    sample: Callable[..., Any], arguments: list[str]
) -> None:
    plugin = "orms['x'] = lambda completions, solutoin, **kwargs: 1 / 0"
    rows = [candidate("a", solution="4", level=1), candidate("b", level=2)]
    with pytest.raises(UserError) as error:
        sample(plugin, rows, "--orm", "x", *arguments)
    for words in ("orm 'x'", "has the parameter 'solutoin', and no row has such a column", "did you mean 'solution'?"):
        assert words in str(error.value)
    assert not Path("run").exists()


def test_a_first_parameter_of_another_name_is_refused(sample: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="has the first parameter 'answers', expected 'infer_requests'"):
        sample("orms['x'] = lambda answers, truths: [1.0]", [candidate("a")], "--orm", "x", "--dry-run")


def test_scorers_may_use_signals(sample: Callable[..., Any]) -> None:
    plugin = """
import signal
def x(completions):
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(5), signal.alarm(0), signal.signal(signal.SIGALRM, before)
    return [1.0] * len(completions)
orms["x"] = x
"""
    assert [it["scores"]["x"] for it in sample(plugin, [candidate("a")], "--orm", "x")] == [1.0]


PROSE = "She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18 every day.\n#### "


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Check in this process whether an ORM can judge rows with these references."""
    monkeypatch.chdir(tmp_path)

    def run(orm: str, references: list[Any], *arguments: str, column: str = "") -> None:
        turns = [[{"role": "user", "content": f"{index}?"}] for index in range(len(references))]
        rows = [
            {"messages": turn, column: it} if column else {"messages": [*turn, {"role": "assistant", "content": it}]}
            for turn, it in zip(turns, references, strict=True)
        ]
        Path("rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        given = ("--dataset", "rows.jsonl", "--model", "m", "--plugin", str(DICE), "--engine", "dice")
        app(["sample", *given, "--orm", orm, "--output-dir", "run", *arguments], standalone_mode=False)

    return run


@pytest.mark.parametrize("column", ["", "answer"])
def test_an_orm_that_cannot_judge_the_data_is_found_before_sampling(dry_run: Callable[..., Any], column: str) -> None:
    references = [f"{PROSE}{number}" for number in range(20, 60)]
    for arguments in (["--dry-run"], []):
        with pytest.raises(UserError) as error:
            dry_run("math", references, *arguments, column=column)
        for words in (
            "orm 'math'",
            "finds no reference right",
            "rows.jsonl:1",
            r"#### 20'",
            "use --orm gsm8k or --orm",
        ):
            assert words in str(error.value)
    assert not Path("run").exists()
    for orm in ("gsm8k", "math_verify", "react", "format"):
        dry_run(orm, references, "--dry-run", column=column)
    with pytest.raises(
        UserError, match=r"orm 'gsm8k'.* finds no reference right.*use --orm math or --orm math_verify$"
    ):
        dry_run("gsm8k", [rf"so \boxed{{{it}}}" for it in "abc"], "--dry-run", column=column)


@pytest.mark.parametrize(
    "references", [["18", "x = 5"], [18, 2.5], [r"\frac{1}{2}"], [r"so \boxed{2}"], ["even", "a b c d"]]
)
@pytest.mark.parametrize("orm", ["math", "box"])
def test_final_answers_alone_can_be_judged(dry_run: Callable[..., Any], orm: str, references: list[Any]) -> None:
    dry_run(orm, references, "--dry-run", column="answer")


def test_a_third_partys_orm_is_tried_with_references_only_when_it_finds_a_whole_batch_wrong(
    dry_run: Callable[..., Any],
) -> None:
    Path("orm.py").write_text(
        "from swiftplug.plugin import ORM, orms\ncalls = []\n"
        "class Ends(ORM):\n"
        "    def __init__(self, end: str): self.end = end\n"
        "    def __call__(self, infer_requests, ground_truths, **kwargs):\n"
        "        answers = [it.messages[-1]['content'] for it in infer_requests]\n"
        "        open('calls', 'a').write(f'{len(answers)} ')\n"
        "        return [float(it.endswith(self.end)) for it in answers]\n"
        "orms['ends'] = Ends\n"
    )
    references = [f"{PROSE}{number}" for number in range(20, 28)]
    given = ("--plugin", "orm.py", "--overwrite")
    dry_run("ends", references, "--dry-run", *given, "--set", "orm.ends.end=none")
    assert not Path("calls").exists()
    dry_run("ends", references, *given, "--set", "orm.ends.end='}'")
    assert Path("calls").read_text() == "32 32 "
    with pytest.raises(UserError, match=r"orm 'ends' .* finds no reference right as an answer \(4 tried\)"):
        dry_run("ends", references, *given, "--set", "orm.ends.end=none")
    dry_run(
        "ends", references, *given, "--set", "orm.ends.end=none", column="answer"
    )  # they may be no answers: tests, say


def waits() -> None:
    time.sleep(60)


def swallows() -> float:
    for _ in range(60):
        try:
            time.sleep(1)
        except Exception:
            return 0.0
    return 0.0


def swallows_all() -> float:
    with suppress(BaseException):
        time.sleep(60)
    return 0.0


def counts() -> None:
    while True:
        pass


def matches() -> None:
    re.match(r"(a+)+b", "a" * 60)


def multiplies() -> None:
    _ = 9**9**9


async def sleeps() -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "function", [waits, swallows, swallows_all, counts, matches, multiplies, lambda: asyncio.run(sleeps())]
)
def test_what_takes_too_long_is_interrupted(function: Callable[[], Any]) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    start = time.monotonic()
    with pytest.raises(UserError, match="too slow"):
        call_within(0.1, function, "too slow")
    assert time.monotonic() - start < 10
    assert signal.getsignal(signal.SIGVTALRM) == before


def test_what_is_done_in_time_is_left_alone() -> None:
    assert call_within(60, lambda: threading.current_thread() is threading.main_thread(), "too slow")
    with pytest.raises(ZeroDivisionError):
        call_within(60, lambda: 1 / 0, "too slow")


@pytest.mark.parametrize(
    ("code", "returncode", "words"),
    [
        ("libc.usleep(60_000_000)", 2, "error: the scorer is too slow"),
        ("ctypes.PyDLL(None).usleep(60_000_000)", 1, "Timeout"),  # keeps Python's lock
    ],
)
def test_what_cannot_be_interrupted_is_ended_with_its_process(code: str, returncode: int, words: str) -> None:
    code = (
        "import ctypes\nfrom contextlib import suppress\nfrom swiftplug.runs import time_limit\n"
        "time_limit._GRACE, libc = 0.3, ctypes.CDLL(None)\n"
        "def hang():\n    while True:\n        with suppress(BaseException):\n"
        f"            {code}\n"
        "time_limit.call_within(0.2, hang, 'the scorer is too slow')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == returncode
    assert done.stderr.startswith(words)
