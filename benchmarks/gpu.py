"""All that is to be seen on a GPU, in one command of under eight minutes, without a network: one table, and JSON.

    python benchmarks/gpu.py [--json gpu.json] [--minutes 8] [--only PATTERN] [--tiny]

- Checks: the losses of a CPU and of the GPU, those of bf16 and of float32, those of TRL and ours, an exact resume.
- Training of a Qwen2 of 1.5B parameters (random weights, made here) in bf16, with LoRA of rank 8 and in full: tokens
  per second, model FLOPs utilization and peak memory, beside TRL's SFTTrainer with the same settings on the same rows,
  with PyTorch's attention, and with FlashAttention and Liger's kernels where they are installed.
- Sampling with the local engine, beside one call of `model.generate`, and with vLLM where it is installed.
- A step of GRPO, beside TRL's GRPOTrainer.

Each is a process of its own. They start side by side, but only one at a time computes (turn.py), except for the checks,
which are not timed. What fails, and what there is no time for, is a line of the table that says so. On a machine
without a GPU, or with `--tiny`, everything is done in a tiny shape: this shows that it runs, and no more.

The exit code is 0 if all checks hold and nothing failed, else 1.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
WORKERS = 3  # processes that start side by side
GIVEN_UP = "not measured: the time was up"


class Shape(NamedTuple):
    """What is trained and drawn from, and how much; the checks have a small shape of their own.

    Attributes:
        hidden: Width of the residual stream.
        intermediate: Width inside the MLP.
        layers: Decoder layers.
        heads: Attention heads, of queries and of keys.
        vocab: Tokens of the vocabulary.
        rows: Rows of a step.
        length: Tokens of a row.
        steps: Training steps; the first two are not counted.
        questions: Prompts that are sampled from at once.
        new_tokens: Tokens of an answer.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: tuple[int, int]
    vocab: int
    rows: int
    length: int
    steps: int
    questions: int
    new_tokens: int


BIG = Shape(1536, 8960, 28, (12, 2), 151_936, rows=4, length=2048, steps=16, questions=64, new_tokens=256)
TINY = Shape(32, 64, 2, (4, 2), 700, rows=2, length=64, steps=4, questions=2, new_tokens=8)
SMALL = Shape(256, 1024, 4, (4, 2), 2048, rows=8, length=128, steps=8, questions=2, new_tokens=8)
CANDIDATES = 8


class RunError(Exception):
    """A process failed, or there was no time for it; the message is for the table."""


Run = Callable[[list[str], Path, Mapping[str, str], float], tuple[int, str]]


def run(command: list[str], folder: Path, environment: Mapping[str, str], timeout: float) -> tuple[int, str]:
    """Run a command to its end; its exit code and what it printed."""
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RunError(GIVEN_UP) from None
        output.seek(0)
        return code, output.read()


