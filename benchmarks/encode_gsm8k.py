"""Encode rows with a loss scale, and compare with a plain batched template and tokenizer pass.

python benchmarks/encode_gsm8k.py MODEL [--loss-scale react] [--rounds 5]
    GSM8K in one process: CPU seconds of both, and their ratio.

python benchmarks/encode_gsm8k.py MODEL --rows 100000 1000000 [--num-proc 1 2]
    As many short rows: rows per CPU second, the peak memory of each process, and the seconds of a second start.
"""

import argparse
import json
import multiprocessing
import random
import re
import resource
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from swiftplug.config.schema import DataOptions
from swiftplug.data.prepare import prepare_data
from swiftplug.plugin.registry import PluginChoice, Registry

DATA = Path(__file__).parents[1] / "tests/data/gsm8k/train.jsonl"


def plain(tokenizer: Any, file: Path = DATA) -> float:
    """CPU seconds of reading the rows, rendering them and tokenizing the texts, in batches of 1,000."""
    started = time.process_time()
    with file.open(encoding="utf-8") as lines:
        while chats := [json.loads(line)["messages"] for line in islice(lines, 1000)]:
            texts = tokenizer.apply_chat_template(chats, tokenize=False)
            tokenizer(texts, add_special_tokens=False)
    return time.process_time() - started


def weighted(tokenizer: Any, loss_scale: str, file: Path = DATA, cache: str | None = None, num_proc: int = 1) -> float:
    """CPU seconds of the same rows by swiftplug, with weights and counts; without `cache` written to an empty one."""
    registry = Registry.discover()
    scale = registry.resolve("loss_scale", PluginChoice(name=loss_scale), "--loss-scale")
    tools = registry.resolve("tools", PluginChoice(name="template"), "--tools")
    task = registry.resolve("task", PluginChoice(name="sft"), "--task")
    with nullcontext(cache) if cache else tempfile.TemporaryDirectory() as folder:
        started = _cpu_seconds()
        prepare_data(
            dataset=[PluginChoice(name=str(file))],
            registry=registry,
            tokenizer=tokenizer,
            tools=tools,
            loss_scales=[scale],
            task=task.bound,
            options=DataOptions(cache_dir=folder, num_proc=num_proc),
            seed=0,
            progress=lambda what: nullcontext(SimpleNamespace(advance=lambda rows: None)),
        )
        return _cpu_seconds() - started


def _cpu_seconds() -> float:
    """Of this process and its children, when they have ended."""
    for child in multiprocessing.active_children():
        child.join()
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + of_children.ru_utime + of_children.ru_stime


class Watch(threading.Thread):
    """Looks ten times a second how many MiB of its own this process holds; pages of mapped files belong to the system.

    Attributes:
        peak: The most it has seen.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while found := re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text()):
            self.peak = max(self.peak, int(found[1]) // 1024)
            time.sleep(0.1)


def at_scale(model: str, loss_scale: str, file: Path, cache: str, num_proc: int) -> dict[str, float]:
    """Encode a file twice in a process of its own: CPU seconds, MiB before and at most, and seconds of the second."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    weighted(tokenizer, loss_scale)  # what the first use loads
    watch = Watch()
    time.sleep(0.2)
    before = watch.peak
    seconds = weighted(tokenizer, loss_scale, file, cache, num_proc)
    facts = {"seconds": seconds, "before": before, "peak": watch.peak}
    facts["worker"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    started = time.monotonic()
    weighted(tokenizer, loss_scale, file, cache, num_proc)
    return {**facts, "again": time.monotonic() - started}


def write_rows(file: Path, count: int) -> None:
    """Short rows, all of them different."""
    draw = random.Random(0).randrange
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            a, b = draw(1000), draw(1000)
            question, answer = f"Row {number}: what is {a} + {b}?", f"{a} + {b} = {a + b}."
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": turns}) + "\n")


def main() -> None:
    """Measure, and print CPU seconds and ratios, or at scale a line for each number of rows and of processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id of the tokenizer")
    parser.add_argument("--loss-scale", default="react")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[])
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            write_rows(file, rows)
            without = plain(tokenizer, file)
            print(f"{rows:,} rows, plain: {rows / without:,.0f} rows per CPU second", flush=True)
            for num_proc in arguments.num_proc:
                cache = f"{folder}/{num_proc}"
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found = pool.submit(at_scale, arguments.model, arguments.loss_scale, file, cache, num_proc).result()
                worker = f", worker {found['worker']:.0f} MiB" if num_proc > 1 else ""
                print(
                    f"  num_proc {num_proc}: {rows / found['seconds']:,.0f} rows per CPU second, "
                    f"{found['seconds'] / without:.2f} times plain; {found['before']:.0f} MiB before, "
                    f"at most {found['peak']:.0f} MiB{worker}; started again in {found['again']:.2f} s",
                    flush=True,
                )
    if arguments.rows:
        return
    plain(tokenizer), weighted(tokenizer, arguments.loss_scale)  # what the first use of either loads does not count
    pairs = [(plain(tokenizer), weighted(tokenizer, arguments.loss_scale)) for _ in range(arguments.rounds)]
    without, with_weights = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"plain {without:.2f} s, with weights {with_weights:.2f} s (CPU), ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
