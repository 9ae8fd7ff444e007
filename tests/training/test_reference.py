"""The reference model of a preference objective: each way to have it gives the run of every other."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.training.run import train

SETS = [
    "task=dpo",
    "training.learning_rate=1e-2",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=4",
]


@pytest.fixture
def preferences(run: Callable[..., Any], pair_file: Path) -> Callable[..., Any]:
    """`run` with pairs to train and to evaluate on."""

    def start(name: str, *sets: str, tuner: str = "lora", **options: Any) -> Any:
        data = {"dataset": [f"{pair_file}#10"], "eval_dataset": [f"{pair_file}#3"], "tuner": tuner}
        return run(name, [*SETS, *sets], **{**data, **options})

    return start


def log(result: Any) -> list[dict[str, float]]:
    lines = (result.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_run(one: Any, other: Any) -> None:
    for before, after in zip(log(one), log(other), strict=True):
        for name, value in before.items():
            if not name.endswith(("runtime", "per_second", "grad_norm")):
                assert after[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    weights = [next(result.run_dir.glob("*.safetensors")) for result in (one, other)]
    expected, found = map(load_file, weights)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("tuner", "sets", "reference"),
    [
        ("lora", ["tuner.lora_dropout=0.1"], "the model with its tuner disabled"),
        ("lora", ["tuner.init_lora_weights=pissa"], "a second copy of the model, 0.1 MB"),
        ("full", [], "a second copy of the model, 0.1 MB"),
    ],
)
def test_precomputed_it_gives_the_same_run(
    preferences: Any, tuner: str, sets: list[str], reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = preferences("first", *sets, tuner=tuner)
    assert f"reference: {reference}\n" in capsys.readouterr().out
    second = preferences("second", *sets, "reference=precompute", tuner=tuner)
    assert "reference: log-probabilities that are computed once, before training\n" in capsys.readouterr().out
    assert_same_run(first, second)
    entries = log(first)
    assert entries[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)  # the model is its own reference at first
    assert entries[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert entries[-1]["train_loss"] < 0.68


def test_what_is_stored_is_read_again(
    preferences: Any, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """By a run with another tuner too, but not by one with another model."""
    from swiftplug.training import reference

    computed = []
    compute = reference._reference_logps
    monkeypatch.setattr(reference, "_reference_logps", lambda *given: computed.append(1) or compute(*given))
    preferences("first", "reference=precompute")
    assert len(computed) == 2  # of both splits
    preferences("second", "reference=precompute", tuner="full")
    assert len(computed) == 2
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    other.model.norm.weight.data[0] += 1e-3
    folder = tmp_path / "other"
    other.save_pretrained(folder)
    for file in tiny_model_dir.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_bytes((tiny_model_dir / "chat_template.jinja").read_bytes())
    preferences("third", "reference=precompute", model=str(folder))
    assert len(computed) == 4


def test_of_an_adapter_that_is_trained_further_it_is_the_model_with_that_adapter(
    preferences: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = preferences("first")
    capsys.readouterr()
    second = preferences("second", model=str(first.run_dir))
    assert "reference: a second copy of the model, 0.1 MB" in capsys.readouterr().out
    assert log(second)[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert_same_run(second, preferences("third", "reference=precompute", model=str(first.run_dir)))


@pytest.mark.parametrize(
    ("tuner", "planned"),
    [("full", r"reference +a second copy of the model\n"), ("lora", r"reference +the model with its tuner disabled; ")],
)
def test_a_plan_says_which(
    tuner: str, planned: str, tiny_model_dir: Path, pair_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"task": "dpo", "model": str(tiny_model_dir), "dataset": [str(pair_file)], "tuner": tuner}
    train(load_train_config(None, given, []).config, dry_run=True)
    assert re.search(planned, capsys.readouterr().out)


def test_a_task_without_reference_refuses_it(run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="--set reference=precompute: task sft needs no reference model; drop it"):
        run("sft", ["reference=precompute"])
