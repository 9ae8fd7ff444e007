"""Generates a batch: one forward pass per prompt, then one token per step for all of its candidates.

Random numbers depend on the candidate alone, so that it is the same whatever else is in the batch.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from swiftplug.builtin.engines.fast_parts import GrowingLayer, growing_cache
from swiftplug.plugin import Sampling

_ENDED_SHARE = 16  # ended rows are removed once they are 1/16 of the batch
_FIRST_LOOK = 64  # likeliest tokens to sort first; while they hold less than `top_p`, eight times as many are sorted


class GenerationRequest(NamedTuple):
    """A prompt, and the candidates to generate for it.

    Attributes:
        ids: The prompt's tokens.
        seeds: Those of the random numbers of each candidate.
        longest: Maximum length of a candidate in tokens.
    """

    ids: list[int]
    seeds: list[int]
    longest: int


class Drawn(NamedTuple):
    """A candidate: its tokens, what ended it included, and why it ended.

    The reason is `stop`, `length`, `broken` if logits are not finite, or empty while it is being generated.
    """

    ids: list[int]
    finish_reason: str


@dataclass
class _Rows:
    """The batch being generated, one candidate per row.

    Attributes:
        cache: Keys and values of all tokens but the last.
        mask: `(rows, width)`, which tokens are not padding; it covers all future tokens too.
        positions: `(rows,)`, of the next token.
        candidates: `(rows,)`, which candidate a row is.
        ended: `(rows,)`, whether that candidate is complete; its row stays in the batch until it is removed.
    """

    cache: Any
    mask: torch.Tensor
    positions: torch.Tensor
    candidates: torch.Tensor
    ended: torch.Tensor

    def take(self, rows: torch.Tensor) -> None:
        """Keep the rows with these indices, in this order."""
        self.cache.reorder_cache(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.candidates, self.ended = self.candidates[rows], self.ended[rows]


class Decoder:
    """Generates with one causal language model in evaluation mode.

    Attributes:
        num_virtual_tokens: Learned prompt tokens before each prompt; if there are any, no prompt may be padded.

    Args:
        model: The model.
        end_ids: The tokens that end an answer.
        has_stopped: Whether the tokens of an answer end it as text does; None if only `end_ids` do.
    """

    def __init__(
        self, model: Any, end_ids: list[int], has_stopped: Callable[[Sequence[int]], bool] | None = None
    ) -> None:
        self._has_stopped = has_stopped
        learned = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self.num_virtual_tokens: int = model.active_peft_config.num_virtual_tokens if learned else 0
        # PEFT puts learned prompts before every input: right for the prompt, wrong for a later step.
        self._reader, self._stepper = model, model.base_model if learned else model
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._config = inner.config
        # Of the class: a trainer may have wrapped that of the instance.
        self._accepted = set(inspect.signature(type(inner).forward).parameters)
        self._device = model.device
        # Apple's GPUs have no float64.
        self._drawing_device = torch.device("cpu") if self._device.type == "mps" else self._device
        self._end_ids = torch.tensor(end_ids, device=self._device)
        self._kept: tuple[list[int], Any] = [], None  # the tokens of the last stream, and their cache

    @torch.no_grad()  # no inference mode: what a module keeps of a pass would be unfit for training
    def decode(self, requests: list[GenerationRequest], sampling: Sampling) -> list[list[Drawn]]:
        """Generate the candidates of all requests together.

        When enough rows have ended, the last running rows take their places, so that little is copied.
        """
        counts = torch.tensor([len(request.seeds) for request in requests], device=self._device)
        owners = torch.repeat_interleave(counts)
        longest = torch.tensor([request.longest for request in requests], device=self._device)[owners]
        seeds = [seed for request in requests for seed in request.seeds]
        numbers = uniform_numbers(seeds, int(longest.max())).to(self._drawing_device)
        tokens = torch.zeros(numbers.shape, dtype=torch.long, device=self._device)
        lengths, broken = longest.clone(), torch.zeros(len(numbers), dtype=torch.bool, device=self._device)
        stopped = torch.zeros_like(broken)

        rows, logits = self._read_prompts(requests)
        rows.take(owners)
        rows.candidates = torch.arange(len(owners), device=self._device)
        logits = logits[owners]
        for step in range(int(longest.max())):
            chosen = numbers[rows.candidates.to(self._drawing_device), step]
            drawn = draw(logits.to(self._drawing_device), chosen, sampling).to(self._device)
            tokens[rows.candidates, step] = drawn
            not_finite = ~logits.amax(dim=-1).isfinite() & ~rows.ended
            broken[rows.candidates] |= not_finite
            at_end = torch.isin(drawn, self._end_ids)
            if self._has_stopped is not None:
                written = map(self._has_stopped, tokens[rows.candidates, : step + 1].tolist())
                at_end |= torch.tensor(list(written), device=self._device)
            at_end &= ~rows.ended
            lengths[rows.candidates[at_end]] = step + 1
            stopped[rows.candidates[at_end]] = True
            rows.ended = rows.ended | not_finite | at_end | (longest[rows.candidates] <= step + 1)
            num_living = len(drawn) - int(rows.ended.sum())
            if not num_living:
                break
            if len(drawn) - num_living >= max(1, len(drawn) // _ENDED_SHARE):
                places = torch.arange(num_living, device=self._device)
                gaps = rows.ended[:num_living].nonzero().squeeze(1)
                places[gaps] = num_living + (~rows.ended[num_living:]).nonzero().squeeze(1)
                rows.take(places)
                drawn = drawn[places]
            seen = rows.mask[:, : rows.cache.get_seq_length() + 1]
            output = self._forward(self._stepper, drawn[:, None], seen, rows.positions[:, None], rows.cache)
            logits = output.logits[:, -1]
            rows.positions = rows.positions + 1

        candidates = [
            Drawn(ids[:length], "broken" if is_broken else "stop" if has_ended else "length")
            for ids, length, has_ended, is_broken in zip(
                tokens.tolist(), lengths.tolist(), stopped.tolist(), broken.tolist(), strict=True
            )
        ]
        return [
            candidates[end - len(request.seeds) : end] for request, end in zip(requests, counts.cumsum(0), strict=True)
        ]

    @torch.no_grad()
    def stream(self, request: GenerationRequest, sampling: Sampling) -> Iterator[Drawn]:
        """Generate the first candidate of a request, which is that of `decode`, and yield it after each token.

        What the last stream has read and generated is not read again where this prompt begins with it. An iterator may
        be closed, or interrupted, at any time.
        """
        ids, ends = [*request.ids], set(self._end_ids.tolist())
        cache, logits = self._read_on(ids, self.num_virtual_tokens + len(ids) + request.longest)
        for number in uniform_numbers(request.seeds[:1], request.longest)[0].to(self._drawing_device):
            if not logits.amax().isfinite():
                yield Drawn(ids[len(request.ids) :], "broken")
                return
            token = int(draw(logits.to(self._drawing_device), number[None], sampling))
            if self.num_virtual_tokens == 0:
                self._kept = [*ids], cache
            ids.append(token)
            drawn = ids[len(request.ids) :]
            at_end = token in ends or (self._has_stopped is not None and self._has_stopped(drawn))
            reason = "stop" if at_end else "length" if len(drawn) == request.longest else ""
            yield Drawn(drawn, reason)
            if reason:
                return
            self._kept = [], None  # an interruption would leave the cache half-way through this token
            cache, logits = self._feed(self._stepper, ids[-1:], cache, self.num_virtual_tokens + len(ids) - 1)

    def _read_on(self, ids: list[int], longest: int) -> tuple[Any, torch.Tensor]:
        """The cache of a prompt and its next logits, `(1, V)`; only tokens that the kept cache lacks are read."""
        before, cache = self._kept
        self._kept = [], None
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False))
        known = min(sum(1 for _ in same), len(ids) - 1)
        if cache is None or known < 1 or not all(type(layer) is GrowingLayer for layer in cache.layers):
            virtual = self.num_virtual_tokens
            if not virtual:
                return self._feed(self._stepper, ids, growing_cache(self._config, longest), 0)
            rows, logits = self._read_prompts([GenerationRequest(ids, [], longest - virtual - len(ids))])
            return rows.cache, logits
        for layer in cache.layers:
            layer.keep(known, longest)
        return self._feed(self._stepper, ids[known:], cache, known)

    def _feed(self, model: Any, ids: list[int], cache: Any, start: int) -> tuple[Any, torch.Tensor]:
        """Run tokens through the model behind the `start` ones in the cache."""
        end = start + len(ids)
        positions = torch.arange(start, end, device=self._device)[None]
        mask = torch.ones(1, end, dtype=torch.long, device=self._device)
        output = self._forward(model, torch.tensor([ids], device=self._device), mask, positions, cache)
        return output.past_key_values, output.logits[:, -1]

    def _read_prompts(self, requests: list[GenerationRequest]) -> tuple[_Rows, torch.Tensor]:
        """Run the prompts, padded on the left, through the model; also return their next logits, `(requests, V)`."""
        width, virtual = max(len(request.ids) for request in requests), self.num_virtual_tokens
        lengths = torch.tensor([len(request.ids) for request in requests], device=self._device)
        padded = torch.tensor(
            [[0] * (width - len(request.ids)) + request.ids for request in requests], device=self._device
        )
        full_width = virtual + width + max(request.longest for request in requests)
        mask = torch.ones(len(requests), full_width, dtype=torch.long, device=self._device)
        if not virtual:
            mask[:, :width] = torch.arange(width, device=self._device) >= width - lengths[:, None]
        seen = mask[:, :width]
        # With a learned prompt, PEFT computes the positions itself.
        positions = None if virtual else (seen.cumsum(dim=-1) - 1).clamp(min=0)
        output = self._forward(self._reader, padded, seen, positions, growing_cache(self._config, full_width))
        numbers, ended = torch.arange(len(requests), device=self._device), torch.zeros_like(lengths, dtype=torch.bool)
        # Take the output's cache: prefix tuning makes its own.
        return _Rows(output.past_key_values, mask, virtual + lengths, numbers, ended), output.logits[:, -1]

    def _forward(
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


def uniform_numbers(seeds: list[int], count: int) -> torch.Tensor:
    """Random numbers in [0, 1), `(len(seeds), count)`, float64, one row per seed.

    They are made on the CPU, whose generator gives the same numbers on every machine.
    """
    return torch.stack(
        [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def draw(logits: torch.Tensor, numbers: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token per row by inverting the cumulative distribution; the likeliest one at temperature 0.

    Args:
        logits: `(rows, vocabulary)`.
        numbers: `(rows,)`, float64, uniform in [0, 1).
        sampling: The temperature, `top_k` and `top_p`, which apply in this order.

    Returns:
        `(rows,)`, token ids.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float() / sampling.temperature
    kept = keep_likeliest(scores, sampling.top_k, sampling.top_p)
    cumulative = (kept - kept.amax(dim=-1, keepdim=True)).exp_().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, numbers[:, None] * total, right=True)
    # A product that rounds up to the total would give an index after the last token with a probability, or, if the
    # logits are not finite, after the whole vocabulary.
    last = torch.searchsorted(cumulative, total).clamp(max=logits.shape[-1] - 1)
    return torch.minimum(drawn, last).squeeze(1)


def keep_likeliest(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set all but the likeliest tokens to minus infinity.

    It keeps the same tokens as the logits processors of Transformers: the `top_k` likeliest, and of these the fewest
    whose probabilities, rescaled to sum to 1, reach `top_p`. Tokens that tie with the last one kept are kept too.

    Args:
        scores: `(rows, vocabulary)`, logits over the temperature.
        top_k: 0 for all.
        top_p: 1 for all.
    """
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        scores = scores.masked_fill(scores < _least_of_nucleus(scores, top_p), -torch.inf)
    return scores


def _least_of_nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """The score of the last token of each row's nucleus, `(rows, 1)`; it sorts only as many tokens as necessary."""
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    size, vocabulary = min(_FIRST_LOOK, scores.shape[-1]), scores.shape[-1]
    while True:
        highest = scores.topk(size, dim=-1).values
        # The total probability of the likelier tokens; the first token where it reaches `top_p` is not needed.
        before = (highest - log_total).exp().cumsum(dim=-1, dtype=torch.float64).roll(1, dims=-1)
        before[:, 0] = 0
        needed = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        if size == vocabulary or bool((needed < size).all()):
            return highest.gather(-1, needed - 1)
        size = min(8 * size, vocabulary)