class Bench:
    """A folder with models and data, and what runs on them until the time is up.

    Args:
        folder: An empty folder.
        shape: Of what is measured.
        small: Of what is checked.
        seconds: Until the time is up.
        run: What runs a command.
    """

    def __init__(self, folder: Path, shape: Shape, small: Shape, seconds: float, run: Run = run) -> None:
        self.folder = folder
        self.shape = shape
        self.small = small
        self.end = time.monotonic() + seconds
        self._run = run
        for name, made in (("big", shape), ("small", small)):
            (folder / name).mkdir()
            make_model(folder / name / "model", made)
            write_rows(folder / name / "rows.jsonl", made.rows, made.length - 16)
        write_rows(folder / "questions.jsonl", 2 * shape.questions, shape.new_tokens)

    def run(self, name: str, command: list[str]) -> tuple[Path, str]:
        """Run a command in a folder of that name; the folder, and what it printed.

        Raises:
            RunError: It failed, or there was no time.
        """
        left = self.end - time.monotonic()
        if left < 1:
            raise RunError(GIVEN_UP)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = {"SWIFTPLUG_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE)}
        if not name.startswith("check"):
            environment["BENCHMARK_TURN"] = f"{self.folder}/turn"
        code, text = self._run(command, folder, environment, left)
        if code:
            lines = [line for line in text.splitlines() if line.strip()]
            raise RunError(f"failed: {lines[-1].strip() if lines else f'exit code {code}'}")
        return folder, text

    def swiftplug(
        self, name: str, command: str, model: str, data: Path, *options: str, **sets: Any
    ) -> tuple[Path, str]:
        """Run a command of swiftplug; its run's folder, and what it printed."""
        folder, text = self.run(
            name,
            [
                *(sys.executable, "-m", "swiftplug", command, f"--model={self.folder / model / 'model'}"),
                *(f"--dataset={data}", f"--output-dir={self.folder / name / 'run'}", *options),
                *(f"--set={key.replace('__', '.')}={json.dumps(value)}" for key, value in sets.items()),
            ],
        )
        return folder / "run", text

    def train(
        self, name: str, model: str, *options: str, data: Path | None = None, **training: Any
    ) -> list[dict[str, Any]]:
        """Train, by default on all rows of the model's own data in each step; the log."""
        defaults = {
            "per_device_train_batch_size": (self.shape if model == "big" else self.small).rows,
            "max_steps": (self.shape if model == "big" else self.small).steps,
            "learning_rate": 1e-4,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        sets = {f"training__{key}": value for key, value in (defaults | training).items()}
        plugins = [f"--plugin={HERE / 'turn.py'}", "--callback=turn", "--callback=perf_log"]
        rows = data or self.folder / model / "rows.jsonl"
        run_dir, _ = self.swiftplug(name, "train", model, rows, *plugins, *options, **sets)
        return read_rows(run_dir / "log.jsonl")

    def trl(self, name: str, task: str, model: str, data: Path, *options: str, **fields: Any) -> list[dict[str, Any]]:
        """Train with TRL; the log."""
        script, out = str(HERE / "trl_train.py"), str(self.folder / name / "run")
        places = (str(self.folder / model / "model"), str(data), out)
        given = ("--no-checkpointing", f"--fields={json.dumps(fields)}", *options)
        folder, _ = self.run(name, [sys.executable, script, task, *places, *given])
        return read_rows(folder / "run" / "log.jsonl")


def make_model(folder: Path, shape: Shape) -> None:
    """Write a Qwen2 of random weights in bfloat16, and a tokenizer whose every token but the first few is a word."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    from swiftplug.builtin.hardware import pick_device
    from swiftplug.builtin.models.tiny import byte_tokenizer

    tokenizer = byte_tokenizer(4 * shape.length)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    vocab = described["model"]["vocab"]
    described["model"]["vocab"] = vocab | {f"Ġ{word(index)}": index for index in range(len(vocab), shape.vocab)}
    path.write_text(json.dumps(described), encoding="utf-8")
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads[0],
        num_key_value_heads=shape.heads[1],
        max_position_embeddings=4 * shape.length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    logging.disable_progress_bar()
    with torch.device(pick_device()):
        model: Any = Qwen2ForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes that are measured


def word(index: int) -> str:
    """A word of one token."""
    letters = ""
    while index:
        index, letter = divmod(index, 26)
        letters += chr(ord("a") + letter)
    return f"q{letters}"


def write_rows(path: Path, rows: int, tokens: int) -> None:
    """Write rows with answers of as many tokens, of 64 words only: there is something to learn."""
    drawn = random.Random(0)
    words = [f" {word(index)}" for index in range(600, 664)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            chat = [("user", f"{number}"), ("assistant", "".join(drawn.choices(words, k=tokens)))]
            messages = [{"role": role, "content": content} for role, content in chat]
            file.write(json.dumps({"messages": messages}) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def values(log: list[dict[str, Any]], name: str) -> list[float]:
    """The values of that name in a log."""
    return [float(entry[name]) for entry in log if name in entry]


Row = dict[str, Any]


def check(name: str, found: float, bound: float) -> Row:
    """A line of the table: something must not be more than a bound."""
    return {"name": name, "found": found, "bound": bound, "ok": found <= bound}


def furthest(these: list[float], those: list[float]) -> float:
    """The largest difference."""
    return max(abs(this - that) for this, that in zip(these, those, strict=True))


def check_losses(bench: Bench, _: str) -> Iterator[Row]:
    """The losses of a training in full, in float32: of this machine's device, of its CPU, and of TRL."""
    options = ("--tuner=full", "--set=dtype=float32")
    ours = values(bench.train("check-device", "small", *options), "loss")
    cpu = values(bench.train("check-cpu", "small", *options, use_cpu=True), "loss")
    yield check("losses on the device and on the CPU, float32: difference", furthest(ours, cpu), 1e-3)
    if has("trl"):
        fields = {"per_device_train_batch_size": bench.small.rows, "max_steps": bench.small.steps, "logging_steps": 1}
        rows = bench.folder / "small" / "rows.jsonl"
        theirs = values(bench.trl("check-trl", "sft", "small", rows, "--full", **fields), "loss")
        yield check("losses of swiftplug and of TRL, float32: difference", furthest(ours, theirs), 1e-3)


def check_half(bench: Bench, _: str) -> Iterator[Row]:
    """The mean loss of a training with LoRA in bf16, beside that in float32."""
    means = []
    for dtype in ("float32", "bfloat16"):
        options = ("--tuner=lora", f"--set=dtype={dtype}")
        log = bench.train(f"check-{dtype}", "small", *options, learning_rate=1e-3, max_steps=4 * bench.small.steps)
        means.append(statistics.mean(values(log, "loss")))
    yield check("mean loss of LoRA in bf16 and in float32: share of it", abs(means[1] / means[0] - 1), 0.01)


def check_resume(bench: Bench, _: str) -> Iterator[Row]:
    """The weights of a run that was resumed in its middle, beside those of one that was not."""
    from safetensors.torch import load_file

    options = ("--tuner=lora", "--set=tuner.lora_dropout=0.1", "--set=dtype=bfloat16")
    bench.train("check-whole", "small", *options, max_steps=4, save_strategy="steps", save_steps=2)
    whole, resumed = bench.folder / "check-whole" / "run", bench.folder / "check-resumed" / "run"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    for name in ("swiftplug.json", "adapter_model.safetensors"):
        (resumed / name).unlink()
    bench.run("check-resumed", [sys.executable, "-m", "swiftplug", "train", str(resumed), "--resume"])
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed)]
    different = [(weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]]
    yield check("weights of a run and of the same resumed, bf16: difference", max(different), 0.0)


