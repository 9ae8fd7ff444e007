"""Proximal policy optimisation: an advantage for each token, from the rewards to come and a value head's prediction."""

from collections.abc import Iterable, Mapping
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from swiftplug.plugin import Batch, Drawn, PolicyTask, TokenLogps


class GAE:
    """Generalised advantage estimation (arXiv 1506.02438).

    Only the tokens that train are steps of the episode. Nothing follows the last one, also of an answer that was cut
    off: it earned what it earned, and the value head predicts nothing behind it.

    Args:
        gamma: What a reward is worth one token earlier.
        lam: How far rewards are waited for: with 1 to the end, with 0 the value of the next token stands for them all.

    Example:
        >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]])
        >>> GAE(gamma=1.0, lam=1.0)(rewards, values, torch.tensor([[True, True, True]]))
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, gamma: float, lam: float) -> None:
        self.gamma, self.lam = gamma, lam

    def __call__(self, rewards: torch.Tensor, values: torch.Tensor, trains: torch.Tensor) -> torch.Tensor:
        """Make advantages.

        Args:
            rewards: `(N, T)` float32, of each token.
            values: `(N, T)` float32, predicted before each token is known.
            trains: `(N, T)` bool, which tokens train.

        Returns:
            `(N, T)` advantages, 0 where no token trains.
        """
        advantages = torch.zeros_like(values)
        following_value, following = values.new_zeros(2, len(values))
        for token in reversed(range(values.shape[1])):
            is_step, value = trains[:, token], values[:, token]
            error = rewards[:, token] + self.gamma * following_value - value
            following = torch.where(is_step, error + self.gamma * self.lam * following, following)
            following_value = torch.where(is_step, value, following_value)
            advantages[:, token] = torch.where(is_step, following, 0.0)
        return advantages


class PPO(PolicyTask):
    """Proximal policy optimisation (arXiv 1707.06347, 2203.02155): each token by what it earns beyond a prediction.

    The prediction is that of a value head, which trains beside the policy on the same states, with ten times its
    learning rate. An answer's reward is given at its last token, a process reward model's at the last tokens of its
    steps, and each token's share of the KL divergence at the token. Advantages are brought to a mean of 0 and a
    standard deviation of 1 over all tokens of a drawing.

    Args:
        beta: The weight of the KL divergence from the reference model, which lowers the rewards; 0 needs no reference.
        gamma: What a reward is worth one token earlier.
        lam: The lambda of generalised advantage estimation (arXiv 1506.02438). As an answer's reward comes at its end,
            less than 1 makes early tokens seem worse than late ones until the value head has learned.
        epsilon: The ratio of new and old probabilities is clipped to at least `1 - epsilon`.
        epsilon_high: And to at most `1 + epsilon_high`.
        value_coefficient: The weight of the value head's loss: half its squared error.
        value_clip: How far the values may move from those of the drawing before the error stops to shrink.
        num_iterations: The optimizer steps that are taken with the candidates of one drawing.
        mask_cut_off: Whether candidates cut off at the token limit do not train.
        importance_cap: The most by which a token is weighed for the difference between the engine's probability and
            the model's, if the engine has weights of its own (arXiv 2508.10396).
    """

    mean = "tokens"
    kl = "reward"
    min_group = 1
    needs_values = True
    rewards_steps = True

    def __init__(
        self,
        beta: NonNegativeFloat = 0.05,
        gamma: Annotated[float, Field(gt=0, le=1)] = 1.0,
        lam: Annotated[float, Field(ge=0, le=1)] = 1.0,
        epsilon: NonNegativeFloat = 0.2,
        epsilon_high: NonNegativeFloat = 0.2,
        value_coefficient: PositiveFloat = 0.1,
        value_clip: PositiveFloat = 0.2,
        num_iterations: PositiveInt = 1,
        mask_cut_off: bool = False,
        importance_cap: PositiveFloat = 2.0,
    ) -> None:
        self.gae = GAE(gamma, lam)
        self.beta, self.epsilon, self.epsilon_high = beta, epsilon, epsilon_high
        self.value_coefficient, self.value_clip = value_coefficient, value_clip
        self.num_iterations = num_iterations
        self.trains_cut_off = not mask_cut_off
        self.importance_cap = importance_cap

    def estimate(self, drawn: Drawn) -> Mapping[str, torch.Tensor]:
        """Whitened advantages of the tokens, and the `returns` that the value head learns to predict."""
        assert drawn.values is not None
        rewards = drawn.token_rewards.clone()
        if self.needs_logps:
            assert drawn.logps is not None and drawn.reference_logps is not None
            rewards -= self.beta * (drawn.logps - drawn.reference_logps)
        places = torch.arange(rewards.shape[1], device=rewards.device)
        last = (drawn.trains * places).argmax(dim=1, keepdim=True)
        rewards.scatter_add_(1, last, drawn.rewards.reshape(-1, 1))
        advantages = self.gae(rewards, drawn.values, drawn.trains)
        mean, deviation = drawn.mean_and_std(advantages.masked_fill(~drawn.trains, torch.nan))
        whitened = (advantages - mean) / (deviation.square() + 1e-8).sqrt()
        return {"advantages": whitened * drawn.trains, "returns": advantages + drawn.values}

    def log_names(self) -> Iterable[str]:
        """As other policies, and the squared error of the value head."""
        return *super().log_names(), "value_error"

    def policy_losses(self, tokens: TokenLogps, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The loss of the policy, and that of the value head."""
        losses, logged = super().policy_losses(tokens, batch)
        assert tokens.values is not None
        near = batch["values"] + (tokens.values - batch["values"]).clamp(-self.value_clip, self.value_clip)
        errors = (tokens.values - batch["returns"]).square()
        clipped_errors = (near - batch["returns"]).square()
        losses = losses + self.value_coefficient * torch.maximum(errors, clipped_errors) / 2
        return losses, {**logged, "value_error": errors.detach()}
