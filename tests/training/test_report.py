"""The page of a training, as a real browser shows it, against `log.jsonl`, pandas and what went in."""

import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
from sklearn.metrics import confusion_matrix
from typer.testing import CliRunner

from swiftplug.cli.main import app
from swiftplug.config.load import load_train_config
from swiftplug.errors import Interrupted, UserError
from swiftplug.training.page.answers import add_answers, forget_answers, read_answers
from swiftplug.training.page.config import flat_config
from swiftplug.training.page.curves import History, curve, smoothed, span_of, thin
from swiftplug.training.page.report import charts_of
from swiftplug.training.run import train

EVIL = "</script><img src=x onerror=alert(1)><b>bold</b><!-- &lt; {{ 7*7 }} 鸭子"

PLUGINS = """
import os
from transformers import TrainerCallback
from swiftplug.plugin import register_callback, register_metric

@register_callback("stopping")
class Stopping(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("STOP_AT", 0)):
            raise KeyboardInterrupt

@register_callback("failing")
class Failing(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise ValueError("<b>no</b> such luck")

@register_metric("echo")
class Echo:
    generate = True
    max_new_tokens = 3
    def __call__(self, predictions, references):
        return {"score": len(predictions) / 10}
"""


@pytest.fixture
def stopped(run: Any, chats: Any, write_jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of a run that has been stopped at step 3, after the checkpoint of step 2."""
    evil = [{"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]}]
    options = {
        "dataset": [str(write_jsonl([{"messages": 7}, *evil, *chats[:15]], "train.jsonl"))],
        "eval_dataset": [str(write_jsonl([*evil, *chats[:12]], "test.jsonl"))],
        "metrics": ["echo"],
        "callbacks": ["stopping"],
    }
    sets = [
        "training.eval_strategy=steps",
        "training.eval_steps=1",
        "training.save_strategy=steps",
        "training.save_steps=2",
        "training.logging_steps=1",
        "training.max_steps=4",
    ]
    monkeypatch.setenv("STOP_AT", "3")
    with pytest.raises(Interrupted):
        run("a 跑", sets, plugins=PLUGINS, **options)
    monkeypatch.delenv("STOP_AT")
    return {"name": "a 跑", "sets": sets, **options}


def test_answers_may_contain_any_end_of_line(tmp_path: Path) -> None:
    path, answer = tmp_path / "answers.jsonl", "one\u2028two\x85three\u2029four\r\nfive"
    for step in (1, 2):
        add_answers(path, step, [("prompt", "reference", answer)])
    forget_answers(path, 1)
    add_answers(path, 3, [("prompt", "reference", answer)])
    [row] = read_answers(path)
    assert row.answers == [(3, answer, False), (1, answer, False)]


def _figures(browser: Any) -> dict[str, str]:
    return dict(zip(browser.texts(".figures dt"), browser.texts(".figures dd b"), strict=True))


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _drawn(browser: Any) -> dict[tuple[str, str], list[list[float]]]:
    charts = browser.ask("JSON.parse(document.getElementById('curves').textContent).charts")
    return {(chart["title"], each["label"]): [each["x"], each["y"]] for chart in charts for each in chart["curves"]}


def test_a_run_that_is_stopped_and_resumed(
    browser: Any, run: Any, stopped: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a 跑"
    browser.resize(1440, 900)
    browser.open((folder / "report.html").as_uri())
    assert browser.texts(".status") == ["stopped at step 3 of 4"]
    assert _figures(browser)["Steps"] == "3"
    # What the run wrote behind its checkpoint is written again when it is resumed, once; here with other code.
    (tmp_path / "plugins_under_test.py").write_text(PLUGINS.replace("/ 10", "/ 100"), encoding="utf-8")
    config = load_train_config(str(folder), {}, []).config
    train(config, resume=True, allow_changed_plugins=True)
    assert f"page of the run: {folder / 'report.html'}" in capsys.readouterr().out
    log, steps = _log(folder), [1, 2, 3, 4]
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(each["step"], each["row"]) for each in answers] == [(step, row) for step in steps for row in range(10)]

    browser.open((folder / "report.html").as_uri())
    assert browser.texts("h1, .status") == ["a 跑", "finished"]
    losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    evaluations = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    figures, best = _figures(browser), min(evaluations.values())
    assert float(figures["Loss"]) == pytest.approx(losses[4], abs=6e-5)
    assert float(figures["Eval loss"]) == pytest.approx(best, abs=6e-5)
    assert figures["Tokens"] == f"{log[-1]['num_input_tokens_seen']:,}"
    drawn = _drawn(browser)
    for label, values in {"training": losses, "evaluation": evaluations}.items():
        assert drawn["loss", label] == [[*values], pytest.approx([*values.values()], rel=1e-5)]
    assert drawn["score", "evaluation"] == [steps, [1.3, 1.3, 0.13, 0.13]]
    assert drawn["learning rate", "training"][0] == steps
    assert browser.texts("#evaluations tbody th") == ["1", "2", "3", "4"]
    assert browser.texts(".event title") == ["resumed at step 2"] * len(browser.texts(".chart"))

    # Rows, answers and plugins, all as text.
    assert not browser.ask("document.querySelectorAll('img, pre b, td b').length")
    assert browser.ask("document.querySelector('.asked-for div:nth-child(2) pre').textContent") == EVIL
    assert browser.texts(".asked-for:first-child summary") == ["3 earlier"]
    shown = browser.ask("[...document.querySelectorAll('#tokens pre')].map((pre) => pre.textContent)")
    assert len(shown) == 3 and shown[0].count(EVIL) == 2
    assert "left out: " in browser.ask("document.getElementById('data').textContent")
    changed = "#plugins tr:has(.changed)"
    assert browser.texts(f"{changed} th") == ["echo", "stopping"]
    assert browser.texts(f"{changed} .changed") == ["changed since an earlier part of this run"] * 2
    assert browser.texts("#commands li .changed")[0] == "resumed at step 2"
    given = browser.texts(".yaml .given")
    assert {"max_steps: 4", "model: " + flat_config(config.plain())["model"]} <= {*given}
    assert "seed: 42" in browser.texts(".yaml span") and "seed: 42" not in given


def test_curves_are_read_out_zoomed_and_scaled(browser: Any, run: Any, chat_file: Path) -> None:
    sets = ["training.logging_steps=1", "training.num_train_epochs=5"]
    result = run("r", sets, eval_dataset=[f"{chat_file}#4"])
    losses = [entry["loss"] for entry in _log(result.run_dir) if "loss" in entry]
    browser.resize(1440, 900)
    browser.open((result.run_dir / "report.html").as_uri())
    first = "document.querySelector('.plot')"
    browser.ask(f"{first}.focus()")
    for key in ("Home", "ArrowRight"):
        browser.press(key)
    assert browser.ask(f"{first}.getAttribute('aria-valuenow')") == "2"
    read = browser.ask(f"{first}.getAttribute('aria-valuetext')")
    assert read.startswith("step 2: training ")
    assert float(read.split()[3].rstrip(",")) == pytest.approx(losses[1], abs=6e-4)
    assert {*browser.texts(".chart .place")} == {"step 2"}  # all charts
    browser.press("+")
    assert browser.ask(f"{first}.getAttribute('aria-valuemax')") != "10"
    browser.press("Escape")
    assert browser.ask(f"{first}.getAttribute('aria-valuemax')") == "10"
    before = browser.ask("document.querySelector('.line').getAttribute('d')")
    browser.click(".pill:nth-child(1)[aria-pressed=false]")  # log scale
    assert browser.ask("document.querySelector('.line').getAttribute('d')") != before
    browser.ask("[...document.querySelectorAll('.pill')].find((pill) => pill.textContent === 'Tokens').click()")
    assert float(browser.ask(f"{first}.getAttribute('aria-valuemax')")) > 500
    durations = ["0.5s", "10s", "1m", "2m", "1h", "2h01m"]
    assert browser.ask("[0.5, 9.96, 59.7, 119.7, 3599.7, 7260].map(duration)") == durations
    for width in (1440, 390):
        browser.resize(width, 900)
        browser.open((result.run_dir / "report.html").as_uri())
        assert browser.ask("document.documentElement.scrollWidth") <= width
        requests = [event for event in browser.events if event["method"] == "Network.requestWillBeSent"]
        assert {event["params"]["request"]["url"] for event in requests} == {(result.run_dir / "report.html").as_uri()}


def test_a_page_that_cannot_be_written_ends_no_run(
    run: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "r" / ".report.html.partial").mkdir(parents=True)  # where it would be written
    result = run("r", ["training.max_steps=1"])
    assert (result.run_dir / "model.safetensors").is_file()
    assert f"{result.run_dir / 'report.html'} could not be written: " in (printed := capsys.readouterr().out)
    assert "page of the run" not in printed


def test_the_page_of_a_run_that_failed_says_why(run: Any, browser: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        run("r", plugins=PLUGINS, callbacks=["failing"])
    browser.open((tmp_path / "r" / "report.html").as_uri())
    assert browser.texts(".status, main > .notice") == ["stopped at step 1 of 2", str(raised.value)]
    assert "ValueError: <b>no</b> such luck" in str(raised.value)


def test_answers_that_cannot_be_written_end_no_run_and_are_named(
    run: Any, stopped: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a 跑" / "answers.jsonl").unlink()
    (tmp_path / "a 跑" / "answers.jsonl").mkdir()
    result = run(**stopped, plugins=PLUGINS, resume=True)
    printed = capsys.readouterr().out
    assert f"{result.run_dir / 'answers.jsonl'} could not be written: Is a directory" in printed
    assert "report.html could not" not in printed
    assert f"page of the run: {result.run_dir / 'report.html'}" in printed


def test_the_confusion_matrix_of_a_classifier(run: Any, browser: Any, write_jsonl: Any, tmp_path: Path) -> None:
    labels = [EVIL, "b", "c", "b", "c", "c"]
    data = write_jsonl([{"text": f"{number} it is", "label": label} for number, label in enumerate(labels)])
    sets = ["training.num_train_epochs=2", "metrics=[acc]"]
    result = run("r", sets, task="seq_cls", dataset=[str(data)], eval_dataset=[str(data)])
    written = CliRunner().invoke(app, ["predict", str(tmp_path / "r"), str(data)], catch_exceptions=False).stdout
    predicted = [json.loads(line)["prediction"] for line in written.splitlines()]
    browser.resize(390, 900)
    browser.open((result.run_dir / "report.html").as_uri())
    names = sorted({*labels})
    assert browser.texts("#confusion thead th")[1:] == names
    assert browser.texts("#confusion tbody th") == names
    counts = [int(text or 0) for text in browser.texts("#confusion td")]
    assert counts == confusion_matrix(labels, predicted, labels=names).flatten().tolist()
    assert browser.ask("document.documentElement.scrollWidth") <= 390


def test_a_curve_of_many_points_keeps_its_spikes_and_stays_light() -> None:
    values = [2 + math.sin(step / 50) for step in range(20_000)]
    values[7_321], values[12_000], values[500] = 90.0, -90.0, math.nan
    names = ("loss", "grad_norm", "learning_rate")
    history = History([{"step": step} | dict.fromkeys(names, value) for step, value in enumerate(values)])
    drawn = curve(history, "loss", "training", 0)
    assert len(drawn["x"]) <= 1500 and (drawn["x"][0], drawn["x"][-1]) == (0, 19_999)
    assert {7_321: 90.0, 12_000: -90.0}.items() <= dict(zip(drawn["x"], drawn["y"], strict=True)).items()
    assert len(json.dumps(charts_of(history), allow_nan=False)) < 200_000
    oracle = pandas.Series(values).ewm(span=span_of(len(values)), ignore_na=True).mean()
    assert smoothed(values) == pytest.approx([*oracle])
    assert thin([1.0, 2.0]) == [0, 1]


def test_time_and_speed_count_all_parts_of_a_run_and_no_evaluation(tmp_path: Path) -> None:
    log = [
        {"loss": 3.0, "num_input_tokens_seen": 100, "train_runtime": 10.0, "step": 1},
        {"eval_loss": 2.0, "eval_runtime": 4.0, "step": 1},
        {"loss": 2.0, "num_input_tokens_seen": 200, "train_runtime": 19.0, "step": 2},
        {"loss": 1.0, "num_input_tokens_seen": 500, "train_runtime": 20.0, "step": 5},  # resumed at step 2
        {"loss": math.inf, "num_input_tokens_seen": 600, "train_runtime": 22.0, "step": 6},
        {"train_runtime": 23.0, "num_input_tokens_seen": 600, "step": 6},
    ]
    lines = [*map(json.dumps, log)]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*lines[:2], "{broken", "[1]", *lines[2:], '{"loss": 9']), encoding="utf-8")
    history = History.read(path, [2])
    assert [problem.split(": ")[0] for problem in history.problems] == [f"{path}:3", f"{path}:4"]
    assert [*history.entries] == log
    assert history.seconds == 19 + 23
    assert history.rates() == [(1, 10.0), (2, pytest.approx(100 / 5)), (6, 50.0)]
    assert history.clock()["seconds"] == [10, 19, 39, 41]
    assert history.speed == pytest.approx((100 + 100 + 100) / (10 + 5 + 3))
    assert curve(history, "loss", "", 0)["y"] == [3.0, 2.0, 1.0, None]


def test_configs_are_flat_by_the_keys_of_set() -> None:
    given: dict[str, Any] = {"tuner": "lora", "model": "m", "dataset": ["d#3"]}
    flat = flat_config(load_train_config(None, given, ["tuner.r=4", "training.bf16=true"]).config.plain())
    expected = {"tuner": "lora", "tuner.r": "4", "training.bf16": "true", "data.packing": "false", "dataset": "[d#3]"}
    assert expected.items() <= flat.items()
