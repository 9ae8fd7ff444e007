"""Fine-tune a model on GSM8K with swiftplug and with its peers, in turn: time, tokens per second, peak memory.

All of them train the same rows in the same way: LoRA of rank 8 on all linear layers, float32, batches of 4, one epoch,
the answers only, no checkpoint. TRL runs in its Python API, twice: as it comes (with gradient checkpointing) and
without. ms-swift and LLaMA-Factory join in where their commands are installed.

    python benchmarks/train_gsm8k.py MODEL [--rows 64] [--rounds 1]
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "tests/data/gsm8k/train.jsonl"
TRL_SCRIPT = Path(__file__).with_name("trl_sft.py")


class Job(NamedTuple):
    """Where a trainer finds its input and leaves its output."""

    model: str
    data: Path
    folder: Path


class Trainer(NamedTuple):
    """A trainer to measure: its name and the command line of a run."""

    name: str
    command: Callable[[Job], list[str]]


class Measured(NamedTuple):
    """One run.

    Attributes:
        wall: Seconds from command to exit.
        steps: Seconds of the training steps, as Transformers' Trainer counts them in all of these tools.
        loss: The mean training loss, to see that the same was learnt.
        peak: Peak memory in MiB.
    """

    wall: float
    steps: float
    loss: float
    peak: float


def swiftplug(job: Job) -> list[str]:
    """swiftplug, with nothing set but what defines the run."""
    sets = {
        "tuner.r": 8,
        "dtype": "float32",
        "training.per_device_train_batch_size": 4,
        "training.num_train_epochs": 1,
        "training.learning_rate": 1e-4,
        "training.save_strategy": "no",
    }
    command = [sys.executable, "-m", "swiftplug", "train", f"--model={job.model}", f"--dataset={job.data}"]
    command += [
        "--tuner=lora",
        f"--output-dir={job.folder}/run",
        *(f"--set={key}={value}" for key, value in sets.items()),
    ]
    return command


def trl(*flags: str) -> Callable[[Job], list[str]]:
    """TRL's SFTTrainer, by the script beside this one."""
    return lambda job: [sys.executable, str(TRL_SCRIPT), job.model, str(job.data), f"{job.folder}/run", *flags]


def ms_swift(job: Job) -> list[str]:
    """ms-swift's command."""
    options = {
        "model": job.model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": job.data,
        "tuner_type": "lora",
        "lora_rank": 8,
        "target_modules": "all-linear",
        "torch_dtype": "float32",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 1,
        "output_dir": f"{job.folder}/run",
    }
    return ["swift", "sft", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def llama_factory(job: Job) -> list[str]:
    """LLaMA-Factory's command; it wants the dataset declared in a file of its own."""
    info = {
        "gsm8k": {
            "file_name": str(job.data),
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    }
    (job.folder / "dataset_info.json").write_text(json.dumps(info))
    options = {
        "stage": "sft",
        "do_train": "true",
        "model_name_or_path": job.model,
        "dataset": "gsm8k",
        "dataset_dir": job.folder,
        "template": "chatml",
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "output_dir": f"{job.folder}/run",
    }
    return ["llamafactory-cli", "train", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def trainers() -> list[Trainer]:
    """swiftplug, TRL, and the peers that are installed here."""
    found = [
        Trainer("swiftplug", swiftplug),
        Trainer("TRL", trl()),
        Trainer("TRL, no gradient checkpointing", trl("--no-checkpointing")),
    ]
    if shutil.which("swift"):
        found.append(Trainer("ms-swift", ms_swift))
    if shutil.which("llamafactory-cli"):
        found.append(Trainer("LLaMA-Factory", llama_factory))
    return found


def measure(trainer: Trainer, model: str, rows: list[str]) -> Measured:
    """Run a trainer in a folder of its own, which is removed behind it."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(model, Path(folder) / "train.jsonl", Path(folder))
        job.data.write_text("".join(rows), encoding="utf-8")
        command = trainer.command(job)
        environment = {**os.environ, "SWIFTPLUG_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        with (Path(folder) / "output").open("w+") as output:
            started = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
            output.seek(0)
            text = output.read()
        if status:
            raise SystemExit(f"{trainer.name} failed:\n{text[-3000:]}")
        log = Path(folder) / "run" / "log.jsonl"
        text += log.read_text() if log.exists() else ""
        return Measured(wall, _figure("train_runtime", text), _figure("train_loss", text), usage.ru_maxrss / 1024)


def _figure(name: str, text: str) -> float:
    """The last figure of that name; LLaMA-Factory prints times as h:mm:ss."""
    figure = 0.0
    for part in re.findall(rf"{name}\W+([\d.:]+)", text)[-1].split(":"):
        figure = figure * 60 + float(part)
    return figure


def main() -> None:
    """Measure in turn, round by round, and print the medians and the ratios to swiftplug's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    rows = DATA.read_text(encoding="utf-8").splitlines(keepends=True)[: arguments.rows]
    tokens = count_tokens(arguments.model, rows)
    names = trainers()
    runs: dict[str, list[Measured]] = {trainer.name: [] for trainer in names}
    for number in range(arguments.rounds):
        for trainer in names:
            runs[trainer.name].append(measure(trainer, arguments.model, rows))
            print(f"round {number + 1}: {trainer.name}: {runs[trainer.name][-1]}", flush=True)
    print(f"\n{len(rows)} rows, {tokens:,} tokens, {os.cpu_count()} processors, medians of {arguments.rounds}")
    print(f"{'':32}{'wall s':>9}{'steps s':>9}{'tokens/s':>10}{'peak MiB':>10}{'loss':>9}{'steps, ratio':>14}")
    ours = statistics.median(run.steps for run in runs["swiftplug"])
    for name, measured in runs.items():
        wall, steps, loss, peak = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:32}{wall:9.1f}{steps:9.1f}{tokens / steps:10.0f}{peak:10.0f}{loss:9.4f}{steps / ours:14.2f}")


def count_tokens(model: str, rows: list[str]) -> int:
    """The tokens of the rows, as the chat template renders them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = [json.loads(row)["messages"] for row in rows]
    return sum(len(ids) for ids in tokenizer.apply_chat_template(chats, tokenize=True)["input_ids"])


if __name__ == "__main__":
    main()
