"""Scorers as a run uses them: resolved by name, and called with conversations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.plugin.rewards import InferRequest


@dataclass
class Scorer:
    """An ORM or a PRM with its options."""

    kind: str
    plugin: Any

    def rewards(self, answers: Sequence[str], references: Sequence[Any] | None = None) -> list[Any]:
        """What the answers get, in one batch."""
        question = {"role": "user", "content": "How many?"}
        requests = [InferRequest([question, {"role": "assistant", "content": answer}]) for answer in answers]
        truths = list(references) if references is not None else [None] * len(requests)
        if self.kind == "orm":
            return list(self.plugin(requests, truths))
        return list(self.plugin(requests, ground_truths=truths))

    def reward(self, answer: str, reference: Any = None) -> Any:
        """What one answer gets."""
        (reward,) = self.rewards([answer], [reference])
        return reward


@pytest.fixture(scope="session")
def scorer() -> Callable[..., Scorer]:
    """`scorer(kind, name, **options)`."""
    registry = Registry.discover()

    def resolve(kind: str, name: str, **options: Any) -> Scorer:
        return Scorer(kind, registry.resolve(kind, PluginChoice(name=name, options=options), f"--{kind}").bound)

    return resolve
