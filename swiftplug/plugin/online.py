"""The contract of online tasks: what trains on candidates that the model itself draws, by their rewards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from swiftplug.plugin.task import Batch, Rows, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Drawn:
    """The candidates that a process has drawn in a step, G for each of P prompts: N = P x G.

    Tensors of tokens are `(N, T)`; entry `t` is of token `t`, and what is no token that trains is 0.

    Attributes:
        rewards: `(P, G)` float32, the weighted sum of what the scorers gave; nan where a reward is missing.
        trains: `(N, T)` bool, which tokens train: those that the model drew, its end of turn too.
        token_rewards: `(N, T)` float32, rewards of single tokens: what process reward models gave a step, at its last
            token. 0 everywhere unless the task has `rewards_steps`.
        logps: `(N, T)` float32, log-probabilities under the model as it was when it drew them; None unless the task
            has `needs_logps`.
        reference_logps: `(N, T)` float32, the same under the reference model; None unless the task has
            `needs_reference`.
        values: `(N, T)` float32, what the value head predicts at each token, before that token is known; None unless
            the task has `needs_values`.
        all_processes: Adds up a tensor over all processes.
    """

    rewards: "torch.Tensor"
    trains: "torch.Tensor"
    token_rewards: "torch.Tensor"
    logps: "torch.Tensor | None"
    reference_logps: "torch.Tensor | None"
    values: "torch.Tensor | None"
    all_processes: "Callable[[torch.Tensor], torch.Tensor]"

    def mean_and_std(self, values: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """The mean, and the standard deviation (over n - 1), of values of all processes; nan ones do not count.

        Args:
            values: Those of this process, of any shape.

        Returns:
            Two scalars.
        """
        import torch

        own = values[~values.isnan()].double()
        total, count = self.all_processes(torch.stack([own.sum(), own.new_tensor(own.numel())]))
        mean = total / count.clamp(min=1)
        squares = self.all_processes((own - mean).square().sum())
        return mean.float(), (squares / (count - 1).clamp(min=1)).sqrt().float()


class Estimator:
    """Base class of what makes advantages of the rewards of groups of candidates to one prompt.

    Attributes:
        min_group: The candidates that a group must have with a reward; the others are left out.

    Example:
        >>> class AboveMedian(Estimator):
        ...     def __call__(self, rewards, drawn):
        ...         return rewards - rewards.nanmedian(dim=1, keepdim=True).values
    """

    min_group: int = 2

    def __call__(self, rewards: "torch.Tensor", drawn: Drawn) -> "torch.Tensor":
        """Make advantages.

        Args:
            rewards: `(P, G)` float32, nan where a candidate is left out.
            drawn: All that is known of the candidates.

        Returns:
            `(P, G)` advantages, nan where a candidate is left out.
        """
        raise NotImplementedError


class OnlineTask(Task):
    """Base class of tasks that train on what the model draws: candidates to prompts, scored by ORMs and PRMs.

    A step draws `num_return_sequences` candidates for each prompt with the engine, scores them, calls `estimate`, and
    takes `num_iterations` optimizer steps with `loss`. Its batches have, besides what all have (see `Rows`; `labels`
    are the drawn tokens), by candidate what `estimate` returns, and, where they are known, `(N, T)` float32 `old_logps`
    (of the model as it drew), `sampler_logps` (as the engine says) and `reference_logps`. A batch that was not drawn
    in full, because a reward is missing, has fewer candidates.

    Attributes:
        num_iterations: The optimizer steps that are taken with the candidates of one drawing.
        filter_groups: How often a prompt whose rewards are all equal, which teaches nothing, is replaced by another.
        needs_logps: Whether `Drawn.logps` are needed.
        needs_values: Whether the model gets a value head (see `TokenLogps.values`).
        rewards_steps: Whether the rewards of process reward models are given at the last tokens of their steps, and not
            reduced to one for the answer.
        min_group: The candidates with a reward that a prompt needs.
    """

    rows = Rows.PROMPTS
    kinds = frozenset({"engine", "environment", "orm", "prm"})
    num_iterations: int = 1
    filter_groups: int = 0
    needs_logps: bool = False
    needs_values: ClassVar[bool] = False
    rewards_steps: ClassVar[bool] = False

    @property
    def min_group(self) -> int:
        return 1

    def estimate(self, drawn: Drawn) -> "Mapping[str, torch.Tensor]":
        """Make advantages of the rewards of a step's candidates.

        Args:
            drawn: The candidates of this process.

        Returns:
            `advantages`, `(N,)` or `(N, T)`, and whatever else `loss` needs of a candidate, each `(N, ...)`.
        """
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Any]:
        """Candidates, and the tokens that train."""
        return {**super().counts(batch), "tokens": (batch["labels"][:, 1:] >= 0).sum()}
