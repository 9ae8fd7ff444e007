"""Bad input ends with exit code 2 and one clear line, or is counted; nothing is lost."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from typer.testing import CliRunner

from swiftplug.cli.main import app
from tests.sampling.conftest import DICE, Command, lines

DRAW = ["--engine", "dice", "--model", "m", "--output-dir", "run"]


def refused(done: object, *words: str) -> None:
    """One line on stderr with these words in it, and exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr  # type: ignore[attr-defined]
    (line,) = done.stderr.splitlines()  # type: ignore[attr-defined]
    for word in words:
        assert word in line


def test_rows_without_a_question_are_counted_with_their_place(sample: Command, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "roll"}], "answer": "1"}
    bad = [
        {"messages": [{"role": "assistant", "content": "1"}]},
        {"messages": []},
        {"text": "a text"},
        {"messages": [{"role": "user", "content": "  "}], "answer": "1"},
        {"messages": [{"role": "user", "content": "no answer to this one"}]},
        {"question": "?"},
        "no object",
        {"messages": [{"role": "user", "content": "an empty answer"}], "answer": " "},
        {"messages": [{"role": "user", "content": "half a character: \ud83d"}], "answer": "1"},
        {"messages": [{"role": "user", "content": "roll"}], "answer": "\ud83d"},
    ]
    rows = [good, *bad, good]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = sample("--dataset", "rows.jsonl", *DRAW, "--orm", "box")
    assert done.returncode == 0, done.stderr
    for line in (*range(2, 9), 10, 11):
        assert f"rows.jsonl:{line}" in done.stdout
    assert "rows: 2 of 12" in done.stdout
    assert "2 left out: no reference for box: rows.jsonl:6" in done.stdout
    assert len(lines(tmp_path / "run" / "candidates.jsonl")) == 2 * 8
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert results["rows"] == 12


@pytest.mark.parametrize("engine", ["transformers", "openai"])
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_run_without_a_model_is_refused_before_its_rows_are_read(
    sample: Command, tmp_path: Path, engine: str, options: list[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("no row")
    done = sample("--dataset", "rows.jsonl", "--engine", engine, "--output-dir", "run", *options)
    refused(done, "no model; name", "--model")


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_dataset_is_refused(sample: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    refused(sample("--dataset", "rows.jsonl", *DRAW), "rows.jsonl", "no rows")
    assert not (tmp_path / "run").exists()


def test_references_that_no_row_has_are_asked_for_before_anything_is_made(sample: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "roll"}) + "\n")
    refused(sample("--dataset", "rows.jsonl", *DRAW, "--orm", "box"), "orm 'box'", "references", "solution")
    refused(sample("--dataset", "rows.jsonl", *DRAW, "--include-reference"), "--include-reference", "references")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (["--orm", "raises"], ["orm 'raises'", "RuntimeError: the judge is ill", "dice.py:"]),
        (["--orm", "one_short"], ["orm 'one_short'", "31 rewards for 32 candidates"]),
        (["--orm", "nan"], ["orm 'nan'", "nan", "questions.jsonl:1", "finite number"]),
        (["--orm", "texts"], ["orm 'texts'", "'good'", "finite number"]),
        (["--orm", "hangs", "--set", "score_timeout=0.3"], ["orm 'hangs'", "0.3 s", "--resume"]),
        (["--orm", "bxo"], ["--orm", "'bxo'", "did you mean 'box'"]),
        (["--prm", "no/such-model"], ["no/such-model"]),
        (["--orm", "box", "--orm", "box"], ["two scorers", "'box'"]),
        (["--orm", "box", "--set", "orm.box.weight=-1"], ["orm.box.weight=-1"]),
        (["--orm", "box", "--set", "orm.box.weight=0"], ["weight 0"]),
        (["--prm-reduce", "max"], ["--prm-reduce", "'min', 'mean', 'last' or 'prod'"]),
        (["--shard", "3/3"], ["--shard", "0/3"]),
        (["--temperature", "-1"], ["--temperature", "greater than or equal to 0"]),
        (["--num-return-sequences", "0"], ["--num-return-sequences"]),
        (["--candidates-file", "x.jsonl"], ["--candidates-file", "--engine none"]),
        (["--set", "n_best=3"], ["n_best", "did you mean"]),
        (["--set", "engine.sides=many"], ["engine 'dice'", "'sides'"]),
        (["--prm-threshold", "0.5"], ["--prm-threshold", "--prm"]),
        (["--easy-query-threshold", "0.5", "--prm", "halves"], ["--easy-query-threshold", "--orm"]),
        (["--resume", "--overwrite"], ["cannot be combined"]),
        (["--dataset", "nothing.jsonl"], ["nothing.jsonl"]),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(
    questions: Callable[..., Path], sample: Command, scorer: list[str], words: list[str]
) -> None:
    data = [] if "--dataset" in scorer else ["--dataset", questions(9)]
    refused(sample(*data, *DRAW, *scorer), *words)


def test_an_engine_that_samples_nothing_needs_candidates(sample: Command) -> None:
    refused(sample("--engine", "none", "--dataset", "x.jsonl"), "--candidates-file")
    refused(sample("--engine", "none", "--candidates-file", "x.jsonl"), "x.jsonl", "no such file")


def test_nothing_named_and_no_quickstart_run_says_how_to_get_one(sample: Command) -> None:
    refused(sample("--orm", "math"), "swiftplug train", "--model")


def test_a_folder_of_another_run_is_left_as_it_is(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    data = questions(4)
    assert sample("--dataset", data, *DRAW).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused(sample("--dataset", data, *DRAW), "run", "--resume", "--overwrite")
    refused(sample("--dataset", data, *DRAW, "--resume", "--temperature", "2"), "temperature: 1.0 there, 2.0 here")
    refused(sample("--dataset", questions(5), *DRAW, "--resume"), "questions.jsonl", "has changed")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all my work")
    refused(sample("--dataset", data, *DRAW[:-1], "other", "--overwrite"), "other files")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "all my work"


def candidate(question: str, answer: str, **more: object) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **more}, ensure_ascii=False)


