"""Drawing tokens: what is kept equals Transformers' warpers, and frequencies fit the distribution."""

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from swiftplug.builtin.engines.decoding import draw, keep_likeliest, uniform_numbers
from swiftplug.plugin.engine import Sampling


def sampling(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
    return Sampling(1, 1, temperature, top_p, top_k, 0)


def random_logits(rows: int, vocabulary: int, spread: float) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows + vocabulary)) * spread


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])  # a nucleus of most of the vocabulary, and of a few tokens
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.999), (50, 1.0), (7, 0.5), (3000, 0.95), (1, 0.3)])
def test_the_kept_tokens_are_those_of_transformers_warpers(spread: float, top_k: int, top_p: float) -> None:
    scores = random_logits(40, 2500, spread).double()  # in float32, rounding moves the edge of a nucleus by a token
    expected = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    kept = keep_likeliest(scores, top_k, top_p)
    assert torch.equal(kept, expected)


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0, 1.0]])
    assert keep_likeliest(scores, 2, 1.0).isfinite().tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 12, 1.0), (0.8, 0, 0.9), (1.5, 20, 0.8)]
)
def test_frequencies_fit_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    """Pearson's chi-square over 200,000 draws; its standard deviation over the mean tells chance from error."""
    logits = random_logits(1, 40, 2.0)
    draws = 200_000
    numbers = uniform_numbers([7], draws)[0]
    tokens = draw(logits.expand(draws, -1), numbers, sampling(temperature, top_p, top_k)).numpy()

    scaled = logits[0].double().numpy() / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    if top_k:
        probabilities[order[top_k:]] = 0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    probabilities /= probabilities.sum()

    found = np.bincount(tokens, minlength=40)
    possible = probabilities > 0
    assert found[~possible].sum() == 0
    expected = draws * probabilities[possible]
    chi_square = ((found[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25]).log()
    numbers = torch.tensor([0.0, 0.2499, 0.2501, 0.5, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(7, -1), numbers, sampling()).tolist() == [0, 0, 2, 2, 2, 3, 3]


def test_a_token_without_probability_is_never_drawn() -> None:
    """The largest number below 1, times a total, may round up to the total."""
    logits = random_logits(500, 1000, 3.0)
    logits[:, 600:] = -torch.inf
    numbers = torch.full((500,), 1 - 2**-53, dtype=torch.float64)
    assert (draw(logits, numbers, sampling()) < 600).all()


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = random_logits(20, 100, 1.0)
    tokens = draw(logits, uniform_numbers([1], 20)[0], sampling(temperature=0.0))
    assert tokens.tolist() == logits.argmax(dim=-1).tolist()


def test_half_precision_logits_are_drawn_from_as_they_are() -> None:
    logits = random_logits(50, 300, 2.0)
    numbers = uniform_numbers([3], 50)[0]
    assert torch.equal(
        draw(logits.bfloat16(), numbers, sampling()), draw(logits.bfloat16().float(), numbers, sampling())
    )


def test_a_candidates_numbers_are_its_own() -> None:
    """They depend on its seed alone, and a shorter run draws with the same ones."""
    run = Sampling(4, 100, 1.0, 1.0, 0, seed=5)
    seeds = [run.seed_of(row, index) for row in ("a", "b") for index in range(3)]
    numbers = uniform_numbers(seeds, 100)
    assert len(torch.unique(numbers)) == 600
    assert torch.equal(numbers[4:5], uniform_numbers([seeds[4]], 100))
    assert torch.equal(numbers[:, :10], uniform_numbers(seeds, 10))
