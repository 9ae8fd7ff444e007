"""Engines with a clock, for sample_gsm8k.py and gpu.py: `--plugin timed_engine.py --engine timed` (or `timed_vllm`)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from turn import take_turn

from swiftplug.builtin.engines.transformers import TransformersEngine
from swiftplug.plugin import Engine, Sampling, register_engine
from swiftplug.plugin.engine import Answered, Prompt


class Timed(Engine):
    """Prints the seconds of each batch, from prompts to texts."""

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model, when no other process is measured."""
        take_turn()
        super().open(args, sampling)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts."""
        started = time.monotonic()
        answers = list(super().generate(prompts))
        print(f"generated in {time.monotonic() - started:.2f} s", flush=True)
        if torch.cuda.is_available():
            print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB", flush=True)
        yield from answers


@register_engine("timed")
class TimedTransformers(Timed, TransformersEngine):
    """The local engine."""


with suppress(ImportError):
    from swiftplug_vllm.engine import VLLMEngine

    @register_engine("timed_vllm")
    class TimedVLLM(Timed, VLLMEngine):
        """vLLM."""