def measured(name: str, log: list[Row]) -> Row:
    """What a training was like, behind its first two steps."""
    row: Row = {"name": name}
    for figure in ("tokens_per_second", "mfu"):
        if found := values(log, figure)[2:]:
            row[figure] = statistics.median(found)
    losses = values(log, "loss")
    return row | {"peak_gib": values(log, "peak_memory_gib")[-1], "first_loss": losses[0], "last_loss": losses[-1]}


def train_ours(bench: Bench, name: str, tuner: str, options: tuple[str, ...]) -> Iterator[Row]:
    """Train the big model with swiftplug."""
    yield measured(name, bench.train(name, "big", f"--tuner={tuner}", "--set=dtype=bfloat16", *options))


def train_trl(bench: Bench, name: str, tuner: str, options: tuple[str, ...], **fields: Any) -> Iterator[Row]:
    """Train the big model with TRL: what trains is float32 and what is frozen bf16, as swiftplug has it."""
    fields = {
        "bf16": True,
        "max_steps": bench.shape.steps,
        "logging_steps": 1,
        "max_length": None,
        "per_device_train_batch_size": bench.shape.rows,
        **fields,
    }
    kind = "--full" if tuner == "full" else "--dtype=bfloat16"
    rows = bench.folder / "big" / "rows.jsonl"
    yield measured(name, bench.trl(name, "sft", "big", rows, kind, *options, **fields))


def sample_ours(bench: Bench, name: str, engine: str) -> Iterator[Row]:
    """Draw with an engine, twice as many answers as are counted."""
    at_once = {"engine__batch_size": bench.shape.questions * CANDIDATES} if engine == "timed" else {}
    options = [
        *(f"--plugin={HERE / 'timed_engine.py'}", f"--engine={engine}", "--set=dtype=bfloat16", "--orm=repetition"),
        *(f"--num-return-sequences={CANDIDATES}", f"--max-new-tokens={bench.shape.new_tokens}"),
    ]
    questions = bench.folder / "questions.jsonl"
    _, text = bench.swiftplug(name, "sample", "big", questions, *options, **at_once)
    yield drawn(name, text, bench)


