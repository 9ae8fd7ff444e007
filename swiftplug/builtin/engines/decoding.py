"""Decoding a batch: each prompt is read once, then all of its candidates get a token a step."""

import inspect
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from swiftplug.builtin.engines.cache import roomy_cache
from swiftplug.builtin.engines.drawing import draw
from swiftplug.plugin.engine import Sampling

_ENDED_SHARE = 16  # rows that ended are taken out once they are one in so many


class Task(NamedTuple):
    """A prompt, and the candidates to draw for it.

    Attributes:
        ids: The prompt's tokens.
        numbers: `(candidates, max_new_tokens)`, uniform in [0, 1): what each candidate draws with.
        longest: Tokens after which a candidate is cut off; at most `max_new_tokens`.
    """

    ids: list[int]
    numbers: torch.Tensor
    longest: int


class Drawn(NamedTuple):
    """A candidate.

    Attributes:
        ids: Its tokens, without the one that ended it.
        finish_reason: `stop`, `length`, or `broken` where the model's output was not a number.
    """

    ids: list[int]
    finish_reason: str


class _Rows(NamedTuple):
    """What is being decoded, a row each.

    Attributes:
        cache: Keys and values of all tokens but the last.
        mask: `(rows, width)`, which tokens are not padding; it reaches over all tokens to come.
        positions: `(rows,)`, of the next token.
        candidates: `(rows,)`, which candidate a row is.
        ended: `(rows,)`, whether that is complete and the row is only carried along.
    """

    cache: Any
    mask: torch.Tensor
    positions: torch.Tensor
    candidates: torch.Tensor
    ended: torch.Tensor

    def take(self, rows: torch.Tensor) -> "_Rows":
        """The rows of these numbers."""
        self.cache.reorder_cache(rows)
        return _Rows(self.cache, self.mask[rows], self.positions[rows], self.candidates[rows], self.ended[rows])


