"""What cannot work is refused before a model is loaded, by a dry run too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.training.run import train

STREAM = "data.streaming=true", "training.max_steps=2"
TWO = {"dataset": ["{data}#8", "arithmetic#8"]}
EVALUATED = {"eval_dataset": ["{data}#2"], "metrics": ["acc"]}


@pytest.fixture
def dry_run(tiny_model_dir: Path, chat_file: Path) -> Any:
    def start(options: dict[str, Any], sets: list[str]) -> None:
        given = {"model": str(tiny_model_dir), "dataset": [f"{chat_file}#8"], **options}
        filled = json.loads(json.dumps(given).replace("{data}", str(chat_file)))
        train(load_train_config(None, filled, sets).config, dry_run=True)

    return start


@pytest.mark.parametrize(
    ("options", "sets", "words"),
    [
        ({"callbacks": ["early_stop"]}, [], "early_stop: there are no evaluations"),
        (
            {"callbacks": ["early_stop"], **EVALUATED},
            ["callbacks.early_stop.metric=token_ac"],
            "early_stop: no evaluation gives 'token_ac'; did you mean 'eval_token_acc'",
        ),
        (EVALUATED, ["training.metric_for_best_model=blue"], "gives 'blue'; choose from: eval_loss, eval_seq_acc"),
        ({"callbacks": ["lisa"], "tuner": "lora"}, [], "lisa: the tuner lora freezes the layers"),
        ({"callbacks": ["lisa"]}, ["callbacks.lisa.n_layers=3"], "lisa: n_layers is 3, but the model has 2 layers"),
        ({"optimizer": "lorap"}, [], "lorap: the tuner swiftplug:full makes no LoRA matrices"),
        (
            {"task": "pt", "metrics": ["exact_match"], "eval_dataset": ["{data}"]},
            [],
            "exact_match compares generated answers, and rows of task pt have none",
        ),
        ({"task": "dpo", "loss": "focal"}, [], "--loss: a loss does not act in task dpo, but in "),
        ({"task": "dpo"}, ["data.packing=true"], "data.packing: task dpo keeps each row apart"),
        (
            {"task": "dpo", "eval_dataset": ["{data}#2"]},
            ["training.metric_for_best_model=rewards/accuracy"],
            "gives 'rewards/accuracy'; did you mean 'eval_rewards/accuracies'",
        ),
        ({"task": "dpo"}, [], "none usable: no rejected answer"),
        ({}, ["data.streaming=true"], "--set data.streaming=true: needs training.max_steps"),
        (TWO, [*STREAM], "with data.streaming the sizes of the datasets are not known; expected data.mix: order"),
        (TWO, [*STREAM, "data.mix_temperature=2"], "data.mix_temperature=2: with data.streaming the sizes"),
        ({}, [*STREAM, "data.val_size=0.1"], "with data.streaming all rows would have to be read; expected an eval"),
        ({}, [*STREAM, "training.num_train_epochs=2"], "num_train_epochs=2: with data.streaming where an epoch ends"),
        ({}, [*STREAM, "training.save_strategy=epoch"], "save_strategy=epoch: with data.streaming where an epoch ends"),
        ({}, ["training.save_on_each_node=true"], "save_on_each_node=true: cannot be set; all machines share"),
        ({}, [*STREAM, "training.dataloader_num_workers=2"], "dataloader_num_workers=2: with data.streaming"),
        ({"task": "dpo"}, [*STREAM, "reference=precompute"], "precompute reads all rows; expected auto"),
        ({"task": "seq_cls"}, [*STREAM], "with data.streaming seq_cls reads all rows"),
        ({}, [*STREAM, "data.max_length=2"], "data.max_length: 2 is shorter than every usable row"),
        ({}, ["data.mix=order"], "--set data.mix=order: mixes several datasets, found 1"),
        (TWO, ["data.mix=[1]"], "found 1 weights, expected 2, one for each dataset"),
        (TWO, ["data.mix=[1, 0]"], "data.mix=[1, 0]: found [1.0, 0.0], expected weights above 0"),
        (TWO, ["data.mix=random"], "data.mix"),
        (TWO, ["data.mix=order", "data.mix_temperature=2"], "found order, and mix_temperature 2; drop one of them"),
        (TWO, ["data.mix_temperature=0.5"], "data.mix_temperature"),
        (TWO, ["data.mix=order", "data.val_size=2"], "found 2, expected a fraction, as each of the datasets"),
        ({}, ["training.optim=adalomo"], "optim adalomo: You need to install `lomo_optim`"),
        ({}, ["training.optim_args=foo=1", "training.adam_beta1=2"], "Invalid beta parameter"),
        ({}, ["training.weight_decay=-1"], "Invalid weight_decay value"),
        ({}, ["training.learning_rate=.nan"], "Invalid learning rate: nan"),
        ({}, ["training.max_steps=0"], "max_steps: found 0, expected 1 or more"),
        ({}, ["training.num_train_epochs=0"], "num_train_epochs: found 0.0, expected more than 0"),
        ({}, ["training.save_steps=0"], "save_steps: found 0.0, expected more than 0"),
        ({}, ["training.dataloader_num_workers=-1"], "dataloader_num_workers: found -1, expected 0 or more"),
        ({}, ["training.save_strategy=best"], "training.save_strategy: 'best' needs eval_dataset or data.val_size"),
        ({}, ["training.load_best_model_at_end=true"], "training.load_best_model_at_end: needs eval_dataset"),
        *(
            ({}, [f"training.{field}"], f"training.{field.partition('=')[0]}: needs eval_dataset or data.val_size")
            for field in ("eval_steps=2", "eval_delay=1", "metric_for_best_model=loss", "greater_is_better=true")
        ),
        ({}, ["model_options.attn_implementation=spda"], "unknown 'spda'; did you mean 'sdpa'"),
    ],
)
def test_what_cannot_work(dry_run: Any, options: dict[str, Any], sets: list[str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        dry_run(options, sets)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_works_is_let_through(dry_run: Any) -> None:
    callbacks = {"callbacks": ["early_stop", "lisa"], **EVALUATED}
    dry_run(callbacks, ["callbacks.early_stop.metric=eval_token_acc", "training.metric_for_best_model=seq_acc"])


def test_quantization_without_its_library(dry_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftplug.runs.model.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="quantization: needs bitsandbytes"):
        dry_run({}, ["model_options.quantization=4bit"])
    with pytest.raises(UserError, match=r"optim adamw_8bit: .*bitsandbytes"):
        dry_run({}, ["training.optim=adamw_8bit"])


@pytest.mark.parametrize(
    ("options", "sets", "line"),
    [
        ({}, ["training.fp16=true"], "training.fp16: not in force, as a CPU has no fp16 autocast"),
        ({"dtype": "float16"}, [], "dtype: float16: not in force, as a CPU has no fp16 autocast"),
        (
            {},
            ["training.save_strategy=no", "training.save_steps=5"],
            "training.save_steps: not in force, as training.save_strategy is no",
        ),
        (
            EVALUATED,
            ["training.save_strategy=best", "training.metric_for_best_model=loss", "training.save_steps=5"],
            "training.save_steps: not in force, as training.save_strategy is best",
        ),
        (
            EVALUATED,
            ["training.eval_strategy=epoch", "training.eval_steps=5"],
            "training.eval_steps: not in force, as training.eval_strategy is epoch",
        ),
    ],
)
def test_what_is_not_in_force_is_said(
    dry_run: Any, options: dict[str, Any], sets: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(options, ["training.use_cpu=true", *sets])
    printed = " ".join(capsys.readouterr().out.split())
    assert line in printed
    assert printed.count("not in force") == 1
    assert "precision float32" in printed
    dry_run({**EVALUATED}, ["training.use_cpu=true", "training.save_steps=5", "training.eval_steps=5"])
    assert "not in force" not in capsys.readouterr().out


METRICS = """
from swiftplug.plugin import register_metric

