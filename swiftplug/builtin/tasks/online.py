"""Online reinforcement learning: GRPO and its variants, and RLOO."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from swiftplug.plugin import Drawn, Estimator, PolicyTask, UserError

_NO_DIVISION = 1e-4  # as in TRL, added to a standard deviation that is divided by


class GroupNormalised(Estimator):
    """The reward less the mean of its group, divided by a standard deviation (arXiv 2402.03300).

    Args:
        scale: The deviation of the `group`, that of the whole `batch` (arXiv 2508.08221), or `none`: no division (Dr.
            GRPO, arXiv 2503.20783).
    """

    def __init__(self, scale: Literal["group", "batch", "none"] = "group") -> None:
        self.scale = scale

    def __call__(self, rewards: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """See `Estimator.__call__`."""
        advantages = rewards - rewards.nanmean(dim=1, keepdim=True)
        spread = rewards.nan_to_num(nan=-torch.inf).amax(dim=1) - rewards.nan_to_num(nan=torch.inf).amin(dim=1)
        advantages = torch.where(spread[:, None] == 0, advantages * 0, advantages)  # the mean may round
        match self.scale:
            case "group":
                degrees = (~rewards.isnan()).sum(dim=1, keepdim=True) - 1
                deviation = (advantages.square().nansum(dim=1, keepdim=True) / degrees.clamp(min=1)).sqrt()
                return advantages / (deviation + _NO_DIVISION)
            case "batch":
                return advantages / (drawn.mean_and_std(rewards)[1] + _NO_DIVISION)
            case "none":
                return advantages


class LeaveOneOut(Estimator):
    """The reward less the mean of the others of its group (arXiv 2402.14740).

    Args:
        normalize: Whether the advantages of a step are brought to a mean of 0 and a standard deviation of 1.
    """

    def __init__(self, normalize: bool = False) -> None:
        self.normalize = normalize

    def __call__(self, rewards: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """See `Estimator.__call__`; a candidate that is alone is left out."""
        others = (~rewards.isnan()).sum(dim=1, keepdim=True) - 1
        advantages = rewards - (rewards.nansum(dim=1, keepdim=True) - rewards) / others
        if self.normalize:
            mean, deviation = drawn.mean_and_std(advantages)
            advantages = (advantages - mean) / (deviation + _NO_DIVISION)
        return torch.where(others > 0, advantages, torch.nan)


class GRPO(PolicyTask):
    """Group relative policy optimisation (arXiv 2402.03300): what a candidate earns more than others to its prompt.

    Args:
        loss: The objective: `grpo`; `dr_grpo`, without division by lengths and deviations (arXiv 2503.20783); `dapo`,
            by tokens, clipped higher above than below, without candidates that were cut off (arXiv 2503.14476); `gspo`,
            with the ratio of whole answers (arXiv 2507.18071); or `cispo`, with clipped weights (arXiv 2506.13585).
        scale_rewards: What the rewards above the mean of a group are divided by: the standard deviation of the `group`
            or of the whole `batch`, or `none`. None is as the paper of the loss has it.
        epsilon: The ratio of new and old probabilities is clipped to at least `1 - epsilon`; None as the paper has it.
            Not for `cispo`, which clips from above alone.
        epsilon_high: And to at most `1 + epsilon_high` (with `cispo` to at most `epsilon_high`); None as the paper has
            it.
        beta: The weight of the KL divergence from the reference model; 0 needs no reference.
        kl: Whether the divergence is a part of the `loss` or lowers the `reward`.
        num_iterations: The optimizer steps that are taken with the candidates of one drawing.
        filter_groups: How often a prompt whose candidates all have the same reward is replaced by another one.
        mask_cut_off: Whether candidates cut off at the token limit do not train; None: with `dapo`.
        importance_cap: The most by which a token is weighed for the difference between the engine's probability and
            the model's, if the engine has weights of its own (arXiv 2508.10396).
    """

    def __init__(
        self,
        loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo",
        scale_rewards: Literal["group", "batch", "none"] | None = None,
        epsilon: NonNegativeFloat | None = None,
        epsilon_high: NonNegativeFloat | None = None,
        beta: NonNegativeFloat = 0.0,
        kl: Literal["loss", "reward"] = "loss",
        num_iterations: PositiveInt = 1,
        filter_groups: NonNegativeInt = 0,
        mask_cut_off: bool | None = None,
        importance_cap: PositiveFloat = 2.0,
    ) -> None:
        if kl == "reward" and beta == 0:
            raise UserError("option 'kl': the divergence has no weight; give option 'beta' one, or drop it")
        if loss == "cispo" and epsilon is not None:
            raise UserError("option 'epsilon': loss cispo clips weights from above alone, by epsilon_high; drop it")
        low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (0.2, 5.0)}.get(loss, (0.2, 0.2))
        self.estimator = GroupNormalised(scale_rewards or ("none" if loss == "dr_grpo" else "group"))
        self.ratio = "sequence" if loss == "gspo" else "token"
        self.clip = "weights" if loss == "cispo" else "clipped"
        self.mean = "tokens" if loss in ("dapo", "cispo") else "constant" if loss == "dr_grpo" else "candidates"
        self.epsilon = low if epsilon is None else epsilon
        self.epsilon_high = high if epsilon_high is None else epsilon_high
        self.beta, self.kl = beta, kl
        self.num_iterations, self.filter_groups = num_iterations, filter_groups
        self.trains_cut_off = not (loss == "dapo" if mask_cut_off is None else mask_cut_off)
        self.importance_cap = importance_cap


class RLOO(PolicyTask):
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740): what a candidate earns more than the mean of others.

    Args:
        beta: The weight of the KL divergence from the reference model, which lowers the rewards; 0 needs no reference.
        epsilon: The ratio of new and old probabilities of an answer is clipped to at least `1 - epsilon`.
        epsilon_high: And to at most `1 + epsilon_high`.
        normalize: Whether the advantages of a step are brought to a mean of 0 and a standard deviation of 1.
        num_iterations: The optimizer steps that are taken with the candidates of one drawing.
        filter_groups: How often a prompt whose candidates all have the same reward is replaced by another one.
        mask_cut_off: Whether candidates cut off at the token limit do not train.
        importance_cap: The most by which a token is weighed for the difference between the engine's probability and
            the model's, if the engine has weights of its own (arXiv 2508.10396).
    """

    ratio = "answer"
    kl = "reward"

    def __init__(
        self,
        beta: NonNegativeFloat = 0.05,
        epsilon: NonNegativeFloat = 0.2,
        epsilon_high: NonNegativeFloat = 0.2,
        normalize: bool = False,
        num_iterations: PositiveInt = 1,
        filter_groups: NonNegativeInt = 0,
        mask_cut_off: bool = False,
        importance_cap: PositiveFloat = 2.0,
    ) -> None:
        self.estimator = LeaveOneOut(normalize)
        self.beta, self.epsilon, self.epsilon_high = beta, epsilon, epsilon_high
        self.num_iterations, self.filter_groups = num_iterations, filter_groups
        self.trains_cut_off = not mask_cut_off
        self.importance_cap = importance_cap
