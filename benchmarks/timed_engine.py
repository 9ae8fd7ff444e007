"""The engine `transformers` with a clock, for sample_gsm8k.py: `--plugin timed_engine.py --engine timed`."""

import time
from collections.abc import Iterator, Sequence

from swiftplug.builtin.engines.transformers import TransformersEngine
from swiftplug.plugin import register_engine
from swiftplug.plugin.engine import Answered, Prompt


@register_engine("timed")
class Timed(TransformersEngine):
    """Prints the seconds of each batch, from prompts to texts."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts."""
        started = time.monotonic()
        answers = list(super().generate(prompts))
        print(f"generated in {time.monotonic() - started:.2f} s", flush=True)
        yield from answers
