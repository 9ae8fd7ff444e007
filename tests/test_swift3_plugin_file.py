"""A plugin file in the form of SWIFT 3.0 acts in a run, at its saves and at its resume."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import forks

PLUGINS = Path(__file__).parent / "data" / "swift3_plugins.py"
TOOL = {"name": "dice", "description": "Roll it.", "parameters": {"type": "object", "properties": {}}}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "tools": json.dumps([{"type": "function", "function": TOOL}]),
    }
    for question, answer in [
        ("HOW MANY?", "it is FOUR, I say"),
        ("how many?", "it is FIVE, I say"),
        ("WHO?", "SHE did it."),
        ("who?", "HE did it."),
        ("WHEN?", "At NOON or so."),
        ("when?", "At DAWN or so."),
    ]
]
STEPS = 9  # three epochs of three batches


def command(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    settings = {
        "training.num_train_epochs": 3,
        "training.per_device_train_batch_size": 2,
        "training.learning_rate": 0.5,
        "training.logging_steps": 1,
        "training.save_steps": 2,
        "training.max_grad_norm": 0,
        "training.eval_on_start": "true",
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    plugins = ["--plugin", PLUGINS, "--loss", "custom-loss", "--loss-scale", "shouting", "--tuner", "file:ia3"]
    plugins += ["--optimizer", "file:custom", "--tools", "custom", "--metric", "margin", "--metric", "hits"]
    files = ["--model", model, "--dataset", data, "--eval-dataset", data, "--output-dir", output]
    return ["train", *map(str, [*files, *plugins]), *sets, *more]


def run(line: list[str], trace: Path, **environment: str) -> tuple[int, list[str]]:
    """The exit code, and what the plugins wrote."""
    done = forks.run(*line, cwd=trace.parent, SWIFT3_TRACE=str(trace), **environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, trace.read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swift3")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def whole(folder: Path, data: Path, tiny_model_dir: Path) -> list[str]:
    """What the plugins wrote in a run that nothing disturbed; its folder is `folder / "whole"`."""
    return run(command(tiny_model_dir, data, folder / "whole"), folder / "whole.txt")[1]


@pytest.fixture(scope="module")
def resumed(folder: Path, data: Path, tiny_model_dir: Path) -> list[str]:
    """What they wrote when a run was killed after step 5 and resumed; its folder is `folder / "cut"`."""
    line = command(tiny_model_dir, data, folder / "cut")
    assert run(line, folder / "cut.txt", POWER_CUT="5")[0] == -signal.SIGKILL
    assert not (folder / "cut" / "adapter_model.safetensors").exists()
    # In an interpreter of its own, whose hashes have another seed.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SWIFT3_TRACE": str(folder / "resumed.txt")}
    command_line = [sys.executable, "-m", "swiftplug", *line, "--resume"]
    done = subprocess.run(command_line, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "resumed.txt").read_text().splitlines()


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_every_kind_acts(whole: list[str]) -> None:
    counts = Counter(line.split(":")[0] for line in whole)
    assert set(counts) == {"callback", "loss", "loss_scale", "metric", "optimizer", "tools", "tuner"}
    assert counts["loss_scale"] >= 3  # the three rows that shout
    assert counts["metric"] >= 1
    assert counts["loss"] >= STEPS


def test_the_saves_go_through_the_plugins(whole: list[str]) -> None:
    assert [line for line in whole if line.startswith("callback")] == [
        "callback: begin at 0",
        *(f"callback: save at {step}" for step in (2, 4, 6, 8, 9)),
    ]
    assert whole.count("tuner: prepare .*mlp.*") == 1
    assert whole.count("tuner: save PeftModel") == 6  # the checkpoints and the end
    assert not any(line.startswith("tuner: load") for line in whole)


class Answers(NamedTuple):
    """What the untuned model makes of the answers of `ROWS`, token by token.

    Attributes:
        logp: The log probability of each token.
        margin: How much likelier the likeliest token is there than the second.
        hit: Whether the token is the likeliest.
        weight: Its weight: 3 for a capital where the query is all capitals, else 1.
    """

    logp: list[float]
    margin: list[float]
    hit: list[bool]
    weight: list[float]


def answers_of(model: torch.nn.Module, tokenizer: Any, rows: list[dict[str, Any]]) -> Answers:
    """By plain Transformers, from the text up; a token is a character in the tiny model's tokenizer.

    The tools are the system message. The end-of-turn token trains with its answer, at the weight of its last part.
    """
    found = Answers([], [], [], [])
    for row in rows:
        query, answer = (message["content"] for message in row["messages"])
        system = {"role": "system", "content": f"TOOLS: {json.dumps(TOOL)}"}
        turns = [system, row["messages"][0]]
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(head).input_ids)
        ids = tokenizer(head + answer + "<|im_end|>", return_tensors="pt").input_ids
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        weights = [3.0 if query.isupper() and letter.isupper() else 1.0 for letter in answer]
        assert ids.shape[1] == start + len(answer) + 1
        for position, weight in zip(range(start, ids.shape[1]), [*weights, weights[-1]], strict=True):
            first, second = logp[position - 1].topk(2).values.tolist()
            token = ids[0, position]
            found.logp.append(float(logp[position - 1, token]))
            found.margin.append(first - second)
            found.hit.append(bool(logp[position - 1].argmax() == token))
            found.weight.append(weight)
    return found


def test_loss_weights_tools_and_metrics_are_what_the_file_says(
    whole: list[str], folder: Path, tiny_model_dir: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    base, again = (AutoModelForCausalLM.from_pretrained(tiny_model_dir) for _ in range(2))
    evaluations = [entry for entry in log_of(folder / "whole") if "eval_loss" in entry]
    for evaluation, model in [
        (evaluations[0], base),
        (evaluations[-1], PeftModel.from_pretrained(again, folder / "whole")),
    ]:
        expected = answers_of(model, tokenizer, ROWS)
        surprise = [weight * logp**2 / 2 for logp, weight in zip(expected.logp, expected.weight, strict=True)]
        assert evaluation["eval_loss"] == pytest.approx(np.mean(surprise), rel=1e-4)
        assert evaluation["eval_margin"] == pytest.approx(np.mean(expected.margin), rel=1e-3)
        assert evaluation["eval_token_hits"] == pytest.approx(np.mean(expected.hit))
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


def test_the_scheduler_of_the_optimizer_is_the_one_used(whole: list[str], folder: Path) -> None:
    assert "optimizer: 3 steps an epoch" in whole
    rates = [entry["learning_rate"] for entry in log_of(folder / "whole") if "loss" in entry]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125])


def test_a_resumed_run_loads_by_the_plugins(resumed: list[str]) -> None:
    assert resumed.count("callback: begin at 4") == 1
    assert resumed.count("tuner: load checkpoint-4 {'is_trainable': True}") == 1
    assert resumed.count("optimizer: loaded") == 1
    assert not any(line.startswith("tuner: prepare") for line in resumed)


def test_a_resumed_run_ends_like_an_undisturbed_one(whole: list[str], resumed: list[str], folder: Path) -> None:
    expected, found = (load_file(folder / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(not torch.equal(weight, torch.ones_like(weight)) for weight in expected.values())


def test_a_name_that_a_built_in_has_too_is_that_of_the_file_and_the_run_says_so(
    folder: Path, data: Path, tiny_model_dir: Path
) -> None:
    line = command(tiny_model_dir, data, folder / "planned", "--tuner", "ia3", "--dry-run")
    done = forks.run(*line, cwd=folder, SWIFT3_TRACE=os.devnull)
    assert done.returncode == 0, done.stderr
    assert f"tuner 'ia3' is that of {PLUGINS}, not swiftplug:ia3 (swiftplug " in done.stdout
    assert not (folder / "planned").exists()
