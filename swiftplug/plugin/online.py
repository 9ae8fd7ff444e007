"""The contract of online tasks: what trains on candidates that the model itself draws, by their rewards."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from swiftplug.errors import ContractError, nearest
from swiftplug.plugin.task import Batch, Rows, Task, TaskLoss, TaskModel, TokenLogps

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

    What it remembers of earlier steps is in no checkpoint, so that a resumed run would go on differently.

    Attributes:
        min_group: The candidates that each prompt needs, so that advantages can be made of their rewards.

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
    are the drawn tokens), what `estimate` returns of each candidate and, where they are known, `(N, T)` float32
    `old_logps` (of the model as it was when it drew), `sampler_logps` (as the engine gave them) and `reference_logps`.
    A candidate whose reward is missing is in none.

    A clipped objective is shorter as a `PolicyTask`.

    Attributes:
        num_iterations: The optimizer steps that are taken with the candidates of one drawing.
        filter_groups: How often a prompt whose rewards are all equal, which teaches nothing, is replaced by another.
        trains_cut_off: Whether candidates that were cut off at the token limit train.
        min_group: The candidates that a prompt needs.
        skips_zero_advantages: Whether a candidate whose advantage is 0 has no gradient, so that the model need not read
            it; it counts all the same.
        needs_logps: Whether `Drawn.logps` are needed.
        needs_values: Whether the model gets a value head; see `TokenLogps.values`.
        rewards_steps: Whether the rewards of process reward models are given at the last tokens of their steps, and not
            reduced to one for the answer.
    """

    rows = Rows.PROMPTS
    kinds = frozenset({"engine", "environment", "loss_scale", "orm", "prm"})
    num_iterations: int = 1
    filter_groups: int = 0
    trains_cut_off: bool = True
    min_group: int = 1
    skips_zero_advantages: bool = False
    needs_logps: bool = False
    needs_values: ClassVar[bool] = False
    rewards_steps: ClassVar[bool] = False

    def estimate(self, drawn: Drawn) -> "Mapping[str, torch.Tensor]":
        """Make advantages of the rewards of a step's candidates.

        Args:
            drawn: The candidates of this process.

        Returns:
            `advantages`, `(N,)` or `(N, T)`, nan for a candidate that is left out; and whatever else `loss` needs of a
            candidate, each `(N, ...)`.
        """
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Any]:
        """Candidates, and the tokens that train."""
        return {**super().counts(batch), "tokens": (batch["labels"][:, 1:] >= 0).sum()}


