"""A small dataset, and runs made in this process by the function that the command line calls."""

import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.training.loss import BatchLoss
from swiftplug.training.run import TrainResult, train
from swiftplug.training.task_loss import TaskLossComputer

Run = Callable[..., TrainResult]

# An optimizer that remembers the trained parameters and their gradients, and changes nothing.
SPY = """
import sys
import torch
from swiftplug.plugin import register_optimizer

class Spy(torch.optim.SGD):
    def step(self, closure=None):
        seen = sys.modules["seen_by_spy"]
        trained = {name: it for name, it in seen.model.named_parameters() if it.requires_grad}
        seen.weights = {name: it.detach().clone() for name, it in trained.items()}
        seen.gradients = {name: it.grad.clone() for name, it in trained.items() if it.grad is not None}

@register_optimizer("spy")
def spy(args, model, dataset):
    sys.modules["seen_by_spy"].model = model
    return Spy([it for it in model.parameters() if it.requires_grad], lr=0.0), None
"""


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Forty short conversations of varied length, some of two rounds."""
    draw = random.Random(0)
    rows = []
    for number in range(40):
        messages = []
        for _ in range(draw.choice([1, 1, 2])):
            a, b = draw.randrange(90), draw.randrange(90)
            filler = " please" * draw.randrange(12)
            messages.append({"role": "user", "content": f"{number}: {a} + {b}?{filler}"})
            messages.append({"role": "assistant", "content": f"It is {a + b}." + " Yes." * draw.randrange(6)})
        rows.append({"messages": messages})
    return rows


@pytest.fixture
def chat_file(chats: list[dict[str, Any]], write_jsonl: Any) -> Path:
    """The conversations as a JSONL file."""
    path: Path = write_jsonl(chats)
    return path


@pytest.fixture
def pair_file(chats: list[dict[str, Any]], write_jsonl: Any) -> Path:
    """The same conversations, each with a worse last answer, some longer and some shorter, as a JSONL file."""
    worse = (f"It is {number}." + " No." * (number % 5) for number in range(len(chats)))
    rows = [{**chat, "rejected_response": answer} for chat, answer in zip(chats, worse, strict=True)]
    path: Path = write_jsonl(rows, "pairs.jsonl")
    return path


@pytest.fixture
def run(tiny_model_dir: Path, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train the tiny model: `run(name, sets, plugins=SOURCE, **options)` leaves its folder at `tmp_path / name`."""
    monkeypatch.setenv("SWIFTPLUG_CACHE", str(tmp_path / "cache"))

    def start(
        name: str = "run",
        sets: Sequence[str] = (),
        *,
        plugins: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> TrainResult:
        if plugins is not None:
            file = tmp_path / "plugins_under_test.py"
            file.write_text(plugins, encoding="utf-8")
            options["plugins.files"] = [str(file)]
        given = {"model": str(tiny_model_dir), "dataset": [f"{chat_file}#16"], "output_dir": str(tmp_path / name)}
        few = ["training.num_train_epochs=1", "training.per_device_train_batch_size=8", "training.save_strategy=no"]
        config = load_train_config(None, {**given, **options}, [*few, *sets]).config
        result = train(config, resume=resume, overwrite=overwrite)
        assert result is not None
        return result

    return start


@pytest.fixture(scope="session")
def bare_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose template writes nothing after the end of a turn: TRL would train that too."""
    folder = tmp_path_factory.mktemp("bare") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the optimizer plugin `spy`, whose `source` this has, will have seen: `weights` and `gradients`."""
    module: Any = ModuleType("seen_by_spy")
    module.source = SPY
    monkeypatch.setitem(sys.modules, "seen_by_spy", module)
    return module


@pytest.fixture
def first_step(
    run: Run, trl_oracle: Any, bare_model_dir: Path, write_jsonl: Any, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Train on all rows for one step: `first_step(task, rows, lora=None, seed=42, **options of the task)`.

    All rows are one batch, or several of `batch_size`. It returns an object with `step` (see `trl_oracle.Step`), the
    trained `weights` at its start, and the `metrics` that the run logged.
    """
    calls: list[tuple[Mapping[str, Any], BatchLoss]] = []
    compute = TaskLossComputer.__call__

    def recording(self: Any, model: Any, batch: Any, *args: Any, **kwargs: Any) -> BatchLoss:
        calls.append((batch, compute(self, model, batch, *args, **kwargs)))
        return calls[-1][1]

    monkeypatch.setattr(TaskLossComputer, "__call__", recording)

    def step(
        task: str,
        rows: Sequence[dict[str, Any]],
        lora: Mapping[str, Any] | None = None,
        seed: int = 42,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        calls.clear()
        size = batch_size or len(rows)
        given: dict[str, Any] = {"task": task, "model": str(bare_model_dir), "dataset": [str(write_jsonl(rows))]}
        given["optimizer"] = "spy"
        sets: dict[str, Any] = {f"task.{name}": value for name, value in options.items()}
        if lora is not None:
            given["tuner"] = "lora"
            sets |= {f"tuner.{name}": value for name, value in lora.items()}
        training = {"max_steps": 1, "max_grad_norm": 0, "logging_steps": 1, "per_device_train_batch_size": size}
        training["gradient_accumulation_steps"] = len(rows) // size
        sets["seed"] = seed
        sets |= {f"training.{name}": value for name, value in training.items()}
        given |= {"plugins": SPY, "overwrite": True}
        seen.metrics = run(sets=[f"{name}={json.dumps(it)}" for name, it in sets.items()], **given).metrics
        columns = ("input_ids", "attention_mask", "labels")
        texts = sorted(text for batch, _ in calls for text in trl_oracle.texts_of(*map(batch.__getitem__, columns)))
        loss = sum(computed.loss.item() for _, computed in calls)
        seen.step = trl_oracle.Step(texts, loss, seen.gradients)
        return seen

    return step