class Decoder:
    """Decodes with one model.

    Attributes:
        virtual_tokens: Learned prompt tokens before each prompt; where there are some, no prompt may be padded.

    Args:
        model: A causal language model, in evaluation mode.
        end_ids: The tokens that end an answer.
    """

    def __init__(self, model: Any, end_ids: list[int]) -> None:
        learned = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self.virtual_tokens: int = model.active_peft_config.num_virtual_tokens if learned else 0
        # PEFT puts learned prompts before what it is given, which is right for the prompt and wrong for a step.
        self._reader, self._stepper = model, model.base_model if learned else model
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._config = inner.config
        self._accepted = set(inspect.signature(inner.forward).parameters)
        self._device = model.device
        # Apple's GPUs have no float64.
        self._drawing_device = torch.device("cpu") if self._device.type == "mps" else self._device
        self._end_ids = torch.tensor(end_ids, device=self._device)

    @torch.inference_mode()
    def decode(self, tasks: list[Task], sampling: Sampling) -> list[list[Drawn]]:
        """Answer prompts, all at once.

        When enough rows have ended, the last ones move into their places, so that little is copied.

        Args:
            tasks: The prompts.
            sampling: How tokens are drawn.

        Returns:
            The candidates of each task.
        """
        counts = torch.tensor([len(task.numbers) for task in tasks], device=self._device)
        owners = torch.repeat_interleave(counts)
        numbers = torch.cat([task.numbers for task in tasks]).to(self._drawing_device)
        longest = torch.tensor([task.longest for task in tasks], device=self._device)[owners]
        tokens = torch.zeros(numbers.shape, dtype=torch.long, device=self._device)
        lengths, broken = longest.clone(), torch.zeros(len(numbers), dtype=torch.bool, device=self._device)

        rows, logits = self._read(tasks)
        rows, logits = rows.take(owners), logits[owners]
        rows = rows._replace(candidates=torch.arange(len(owners), device=self._device))
        for step in range(int(longest.max())):
            chosen = numbers[rows.candidates.to(self._drawing_device), step]
            drawn = draw(logits.to(self._drawing_device), chosen, sampling).to(self._device)
            tokens[rows.candidates, step] = drawn
            no_number = ~logits.amax(dim=-1).isfinite() & ~rows.ended
            broken[rows.candidates] |= no_number
            at_end = torch.isin(drawn, self._end_ids) & ~rows.ended
            lengths[rows.candidates[at_end]] = step
            rows = rows._replace(ended=rows.ended | no_number | at_end | (longest[rows.candidates] <= step + 1))
            living = len(drawn) - int(rows.ended.sum())
            if not living:
                break
            if len(drawn) - living >= max(1, len(drawn) // _ENDED_SHARE):
                places = fill_gaps(rows.ended, living)
                rows, drawn = rows.take(places), drawn[places]
            logits = self._step(rows, drawn)
            rows = rows._replace(positions=rows.positions + 1)

        finished = zip(tokens.tolist(), lengths.tolist(), longest.tolist(), broken.tolist(), strict=True)
        candidates = [_finish(*candidate) for candidate in finished]
        return [candidates[end - len(task.numbers) : end] for task, end in zip(tasks, counts.cumsum(0), strict=True)]

    def _read(self, tasks: list[Task]) -> tuple[_Rows, torch.Tensor]:
        """Run the prompts through the model, padded on the left; also the logits behind each, `(tasks, vocabulary)`."""
        width, virtual = max(len(task.ids) for task in tasks), self.virtual_tokens
        lengths = torch.tensor([len(task.ids) for task in tasks], device=self._device)
        padded = [[0] * (width - len(task.ids)) + task.ids for task in tasks]
        full_width = virtual + width + max(task.longest for task in tasks)
        mask = torch.ones(len(tasks), full_width, dtype=torch.long, device=self._device)
        mask[:, :width] = torch.arange(width, device=self._device) >= width - lengths[:, None]
        if virtual:
            mask[:] = 1
        seen = mask[:, :width]
        # PEFT counts positions itself where it puts a learned prompt before.
        positions = None if virtual else (seen.cumsum(dim=-1) - 1).clamp(min=0)
        cache = roomy_cache(self._config, full_width)
        output = self._call(self._reader, torch.tensor(padded, device=self._device), seen, positions, cache)
        numbers = torch.arange(len(tasks), device=self._device)
        ended = torch.zeros(len(tasks), dtype=torch.bool, device=self._device)
        return _Rows(output.past_key_values, mask, virtual + lengths, numbers, ended), output.logits[:, -1]

    def _step(self, rows: _Rows, tokens: torch.Tensor) -> torch.Tensor:
        """The logits behind one more token of each row, `(rows, vocabulary)`."""
        seen = rows.mask[:, : rows.cache.get_seq_length() + 1]
        logits: torch.Tensor = self._call(
            self._stepper, tokens[:, None], seen, rows.positions[:, None], rows.cache
        ).logits[:, -1]
        return logits

    def _call(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None, cache: Any
    ) -> Any:
        optional = {"position_ids": positions, "logits_to_keep": 1}
        return model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted and value is not None},
        )


def fill_gaps(ended: torch.Tensor, living: int) -> torch.Tensor:
    """Which row each of the first `living` rows is to be: itself or, where it ended, a living one from behind.

    Args:
        ended: `(rows,)`.
        living: How many have not.

    Example:
        >>> fill_gaps(torch.tensor([False, True, False, False]), 3).tolist()
        [0, 3, 2]
    """
    places = torch.arange(living, device=ended.device)
    gaps = ended[:living].nonzero().squeeze(1)
    places[gaps] = living + (~ended[living:]).nonzero().squeeze(1)
    return places


def _finish(ids: list[int], length: int, longest: int, broken: bool) -> Drawn:
    return Drawn(ids[:length], "broken" if broken else "stop" if length < longest else "length")