def test_a_torn_last_line_and_an_unmatched_candidate_are_counted(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    known = candidate("问题 1: a die 🎲?", "\\boxed{1}")
    text = "\n".join([known, candidate("who is this?", "\\boxed{1}"), known, known[:40]])
    (tmp_path / "given.jsonl").write_text(text, encoding="utf-8")
    scoring = ["--engine", "none", "--candidates-file", "given.jsonl", "--orm", "box", "--output-dir", "run"]
    done = sample(*scoring, "--dataset", questions(2))
    assert done.returncode == 0, done.stderr
    assert "given.jsonl:4" in done.stdout
    assert "of no row of the dataset: given.jsonl:2" in done.stdout
    assert [it["index"] for it in lines(tmp_path / "run" / "candidates.jsonl")] == [0, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", ["given.jsonl:2", "not JSON"]),
        ('{"text": "x"}', ["given.jsonl:2", "'messages'"]),
        (json.dumps({"messages": [{"role": "user", "content": "q"}]}), ["given.jsonl:2", "assistant"]),
        (json.dumps({"messages": [{"role": "robot", "content": "q"}]}), ["given.jsonl:2", "robot"]),
        (
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": "q"},
                        {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {}}]},
                    ]
                }
            ),
            ["given.jsonl:2", "tool_calls"],
        ),
    ],
)
def test_a_line_that_is_no_candidate_is_named(sample: Command, tmp_path: Path, line: str, words: list[str]) -> None:
    good = candidate("q", "\\boxed{1}", reference="1")
    (tmp_path / "given.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    done = sample("--engine", "none", "--candidates-file", "given.jsonl", "--orm", "box", "--output-dir", "run")
    refused(done, *words)
    assert not (tmp_path / "run").exists()


def test_candidates_of_rows_without_a_reference_are_counted_and_kept_unscored(sample: Command, tmp_path: Path) -> None:
    given = [candidate("q", "\\boxed{1}", reference="1"), candidate("who knows?", "\\boxed{1}")]
    (tmp_path / "given.jsonl").write_text("\n".join([*given, candidate("empty", "2", reference="")]))
    done = sample("--engine", "none", "--candidates-file", "given.jsonl", "--orm", "box", "--output-dir", "run")
    assert done.returncode == 0, done.stderr
    assert "rows: 1 of 3" in done.stdout
    scored, *unscored = lines(tmp_path / "run" / "candidates.jsonl")
    assert scored["scores"] == {"box": 1.0}
    assert [(it["scores"], it["reasons"]) for it in unscored] == [({}, ["no reference for box"])] * 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["left_out"] == {"no reference for box": 2}


ENGINE = """
from swiftplug.plugin import Answered, Completion, Engine, register_engine
@register_engine("odd")
class Odd(Engine):
    def generate(self, prompts):
        for prompt in prompts:
            yield Answered(prompt.id, [Completion({0}, "stop") for _ in range(2)])
"""


def test_what_an_engine_returns_is_checked(questions: Callable[..., Path], swiftplug: Command, tmp_path: Path) -> None:
    arguments = ["--plugin", "odd.py", "--engine", "odd", "--model", "m", "--num-return-sequences", "2"]
    (tmp_path / "odd.py").write_text(ENGINE.format("None"))
    refused(swiftplug("sample", "--dataset", questions(2), *arguments), "engine 'odd'", "None", "expected text")
    half = "'\\ud83d' if '问题 1:' in prompt.messages[-1]['content'] else 'good'"
    (tmp_path / "odd.py").write_text(ENGINE.format(half), encoding="utf-8")
    done = swiftplug("sample", "--dataset", questions(3), *arguments, "--output-dir", "run")
    assert done.returncode == 0, done.stderr
    assert "1 row left out: a text contains an unpaired surrogate (invalid Unicode)" in done.stdout
    assert len(lines(tmp_path / "run" / "candidates.jsonl")) == 2 * 2


def test_an_earlier_run_outlives_the_mistakes_of_one_that_would_overwrite_it(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    data = questions(4)
    assert sample("--dataset", data, *DRAW).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    overwriting = ["--output-dir", "run", "--overwrite"]
    refused_model = sample("--dataset", data, "--model", "/no/such/model", *overwriting)
    assert refused_model.returncode == 2, refused_model.stderr
    assert "/no/such/model" in refused_model.stderr
    own = ["--engine", "none", "--candidates-file", "run/candidates.jsonl"]
    refused(sample(*own, *overwriting), "--overwrite would remove run/candidates.jsonl")
    refused(sample("--dataset", "run/samples.jsonl#2", *DRAW, "--overwrite"), "would remove run/samples.jsonl")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_model_that_is_not_there_leaves_no_folder(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    done = sample("--dataset", questions(4), "--output-dir", "new")
    refused(done, "no model", "--model")
    assert "None" not in done.stdout
    assert not (tmp_path / "new").exists()


def test_a_place_that_takes_no_folder_is_named(questions: Callable[..., Path], sample: Command, tmp_path: Path) -> None:
    data = questions(4)
    refused(sample("--dataset", data, *DRAW[:-1], "questions.jsonl/run"), "output_dir", "questions.jsonl/run")
    assert data.is_file()


@pytest.mark.parametrize("content", [b"", b"no database, but something else\n" * 40])
def test_a_damaged_ledger_is_named_and_may_be_begun_again(
    questions: Callable[..., Path], sample: Command, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").write_bytes(content)
    refused(sample("--dataset", questions(4), *DRAW, "--resume"), "ledger.sqlite", "cannot be used")
    assert (tmp_path / "run" / "ledger.sqlite").read_bytes() == content
    done = sample("--dataset", questions(4), *DRAW, "--overwrite")
    assert done.returncode == 0, done.stderr


def test_rows_are_counted_by_reason_and_their_unread_columns_by_name(tmp_path: Path) -> None:
    """As in training; the details of three rows are shown, not a line for each detail."""
    good = [{"prompt": f"q {number}", "sytem": "Be kind.", "answer": "1"} for number in range(3)]
    bad = [{"prompt": "<image>" if number % 2 else "q", "images": [f"{number}.jpg"]} for number in range(5)]
    unnamed = [{f"question {number}": "?"} for number in range(2)]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in [*good, *bad, *unnamed]).encode()))
    run = ["sample", "--plugin", str(DICE), "--dataset", str(path), *DRAW, "--dry-run"]
    printed = CliRunner().invoke(app, run).output
    assert "rows: 3 of 10" in printed
    reason = "5 left out: images, audio or video, which a text model cannot read: "
    shown = "; ".join(f"{path}:{line} (the row has `images`)" for line in (4, 5, 6))
    assert f"{reason}{shown}, ...\n" in printed
    assert printed.count("no known columns") == 1
    assert "  3 rows have `sytem` (did you mean `system`?): not read\n" in printed
    misspelt = CliRunner().invoke(app, [*run, "--set", "data.columns={answr: reference}"])
    assert str(misspelt.exception) == "data.columns: no dataset has a column 'answr'; did you mean 'answer'?"
    assert ": not read" not in CliRunner().invoke(app, [*run, "--orm", "box"]).output  # it gets all columns


def test_candidates_in_other_files_than_jsonl(tmp_path: Path) -> None:
    given = [json.loads(candidate("q", str(number), reference="1", note="x")) for number in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(given, indent=1))
    Dataset.from_list(given).to_parquet(tmp_path / "given.parquet")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress((json.dumps(given[0]) + '\n{"messages": [').encode()))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q"}))
    for name, taken, dataset in (
        ("list.json", 3, []),
        ("given.parquet", 3, []),
        ("torn.jsonl.gz", 1, ["--dataset", str(tmp_path / "rows.jsonl")]),
    ):
        run = ["sample", "--engine", "none", "--candidates-file", str(tmp_path / name), *dataset, "--dry-run"]
        printed = CliRunner().invoke(app, [*run, "--output-dir", str(tmp_path / "run")]).output
        assert f"candidates: {taken} of {tmp_path / name}" in printed
        assert ("the last line is incomplete" in printed) is (taken == 1)
        assert ("1 row has `note`: not read" in printed) is bool(dataset)
