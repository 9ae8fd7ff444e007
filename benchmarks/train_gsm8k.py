"""Fine-tune a model on GSM8K with swiftplug and with its peers, in turn: time, tokens per second, peak memory.

All of them train the same rows in the same way: LoRA of rank 8 on all linear layers, float32, batches of 4, one epoch,
the answers only, no checkpoint. swiftplug and TRL (in its Python API) run with and without gradient checkpointing; as
they come, TRL has it and swiftplug has not. For sft, ms-swift and LLaMA-Factory join in where their commands are
installed. For dpo, the worse answer of a pair is the right answer to the next problem. For grpo, a step draws 8 answers
of up to 128 tokens to each of 8 problems, trains on 8 answers at a time, and an answer is rewarded for being right:
a small model answers most problems wrong eight times, which teaches nothing. With `--short` it is rewarded for being
short, by the ORM `length`: hardly two are alike, and every one trains. Our run says itself where its time goes.

    python benchmarks/train_gsm8k.py MODEL [--task dpo] [--rows 64] [--rounds 1]
    python benchmarks/train_gsm8k.py MODEL --task grpo --rows 8 [--short] [--only swiftplug TRL]
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
TRL_SCRIPT = Path(__file__).with_name("trl_train.py")
MAX_CHARS = 1024  # of an answer to be short, more than 128 tokens have


class Job(NamedTuple):
    """What a trainer does, whether short answers are rewarded, where its input is, and where it leaves its output."""

    task: str
    short: bool
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
        cpu: Seconds of all processors, which other programs on the machine disturb less.
        steps: Seconds of the training steps, as Transformers' Trainer counts them in all of these tools.
        first: The loss of the first step, to see that all compute the same; of dpo it is log 2.
        loss: The mean training loss, to see that the same was learnt.
        peak: Peak memory in MiB.
        parts: Seconds of what its steps do, as swiftplug logs them for grpo.
    """

    wall: float
    cpu: float
    steps: float
    first: float
    loss: float
    peak: float
    parts: dict[str, float]


def swiftplug(job: Job, *flags: str) -> list[str]:
    """swiftplug, with nothing set but what defines the run, and the flags."""
    sets = {
        "tuner.r": 8,
        "dtype": "float32",
        "training.per_device_train_batch_size": 4,
        "training.num_train_epochs": 1,
        "training.learning_rate": 1e-4,
        "training.save_strategy": "no",
    }
    if job.task == "grpo":
        sets |= {"training.per_device_train_batch_size": 8, "training.gradient_accumulation_steps": 8}
        sets |= {"num_return_sequences": 8, "max_new_tokens": 128, "training.logging_steps": 1}
        flags = (f"--orm={'length' if job.short else 'gsm8k'}", *flags)
        if job.short:
            sets |= {"orm.length.max_chars": MAX_CHARS, "orm.length.margin_chars": MAX_CHARS}
    command = [sys.executable, "-m", "swiftplug", "train", f"--model={job.model}", f"--dataset={job.data}"]
    command += [
        f"--task={job.task}",
        "--tuner=lora",
        f"--output-dir={job.folder}/run",
        *(f"--set={key}={value}" for key, value in sets.items()),
        *flags,
    ]
    return command


def checkpointing_swiftplug(job: Job) -> list[str]:
    """swiftplug, which then keeps less and computes more."""
    return swiftplug(job, "--set=training.gradient_checkpointing=true")


def trl(*flags: str) -> Callable[[Job], list[str]]:
    """TRL's SFTTrainer, DPOTrainer or GRPOTrainer, by the script beside this one."""
    return lambda job: [
        *(sys.executable, str(TRL_SCRIPT), job.task, job.model, str(job.data), f"{job.folder}/run"),
        *([f"--max-chars={MAX_CHARS}"] if job.short else []),
        *flags,
    ]


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


def trainers(task: str) -> list[Trainer]:
    """swiftplug, TRL, and the peers that are installed here."""
    found = [
        Trainer("swiftplug", swiftplug),
        Trainer("swiftplug, checkpointing", checkpointing_swiftplug),
        Trainer("TRL, checkpointing", trl()),
        Trainer("TRL", trl("--no-checkpointing")),
    ]
    if task == "sft" and shutil.which("swift"):
        found.append(Trainer("ms-swift", ms_swift))
    if task == "sft" and shutil.which("llamafactory-cli"):
        found.append(Trainer("LLaMA-Factory", llama_factory))
    return found


