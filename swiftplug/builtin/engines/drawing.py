"""Drawing tokens from logits, with random numbers that belong to a candidate and to nothing else."""

import torch

from swiftplug.plugin.engine import Sampling

_FIRST_LOOK = 64  # tokens; where they hold less than `top_p` together, eight times as many are looked at, and so on


def uniform_numbers(seeds: list[int], count: int) -> torch.Tensor:
    """The random numbers of several candidates.

    They are made on the CPU, whose generator gives the same on every machine.

    Args:
        seeds: One a candidate.
        count: Numbers a candidate.

    Returns:
        `(len(seeds), count)`, float64, in [0, 1).
    """
    return torch.stack(
        [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def draw(logits: torch.Tensor, numbers: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution; the likeliest one at temperature 0.

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
    # A product that rounds up to the total would point behind the last token that has a probability; where the logits
    # are not numbers, behind all of them.
    last = torch.searchsorted(cumulative, total).clamp(max=logits.shape[-1] - 1)
    return torch.minimum(drawn, last).squeeze(1)


def keep_likeliest(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set all but the likeliest tokens to minus infinity.

    What is kept is what the warpers of Transformers keep: the `top_k` likeliest, and of these the fewest whose
    probabilities, rescaled to sum to 1, reach `top_p`. Tokens that tie with the last one kept are kept too.

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
    """The score of the last token of each row's nucleus, `(rows, 1)`; it sorts no further than it must."""
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    size, vocabulary = min(_FIRST_LOOK, scores.shape[-1]), scores.shape[-1]
    while True:
        highest = scores.topk(size, dim=-1).values
        # Of the likelier ones before each; the first one past `top_p` is the first that is not needed.
        before = (highest - log_total).exp().cumsum(dim=-1, dtype=torch.float64).roll(1, dims=-1)
        before[:, 0] = 0
        needed = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        if size == vocabulary or bool((needed < size).all()):
            return highest.gather(-1, needed - 1)
        size = min(8 * size, vocabulary)