class PolicyTask(OnlineTask):
    """Base class of clipped policy gradients whose advantages come from groups: set `estimator`, and what differs.

    Attributes:
        estimator: Makes advantages of the rewards; of no use to a task with an `estimate` of its own.
        ratio: What the ratio of the new and the old probabilities is taken of: each `token`; the geometric mean over
            the `sequence` (GSPO, arXiv 2507.18071); or the whole `answer`, the product over its tokens.
        clip: Whether the objective is `clipped` (PPO, arXiv 1707.06347), or its `weights` are, behind which each token
            has its gradient (CISPO, arXiv 2506.13585).
        epsilon: The ratio is clipped to at least `1 - epsilon`.
        epsilon_high: And to at most `1 + epsilon_high`; the weights of CISPO to at most `epsilon_high`.
        mean: What the loss is the mean over: `candidates`, each the mean of its tokens; `tokens`, all alike; or
            `constant`, the sum of a candidate's tokens over `max_new_tokens` (Dr. GRPO, arXiv 2503.20783).
        beta: The weight of the KL divergence from the reference model; 0 needs no reference.
        kl: Whether the divergence is a part of the `loss`, by the estimator of Schulman that is never negative
            (http://joschu.net/blog/kl-approx.html), or lowers the `reward`.
        importance_cap: Where the engine does not draw with the very weights that train, the most by which a token is
            weighed for the difference of both (truncated importance sampling, arXiv 2508.10396).

    Example:
        >>> @register_task("above_median")
        ... class AboveMedianTask(PolicyTask):
        ...     estimator = AboveMedian()
    """

    estimator: Estimator = Estimator()
    ratio: Literal["token", "sequence", "answer"] = "token"
    clip: Literal["clipped", "weights"] = "clipped"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    mean: Literal["candidates", "tokens", "constant"] = "candidates"
    beta: float = 0.0
    kl: Literal["loss", "reward"] = "loss"
    importance_cap: float = 2.0
    _max_new_tokens: int = 1

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]  # it depends on `beta`
        """Whether the KL divergence has a weight."""
        return self.beta != 0

    @property
    def needs_logps(self) -> bool:  # type: ignore[override]  # it depends on `beta` and `kl`
        """Whether the divergence lowers the reward."""
        return self.beta != 0 and self.kl == "reward"

    @property
    def skips_zero_advantages(self) -> bool:  # type: ignore[override]  # as above
        """Whether neither a divergence nor the error of a value head is a part of the loss."""
        return (self.beta == 0 or self.kl == "reward") and not self.needs_values

    @property
    def min_group(self) -> int:  # type: ignore[override]  # it depends on the estimator
        """As its estimator has it."""
        return self.estimator.min_group

    def check_run(self, args: Any) -> None:
        """Take the longest answer from the run.

        Raises:
            ContractError: The estimator or another attribute is none of those that there are.
        """
        own, expected = self.estimator, "expected an instance of a subclass of Estimator"
        if type(self).estimate is PolicyTask.estimate:
            if not isinstance(own, Estimator):
                raise ContractError(f"has {own!r:.60} as its estimator, {expected}")
            if type(own).__call__ is Estimator.__call__:
                raise ContractError(f"has no estimator that defines __call__(rewards, drawn), {expected}")
        for name in ("ratio", "clip", "mean", "kl"):
            found, known = getattr(self, name), get_args(PolicyTask.__annotations__[name])
            if found not in known:
                raise ContractError(f"has {found!r} as its {name}{nearest(str(found), known)}")
        self._max_new_tokens = args.max_new_tokens

    def estimate(self, drawn: Drawn) -> "Mapping[str, torch.Tensor]":
        """The advantages that the estimator makes of the rewards, less the divergence where that lowers them."""
        rewards = drawn.rewards
        if self.needs_logps:
            assert drawn.logps is not None and drawn.reference_logps is not None
            rewards = rewards - self.beta * (drawn.logps - drawn.reference_logps).sum(dim=1).reshape(rewards.shape)
        advantages: Any = self.estimator(rewards, drawn)
        if getattr(advantages, "shape", None) != rewards.shape:
            found = f"a tensor of shape {tuple(advantages.shape)}" if hasattr(advantages, "shape") else repr(advantages)
            raise ContractError(
                f"got {found:.60} from its estimator, expected a tensor of shape {tuple(rewards.shape)}"
            )
        return {"advantages": advantages.reshape(-1)}

    def log_names(self) -> Iterable[str]:
        """The entropy of what tokens are drawn from, the share of clipped ones, and the divergence if it is weighed.

        They are those of the candidates that have a gradient.
        """
        return "entropy", "clipped", *(["kl"] if self.needs_reference else [])

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The clipped objective, with the divergence where it is a part of the loss."""
        tokens = model.token_logps(batch)
        losses, by_token = self.policy_losses(tokens, batch)
        logged = {name: values[tokens.trains] for name, values in by_token.items()}
        logged["entropy"] = tokens.entropies[tokens.trains]
        if self.needs_reference:
            behind = batch["reference_logps"] - tokens.logps
            divergence = behind.exp() - behind - 1
            if self.kl == "loss":
                losses = losses + self.beta * divergence
            logged["kl"] = divergence.detach()[tokens.trains]
        losses = losses * tokens.trains
        if self.mean == "tokens":
            return TaskLoss({"tokens": losses.sum()}, logged)
        count = tokens.trains.sum(dim=1).clamp(min=1) if self.mean == "candidates" else self._max_new_tokens
        return TaskLoss({"rows": (losses.sum(dim=1) / count).sum()}, logged)

    def policy_losses(self, tokens: TokenLogps, batch: Batch) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """The loss of each token without the divergence, and what is logged of it: whether its ratio was `clipped`.

        Args:
            tokens: The tokens of the batch, as the model has them now.
            batch: The batch; without `old_logps`, the model is as it was when it drew.

        Returns:
            `(N, T)` float32 losses, and values by name without a gradient; both mean nothing where no token trains.
        """
        import torch

        old = batch.get("old_logps", tokens.logps.detach())
        advantages = batch["advantages"]
        advantages = advantages if advantages.dim() == 2 else advantages[:, None]
        differences = (tokens.logps - old) * tokens.trains
        if self.ratio != "token":
            differences = differences.sum(dim=1, keepdim=True)
        if self.ratio == "sequence":
            differences = differences / tokens.trains.sum(dim=1, keepdim=True).clamp(min=1)
        ratios = differences.exp()
        if self.clip == "weights":
            within = ratios.clamp(max=self.epsilon_high)
            losses = -within.detach() * advantages * tokens.logps
            clipped = ratios > self.epsilon_high
        else:
            within = ratios.clamp(1 - self.epsilon, 1 + self.epsilon_high)
            losses = -torch.minimum(ratios * advantages, within * advantages)
            clipped = within * advantages < ratios * advantages
        if "sampler_logps" in batch:
            losses = losses * (old - batch["sampler_logps"]).exp().clamp(max=self.importance_cap)
        return losses.expand_as(tokens.logps), {"clipped": clipped.detach().float().expand_as(tokens.logps)}
