"""The built-in callbacks, in Transformers' own Trainer."""

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from swiftplug.builtin.callbacks.perf_log import known_peak_tflops
from swiftplug.errors import UserError
from swiftplug.plugin.model_arch import attach_model_meta
from swiftplug.plugin.registry import PluginChoice, Registry
from tests import forks

REGISTRY = Registry.discover()
ROWS = [{"input_ids": [5 + index] * 6, "labels": [5 + index] * 6} for index in range(12)]


def callback(name: str, **options: Any) -> TrainerCallback:
    made = REGISTRY.resolve("callback", PluginChoice(name=name, options=options), "--callback").bound(None)
    assert isinstance(made, TrainerCallback)
    return made


@pytest.fixture
def base(tiny_model_dir: Path) -> Callable[[], Any]:
    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        attach_model_meta(model)
        return model

    return load


def training_args(tmp_path: Path, **fields: Any) -> TrainingArguments:
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
    }
    return TrainingArguments(**{**defaults, **fields})


class Scripted(Trainer):
    """A trainer whose evaluations give the numbers of a script."""

    script: dict[int, float]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {"eval_loss": self.script[self.state.global_step], "eval_f1": self.script[self.state.global_step]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def steps_until_stop(model: Any, args: TrainingArguments, script: list[float], **options: Any) -> int:
    trainer = Scripted(
        model=model, args=args, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[callback("early_stop", **options)]
    )
    trainer.script = dict(enumerate(script, 1))
    trainer.train()
    return int(trainer.state.global_step)


NAN = math.nan


@pytest.mark.parametrize(
    ("script", "options", "fields", "stops_at"),
    [
        ([5, 4, 3, 2, 1, 0], {"patience": 1}, {}, 6),
        ([5, 4, 4, 4, 4, 3], {"patience": 3}, {}, 5),
        ([5, 6, 4, 6, 6, 6], {"patience": 2}, {}, 5),
        ([5, 4.9, 4.8, 4.7, 1, 1], {"patience": 3, "threshold": 0.5}, {}, 4),
        ([5, 4.9, 4.8, 4.7, 1, 1], {"patience": 3}, {}, 6),
        ([NAN, NAN, 3, 2, 1, 0], {"patience": 3}, {}, 6),
        ([5, NAN, NAN, 1, 1, 1], {"patience": 2}, {}, 3),
        ([1, 2, 3, 4, 5, 6], {"patience": 2, "metric": "f1"}, {}, 6),
        ([3, 2, 1, 4, 5, 6], {"patience": 2, "metric": "eval_f1"}, {}, 3),
        ([1, 2, 3, 4, 5, 6], {"patience": 2}, {"metric_for_best_model": "f1", "greater_is_better": False}, 3),
        ([1, 2, 3, 4, 5, 6], {"patience": 2}, {"metric_for_best_model": "f1", "greater_is_better": True}, 6),
    ],
)
def test_early_stop(
    base: Callable[[], Any],
    tmp_path: Path,
    script: list[float],
    options: dict[str, Any],
    fields: dict[str, Any],
    stops_at: int,
) -> None:
    args = training_args(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=1, **fields)
    assert steps_until_stop(base(), args, script, **options) == stops_at


def test_early_stop_logs_the_reason(base: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = training_args(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=1)
    steps_until_stop(base(), args, [5, 6, 6, 6, 6, 6], patience=2)
    assert "eval_loss has not been better than 5 for 2 evaluations; stopping at step 3" in caplog.text


def test_early_stop_goes_on_counting_after_a_resume(base: Callable[[], Any], tmp_path: Path) -> None:
    """Two bad evaluations before the checkpoint and one after it are three."""
    script = [5, 6, 6, 6, 1, 1]
    args = training_args(
        tmp_path,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=3,
        restore_callback_states_from_checkpoint=True,
    )
    assert steps_until_stop(base(), args, script, patience=3) == 4
    saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["EarlyStop"]["attributes"] == {"best": 5, "waited": 2}
    trainer = Scripted(
        model=base(),
        args=args,
        train_dataset=ROWS,
        eval_dataset=ROWS,
        callbacks=[callback("early_stop", patience=3)],
    )
    trainer.script = dict(enumerate(script, 1))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 4


def test_early_stop_refuses_what_it_cannot_watch(base: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no evaluations; give eval_dataset and"):
        steps_until_stop(base(), training_args(tmp_path, max_steps=2), [1, 1])
    args = training_args(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    with pytest.raises(UserError, match="no evaluation gives 'eval_f2'; did you mean 'eval_f1'"):
        steps_until_stop(base(), args, [1, 1], metric="f2")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("early_stop", {"patience": 0}, "option 'patience'"),
        ("early_stop", {"threshold": -1}, "option 'threshold'"),
        ("early_stop", {"patients": 3}, "did you mean 'patience'"),
        ("lisa", {"n_layers": 0}, "option 'n_layers'"),
        ("perf_log", {"peak_tflops": 0}, "option 'peak_tflops'"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        callback(name, **options)
    assert message in str(error.value)


class Watch(TrainerCallback):
    """Which parameters a step changed."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = {name: value.clone() for name, value in kwargs["model"].named_parameters()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.changed.append(
            {name for name, value in kwargs["model"].named_parameters() if not torch.equal(value, self.before[name])}
        )

    def layers(self) -> list[set[str]]:
        return [{name.split(".")[2] for name in names if ".layers." in name} for names in self.changed]


def deep(tiny_model_dir: Path) -> Any:
    """Six layers, so that draws of two differ."""
    torch.manual_seed(0)
    config = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config
    config.num_hidden_layers = 6
    config.layer_types = None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    attach_model_meta(model)
    return model


def lisa_run(
    model: Any, tmp_path: Path, resume: str | None = None, options: dict[str, Any] | None = None, **fields: Any
) -> Watch:
    watch = Watch()
    args = training_args(tmp_path, max_steps=9, weight_decay=0.1, **fields)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=ROWS,
        callbacks=[callback("lisa", **(options or {"n_layers": 2, "interval": 2})), watch],
    )
    trainer.train(resume_from_checkpoint=resume)
    return watch


def test_lisa_trains_a_few_layers_at_a_time(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = deep(tiny_model_dir)
    watch = lisa_run(model, tmp_path, lr_scheduler_type="constant")
    layers = watch.layers()
    assert all(len(drawn) == 2 for drawn in layers)
    assert [layers[step] == layers[step + 1] for step in (0, 2, 4, 6)] == [True] * 4
    assert len({frozenset(drawn) for drawn in layers}) > 1
    for changed in watch.changed:
        assert {"model.embed_tokens.weight", "model.norm.weight"} <= changed  # the head is tied to the embeddings
    assert all(parameter.requires_grad for parameter in model.parameters())
    again = lisa_run(deep(tiny_model_dir), tmp_path, lr_scheduler_type="constant")
    assert again.layers() == layers
    other = lisa_run(deep(tiny_model_dir), tmp_path, lr_scheduler_type="constant", seed=7)
    assert other.layers() != layers


@pytest.mark.parametrize("at", [4, 5])
def test_lisa_resumes_exactly(tiny_model_dir: Path, tmp_path: Path, at: int) -> None:
    """At the border of an interval, and within one."""
    unbroken, resumed = deep(tiny_model_dir), deep(tiny_model_dir)
    watch = lisa_run(unbroken, tmp_path, save_strategy="steps", save_steps=at)
    after = lisa_run(resumed, tmp_path, resume=str(tmp_path / f"checkpoint-{at}"))
    assert watch.layers()[at:] == after.layers()
    for (name, one), (_, other) in zip(unbroken.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_lisa_leaves_frozen_what_the_tuner_froze(base: Callable[[], Any], tmp_path: Path) -> None:
    tuner = REGISTRY.resolve("tuner", PluginChoice(name="freeze", options={"train": ["mlp"]}), "--tuner").bound
    model = tuner.prepare_model(None, base())
    watch = lisa_run(model, tmp_path, options={"n_layers": 1, "interval": 1}, lr_scheduler_type="constant")
    for changed in watch.changed:
        assert changed
        assert all("mlp" in name for name in changed)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "mlp" in name
    }


def test_lisa_refuses_adapters_and_too_few_layers(base: Callable[[], Any], tmp_path: Path) -> None:
    tuner = REGISTRY.resolve("tuner", PluginChoice(name="lora"), "--tuner").bound
    with pytest.raises(UserError, match="use the tuner full"):
        lisa_run(tuner.prepare_model(None, base()), tmp_path)
    with pytest.raises(UserError, match="n_layers is 3, but the model has 2 layers"):
        lisa_run(base(), tmp_path, options={"n_layers": 3})


class Clock:
    """A clock that each training step, evaluation and checkpoint moves on by a fixed time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed(Trainer):
    clock: Clock

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 2
        return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 100
        return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.clock.now += 1000


def perf_history(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, Any]]:
    """Logs of six steps of 2 micro-batches of 2 rows of 6 tokens, each micro-batch of 2 seconds: 6 tokens a second."""
    clock = Clock()
    monkeypatch.setattr("swiftplug.builtin.callbacks.perf_log.time", clock)
    args = training_args(
        tmp_path,
        max_steps=6,
        gradient_accumulation_steps=2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=3,
        include_num_input_tokens_seen="non_padding",
    )
    trainer = Timed(
        model=model, args=args, train_dataset=ROWS, eval_dataset=ROWS[:2], callbacks=[callback("perf_log", **options)]
    )
    trainer.clock = clock
    trainer.train()
    return list(trainer.state.log_history)


def test_perf_log_times_training_alone(
    base: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = perf_history(base(), tmp_path, monkeypatch)
    logs = [entry for entry in history if "loss" in entry]
    assert len(logs) == 3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for entry in logs:
        assert entry["tokens_per_second"] == 6
        assert "mfu" not in entry  # the peak of a CPU is unknown
        assert 0.1 < entry["peak_memory_gib"] <= peak + 0.001
    assert not any("tokens_per_second" in entry for entry in history if "loss" not in entry)


def test_perf_log_utilization_of_full_training(
    base: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 FLOPs for each weight of a matrix product, the tied head's among them, and for the few of the norms."""
    model = base()
    weights = sum(parameter.numel() for parameter in model.parameters())  # the embedding is the head
    history = perf_history(model, tmp_path, monkeypatch, peak_tflops=1e-6)
    assert [entry["mfu"] for entry in history if "loss" in entry] == [round(6 * 6 * weights / 1e6, 4)] * 3


def test_perf_log_utilization_with_an_adapter(
    base: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen weights need no gradient of their own: 4 FLOPs for them."""
    tuner = REGISTRY.resolve("tuner", PluginChoice(name="lora"), "--tuner").bound
    model = tuner.prepare_model(None, base())
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    history = perf_history(model, tmp_path, monkeypatch, peak_tflops=1e-6)
    expected = round(6 * (4 * frozen + 6 * trained) / 1e6, 4)
    assert [entry["mfu"] for entry in history if "loss" in entry] == [expected] * 3


def test_perf_log_figures_reach_other_callbacks(
    base: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after it, a reporter for one, sees the figures in the logs themselves."""
    seen: list[dict[str, Any]] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(kwargs["logs"])

    Trainer(
        model=base(),
        args=training_args(tmp_path, max_steps=1, include_num_input_tokens_seen="non_padding"),
        train_dataset=ROWS,
        callbacks=[callback("perf_log"), Reporter()],
    ).train()
    assert seen[0]["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("name", "half", "precision", "expected"),
    [
        ("NVIDIA H200", True, "highest", 989.4),
        ("NVIDIA H100 80GB HBM3", True, "highest", 989.4),
        ("NVIDIA H100 PCIe", True, "highest", 756.5),
        ("NVIDIA H200 NVL", True, "highest", 835.5),
        ("NVIDIA H200 MIG 1g.18gb", True, "highest", None),
        ("Tesla V100-SXM2-16GB", True, "highest", 125.0),
        ("Tesla V100-PCIE-32GB", True, "highest", 112.0),
        ("NVIDIA A100-SXM4-80GB", False, "high", 156.0),
        ("NVIDIA A100-SXM4-80GB", False, "highest", 19.5),
        ("NVIDIA L40", True, "highest", None),
        ("NVIDIA GeForce GTX 1080", True, "highest", None),
    ],
)
def test_peaks_of_devices(
    monkeypatch: pytest.MonkeyPatch, name: str, half: bool, precision: str, expected: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert known_peak_tflops(torch.device("cuda", 0), half) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_peak_of_tf32_as_trainer_switches_it_on() -> None:
    # In a process of its own: torch does not take back the mix of its old and new switches.
    script = """
import torch
from swiftplug.builtin.callbacks.perf_log import known_peak_tflops
from transformers.utils.import_utils import enable_tf32
torch.cuda.get_device_name = lambda device: "NVIDIA A100-SXM4-80GB"
for on, expected in ((True, 156.0), (False, 19.5)):
    enable_tf32(on)
    assert known_peak_tflops(torch.device("cuda", 0), False) == expected
"""
    process = forks.context().Process(target=exec, args=(script, {}))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_no_peak_of_a_cpu() -> None:
    assert known_peak_tflops(torch.device("cpu"), True) is None
