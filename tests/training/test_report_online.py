"""The page and the lines of a run that draws, against its own `candidates.jsonl` and `log.jsonl`."""

import json
import re
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.errors import Interrupted
from swiftplug.sampling.candidates_file import CandidatesFile
from swiftplug.sampling.ledger import Ledger
from swiftplug.training.online.record import RecordedStep
from swiftplug.training.page.candidates import shown_steps
from swiftplug.training.page.curves import History, best_of, in_order
from swiftplug.training.run import train

EVIL = "</script><img src=x onerror=alert(1)><b>bold</b> 鸭子"

PLUGINS = """
import os
from transformers import TrainerCallback
from swiftplug.builtin.engines.transformers import TransformersEngine
from swiftplug.plugin import Answered, Unscored, register_callback, register_engine, register_orm

@register_orm("lengths")
class Lengths:
    def __call__(self, completions, **columns):
        return [Unscored("<b>empty</b>") if len(text) % 3 == 0 else len(text) % 3 for text in completions]

@register_orm("even")
class Even:
    right_from = 1.0
    def __call__(self, completions, **columns):
        return [float(len(text) % 2 == 0) for text in completions]

@register_engine("failing")
class Failing(TransformersEngine):
    def draw(self, prompts, sampling):
        for number, answered in enumerate(super().draw(prompts, sampling)):
            yield Answered(answered.id, failure="no answer") if number == 1 else answered

@register_callback("stopping")
class Stopping(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("STOP_AT", 0)):
            raise KeyboardInterrupt
"""