def sample_plain(bench: Bench, name: str) -> Iterator[Row]:
    """Draw with one call of `model.generate`."""
    questions = bench.folder / "half.jsonl"
    lines = (bench.folder / "questions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    questions.write_text("".join(lines[: bench.shape.questions]), encoding="utf-8")
    script, model = str(HERE / "plain_generate.py"), str(bench.folder / "big" / "model")
    wanted = (str(CANDIDATES), str(bench.shape.new_tokens), str(bench.folder / name / "texts.jsonl"), "bfloat16")
    _, text = bench.run(name, [sys.executable, script, model, str(questions), *wanted])
    yield drawn(name, text, bench)


def drawn(name: str, text: str, bench: Bench) -> Row:
    """What a sampler printed: tokens per second of its last batch, if each answer is as long as it may be."""
    seconds = [float(found) for found in re.findall(r"generated in ([\d.]+) s", text)]
    peaks = [float(found) for found in re.findall(r"peak memory ([\d.]+) GiB", text)]
    batches = 2 // len(seconds[:2])  # vLLM takes all questions at once
    tokens = bench.shape.questions * CANDIDATES * bench.shape.new_tokens
    return {"name": name, "tokens_per_second": tokens * batches / seconds[-1], "peak_gib": max(peaks, default=None)}


def grpo_ours(bench: Bench, name: str) -> Iterator[Row]:
    """Steps of GRPO with swiftplug, whose rewards are better for shorter answers."""
    options = [
        *("--task=grpo", "--tuner=lora", "--set=dtype=bfloat16", "--orm=length"),
        *(f"--num-return-sequences={CANDIDATES}", f"--max-new-tokens={bench.shape.new_tokens}"),
        *(f"--set=orm.length.{key}={8 * bench.shape.new_tokens}" for key in ("max_chars", "margin_chars")),
    ]
    log = bench.train(name, "big", *options, data=bench.folder / "questions.jsonl", **grpo_batch(bench))
    yield grpo_row(name, log)


def grpo_trl(bench: Bench, name: str) -> Iterator[Row]:
    """The same with TRL."""
    fields = {"bf16": True, "num_generations": CANDIDATES, "max_completion_length": bench.shape.new_tokens}
    options = ("--dtype=bfloat16", f"--max-chars={8 * bench.shape.new_tokens}")
    questions = bench.folder / "questions.jsonl"
    yield grpo_row(name, bench.trl(name, "grpo", "big", questions, *options, **fields, **grpo_batch(bench)))


def grpo_batch(bench: Bench) -> dict[str, int]:
    """Eight answers to as many prompts as a training step has rows, in two micro-batches."""
    rows = bench.shape.rows * CANDIDATES // 2
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 2, "max_steps": 3}


def grpo_row(name: str, log: list[Row]) -> Row:
    """What steps of GRPO were like, the first among them."""
    peak = values(log, "peak_memory_gib")[-1]
    return {"name": name, "seconds_per_step": values(log, "train_runtime")[-1] / 3, "peak_gib": peak}


