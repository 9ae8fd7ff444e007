"""An engine: answers a question with the answer to a similar one, a baseline that any model should beat."""

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from swiftplug.plugin import Answered, Completion, Engine, Prompt, RunArguments, Sampling, UserError


class SimilarQuestion(Engine):
    """Looks for known questions that share many words with the prompt, and gives the answer to one of them.

    With `temperature: 0` that is the most similar question; else one is drawn, by the softmax of the similarities.

    Args:
        file: The known questions and answers: JSON Lines with `messages`. Parameters of `__init__` are a plugin's
            options: `--set engine.file=train.jsonl`.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.known: list[tuple[set[str], str]] = []  # the words of each question, and its answer

    def open(self, args: RunArguments, sampling: Sampling) -> None:
        """Read the file. `open` is called once, before the first prompt."""
        self.sampling = sampling
        try:
            rows = [json.loads(line) for line in Path(self.file).read_text(encoding="utf-8").splitlines()]
            pairs = [row["messages"][-2:] for row in rows]
            self.known = [(_words(question["content"]), answer["content"]) for question, answer in pairs]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"engine.file: cannot read questions and answers from {self.file}: {error!r}") from error
        if not self.known:
            raise UserError(f"engine.file: {self.file} is empty; expected questions and answers")

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Give every prompt its candidates, as many as `num_return_sequences`."""
        for prompt in prompts:
            words = _words(prompt.messages[-1]["content"])
            scored = [(len(words & known) / len(words | known or {""}), answer) for known, answer in self.known]
            scored.sort(key=lambda pair: -pair[0])
            if self.sampling.top_k:
                scored = scored[: self.sampling.top_k]
            count = self.sampling.num_return_sequences
            yield Answered(prompt.id, [self._candidate(scored, prompt.id, index) for index in range(count)])

    def _candidate(self, scored: list[tuple[float, str]], prompt_id: str, index: int) -> Completion:
        best, answer = scored[0]
        if self.sampling.temperature > 0:
            weights = [math.exp((similarity - best) / self.sampling.temperature) for similarity, _ in scored]
            # The seed of this very candidate: a run that is killed and resumed, or split into shards, draws the same.
            generator = random.Random(self.sampling.seed_of(prompt_id, index))
            ((_, answer),) = generator.choices(scored, weights)
        return Completion(answer, finish_reason="stop")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