@pytest.fixture
def options(chats: Any, write_jsonl: Any) -> dict[str, Any]:
    """The options of a short run of GRPO, with rewards that depend on the length of the answers."""
    evil = [{"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]}]
    sets = [
        "max_steps=4",
        "logging_steps=1",
        "eval_strategy=steps",
        "eval_steps=2",
        "save_steps=2",
        "per_device_train_batch_size=16",
    ]
    return {
        "dataset": [str(write_jsonl([*chats[:3], *evil], "train.jsonl"))],
        "eval_dataset": [str(write_jsonl(chats[:3], "test.jsonl"))],
        "sets": [f"training.{each}" for each in [*sets, "save_strategy=steps"]],
        "plugins": PLUGINS,
        "task": "grpo",
        "orm": ["lengths", "even"],
        "callbacks": ["stopping"],
        "num_return_sequences": 4,
        "max_new_tokens": 8,
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_page_shows_the_candidates_of_each_step(
    browser: Any, run: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOP_AT", "3")
    with pytest.raises(Interrupted):
        run("r", **options)
    monkeypatch.delenv("STOP_AT")
    train(load_train_config(str(tmp_path / "r"), {}, []).config, resume=True)
    folder = tmp_path / "r"
    candidates, log = _lines(folder / "candidates.jsonl"), _lines(folder / "log.jsonl")
    assert [each["step"] for each in candidates] == [step for step in (1, 2, 3, 4) for _ in range(16)]

    browser.resize(1440, 900)
    browser.open((folder / "report.html").as_uri())
    charts = browser.ask("JSON.parse(document.getElementById('curves').textContent).charts")
    drawn = {(chart["title"], each["label"]): each["y"] for chart in charts for each in chart["curves"]}
    for name in ("reward", "rewards/lengths", "rewards/even", "length", "entropy", "teaching_groups"):
        logged = [entry[name] for entry in log if name in entry]
        assert len(logged) == 4 and drawn[name.replace("_", " "), "training"] == pytest.approx(logged, rel=1e-5), name
    assert drawn["pass@1", "evaluation"] == pytest.approx(
        [each["eval_pass@1"] for each in log if "eval_pass@1" in each]
    )
    assert charts[0]["title"] == "reward" and charts[0]["wide"]
    assert not browser.texts("#tokens") and not browser.ask("document.querySelectorAll('img, .card b b').length")

    def step_shown() -> int:
        return int(re.fullmatch(r"Step (\d+)", browser.texts("#step-name")[0])[1])  # type: ignore[index]

    assert step_shown() == 4
    browser.ask("document.getElementById('step').focus()")
    for key, step in (("Home", 1), ("ArrowRight", 2)):
        browser.send(
            "Input.dispatchKeyEvent", type="rawKeyDown", key=key, windowsVirtualKeyCode={"Home": 36}.get(key, 39)
        )
        assert step_shown() == step
    browser.click("#step-after")
    assert step_shown() == 3
    for step in (1, 4):
        browser.open(f"{(folder / 'report.html').as_uri()}#step={step}")
        of_step = [each for each in candidates if each["step"] == step]
        rewards = [each["reward"] for each in of_step if each["reward"] is not None]
        [mean] = re.findall(r"^mean reward ([\d.]+)", browser.texts("#step-facts")[0])
        assert float(mean) == pytest.approx(fmean(rewards), abs=5e-3)
        rows = [[*group] for _, group in groupby(of_step, key=lambda each: each["id"])]
        assert len(browser.texts("#list li")) == 4
        for place, group in enumerate(rows):
            browser.open(f"{(folder / 'report.html').as_uri()}#step={step}&row={place}")
            shown = browser.ask("[...document.querySelectorAll('.message .text')].map((node) => node.textContent)")
            assert shown[0] == group[0]["messages"][0]["content"]
            texts = browser.ask("[...document.querySelectorAll('.card .text')].map((node) => node.textContent)")
            assert texts == [each["messages"][-1]["content"] or "empty" for each in group]
            for card, each in zip(browser.texts(".card"), group, strict=True):
                if each["reward"] is None:
                    assert each["advantage"] is None and each["scores"].keys() == {"even"}
                    assert "does not train" in card and "No reward lengths: <b>empty</b>" in card
                else:
                    [advantage] = re.findall(r"advantage ([+-]?[\d.]+)", card)
                    assert float(advantage) == pytest.approx(each["advantage"], abs=5e-3)
                    assert advantage.startswith("+") == (each["advantage"] > 0)
                    assert f"reward {each['reward']:g}" in card
    assert any(each["reward"] is None for each in candidates)

    # The fragment of another section changes nothing.
    browser.open(f"{(folder / 'report.html').as_uri()}#step=2")
    browser.ask("document.querySelector('.contents a[href=\"#config\"]').click()")
    assert step_shown() == 2
    for width in (1440, 390):
        browser.resize(width, 900)
        browser.open((folder / "report.html").as_uri())
        assert browser.ask("document.documentElement.scrollWidth") <= width


def test_the_lines_of_a_run_are_short_and_say_what_was_lost(
    run: Any, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("r", **options).run_dir
    printed, log = capsys.readouterr().out, _lines(folder / "log.jsonl")
    number = r"-?\d\.\d{3}"
    steps = re.findall(
        rf"^step (\d)/4  reward +({number})  lengths +({number})  even +({number})  length +[\d.]+  "
        r"teaching groups +\d+%  cut off +\d+%  [\d.]+ candidates/s  \d+s left$",
        printed,
        re.M,
    )
    logged = [entry for entry in log if "reward" in entry]
    assert [(int(step), float(reward)) for step, reward, *_ in steps] == [
        (entry["step"], pytest.approx(entry["reward"], abs=6e-4)) for entry in logged
    ]
    assert len({len(line) for line in re.findall(r"^(step \d/4  reward.*)cut off", printed, re.M)}) == 1
    evaluations = [entry for entry in log if "eval_reward" in entry]
    assert re.findall(r"^step (\d)/4  evaluation  reward", printed, re.M) == [str(each["step"]) for each in evaluations]
    candidates = _lines(folder / "candidates.jsonl")
    missing = sum(each["reward"] is None for each in candidates)
    evaluated = sum(round(each["eval_missing_rewards"] * 12) for each in evaluations)
    lost = re.findall(r"^up to step \d: (\d+) candidates? without a reward \(lengths: <b>empty</b>\)$", printed, re.M)
    assert sum(map(int, lost)) == missing + evaluated > 0
    assert f"since it was started: {missing + evaluated} candidates without a reward (lengths: <b>empty" in printed
    first, last = logged[0]["reward"], logged[-1]["reward"]
    before, after = (f"{100 * each['eval_pass@1']:.1f}".removesuffix(".0") for each in evaluations)
    assert (
        f": reward {first:.3f} -> {last:.3f} (first and last tenth), pass@1 {before}% (step 2) -> {after}%" in printed
    )
    assert (
        f"candidates of all steps: {folder / 'candidates.jsonl'}\ntry the model: swiftplug chat {folder}\n" in printed
    )


def test_prompts_that_are_only_replaced_have_no_line_of_their_own(
    run: Any, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"training.{each}" for each in ("max_steps=2", "logging_steps=1", "per_device_train_batch_size=8")]
    changed = {"orm": ["even"], "num_return_sequences": 2, "eval_dataset": []}
    run("r", **{**options, **changed, "sets": [*sets, "task.filter_groups=1"]})
    printed = capsys.readouterr().out
    assert "up to step" not in printed
    assert re.search(r"^since it was started: \d+ prompts? replaced, as all their rewards were equal$", printed, re.M)


def test_prompts_that_fail_or_are_replaced_are_counted_and_kept(
    browser: Any, run: Any, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"training.{each}" for each in ("max_steps=4", "logging_steps=1", "per_device_train_batch_size=8")]
    sets.append("task.filter_groups=1")
    changed = {"engine": "failing", "orm": ["even"], "num_return_sequences": 2, "sets": sets, "eval_dataset": []}
    folder = run("r", **{**options, **changed}).run_dir
    printed = capsys.readouterr().out
    [end] = re.findall(r"^since it was started: (.*)$", printed, re.M)
    for pattern in (
        r"(\d+) prompts? without candidates \(no answer\)",
        r"(\d+) prompts? replaced, as all their rewards",
    ):
        each = [
            int(count) for line in re.findall(r"^up to step .*$", printed, re.M) for count in re.findall(pattern, line)
        ]
        assert each and re.findall(pattern, end) == [str(sum(each))]
    # The second of the 4 prompts of a step fails; one that was replaced is in the file beside the one in its place.
    written = _lines(folder / "candidates.jsonl")
    failures = [line for line in written if "failure" in line]
    [failed] = re.findall(r"(\d+) prompts? without candidates", end)
    assert len(failures) == int(failed) >= 4
    assert all(line["failure"] == "no answer" and line["messages"][-1]["role"] == "user" for line in failures)
    drawn = [line for line in written if "failure" not in line]
    steps = [[*group] for _, group in groupby(drawn, key=lambda each: each["step"])]
    [replaced] = re.findall(r"(\d+) prompts? replaced", end)
    assert len(steps) == 4 and all(6 <= len(step) <= 6 + 2 * 4 for step in steps)
    assert sum(map(len, steps)) >= 4 * 6 + 2 * int(replaced) > 4 * 6

    # Each is on the page of its step with the reason, and no candidate to score again.
    browser.open(f"{(folder / 'report.html').as_uri()}#step=4")
    of_step = [line for line in failures if line["step"] == 4]
    assert (
        f"{len(of_step)} prompt{'s' if len(of_step) > 1 else ''} without candidates" in browser.texts("#step-facts")[0]
    )
    assert [item.count("no answer") for item in browser.texts("#list li")].count(1) == len(of_step)
    step_lines = [line for line in written if line["step"] == 4]
    starts = [line for line in step_lines if "failure" in line or line["index"] == 0]
    place = starts.index(of_step[0])
    browser.open(f"{(folder / 'report.html').as_uri()}#step=4&row={place}")
    assert browser.texts(".notice") == ["No candidates: no answer"]
    ledger = Ledger(folder / "again", is_new=True)
    source = CandidatesFile(folder / "candidates.jsonl")
    source.read_into(ledger, has_dataset=False)
    assert source.taken == len(drawn)


def test_of_a_long_run_the_page_shows_the_most_telling_steps(tmp_path: Path) -> None:
    path, steps = tmp_path / "candidates.jsonl", []
    with path.open("wb") as file:
        for step in range(1, 301):
            reward = {77: 9.0, 123: -9.0}.get(step, step / 300)
            lines = [
                {
                    "step": step,
                    "id": f"{prompt}",
                    "index": index,
                    "messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "因为" * 2000}],
                    "reference": None,
                    "finish_reason": "stop",
                    "scores": {"a": reward, "b": [0.5, 1.0]},
                    "reasons": [],
                    "reward": reward,
                    "advantage": 0.0,
                }
                for prompt in range(8)
                for index in range(4)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines).encode()
            steps.append(RecordedStep(step, file.tell(), len(text), reward))
            file.write(text)
    shown = shown_steps(path, steps, {"a": 1.0}, lambda reward: min(reward) if isinstance(reward, list) else reward)
    numbers = [each["step"] for each in shown]
    assert {1, 77, 123, 300} <= {*numbers} and numbers == sorted({*numbers})
    assert [each["step"] for each in shown if "is" in each] == [77, 123]
    assert len(json.dumps(shown, ensure_ascii=False)) < 450_000
    assert all(len(each["rows"]) < each["prompts"] == 8 for each in shown)
    assert len(numbers) > 4 and max(later - earlier for earlier, later in pairwise(numbers)) < 90
    candidate = next(each for each in shown if each["step"] == 77)["rows"][0]["candidates"][0]
    assert candidate["right"] and candidate["scores"] == {"a": 9.0, "b": 0.5} and candidate["text"][1] == 1500
    assert shown_steps(path, [], {}, min) == []
    assert [each["step"] for each in shown_steps(path, steps[:1], {}, lambda reward: 0.0)] == [1]


def test_curves_of_rewards_come_first_and_what_says_nothing_is_left_out() -> None:
    log = [
        {"step": step, "loss": 0.0, "learning_rate": 1.0, "length": 5.0 - step, "missing_rewards": 0.0, "kl": 0.1}
        | {
            "reward": float(step),
            "rewards/math": float(step),
            "eval_reward": 1.0,
            "eval_pass@1": 0.5,
            "eval_length": 3.0,
        }
        for step in range(1, 41)
    ]
    history = History(log)
    assert history.names() == [
        "reward",
        "eval_reward",
        "eval_pass@1",
        "length",
        "kl",
        "eval_length",
        "loss",
        "learning_rate",
    ]
    assert history.ends("reward") == (fmean([1, 2, 3, 4]), fmean([37, 38, 39, 40]))
    evaluations = history.evaluations()
    assert best_of(evaluations, "length", {}) is None and best_of(evaluations, "pass@1", {}) is evaluations[0]
    assert in_order(["learning_rate", "entropy", "loss"]) == ["loss", "entropy", "learning_rate"]