def read_rows(task: str, count: int) -> list[str]:
    """The first problems with their answers, as lines of a JSONL file; for dpo with the next one's answer too."""
    lines = DATA.read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    if task == "dpo":
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            row["rejected_response"] = other["messages"][-1]["content"]
    return [json.dumps(row) + "\n" for row in rows]


def measure(trainer: Trainer, task: str, short: bool, model: str, rows: list[str]) -> Measured:
    """Run a trainer in a folder of its own, which is removed behind it."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(task, short, model, Path(folder) / "train.jsonl", Path(folder))
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
        steps, loss = _figures("train_runtime", text)[-1], _figures("train_loss", text)[-1]
        cpu = usage.ru_utime + usage.ru_stime
        names = dict.fromkeys(re.findall(r'"seconds/(.+?)"', text))
        parts = {name: sum(_figures(f"seconds/{name}", text)) for name in names}
        return Measured(wall, cpu, steps, _figures("loss", text)[0], loss, usage.ru_maxrss / 1024, parts)


def _figures(name: str, text: str) -> list[float]:
    """The figures of that name; LLaMA-Factory prints times as h:mm:ss."""
    found = re.findall(rf"\b{name}\W+([\d.:]+)", text)
    return [sum(60**place * float(part) for place, part in enumerate(reversed(each.split(":")))) for each in found]


def main() -> None:
    """Measure in turn, round by round, and print the medians, and the ratios of the steps to swiftplug's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--task", choices=["sft", "dpo", "grpo"], default="sft")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="grpo: reward short answers, so that every one trains")
    parser.add_argument("--only", nargs="+", default=[], help="names of trainers; all by default")
    arguments = parser.parse_args()
    rows = read_rows(arguments.task, arguments.rows)
    tokens = count_tokens(arguments.model, rows)
    names = [each for each in trainers(arguments.task) if each.name in (arguments.only or [each.name])]
    runs: dict[str, list[Measured]] = {trainer.name: [] for trainer in names}
    for number in range(arguments.rounds):
        for trainer in names:
            runs[trainer.name].append(measure(trainer, arguments.task, arguments.short, arguments.model, rows))
            print(f"round {number + 1}: {trainer.name}: {runs[trainer.name][-1]}", flush=True)
    print(f"\n{len(rows)} rows, {tokens:,} tokens, {os.cpu_count()} processors, medians of {arguments.rounds}")
    columns = ("wall s", "cpu s", "steps s", "tokens/s", "peak MiB", "first", "loss", "ratio")
    print(f"{'':32}{''.join(f'{column:>9}' for column in columns)}")
    ours = statistics.median(run.steps for run in runs[names[0].name])
    for name, measured in runs.items():
        *figures_of, _ = zip(*measured, strict=True)
        wall, cpu, steps, first, loss, peak = map(statistics.median, figures_of)
        figures = f"{wall:9.1f}{cpu:9.1f}{steps:9.1f}{tokens / steps:9.0f}{peak:9.0f}{first:9.4f}{loss:9.4f}"
        print(f"{name:32}{figures}{steps / ours:9.2f}")
    for name, measured in runs.items():
        for part in measured[0].parts:
            seconds = statistics.median(run.parts[part] for run in measured)
            print(f"{name}: {part.replace('_', ' ')}: {seconds:.1f} s")


def count_tokens(model: str, rows: list[str]) -> int:
    """The tokens of the rows' conversations, as the chat template renders them."""
    from transformers import AutoTokenizer

    tokenizer, chats = AutoTokenizer.from_pretrained(model), []
    for row in map(json.loads, rows):
        chats.append(row["messages"])
        if "rejected_response" in row:
            chats.append([*row["messages"][:-1], {"role": "assistant", "content": row["rejected_response"]}])
    return sum(len(ids) for ids in tokenizer.apply_chat_template(chats, tokenize=True)["input_ids"])


if __name__ == "__main__":
    main()
