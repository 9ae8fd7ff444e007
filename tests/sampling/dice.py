"""An engine and scorers for tests: answers are numbers that the candidates' seeds draw."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swiftplug.plugin import (
    ORM,
    PRM,
    Answered,
    Completion,
    Engine,
    InferRequest,
    Prompt,
    Sampling,
    Unscored,
    register_engine,
    register_orm,
    register_prm,
)


@register_engine("dice")
class Dice(Engine):
    """Answers with a number below `sides`; at question 3 it fails while there is a file `ill`."""

    def __init__(self, sides: int = 4, batch: int = 4, seconds: float = 0.0) -> None:
        self.sides = sides
        self.batch = batch
        self.seconds = seconds

    def prompts_at_once(self, sampling: Sampling) -> int:
        return self.batch

    def open(self, args: Any, sampling: Sampling) -> None:
        self.sampling = sampling

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        for prompt in reversed(prompts):
            time.sleep(self.seconds)
            if Path("ill").exists() and "问题 3:" in prompt.messages[-1]["content"]:
                yield Answered(prompt.id, failure="HTTP 500 after 5 tries")
                continue
            seeds = [self.sampling.seed_of(prompt.id, i) for i in range(self.sampling.num_return_sequences)]
            yield Answered(
                prompt.id, [Completion(f"Let us see 🎲\n\\boxed{{{seed % self.sides}}}", "stop") for seed in seeds]
            )


@register_orm("box")
class Box(ORM):
    """1 if the box holds the reference."""

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        pairs = zip(infer_requests, ground_truths, strict=True)
        return [float(f"\\boxed{{{truth}}}" in request.messages[-1]["content"]) for request, truth in pairs]

    def answer_of(self, text: str) -> str | None:
        return text.rpartition("{")[2].rstrip("}") or None


@register_orm("shy_box")
class ShyBox(Box):
    """The same; while there is a file `ill` it cannot score what holds a 1."""

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[Any]:
        scores = super().__call__(infer_requests, ground_truths)
        hidden = [Path("ill").exists() and "{1}" in request.messages[-1]["content"] for request in infer_requests]
        return [Unscored("timed out") if it else score for it, score in zip(hidden, scores, strict=True)]


@register_orm("slow_box")
class SlowBox(Box):
    """The same, by a server that takes its time."""

    async def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any
    ) -> list[float]:
        await asyncio.sleep(0.01)
        return super().__call__(infer_requests, ground_truths)


@register_orm("hangs")
class Hangs(ORM):
    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        time.sleep(60)
        return []


@register_orm("raises")
def raises(infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
    raise RuntimeError("the judge is ill")


@register_orm("one_short")
def one_short(infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
    return [1.0] * (len(infer_requests) - 1)


@register_orm("nan")
def nan(infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
    return [float("nan")] * len(infer_requests)


@register_orm("texts")
def texts(infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[Any]:
    return ["good"] * len(infer_requests)


@register_prm("halves")
class Halves(PRM):
    """One reward a line: 1 for the first, and for the last the number in it by 4."""

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[Any]:
        return [[1.0, int(request.messages[-1]["content"][-2]) / 4] for request in infer_requests]
