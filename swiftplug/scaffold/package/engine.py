"""An engine: answers at random, the baseline that every model should beat."""

import random
from collections.abc import Iterator, Sequence

from swiftplug.plugin import Answered, Completion, Engine, Prompt, RunArguments, Sampling


class RandomChoice(Engine):
    """Gives each question one of a few answers, drawn at random.

    Args:
        choices: The answers to draw from.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, choices: Sequence[str] = ("yes", "no")) -> None:
        self.choices = choices

    def open(self, args: RunArguments, sampling: Sampling) -> None:
        """Called once, before the first question: load a model (`args.load_model()`) or connect to a server here."""
        self.sampling = sampling

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Give every prompt its candidates; `prompt.messages` is the conversation up to the question."""
        for prompt in prompts:
            indices = range(self.sampling.num_return_sequences)
            yield Answered(prompt.id, [self._draw(prompt, index) for index in indices])

    def _draw(self, prompt: Prompt, index: int) -> Completion:
        # The seed of this very candidate: a run that is interrupted and resumed, or split into shards, draws the same.
        generator = random.Random(self.sampling.seed_of(prompt.id, index))
        return Completion(generator.choice(self.choices), finish_reason="stop")