def has(*modules: str) -> bool:
    """Whether all of these are installed."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


Measurement = tuple[str, Callable[[Bench, str], Iterator[Row]]]

CHECKS: list[Measurement] = [("losses", check_losses), ("bf16", check_half), ("resume", check_resume)]


class Kernel(NamedTuple):
    """A kernel to train with, where it is installed.

    Attributes:
        name: Behind the names of its lines in the table.
        module: What must be installed.
        ours: Options of swiftplug.
        theirs: Options of trl_train.py.
        fields: Fields of TRL's config.
    """

    name: str
    module: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    fields: dict[str, Any]


SDPA = Kernel("", "torch", (), (), {})
FLASH = "flash_attention_2"
KERNELS = [
    Kernel(" Liger", "liger_kernel", ("--set=training.use_liger_kernel=true",), (), {"use_liger_kernel": True}),
    Kernel(
        f" {FLASH}",
        "flash_attn",
        (f"--set=model_options.attn_implementation={FLASH}",),
        (f"--attention={FLASH}",),
        {},
    ),
]


def trainings(kernel: Kernel) -> Iterator[Measurement]:
    """The trainings with a kernel."""
    if not has(kernel.module):
        return
    for tuner in ("lora", "full"):
        yield f"swiftplug {tuner}{kernel.name}", partial(train_ours, tuner=tuner, options=kernel.ours)
        if has("trl"):
            theirs = partial(train_trl, tuner=tuner, options=kernel.theirs, **kernel.fields)
            yield f"TRL {tuner}{kernel.name}", theirs


def measurements() -> Iterator[Measurement]:
    """What is measured, by its name in the table: with the peers and kernels that are installed here."""
    yield from trainings(SDPA)
    yield "swiftplug sample", partial(sample_ours, engine="timed")
    yield "generate", sample_plain
    yield "swiftplug grpo", grpo_ours
    if has("trl"):
        yield "TRL grpo", grpo_trl
    for kernel in KERNELS:
        yield from trainings(kernel)
    if has("vllm", "swiftplug_vllm"):
        yield "swiftplug sample vllm", partial(sample_ours, engine="timed_vllm")


def measure(bench: Bench, measurement: Measurement) -> list[Row]:
    """The lines of the table that a measurement gives; if it fails, one that says so."""
    name, function = measurement
    try:
        return [*function(bench, name)]
    except RunError as error:
        return [{"name": name, "failed": str(error)}]


def describe(row: Row) -> str:
    """A line of the table."""
    if "failed" in row:
        return f"{row['name']:28} {row['failed']}"
    if "ok" in row:
        return f"{row['name']:64} {row['found']:10.2g}  at most {row['bound']:g}: {'ok' if row['ok'] else 'NOT OK'}"
    formats = {name: form for name, _, form in COLUMNS}
    figures = (format(row[name], form) if row.get(name) is not None else "-" for name, form in formats.items())
    return f"{row['name']:28} {''.join(f'{figure:>12}' for figure in figures)}"


COLUMNS = [
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("mfu", "MFU", ".1%"),
    ("seconds_per_step", "s/step", ".2f"),
    ("peak_gib", "peak GiB", ".2f"),
    ("first_loss", "first loss", ".4f"),
    ("last_loss", "last loss", ".4f"),
]


def machine() -> dict[str, Any]:
    """What this machine is, and the versions of what is measured."""
    import torch

    from swiftplug.runs.folder import describe_environment

    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {os.cpu_count()} processors"
    peers = ("trl", "liger-kernel", "flash-attn", "vllm")
    versions = {name: version(name) for name in peers if has(name.replace("-", "_"))}
    return {"device": device, "cuda": torch.version.cuda, **describe_environment(), "peers": versions}


def main(arguments: Sequence[str] | None = None, run: Run = run) -> int:
    """Check and measure; print the table as it grows, and write it.

    Args:
        arguments: Of the command line.
        run: What runs a command.
    """
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=7.5, help="what is not measured by then, is not")
    parser.add_argument("--only", default="", metavar="PATTERN", help="names of the table that match")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, as without a GPU")
    given = parser.parse_args(arguments)
    facts = machine()
    tiny = given.tiny or facts["device"].startswith("CPU")
    shape, small = (TINY, TINY) if tiny else (BIG, SMALL)
    print(f"{facts['device']}, torch {facts['versions']['torch']}, {'tiny shape' if tiny else '1.5B parameters'}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        bench = Bench(Path(folder), shape, small, 60 * given.minutes - (time.monotonic() - started), run)
        for group in (CHECKS, [*measurements()]):
            wanted = [each for each in group if re.search(given.only, each[0])]
            if group is not CHECKS and wanted:
                print(f"{'':28} {''.join(f'{title:>12}' for _, title, _ in COLUMNS)}")
            for found in pool.map(partial(measure, bench), wanted):
                rows += found
                for row in found:
                    print(describe(row), flush=True)
                result = {"machine": facts, "shape": shape._asdict(), "tiny": tiny, "rows": rows}
                result["seconds"] = round(time.monotonic() - started, 1)
                partial_file = given.json.with_name(f".{given.json.name}.partial")
                partial_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
                partial_file.replace(given.json)
    print(f"{time.monotonic() - started:.0f} s; {given.json}")
    return 0 if all(row.get("ok", "failed" not in row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
