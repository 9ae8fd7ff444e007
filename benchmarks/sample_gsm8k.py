"""Sample answers to GSM8K questions with swiftplug, with plain Transformers and with ms-swift, in turn.

All of them draw the same number of candidates for the same questions, in float32, at temperature 1 from the whole
vocabulary, on all processors. Plain Transformers is one `generate` call for all of them. ms-swift joins in where its
command is installed; it answers a candidate at a time, so it may be given fewer questions (`--ms-swift-questions`), and
its time is then scaled up. With `--workers N`, swiftplug samples once more, with so many workers.

    python benchmarks/sample_gsm8k.py MODEL [--questions 16] [--candidates 4] [--max-new-tokens 128] [--rounds 1]
        [--workers N]
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parents[1] / "tests/data/gsm8k/test.jsonl"
PLAIN_SCRIPT = Path(__file__).with_name("plain_generate.py")
TIMED_ENGINE = Path(__file__).with_name("timed_engine.py")


class Job(NamedTuple):
    """What is asked for, and where.

    Attributes:
        model: Folder or hub id.
        data: JSONL of the questions.
        folder: For outputs.
        candidates: A question.
        max_new_tokens: Where a candidate is cut off.
    """

    model: str
    data: Path
    folder: Path
    candidates: int
    max_new_tokens: int


class Sampler(NamedTuple):
    """A sampler to measure.

    Attributes:
        name: Its name.
        command: The command line of a job.
        texts: The candidates that it left.
        questions: How many it is given.
        workers: The processes that generate.
    """

    name: str
    command: Callable[[Job], list[str]]
    texts: Callable[[Job], list[str]]
    questions: int
    workers: int = 1


class Measured(NamedTuple):
    """One run.

    Attributes:
        wall: Seconds from command to exit.
        generation: Seconds from prompts to texts, without imports and loading; NaN where it is not known, as of several
            workers at once.
        tokens: New tokens, as the tokenizer counts the texts.
        peak: Peak memory of the largest process in MiB.
    """

    wall: float
    generation: float
    tokens: int
    peak: float


def swiftplug(job: Job, workers: int = 1) -> list[str]:
    """The command, with scoring as in a real run, and a clock around the engine."""
    return [
        *(sys.executable, "-m", "swiftplug", "sample", f"--model={job.model}", f"--dataset={job.data}"),
        *(f"--plugin={TIMED_ENGINE}", "--engine=timed", "--orm=gsm8k", "--set=dtype=float32"),
        *(f"--num-return-sequences={job.candidates}", f"--max-new-tokens={job.max_new_tokens}"),
        *(f"--output-dir={job.folder}/run", f"--workers={workers}"),
    ]


def plain(job: Job) -> list[str]:
    """The script beside this one."""
    options = job.model, job.data, job.candidates, job.max_new_tokens, job.folder / "plain.jsonl"
    return [sys.executable, str(PLAIN_SCRIPT), *map(str, options)]


def ms_swift(job: Job) -> list[str]:
    """ms-swift's command."""
    options = {
        "model": job.model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": job.data,
        "sampler_engine": "transformers",
        "engine_kwargs": '{"template_type": "chatml"}',  # it does not pass the template on
        "num_return_sequences": job.candidates,
        "max_new_tokens": job.max_new_tokens,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "torch_dtype": "float32",
        "output_dir": job.folder / "ms-swift",
        "output_file": "sampled.jsonl",
    }
    return ["swift", "sample", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def samplers(questions: int, ms_swift_questions: int, workers: int) -> list[Sampler]:
    """swiftplug, also with several workers if asked for, plain Transformers, and ms-swift where it is installed."""
    found = [
        *(
            Sampler(
                "swiftplug sample" if number == 1 else f"{number} workers",
                partial(swiftplug, workers=number),
                lambda job: [row["messages"][-1]["content"] for row in _rows(job.folder / "run/candidates.jsonl")],
                questions,
                number,
            )
            for number in sorted({1, workers})
        ),
        Sampler(
            "one plain generate",
            plain,
            lambda job: [row["text"] for row in _rows(job.folder / "plain.jsonl")],
            questions,
        ),
    ]
    if shutil.which("swift") and ms_swift_questions:
        found.append(
            Sampler(
                "swift sample",
                ms_swift,
                lambda job: [row["messages"][-1]["content"] for row in _rows(job.folder / "ms-swift/sampled.jsonl")],
                min(questions, ms_swift_questions),
            )
        )
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_ahead(model: str) -> None:
    """Have the weights in the page cache, so that whoever runs first does not wait for the disk."""
    for file in Path(model).glob("*.safetensors"):
        file.read_bytes()


def measure(sampler: Sampler, arguments: argparse.Namespace, tokenizer: Any) -> Measured:
    """Run a sampler in a folder of its own, which is removed behind it."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "questions.jsonl"
        lines = DATA.read_text(encoding="utf-8").splitlines(keepends=True)
        data.write_text("".join(lines[: sampler.questions]), encoding="utf-8")
        job = Job(arguments.model, data, Path(folder), arguments.candidates, arguments.max_new_tokens)
        environment = {**os.environ, "SWIFTPLUG_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        with (Path(folder) / "output").open("w+") as output:
            read_ahead(job.model)
            started = time.monotonic()
            process = subprocess.Popen(sampler.command(job), env=environment, stdout=output, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
            output.seek(0)
            text = output.read()
        if status:
            raise SystemExit(f"{sampler.name} failed:\n{text[-3000:]}")
        told = [float(seconds) for seconds in re.findall(r"generated in ([\d.]+) s", text)]
        texts = sampler.texts(job)
        tokens = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0
        generation = sum(told) if told and sampler.workers == 1 else float("nan")
        return Measured(wall, generation, tokens, usage.ru_maxrss / 1024)


def main() -> None:
    """Measure in turn, round by round, and print the medians and the ratios to swiftplug's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1, help="measure so many workers too")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ms-swift-questions", type=int, default=2, help="0 leaves ms-swift out")
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    names = samplers(arguments.questions, arguments.ms_swift_questions, arguments.workers)
    runs: dict[str, list[Measured]] = {sampler.name: [] for sampler in names}
    for number in range(arguments.rounds):
        for sampler in names:
            runs[sampler.name].append(measure(sampler, arguments, tokenizer))
            print(f"round {number + 1}: {sampler.name}: {runs[sampler.name][-1]}", flush=True)
    print(
        f"\n{arguments.questions} questions x {arguments.candidates} candidates x {arguments.max_new_tokens} tokens, "
        f"{os.cpu_count()} processors, medians of {arguments.rounds}; ratios per question, to swiftplug's"
    )
    columns = "{:20}{:>10}{:>9}{:>8}{:>14}{:>8}{:>10}{:>10}"
    print(columns.format("", "questions", "wall s", "ratio", "generation s", "ratio", "tokens/s", "peak MiB"))
    ours: tuple[float, float] | None = None
    for sampler in names:
        wall, generation, tokens, peak = (statistics.median(column) for column in zip(*runs[sampler.name], strict=True))
        each = wall / sampler.questions, generation / sampler.questions
        ours = ours or each
        seconds = wall if generation != generation else generation
        print(
            f"{sampler.name:20}{sampler.questions:10}{wall:9.1f}{each[0] / ours[0]:8.2f}{generation:14.1f}"
            f"{each[1] / ours[1]:8.2f}{tokens / seconds:10.0f}{peak:10.0f}"
        )


if __name__ == "__main__":
    main()
