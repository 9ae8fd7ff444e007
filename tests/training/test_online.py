"""Runs that draw: what trains, what is left out, and what is written of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from swiftplug.sampling.statistics import pass_at
from swiftplug.training.page.curves import History
from tests import forks

PLUGINS = """
import torch
from swiftplug.builtin.engines.transformers import TransformersEngine
from swiftplug.builtin.tasks.online import GRPO
from swiftplug.plugin import (
    ORM, Answered, ContextType, LossScale, Unscored, register_engine, register_loss_scale, register_orm, register_task
)

class Fails(TransformersEngine):
    def draw(self, prompts, sampling):
        yield Answered("of nobody", [])
        for place, answered in enumerate(super().draw(prompts, sampling)):
            yield answered if place else self.spoil(answered)

    def close(self):
        super().close()
        print("closed the engine")

@register_engine("falls_silent")
class FallsSilent(Fails):
    def spoil(self, answered):
        return answered._replace(completions=answered.completions[1:], failure="the server is away")

@register_engine("miscounts")
class Miscounts(Fails):
    def spoil(self, answered):
        return answered._replace(completions=answered.completions[1:])

@register_engine("breaks_midway")
class BreaksMidway(TransformersEngine):
    may_change = ("how",)  # how its second drawing is wrong

    def __init__(self, how: str = "not at all"):
        super().__init__()
        self.how, self.drawings = how, 0

    def draw(self, prompts, sampling):
        self.drawings += 1
        for answered in super().draw(prompts, sampling):
            first, *others = answered.completions
            if self.drawings == 2 and self.how == "raises":
                raise OSError("no route to the engine")
            elif self.drawings == 2 and self.how == "type":
                yield first
            elif self.drawings == 2 and self.how == "ids":
                yield answered._replace(completions=[first._replace(ids=[0, 10**6]), *others])
            elif self.drawings == 2 and self.how == "logps":
                yield answered._replace(completions=[first._replace(logps=[-1.0] * 99), *others])
            else:
                yield answered

@register_task("reads_all")
class ReadsAll(GRPO):
    skips_zero_advantages = False

@register_loss_scale("from_fourth")
class FromFourth(LossScale):  # leaves out the first characters of an answer, or weighs them otherwise
    def __init__(self, weight: float = 0.0, characters: int = 3):
        self.weight, self.characters = weight, characters

    def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        if context_type != ContextType.RESPONSE:
            return super().get_loss_scale(context, context_type, is_last_round, **kwargs)
        assert kwargs["query"] and is_last_round
        return [context[: self.characters], context[self.characters :]], [self.weight, 1.0]

@register_orm("vowels")
class Vowels(ORM):
    needs_reference = False

    def __call__(self, infer_requests, ground_truths, **kwargs):
        return [self.score(request.messages[-1]["content"]) for request in infer_requests]

    def score(self, text):
        return float(sum(map(text.count, "aeiou")) > 1)

@register_orm("silent")
class Silent(Vowels):
    def __init__(self, share: float = 1.0):
        self.share, self.calls = share, 0

    def score(self, text):
        self.calls += 1
        return Unscored("the server is away") if self.calls * self.share % 1 < self.share else super().score(text)

@register_orm("knows_some")
class KnowsSome(Vowels):
    def __call__(self, infer_requests, ground_truths, **kwargs):
        rewards = super().__call__(infer_requests, ground_truths)
        known = [request.columns.get("known", True) for request in infer_requests]
        return [reward if it else None for reward, it in zip(rewards, known, strict=True)]

@register_orm("breaks")
class Breaks(Vowels):
    calls = 0

    def __call__(self, infer_requests, ground_truths, **kwargs):
        self.calls += 1
        if self.calls == 3:
            raise OSError("no route to the judge")
        return super().__call__(infer_requests, ground_truths)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugins") / "online.py"
    file.write_text(PLUGINS)
    return file


