"""The gradient of a step depends on its examples, not on how they are cut, packed or chunked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

RECORDER = Path(__file__).with_name("recorder.py").read_text(encoding="utf-8")
WHOLE = ["training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=1"]
SINGLE = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=8"]


@pytest.fixture
def gradients(run: Any, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The gradients of the first step of a run over eight examples."""

    def of(name: str, sets: list[str], **options: Any) -> dict[str, torch.Tensor]:
        file = tmp_path / f"{name}.safetensors"
        monkeypatch.setenv("GRADIENTS", str(file))
        sets = ["training.max_steps=1", *sets]
        run(name, sets, plugins=RECORDER, optimizer="recorder", **{"dataset": [f"{chat_file}#8"], **options})
        return load_file(file)

    return of


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(float(tensor.abs().max()) for tensor in expected.values()) > 1e-3
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_scale", ["default", "uneven"])
@pytest.mark.parametrize(
    "sets",
    [WHOLE, SINGLE, [*SINGLE, "data.group_by_length=false"], ["data.packing=true", "data.max_length=400", *WHOLE]],
    ids=["whole", "single", "random", "packed"],
)
def test_cut_and_packing_leave_the_gradient_alone(gradients: Any, sets: list[str], loss_scale: str) -> None:
    expected = gradients("textbook", WHOLE, loss="plain", loss_scale=loss_scale)
    assert_same(gradients("ours", sets, loss_scale=loss_scale), expected)


def test_chunks_leave_the_gradient_alone(gradients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients("textbook", WHOLE, loss="plain", loss_scale="uneven")
    monkeypatch.setattr("swiftplug.training.chunked_losses.LOGITS_IN_CHUNK", 1)  # 64 positions, the fewest
    assert_same(gradients("chunked", WHOLE, loss_scale="uneven"), expected)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_cut_chunks_and_checkpointing_leave_preferences_alone(
    gradients: Any, pair_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    """Nor does what an evaluation logs depend on its batches."""
    pairs = {"task": "dpo", "tuner": tuner, "dataset": [f"{pair_file}#8"], "eval_dataset": [f"{pair_file}#5"]}
    options = ["task.rpo_alpha=0.5", "training.eval_steps=1", "training.logging_steps=1"]
    expected = gradients("whole", [*options, *WHOLE], **pairs)
    monkeypatch.setattr("swiftplug.training.chunked_losses.LOGITS_IN_CHUNK", 1)
    small = [*SINGLE, "training.gradient_checkpointing=true", "training.per_device_eval_batch_size=2"]
    assert_same(gradients("single", [*options, *small], **pairs), expected)
    logs = [(tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines() for name in ("whole", "single")]
    whole, single = ({key: value for line in log for key, value in json.loads(line).items()} for log in logs)
    names = [f"{prefix}{name}" for prefix in ("", "eval_") for name in ("loss", "logps/chosen", "logps/rejected")]
    assert [single[name] for name in names] == pytest.approx([whole[name] for name in names], rel=1e-5)


def test_a_mean_is_divided_by_the_accumulation_steps(gradients: Any) -> None:
    halves = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2"]
    accumulated = gradients("mean", [*halves, "data.group_by_length=false"], loss="mean_only")
    exact = gradients("exact", [*halves, "data.group_by_length=false"])
    # Means of unequal batches are not the mean of all: near it, and not twice it.
    ratio = sum(float(t.norm()) for t in accumulated.values()) / sum(float(t.norm()) for t in exact.values())
    assert 0.8 < ratio < 1.25


def test_gradient_checkpointing_leaves_the_gradient_alone(gradients: Any) -> None:
    expected = gradients("textbook", WHOLE, loss="plain")
    assert_same(gradients("checkpointed", [*WHOLE, "training.gradient_checkpointing=true"]), expected)
