"""Which candidates are kept, and what the files record about the others."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sampling.conftest import Command, lines

DRAW = ["--engine", "dice", "--model", "m", "--output-dir", "run"]


def by_row(candidates: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for candidate in candidates:
        rows.setdefault(candidate["id"], []).append(candidate)
    return rows


def number(candidate: dict[str, Any]) -> int:
    return int(candidate["messages"][-1]["content"][-2])


def test_every_row_has_all_candidates_and_no_reference_among_them(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    done = sample("--dataset", questions(10), *DRAW, "--orm", "box", "--num-return-sequences", "3")
    assert done.returncode == 0, done.stderr
    rows = by_row(lines(tmp_path / "run" / "candidates.jsonl"))
    assert [[it["index"] for it in candidates] for candidates in rows.values()] == [[0, 1, 2]] * 10
    for index, candidates in enumerate(rows.values()):
        for it in candidates:
            assert it["messages"][0]["content"] == f"问题 {index}: a die 🎲?"
            assert it["messages"][1]["content"].startswith("Let us see")
            assert it["reference"] == str(index % 4)
            assert it["scores"]["box"] == float(number(it) == index % 4)
            assert bool(it["reasons"]) or it["scores"]["box"] == 1.0


def test_the_reference_is_a_candidate_when_asked_for(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    done = sample("--dataset", questions(4), *DRAW, "--prm", "halves", "--include-reference")
    assert done.returncode != 0  # `halves` cannot read a bare number: the plugin's error names it
    assert "halves" in done.stderr
    done = sample("--dataset", questions(4), *DRAW, "--overwrite", "--include-reference", "--num-return-sequences", "2")
    assert done.returncode == 0, done.stderr
    for index, candidates in enumerate(by_row(lines(tmp_path / "run" / "candidates.jsonl")).values()):
        assert [it["finish_reason"] for it in candidates] == ["stop", "stop", "reference"]
        assert candidates[2]["messages"][-1]["content"] == str(index)


def test_the_best_right_ones_are_kept_by_the_documented_formula(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    done = sample(
        *("--dataset", questions(20), *DRAW, "--orm", "box", "--prm", "halves", "--set", "orm.box.weight=3"),
        *("--prm-reduce", "mean", "--n-best-to-keep", "2", "--num-return-sequences", "12"),
    )
    assert done.returncode == 0, done.stderr
    kept = by_row(lines(tmp_path / "run" / "samples.jsonl"))
    for row_id, candidates in by_row(lines(tmp_path / "run" / "candidates.jsonl")).items():
        for it in candidates:
            assert it["scores"]["halves"] == [1.0, number(it) / 4]
        right = [it for it in candidates if str(number(it)) == it["reference"]]
        expected = [right[0]] if right else []  # all right answers of a row are one text, so one of them is kept
        assert [it["messages"] for it in kept.get(row_id, [])] == [it["messages"] for it in expected]
        for it in kept.get(row_id, []):
            wrong = [other for other in candidates if str(number(other)) != other["reference"]]
            worst = min(wrong, key=lambda other: (3 * 0 + (1 + number(other) / 4) / 2, other["index"]))
            assert it["rejected_response"] == worst["messages"][-1]["content"]
        reasons = Counter(reason for it in candidates for reason in it["reasons"])
        assert reasons["wrong"] == len(candidates) - len(right)
        assert reasons["same answer as a better one"] == max(len(right) - 1, 0)


@pytest.mark.parametrize(
    ("reduce", "reduced"), [("min", min), ("last", lambda x: x[-1]), ("prod", lambda x: x[0] * x[1])]
)
def test_answers_below_the_prm_threshold_are_left_out(
    questions: Callable[..., Path], sample: Command, tmp_path: Path, reduce: str, reduced: Callable[[Any], float]
) -> None:
    options = ["--prm", "halves", "--prm-threshold", "0.5", "--prm-reduce", reduce, "--n-best-to-keep", "9"]
    done = sample("--dataset", questions(12), *DRAW, *options, "--num-return-sequences", "3")
    assert done.returncode == 0, done.stderr
    rows = by_row(lines(tmp_path / "run" / "candidates.jsonl"))
    for candidates in rows.values():
        for it in candidates:
            assert ("below the PRM threshold" in it["reasons"]) == (reduced(it["scores"]["halves"]) < 0.5)
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    none_left = sum(all(number(it) < 2 for it in candidates) for candidates in rows.values())
    assert results["left_out"].get("below the PRM threshold", 0) == none_left > 0


def test_a_prm_without_weight_still_has_its_threshold(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    options = ["--orm", "box", "--prm", "halves", "--set", "prm.halves.weight=0", "--prm-threshold", "0.5"]
    done = sample("--dataset", questions(12), *DRAW, *options)
    assert done.returncode == 0, done.stderr
    for it in lines(tmp_path / "run" / "candidates.jsonl"):
        assert ("below the PRM threshold" in it["reasons"]) == (number(it) < 2)
    assert all(number(it) >= 2 for it in lines(tmp_path / "run" / "samples.jsonl"))


def test_rows_that_are_too_easy_or_all_wrong_are_counted(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    done = sample("--dataset", questions(40), *DRAW, "--orm", "box", "--easy-query-threshold", "0.25")
    assert done.returncode == 0, done.stderr
    counts = Counter()
    for candidates in by_row(lines(tmp_path / "run" / "candidates.jsonl")).values():
        right = sum(it["scores"]["box"] for it in candidates)
        counts["all wrong" if right == 0 else "too easy" if right / 8 > 0.25 else "kept"] += 1
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert results["left_out"] == {name: counts[name] for name in ("too easy", "all wrong")}
    assert results["kept"] == counts["kept"] == len(lines(tmp_path / "run" / "samples.jsonl"))
    assert f"{counts['too easy']} rows left out: too easy" in done.stdout


def test_rows_of_one_content_are_each_answered(sample: Command, tmp_path: Path) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "roll"}], "answer": 1})
    (tmp_path / "same.jsonl").write_text(f"{row}\n" * 3)
    done = sample("--dataset", "same.jsonl", *DRAW, "--orm", "slow_box", "--num-return-sequences", "16")
    assert done.returncode == 0, done.stderr
    rows = by_row(lines(tmp_path / "run" / "candidates.jsonl"))
    assert [len(candidates) for candidates in rows.values()] == [16, 16, 16]
    drawn = {tuple(map(number, candidates)) for candidates in rows.values()}
    assert len(drawn) == 3


def test_kept_rows_can_be_trained_on_as_they_are(
    questions: Callable[..., Path], sample: Command, tmp_path: Path, swiftplug: Command
) -> None:
    done = sample("--dataset", questions(12), *DRAW, "--orm", "box", "--system", "你是骰子")
    assert done.returncode == 0, done.stderr
    kept = lines(tmp_path / "run" / "samples.jsonl")
    assert all(it["messages"][0] == {"role": "system", "content": "你是骰子"} for it in kept)
    trained = swiftplug("train", "--model", "tiny", "--dataset", tmp_path / "run" / "samples.jsonl", "--dry-run")
    assert trained.returncode == 0, trained.stderr
    assert f"{len(kept)} of {len(kept)} rows" in trained.stdout


def test_candidates_are_scored_again_by_other_scorers(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    data = questions(9)
    assert sample("--dataset", data, *DRAW, "--orm", "box").returncode == 0
    for arguments in ([], ["--dataset", data]):
        done = sample(
            *("--engine", "none", "--candidates-file", "run/candidates.jsonl", *arguments, "--overwrite"),
            *("--orm", "box", "--prm", "halves", "--output-dir", "again"),
        )
        assert done.returncode == 0, done.stderr
        before, after = (lines(tmp_path / folder / "candidates.jsonl") for folder in ("run", "again"))
        for key in ("id", "index", "messages", "reference", "finish_reason"):
            assert [it[key] for it in after] == [it[key] for it in before]
        assert all(it["scores"]["halves"] == [1.0, number(it) / 4] for it in after)


def test_rows_of_one_content_stay_apart_when_scored_again(sample: Command, tmp_path: Path) -> None:
    question = {"role": "user", "content": "roll"}
    rows = [{"messages": [question], "answer": answer} for answer in ("1", "1", "2")]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = sample("--dataset", "same.jsonl", *DRAW, "--orm", "box", "--num-return-sequences", "3")
    assert done.returncode == 0, done.stderr
    again = ["--engine", "none", "--candidates-file", "run/candidates.jsonl", "--orm", "box", "--output-dir", "again"]
    for arguments in ([], ["--dataset", "same.jsonl"]):
        done = sample(*again, *arguments, "--overwrite")
        assert done.returncode == 0, done.stderr
        before, after = ((tmp_path / folder / "candidates.jsonl").read_bytes() for folder in ("run", "again"))
        assert after == before


def test_an_id_that_many_prompts_share_mixes_no_rows(sample: Command, tmp_path: Path) -> None:
    """Other tools number the candidates of a question, or the files; each prompt keeps its own reference."""
    written = [
        {"id": number, "index": 10**30, "reference": str(row), "messages": [{"role": "user", "content": f"{row}?"}]}
        for row in range(3)
        for number in (0, "0-2", 0)
    ]
    for it in written:
        it["messages"].append({"role": "assistant", "content": f"\\boxed{{{it['reference']}}}"})
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(it) + "\n" for it in written))
    done = sample("--engine", "none", "--candidates-file", "given.jsonl", "--orm", "box", "--output-dir", "run")
    assert done.returncode == 0, done.stderr
    rows = by_row(lines(tmp_path / "run" / "candidates.jsonl"))
    assert [[it["index"] for it in candidates] for candidates in rows.values()] == [[0, 1, 2]] * 3
    assert all(it["scores"]["box"] == 1.0 for candidates in rows.values() for it in candidates)


def test_an_answer_cut_off_at_the_token_limit_is_not_kept_unless_asked_for(sample: Command, tmp_path: Path) -> None:
    """Nor is it the worse answer of a pair: trained, either would get an end of turn in the middle of a sentence."""
    ends = ["length", "stop", "stop", "max_tokens", "content_filter"]
    texts = ["one two", "one two three.", "four \\boxed{4}", "\\boxed{4} five", "six"]
    written = [
        {"reference": "4", "finish_reason": end, "messages": [{"role": "user", "content": "go"}, answer]}
        for end, text in zip(ends, texts, strict=True)
        for answer in [{"role": "assistant", "content": text}]
    ]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(it) + "\n" for it in written))
    given = ["--engine", "none", "--candidates-file", "given.jsonl", "--n-best-to-keep", "9", "--output-dir", "run"]

    def kept() -> list[tuple[str, str | None]]:
        rows = lines(tmp_path / "run" / "samples.jsonl")
        return [(row["messages"][-1]["content"], row.get("rejected_response")) for row in rows]

    done = sample(*given)
    assert done.returncode == 0, done.stderr
    assert kept() == [(texts[1], None), (texts[2], None)]
    assert "2 of 5 candidates were cut off at the token limit and are not kept" in " ".join(done.stdout.split())
    reasons = [it["reasons"] for it in lines(tmp_path / "run" / "candidates.jsonl")]
    assert reasons == [
        ["cut off at the token limit"],
        [],
        [],
        ["cut off at the token limit"],
        ["cut off by a content filter"],
    ]
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert results["not_kept"] == {"cut off at the token limit": 2, "cut off by a content filter": 1}

    assert sample(*given, "--orm", "box", "--overwrite").returncode == 0
    assert kept() == [(texts[2], texts[1])]
    assert sample(*given, "--orm", "box", "--overwrite", "--keep-cut-off").returncode == 0
    assert kept() == [(texts[2], texts[0]), (texts[3], texts[0])]


def test_scoring_what_exists_imports_nothing_heavy(questions: Callable[..., Path], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in questions(8).read_text(encoding="utf-8").splitlines()]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["sample", "--engine", "none", "--candidates-file", "given.jsonl", "--dataset", "questions.jsonl"]
    arguments += ["--orm", "gsm8k", "--prm", "arithmetic", "--output-dir", "run"]
    code = (
        "import sys\n"
        "from swiftplug.cli.main import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "heavy = ('torch', 'transformers', 'datasets', 'pandas', 'numpy')\n"
        "print('imported:', [it for it in heavy if it in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert all(it["scores"]["gsm8k"] == 1.0 for it in lines(tmp_path / "run" / "candidates.jsonl"))
