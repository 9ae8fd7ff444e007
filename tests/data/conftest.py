"""The data of a run, prepared as `swiftplug train` does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from swiftplug.builtin.tasks.language import SupervisedFineTuning
from swiftplug.config.schema import DataOptions
from swiftplug.data.prepare import PreparedData, prepare_data
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.console import RunProgress

SFT = SupervisedFineTuning()

WEIGHING = """
from swiftplug.plugin import ContextType, LossScale, register_dataset, register_loss_scale

@register_loss_scale("by_word")
class ByWord(LossScale):
    def __init__(self):
        self.not_picklable = lambda: None

    def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        if context == "broken":
            return ["brok"], [1.0]
        return [context], [float(context_type is ContextType.RESPONSE) * (2.5 if "heavy" in context else 1)]

@register_dataset("shuffled_rows")
def shuffled_rows():
    return streamed_rows().shuffle(seed=1, buffer_size=7).select_columns(["messages"])

@register_dataset("streamed_rows")
def streamed_rows():
    from datasets import Dataset
    turns = [(f"q{number}", "a" * (number % 7 + 1)) for number in range(50)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=3)
"""


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def prepare(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., PreparedData]:
    plugins = tmp_path / "weighing.py"
    plugins.write_text(WEIGHING)
    registry = Registry.discover(files=[plugins])

    def run(
        *dataset: Any, eval_dataset: Any = (), loss_scale: str = "default", task: Any = SFT, **given: Any
    ) -> PreparedData:
        generation = given.pop("generation", False)
        seed = given.pop("seed", 42)
        return prepare_data(
            dataset=[PluginChoice(name=str(name)) for name in dataset],
            eval_dataset=[PluginChoice(name=str(name)) for name in eval_dataset],
            registry=registry,
            tokenizer=tokenizer,
            tools=registry.resolve("tools", PluginChoice(name="template"), "tools"),
            loss_scales=[registry.resolve("loss_scale", PluginChoice(name=loss_scale), "loss_scale")],
            task=task,
            options=DataOptions(**{"cache_dir": str(tmp_path / "cache"), **given}),
            seed=seed,
            progress=RunProgress(Console(quiet=True)).start,
            generation=generation,
        )

    return run