@register_metric("picky")
class Picky:
    generate = True
    def __call__(self, predictions, references):
        assert references != ["1"]
        return {"token_acc": 1.0}

@register_metric("answers")
class Answers:
    generate = True
    def __call__(self, predictions, references):
        return {"token_acc": 1.0}
"""


def test_metrics_on_a_made_up_example(dry_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics_of_a_file.py").write_text(METRICS)
    given = {**EVALUATED, "plugins": {"files": [str(tmp_path / "metrics_of_a_file.py")]}}
    wanted = ["training.metric_for_best_model=blue"]
    dry_run({**given, "metrics": ["picky"]}, wanted)  # which may well give it for real examples
    assert "metrics: picky fails on a made-up example (AssertionError" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="metrics 'acc' and 'answers' both return 'token_acc'; use one of them"):
        dry_run({**given, "metrics": ["acc", "answers"]}, wanted)


@pytest.mark.parametrize("form", ["true", "full_shard"])
def test_fsdp_that_is_not_in_force_is_said(
    dry_run: Any, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    for sets, told in ([f"training.fsdp={form}"], True), (["training.fsdp=false"], False), ([], False):
        dry_run({}, [*sets, "training.use_cpu=true"])
        assert ("fsdp: not in force" in " ".join(capsys.readouterr().out.split())) is told
    with pytest.raises(UserError, match=r"training\.fsdp=3: found 3"):
        dry_run({}, ["training.fsdp=3"])


def test_more_processes_than_devices(
    dry_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    dry_run({}, ["training.use_cpu=true"])
    assert "4 processes share 2 cores" in capsys.readouterr().out
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    with pytest.raises(
        UserError, match=r"4 processes on this machine, which has 2 CUDA devices: start 2 \(--nproc 2\)"
    ):
        dry_run({}, [])


def test_deepspeed(dry_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftplug.training.arguments.is_deepspeed_available", lambda: False)
    with pytest.raises(UserError, match=r"deepspeed=.*: needs DeepSpeed; pip install deepspeed"):
        dry_run({}, ["training.deepspeed={zero_optimization: {stage: 2}}"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"accelerate launch: asks for DeepSpeed; name .* in training\.deepspeed"):
        dry_run({}, [])
