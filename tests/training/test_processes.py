"""Several processes train as one would."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

from tests import forks

IS_OLD = Version(transformers.__version__) < Version("5.23") or Version(accelerate.__version__) < Version("1.15")
needs_fsdp = pytest.mark.skipif(IS_OLD, reason="FSDP is refused with older libraries")

DRAWING = [
    *("--orm=length", "--num-return-sequences=2", "--max-new-tokens=8"),
    *("--set=orm.length.max_chars=40", "--set=orm.length.margin_chars=40"),
]
PACKED = ["--task=pt", "--set=data.packing=true", "--set=data.max_length=256"]
GROUPED = ["--set=data.group_by_length=true", "--metric=letters", "--set=training.max_steps=4"]
MIXED = ["--dataset=arithmetic#9", "--set=data.mix=[2, 1]"]
EVERY_STEP = "--set=training.logging_steps=1"


def train(
    folder: Path, model: Path, data: Path, rows: int, *options: str, processes: int = 1
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients of the first step, and the weights after two or more; the run's log is in its folder."""
    done = start(
        folder, model, data, rows, "--optimizer=recorder", "--set=optimizer.lr=0.1", *options, processes=processes
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished in") == 1
    return load_file(folder.with_suffix(".safetensors")), weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def start(
    folder: Path, model: Path, data: Path, rows: int, *options: str, processes: int = 1
) -> "subprocess.CompletedProcess[str]":
    command = [
        *("train", f"--model={model}", f"--dataset={data}#{rows}", f"--eval-dataset={data}#5"),
        *(f"--output-dir={folder}", f"--plugin={Path(__file__).with_name('recorder.py')}"),
        *(f"--set=training.{each}" for each in ("max_steps=2", "save_steps=1", "eval_steps=1")),
        *("--set=training.logging_first_step=true", "--set=training.per_device_eval_batch_size=2"),
        *options,
    ]
    gradients = folder.with_suffix(".safetensors")
    environment = {"GRADIENTS": gradients, "SWIFTPLUG_CACHE": folder.parent / "cache", "CUDA_VISIBLE_DEVICES": ""}
    variables = {name: str(value) for name, value in environment.items()}
    return forks.run(*command, cwd=folder.parent, processes=processes, **variables)


def logged(folder: Path) -> dict[str, Any]:
    """The last value of everything that a run has logged."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rows", "options", "names"),
    [
        # Of the last batch the second process gets one row of four.
        pytest.param(
            *(13, [*PACKED, "--tuner=lora", "--set=tuner.use_dora=true", "--metric=acc"]),
            ["eval_token_acc", "eval_loss"],
            id="pt-packed-dora",
        ),
        # `train_loss` has the second step too, which is not logged.
        pytest.param(
            *(12, [*MIXED, "--metric=acc", "--loss-scale=uneven", "--set=training.logging_steps=5"]),
            ["eval_token_acc", "eval_loss"],
            id="sft-full",
        ),
        pytest.param(
            *(29, [*GROUPED, "--tuner=peft", "--set=tuner.type=vera", "--set=tuner.r=4", EVERY_STEP]),
            ["eval_letters", "eval_loss"],
            id="sft-generating-vera",
        ),
        pytest.param(*(12, ["--tuner=freeze", "--set=tuner.train=[layers]", EVERY_STEP]), ["eval_loss"], id="freeze"),
        pytest.param(
            *(12, ["--tuner=peft", "--set=tuner.type=prompt_tuning", "--set=tuner.num_virtual_tokens=3", EVERY_STEP]),
            ["eval_loss"],
            id="prompt",
        ),
        # The second step crosses two windows.
        pytest.param(
            *(12, ["--set=data={streaming: true, shuffle_buffer: 10}", "--metric=acc", EVERY_STEP]),
            ["eval_token_acc", "eval_loss"],
            id="streamed",
        ),
        # Of the last step's one pair the second process gets none.
        pytest.param(
            *(9, ["--task=dpo", "--set=reference=precompute", EVERY_STEP]),
            ["logps/chosen", "eval_logps/rejected", "eval_loss"],
            id="dpo-full",
        ),
        pytest.param(
            *(9, ["--task=dpo", "--tuner=ia3", EVERY_STEP]),
            ["logps/chosen", "eval_logps/rejected", "eval_loss"],
            id="dpo-ia3",
        ),
        pytest.param(
            *(9, ["--task=rm", "--tuner=lora", EVERY_STEP]), ["eval_loss", "eval_rewards/accuracies"], id="rm-lora"
        ),
        # Each process draws two answers to two prompts.
        pytest.param(
            6,
            [
                *("--task=grpo", "--set=task.scale_rewards=batch", "--set=task.loss=dapo"),
                *("--set=task.mask_cut_off=false", *DRAWING, EVERY_STEP),
            ],
            ["reward", "rewards/length", "entropy", "teaching_groups", "eval_reward", "eval_length"],
            id="grpo",
        ),
        # Both steps with one drawing: the value head has learned by the second.
        pytest.param(
            6,
            ["--task=ppo", "--set=task.num_iterations=2", "--set=task.value_coefficient=1", *DRAWING, EVERY_STEP],
            ["entropy", "kl", "value_error", "eval_reward", "eval_length"],
            id="ppo",
        ),
    ],
)
def test_two_processes_equal_one(
    tiny_model_dir: Path, pair_file: Path, tmp_path: Path, rows: int, options: list[str], names: list[str]
) -> None:
    places = tiny_model_dir, pair_file, rows
    size = "--set=training.per_device_train_batch_size=4"
    one = train(tmp_path / "one", *places, *options, size, "--set=training.gradient_accumulation_steps=2")
    two = train(tmp_path / "two", *places, *options, size, "--set=training.gradient_accumulation_steps=1", processes=2)
    for tensors, expected in zip(two, one, strict=True):
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-6)
    logs = [logged(tmp_path / name) for name in ("one", "two")]
    for key in ("loss", "train_loss", *names):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-6, abs=1e-5), key
    assert (tmp_path / "two" / "checkpoint-2" / "rng_state_1.pth").exists()


@pytest.mark.timeout(600)
@needs_fsdp
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("FULL_STATE_DICT", ["--set=training.load_best_model_at_end=true", "--set=training.max_grad_norm=0.5"]),
        ("SHARDED_STATE_DICT", ["--task=dpo", "--tuner=lora"]),
        ("SHARDED_STATE_DICT", ["--tuner=freeze", "--set=tuner.train=[layers]", "--metric=letters"]),
    ],
    ids=["full", "dpo-lora", "freeze-generating"],
)
def test_sharded_weights_train_as_whole_ones(
    tiny_model_dir: Path, pair_file: Path, tmp_path: Path, kind: str, options: list[str]
) -> None:
    """FSDP2; what it saved is resumed by as many processes, by more, and not by one."""
    places = tiny_model_dir, pair_file, 24
    fsdp = [f"--set=training.{each}" for each in ("fsdp=true", f"fsdp_config={{state_dict_type: {kind}}}")]
    size, accumulated = (
        f"--set=training.{each}=" for each in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    options = [*options, EVERY_STEP, "--set=training.max_steps=3", "--set=training.learning_rate=0.01", *fsdp]
    shapes = {"one": (1, 2, 4), "two": (2, 2, 2), "again": (2, 2, 2), "four": (4, 2, 1)}
    for name, (processes, batch, steps) in shapes.items():
        resume = []
        if name in ("again", "four"):
            shutil.copytree(tmp_path / "two", tmp_path / name)
            shutil.rmtree(tmp_path / name / "checkpoint-3")
            resume = ["--resume"]
            refused = start(tmp_path / name, *places, *options, f"{size}2", f"{accumulated}4", "--resume")
            assert refused.returncode == 2
            assert refused.stderr.count("\n") == 1
            assert (
                f"checkpoint-2 was saved with FSDP and {kind}; this run would go on without FSDP, in 1 process"
                in refused.stderr
            )
        done = start(
            tmp_path / name, *places, *options, *resume, f"{size}{batch}", f"{accumulated}{steps}", processes=processes
        )
        assert done.returncode == 0, done.stderr
    for name in ("two", "again", "four"):
        found = weights(tmp_path / name)
        expected = weights(tmp_path / "two" if name == "again" else tmp_path / "one")
        assert found.keys() == expected.keys()
        exact = {"rtol": 0, "atol": 0} if name == "again" else {"rtol": 1e-4, "atol": 1e-5}
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, **exact)
        logs = [logged(tmp_path / each) for each in ("one", name)]
        for key in ("loss", "eval_loss", *(["eval_letters"] if "--metric=letters" in options else [])):
            assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-5), key
    assert not [*tmp_path.glob("*/checkpoint-*/pytorch_model*")]


@needs_fsdp
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ["--tuner=peft", "--set=tuner.type=prompt_tuning", "--set=tuner.num_virtual_tokens=3"],
            "cannot save an adapter",
        ),
        (["--optimizer=galore"], "optimizer galore: cannot project"),
        (["--set=training.fsdp_config={version: 1}"], "training.fsdp_config: version: found 1, expected 2"),
    ],
    ids=["prompt", "galore", "fsdp1"],
)
def test_what_cannot_be_sharded_is_refused(
    tiny_model_dir: Path, pair_file: Path, tmp_path: Path, options: list[str], why: str
) -> None:
    done = start(tmp_path / "run", tiny_model_dir, pair_file, 9, "--set=training.fsdp=true", *options, processes=2)
    assert done.returncode == 2
    assert why in done.stderr


@pytest.mark.skipif(not IS_OLD, reason="FSDP is not refused")
def test_older_libraries_shard_nothing(tiny_model_dir: Path, pair_file: Path, tmp_path: Path) -> None:
    done = start(tmp_path / "run", tiny_model_dir, pair_file, 9, "--set=training.fsdp=true", processes=2)
    assert done.returncode == 2
    assert "training.fsdp: needs transformers 5.23 or newer, found " in done.stderr


@pytest.mark.skipif(IS_OLD, reason="older versions of Transformers load no optimizer in several processes on CPUs")
def test_a_killed_process_ends_the_run_and_resume_goes_on(
    tiny_model_dir: Path, pair_file: Path, tmp_path: Path
) -> None:
    """One of two, at a random moment; the run is resumed by as many processes exactly, and by one."""
    settings = [f"--set=training.{each}" for each in ("max_steps=40", "save_steps=4", "eval_steps=40")]
    options = [f"--model={tiny_model_dir}", f"--dataset={pair_file}#20", f"--eval-dataset={pair_file}#4", *settings]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    size = "--set=training.per_device_train_batch_size=2"

    def resumed(name: str, *options: str, processes: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        done = forks.run(
            *("train", f"--output-dir={folder}", *options), cwd=tmp_path, processes=processes, **environment
        )
        assert done.returncode == 0, done.stderr
        return weights(folder)

    launcher = forks.start(
        *(tmp_path, "train", *options, size, f"--output-dir={tmp_path / 'run'}", "--nproc=2"),
        stderr="errors.txt",
        environment=environment,
    )
    end = time.monotonic() + 240
    while not (tmp_path / "run" / "checkpoint-4").exists():
        assert launcher.is_alive() and time.monotonic() < end, (tmp_path / "errors.txt").read_text()
        time.sleep(0.01)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    rank = random.randrange(2)
    victim = next(pid for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text())
    time.sleep(random.random())
    os.kill(int(victim), signal.SIGKILL)
    killed = time.monotonic()
    launcher.join(60)
    assert time.monotonic() - killed < 10
    assert launcher.exitcode == 128 + signal.SIGKILL
    lines = (tmp_path / "errors.txt").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: process {rank} was killed by SIGKILL")
    assert lines[0].endswith("so the run was stopped; what was saved is unharmed: continue with --resume")

    whole = resumed("whole", *options, size, processes=2)
    shutil.copytree(tmp_path / "run", tmp_path / "by one")
    for name, tensor in resumed("run", *options, size, "--resume", processes=2).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)
    accumulated = "--set=training.gradient_accumulation_steps=2"
    for name, tensor in resumed("by one", *options, size, accumulated, "--resume", processes=1).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-5)


ACCELERATE = """
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
num_processes: 2
use_cpu: true
"""


@needs_fsdp
def test_accelerate_launch_with_its_config(tiny_model_dir: Path, pair_file: Path, tmp_path: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text(ACCELERATE)
    settings = ("max_steps=2", "learning_rate=0.01", "lr_scheduler_type=constant", "per_device_train_batch_size=2")
    options = ["train", f"--model={tiny_model_dir}", f"--dataset={pair_file}#8"]
    options += [f"--set=training.{each}" for each in settings]
    one = ["--output-dir=one", "--set=training.gradient_accumulation_steps=2"]
    assert forks.run(*options, *one, cwd=tmp_path).returncode == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", "-m", "swiftplug"]
    done = subprocess.run(
        [*launch, *options, "--output-dir=two"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "checkpoint-2" / "optimizer_0").is_dir()
    found, expected = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
