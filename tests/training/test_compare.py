"""`swiftplug compare`: what it prints and shows of runs, against their files; and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swiftplug.config.load import load_sample_config, load_train_config
from swiftplug.errors import UserError
from swiftplug.runs.folder import begin_record, locked_folder
from swiftplug.training.page.compare import compare

EVIL = "</script><img src=x onerror=alert(1)>"
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Lay out the folder of a run that logged some losses: `make("a/run", losses, eval_losses, **options)`."""

    def run(name: str, losses: list[float], evaluations: Sequence[float] = (), rows: int = 8, **options: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        given: dict[str, Any] = {"model": "m", "dataset": ["d"], "output_dir": str(folder)}
        config = load_train_config(None, {**given, **options}, ["training.learning_rate=1e-4"]).config
        data = {"eval_dataset": {"rows": rows, "sha256": f"{rows:064}"}}
        begin_record(folder, config, [], resumed=False, run="train", data=data, processes=1)
        entries: list[dict[str, Any]] = [
            {
                "loss": loss,
                "grad_norm": 1.0,
                "train_runtime": 2.0 * step,
                "num_input_tokens_seen": 100 * step,
                "step": step,
            }
            for step, loss in enumerate(losses, 1)
        ]
        entries += [
            {"eval_loss": loss, "eval_token_acc": 1 - loss / 10, "eval_runtime": 0.1, "step": step}
            for step, loss in enumerate(evaluations, 1)
        ]
        entries.sort(key=lambda entry: entry["step"])
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        return folder

    return run


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Compare runs, and return what is printed; the page is `tmp_path / "c.html"`."""

    def printed(*folders: Path, output: str = "c.html") -> str:
        compare([str(folder) for folder in folders], tmp_path / output, Console(width=200))
        return capsys.readouterr().out

    return printed


def _row(printed: str, name: str) -> list[str]:
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}  ")]
    return [cell.strip() for cell in line[len(name) :].split("  ") if cell.strip()]


def test_figures_differences_and_curves(browser: Any, make: Make, show: Any, tmp_path: Path) -> None:
    one = make("a/跑", [3.0, 2.0, 1.5], [2.5, 1.25, 2.0])
    other = make("b/跑", [3.0, 1.0], [2.0, 1.5], tuner="lora", seed=7)
    (one / "swiftplug.json").write_text("{}")
    with (other / "log.jsonl").open("a") as log:
        log.write('{"loss": 9, "st')  # is being written
    with locked_folder(other):
        printed = show(one, other)
    assert printed.splitlines()[0].split() == ["a/跑", "b/跑"]
    assert _row(printed, "state") == ["finished", "running"]
    assert _row(printed, "steps") == ["3", "2"]
    assert _row(printed, "tokens") == ["300", "200"]
    assert _row(printed, "loss at the end") == ["1.5", "1"]
    assert _row(printed, "best evaluation loss") == ["1.25 *", "1.5"]
    assert _row(printed, "best evaluation token acc") == ["0.875 *", "0.85"]
    assert _row(printed, "tuner") == ["full", "lora"]
    assert _row(printed, "seed") == ["42", "7"]
    assert "learning_rate" not in printed and "note:" not in printed

    browser.resize(1440, 900)
    browser.open((tmp_path / "c.html").as_uri())
    charts = browser.ask("JSON.parse(document.getElementById('curves').textContent).charts")
    drawn = {chart["title"]: [[each["x"], each["y"]] for each in chart["curves"]] for chart in charts}
    assert [*drawn][:2] == ["loss", "evaluation loss"] and [*drawn][-2:] == ["grad norm", "tokens per second"]
    assert drawn["loss"] == [[[1, 2, 3], [3.0, 2.0, 1.5]], [[1, 2], [3.0, 1.0]]]
    assert drawn["evaluation loss"] == [[[1, 2, 3], [2.5, 1.25, 2.0]], [[1, 2], [2.0, 1.5]]]
    assert drawn["tokens per second"][1] == [[1, 2], pytest.approx([50, 100 / 1.9], rel=1e-4)]  # evaluations took 0.1 s
    rows = "[...document.querySelectorAll('tr')].filter((row) => row.offsetHeight)"
    shown = f"{rows}.map((row) => row.cells[0].textContent)"
    assert "tuner" in browser.ask(shown) and "data.packing" not in browser.ask(shown)
    browser.click(".only")
    assert "data.packing" in browser.ask(shown)
    lines = "document.querySelector('.plot').querySelectorAll('.line').length"
    assert browser.ask(lines) == 2
    browser.click("[data-run='1']")
    assert browser.ask(lines) == 1
    assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    browser.resize(390, 900)
    browser.open((tmp_path / "c.html").as_uri())
    assert browser.ask("document.documentElement.scrollWidth") <= 390


def test_no_best_of_what_cannot_be_compared(make: Make, show: Any) -> None:
    runs = [make("a", [1.0], [1.0]), make("b", [1.0], [0.5], rows=9), make("c", [1.0])]
    printed = show(*runs)
    assert " *" not in printed
    assert "note: no best evaluation loss is named: the runs were evaluated on other rows" in printed
    assert "note: c: has no evaluation" in printed
    dpo = make("d", [1.0], [0.2], task="dpo")
    printed = show(runs[0], dpo, output="d.html")
    assert "named: the runs have other tasks, losses or token weights" in printed
    assert _row(printed, "best evaluation token acc") == ["0.9", "0.98 *"]


def test_runs_that_draw_are_compared_by_their_rewards(browser: Any, make: Make, show: Any, tmp_path: Path) -> None:
    def drawing(name: str, rewards: list[float], orm: str = "math") -> Path:
        folder = make(name, [0.0] * len(rewards), task="grpo", orm=[orm])
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for entry, reward in zip(log, rewards, strict=True):
            entry |= {"reward": reward, f"rewards/{orm}": reward, "length": 30.0, "missing_rewards": 0.0}
        log.append({"eval_reward": rewards[-1], "eval_pass@1": rewards[-1], "eval_length": 3.0, "step": len(rewards)})
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
        return folder

    one, two, other = drawing("one", [0.25, 0.5]), drawing("two", [0.25, 0.75]), drawing("other", [0.5, 1.0], "format")
    printed = show(one, two)
    figures = {line[:30].strip(): line[30:].split() for line in printed.splitlines()}
    assert figures["reward, the last tenth"] == ["0.5", "0.75"]
    assert figures["best evaluation reward"] == ["0.5", "0.75", "*"]
    assert figures["best evaluation pass@1"] == ["0.5", "0.75", "*"]
    assert "evaluation length" not in printed and "no best" not in printed
    browser.open((tmp_path / "c.html").as_uri())
    charts = browser.ask("JSON.parse(document.getElementById('curves').textContent).charts")
    assert [(chart["title"], chart["wide"]) for chart in charts][:2] == [("reward", True), ("evaluation reward", False)]
    assert [each["y"] for each in charts[0]["curves"]] == [[0.25, 0.5], [0.25, 0.75]]
    assert "no best evaluation reward is named: the runs have other scorers" in show(one, other, output="d.html")


def test_broken_logs_and_strange_names_are_shown(browser: Any, make: Make, show: Any, tmp_path: Path) -> None:
    one, other = make("<b>", [1.0], model=EVIL), make("empty", [])
    text = (one / "log.jsonl").read_text()
    (one / "log.jsonl").write_text('{"loss": Nan}\n' + text + '{"loss": NaN, "step": 2}\n')
    printed = show(one, other)
    assert f"note: {one / 'log.jsonl'}:1: is no entry of a log, and is left out" in printed
    assert _row(printed, "steps") == ["2", "-"]
    browser.open((tmp_path / "c.html").as_uri())
    assert browser.ask("document.querySelectorAll('img, b b, td b').length") == 0
    assert EVIL in browser.texts("td code")
    assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


def test_an_output_of_something_else_is_kept(make: Make, show: Any, tmp_path: Path) -> None:
    one, two, three = make("one", [1.0]), make("two", [1.0]), make("three", [1.0])
    show(one, two)
    page = (tmp_path / "c.html").read_text()
    show(two, one)  # is its own, in the order as given
    assert (tmp_path / "c.html").read_text().count("<title>two · one") == 1
    show(one, two)
    with pytest.raises(UserError, match=r"c\.html: exists and compares other runs; name another file"):
        show(one, three)
    assert (tmp_path / "c.html").read_text() == page
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: exists and is not a page of swiftplug compare"):
        show(one, two, output="notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="there is no folder"):
        show(one, two, output="no/c.html")
    with pytest.raises(UserError, match="is a folder, expected a file"):
        show(one, two, output="one")


def test_folders_that_are_no_two_trainings(make: Make, show: Any, tmp_path: Path) -> None:
    one = make("one", [1.0])
    samples = tmp_path / "samples"
    samples.mkdir()
    config = load_sample_config(None, {"model": "m", "dataset": ["d"], "output_dir": str(samples)}, []).config
    begin_record(samples, config, [], resumed=False, run="sample")
    (one / "checkpoint-2").mkdir()
    for folders, words in [
        ([one], "found one run, .*one, expected two or more"),
        ([one, one / ".." / "one"], "is given twice"),
        ([one, tmp_path / "onee"], r"onee: no such folder; did you mean '.*one'\?"),
        ([one, one / "log.jsonl"], r"log\.jsonl: is a file; did you mean '.*checkpoint-2'\?"),
        ([one, tmp_path], "expected the folder of a training run, found no run.json"),
        ([one, one / "checkpoint-2"], r"did you mean '.*one'\?"),
        ([one, samples], "found one of swiftplug sample; .* use swiftplug evaluate"),
    ]:
        with pytest.raises(UserError, match=words):
            show(*folders)
    assert not (tmp_path / "c.html").exists()


def test_it_imports_neither_torch_nor_transformers(make: Make, tmp_path: Path) -> None:
    runs = [str(make(name, [1.0])) for name in "ab"]
    code = (
        f"import sys; from swiftplug.cli.compare import compare; compare({runs!r}, {str(tmp_path / 'c.html')!r}); "
        "assert not {'torch', 'transformers', 'datasets'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