def train(folder: Path, model: Path, data: Path, plugins: Path, *options: str) -> Any:
    sets = {
        "training.max_steps": 3,
        "training.per_device_train_batch_size": 12,
        "training.learning_rate": 1e-3,
        "training.logging_steps": 1,
        "num_return_sequences": 4,
        "max_new_tokens": 8,
    }
    command = ["train", "--task=grpo", f"--model={model}", f"--dataset={data}", f"--plugin={plugins}"]
    command += [f"--output-dir={folder}", *(f"--set={key}={value}" for key, value in sets.items()), *options]
    return forks.run(*command, cwd=folder.parent)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_candidate_is_kept_with_its_rewards_and_advantage(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    options = ["--orm=vowels", "--set=orm.vowels.weight=2", f"--eval-dataset={chat_file}#3"]
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options, "--set=training.eval_strategy=epoch")
    assert done.returncode == 0, done.stderr
    drawn, logged = lines(tmp_path / "run/candidates.jsonl"), lines(tmp_path / "run/log.jsonl")
    assert [line["step"] for line in drawn] == [1] * 12 + [2] * 12 + [3] * 12
    for start in range(0, 36, 4):
        group = drawn[start : start + 4]
        assert [line["index"] for line in group] == [0, 1, 2, 3]
        assert len({line["id"] for line in group}) == 1
        rewards = torch.tensor([line["reward"] for line in group])
        assert rewards.tolist() == [2 * line["scores"]["vowels"] for line in group]
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        torch.testing.assert_close(torch.tensor([line["advantage"] for line in group]), expected)
    for step in (1, 2, 3):
        own = [line for line in drawn if line["step"] == step]
        entry = next(entry for entry in logged if entry["step"] == step and "loss" in entry)
        assert entry["reward"] == pytest.approx(sum(line["reward"] for line in own) / 12)
        assert (
            entry["teaching_groups"] == sum(any(each["advantage"] for each in own[at : at + 4]) for at in (0, 4, 8)) / 3
        )
    evaluated = next(entry for entry in logged if "eval_reward" in entry)
    assert 0 <= evaluated["eval_pass@1"] <= evaluated["eval_pass@4"] <= 1
    assert evaluated["eval_pass@1"] == pytest.approx(evaluated["eval_rewards/vowels"])
    assert pass_at(4, 4, 1) == 1
    trained = [entry for entry in logged if "loss" in entry]
    seconds = [{name: entry[name] for name in entry if name.startswith("seconds/")} for entry in trained]
    for each in seconds:
        assert each.keys() == {"seconds/drawing", "seconds/scoring_with_vowels", "seconds/training"}
    assert 0 < sum(sum(each.values()) for each in seconds) < trained[-1]["train_runtime"]
    assert not any(name.startswith("seconds/") for name in History(logged).names())


def test_what_has_no_advantage_is_not_read_and_counts(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    for loss in ("grpo", "dapo"):
        options = ["--orm=vowels", f"--set=task.loss={loss}", "--set=training.gradient_accumulation_steps=2"]
        for task in ("grpo", "reads_all"):
            done = train(tmp_path / f"{task}-{loss}", tiny_model_dir, chat_file, plugins, *options, f"--task={task}")
            assert done.returncode == 0, done.stderr
        drawn = lines(tmp_path / f"grpo-{loss}/candidates.jsonl")
        assert {bool(line["advantage"]) for line in drawn} == {False, True}
        skipped, read = (load_file(tmp_path / f"{task}-{loss}/model.safetensors") for task in ("grpo", "reads_all"))
        for name, weight in read.items():
            torch.testing.assert_close(skipped[name], weight, rtol=1e-4, atol=1e-6)


def test_missing_rewards_leave_candidates_out(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    options = ["--orm=silent", "--set=orm.silent.share=0.25", "--set=training.max_steps=1"]
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options)
    assert done.returncode == 0, done.stderr
    drawn = lines(tmp_path / "run/candidates.jsonl")
    missing = [line for line in drawn if line["reward"] is None]
    assert len(missing) == 3
    assert all(line["advantage"] is None for line in missing)
    (entry,) = [entry for entry in lines(tmp_path / "run/log.jsonl") if "loss" in entry]
    assert entry["missing_rewards"] == 0.25
    done = train(tmp_path / "none", tiny_model_dir, chat_file, plugins, "--orm=silent")
    assert done.returncode == 2
    assert "no candidate of step 1 has a reward to learn from: silent: the server is away" in done.stderr


def test_a_scorer_that_fails_stops_the_run_which_resumes(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    save = "--set=training.save_steps=1"
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, "--orm=breaks", save)
    assert done.returncode != 0
    assert "breaks" in done.stderr
    assert "no route to the judge" in done.stderr
    assert "Traceback" not in done.stderr
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, "--orm=breaks", save, "--resume")
    assert done.returncode == 0, done.stderr
    assert train(tmp_path / "whole", tiny_model_dir, chat_file, plugins, "--orm=vowels", save).returncode == 0
    rewards = [[line["reward"] for line in lines(tmp_path / name / "candidates.jsonl")] for name in ("run", "whole")]
    assert rewards[0] == rewards[1]


