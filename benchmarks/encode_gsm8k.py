"""Encode GSM8K with a loss scale in one process, and compare with a plain batched template and tokenizer pass.

python benchmarks/encode_gsm8k.py MODEL [--loss-scale react] [--rounds 5]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from swiftplug.config.schema import DataOptions
from swiftplug.data.prepare import prepare_data
from swiftplug.plugin.registry import PluginChoice, Registry

DATA = Path(__file__).parents[1] / "tests/data/gsm8k/train.jsonl"


def plain(tokenizer: Any) -> float:
    """Seconds of reading the rows, rendering them and tokenizing the texts, in batches of 1,000."""
    started = time.process_time()
    chats = [json.loads(line)["messages"] for line in DATA.read_text(encoding="utf-8").splitlines()]
    for start in range(0, len(chats), 1000):
        texts = tokenizer.apply_chat_template(chats[start : start + 1000], tokenize=False)
        tokenizer(texts, add_special_tokens=False)
    return time.process_time() - started


def weighted(tokenizer: Any, loss_scale: str) -> float:
    """Seconds of the same rows by swiftplug, with weights and counts, written to an empty cache."""
    registry = Registry.discover()
    scale = registry.resolve("loss_scale", PluginChoice(name=loss_scale), "--loss-scale")
    tools = registry.resolve("tools", PluginChoice(name="template"), "--tools")
    task = registry.resolve("task", PluginChoice(name="sft"), "--task")
    with tempfile.TemporaryDirectory() as cache:
        started = time.process_time()
        prepare_data(
            dataset=[PluginChoice(name=str(DATA))],
            registry=registry,
            tokenizer=tokenizer,
            tools=tools,
            loss_scales=[scale],
            task=task.bound,
            options=DataOptions(cache_dir=cache),
            seed=0,
        )
        return time.process_time() - started


def main() -> None:
    """Measure in turn and print the medians of CPU seconds and of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id of the tokenizer")
    parser.add_argument("--loss-scale", default="react")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    plain(tokenizer), weighted(tokenizer, arguments.loss_scale)  # what the first use of either loads does not count
    pairs = [(plain(tokenizer), weighted(tokenizer, arguments.loss_scale)) for _ in range(arguments.rounds)]
    without, with_weights = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"plain {without:.2f} s, with weights {with_weights:.2f} s (CPU), ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