def test_groups_that_teach_nothing_are_replaced(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    for times in (0, 8):
        folder = tmp_path / str(times)
        options = ["--orm=vowels", "--set=training.max_steps=1", f"--set=task.filter_groups={times}"]
        done = train(folder, tiny_model_dir, chat_file, plugins, *options)
        assert done.returncode == 0, done.stderr
    before, after = (lines(tmp_path / name / "candidates.jsonl") for name in ("0", "8"))
    assert any(line["advantage"] == 0 for line in before)
    trained = [line for line in after if not line["reasons"]]
    assert len(trained) == len(before) == 12
    assert all(line["advantage"] for line in trained)
    replaced = [line for line in after if line["reasons"]]
    assert replaced
    assert all(line["advantage"] is None for line in replaced)
    (entry,) = [entry for entry in lines(tmp_path / "8/log.jsonl") if "loss" in entry]
    assert entry["reward"] == pytest.approx(sum(line["reward"] for line in after) / len(after))


@pytest.mark.parametrize("task", ["grpo", "ppo"])
def test_a_run_that_drew_is_evaluated_as_in_training_and_by_other_tasks(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path, task: str
) -> None:
    options = [f"--task={task}", "--orm=vowels", f"--eval-dataset={chat_file}#3", "--set=training.eval_strategy=epoch"]
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options, "--set=training.max_steps=1")
    assert done.returncode == 0, done.stderr
    logged = next(entry for entry in lines(tmp_path / "run/log.jsonl") if "eval_reward" in entry)
    command = ["evaluate", str(tmp_path / "run"), f"--output-dir={tmp_path / 'own'}", "--json"]
    done = forks.run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["models"][0]["metrics"]
    for name in ("reward", "length", "pass@1", "pass@4"):
        assert figures[name] == logged[f"eval_{name}"]
    done = forks.run(*command[:2], f"--output-dir={tmp_path / 'sft'}", "--task=sft", "--metric=acc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_prompt_at_which_the_engine_fails_is_left_out(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    options = ["--orm=vowels", "--engine=falls_silent", f"--eval-dataset={chat_file}#3"]
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options, "--set=training.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert "1 prompt without candidates (the server is away)" in done.stdout
    drawn = [line.get("failure") for line in lines(tmp_path / "run/candidates.jsonl")]
    assert (drawn.count(None), drawn.count("the server is away")) == (8, 1)
    assert done.stdout.count("closed the engine") == 1
    done = forks.run("evaluate", str(tmp_path / "run"), f"--output-dir={tmp_path / 'own'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("closed the engine") == 1


def test_an_engine_that_leaves_out_a_candidate_is_named(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, "--orm=vowels", "--engine=miscounts")
    assert done.returncode == 2
    assert "returned 3 candidates for" in done.stderr and "; expected 4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "raised OSError: no route to the engine (online.py:"),
        ("type", "returned a Completion, expected an Answered"),
        ("ids", "returned tokens that the model does not have, for "),
        ("logps", "returned 99 `logps` for "),
    ],
)
def test_an_engine_that_breaks_midway_stops_the_run_which_resumes(
    how: str, message: str, tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    options = ["--orm=vowels", "--engine=breaks_midway", "--set=training.save_steps=1"]
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options, f"--set=engine.how={how}")
    assert done.returncode == 2
    assert f"/online.py {message}" in done.stderr and "Traceback" not in done.stderr
    assert "stopped at step 1 of 3; checkpoint-1 is saved; go on: swiftplug train" in done.stdout
    assert {line["step"] for line in lines(tmp_path / "run/candidates.jsonl")} == {1}
    if how == "raises":
        done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options, "--resume")
        assert done.returncode == 0, done.stderr
        done = train(tmp_path / "whole", tiny_model_dir, chat_file, plugins, *options)
        assert done.returncode == 0, done.stderr
        for name in ("candidates.jsonl", "model.safetensors"):
            assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_evaluation_in_which_nothing_is_judged_has_no_best_model(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "2 + 2?", "known": False}]
    (tmp_path / "unknown.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sets = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 2}
    sets |= {"load_best_model_at_end": "true", "metric_for_best_model": "pass@1", "save_strategy": "steps"}
    options = ["--orm=knows_some", f"--eval-dataset={tmp_path / 'unknown.jsonl'}"]
    options += [f"--set=training.{name}={value}" for name, value in sets.items()]
    done = train(tmp_path / "run", tiny_model_dir, chat_file, plugins, *options)
    assert done.returncode == 0, done.stderr


def test_a_loss_scale_leaves_drawn_tokens_out(
    tiny_model_dir: Path, chat_file: Path, plugins: Path, tmp_path: Path
) -> None:
    def run(name: str, *options: str) -> Any:
        return train(tmp_path / name, tiny_model_dir, chat_file, plugins, "--orm=vowels", *options)

    trained = {}
    for characters in ("0", "3", "1000"):
        done = run(characters, "--loss-scale=from_fourth", f"--set=loss_scale.characters={characters}")
        assert done.returncode == 0, done.stderr
        trained[characters] = load_file(tmp_path / characters / "model.safetensors")
    assert run("all").returncode == 0
    whole, begun = (load_file(folder / "model.safetensors") for folder in (tmp_path / "all", tiny_model_dir))
    assert all(weight.equal(whole[name]) for name, weight in trained["0"].items())
    assert not all(weight.equal(whole[name]) for name, weight in trained["3"].items())
    assert all(weight.equal(begun[name]) for name, weight in trained["1000"].items())
    done = run("half", "--loss-scale=from_fourth", "--set=loss_scale.weight=0.5")
    assert done.returncode == 2
    line = r"^error: candidate 0 of .*from_fourth.* weighs '.*' 0\.5; GRPO takes the weights 0 and 1 only$"
    assert re.search(line, done.stderr, re.M), done.stderr
