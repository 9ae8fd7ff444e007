"""The contract of tasks: what a run optimises, on which rows, with which other kinds of plugin."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from swiftplug.errors import ContractError
from swiftplug.formatting import format_count

if TYPE_CHECKING:
    import torch

    from swiftplug.plugin.arguments import RunArguments

Batch = Mapping[str, Any]
"""A batch of a run; see `Rows` for what is in it."""

TASK_KINDS = frozenset({"engine", "environment", "loss", "loss_scale", "metric", "orm", "prm"})
"""The kinds of plugin that act in some tasks only."""


class Rows(StrEnum):
    """What a task reads of a dataset, and so what is in its batches.

    Every batch has `input_ids` and `attention_mask`, `(N, T)` int64, and `length`, `(B,)` int64. Of B rows it holds B
    conversations, or two of each: first all the first ones, then all the second ones (`N = 2B`).
    """

    TEXT = "text"
    """Texts or conversations, all of which trains; `labels` `(N, T)`, -100 where the weight is 0."""
    ANSWERS = "answers"
    """Conversations, of which answers train; `labels` as before."""
    PAIRS = "pairs"
    """A better and a worse answer, each after the same prompt; `labels` of both; `margin` `(B,)` float32, 0 where a row
    has none."""
    RATED = "rated"
    """An answer and whether it is good, `rating` `(B,)` bool; the second conversation of a row ends in the answer of
    another one. Pairs are taken apart."""
    LABELLED = "labelled"
    """A text or conversation, and its `label`: `(B,)` int64 for one class, `(B, C)` float32 for several (1 where a
    class applies), `(B,)` float32 for a number."""
    STEPS = "steps"
    """A prompt, the steps of an answer, and whether each is right: `labels` `(N, T)`, 0 or 1 at the last token of the
    separator behind each step, -100 elsewhere."""
    PROMPTS = "prompts"
    """Questions to be answered, as `sample` reads them, for an `OnlineTask`; its batches hold the candidates drawn."""


class Labels(NamedTuple):
    """What the numbers stand for that a model's head gives.

    Attributes:
        names: A name for each of them, as in the config of the model (`id2label`).
        problem_type: As in the config of the model; None if its own loss is not used.
    """

    names: tuple[str, ...]
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None

    @classmethod
    def unnamed(cls, count: int) -> "Labels":
        """Those of a head that gives `count` numbers without names, with the names that Transformers gives them."""
        return cls(tuple(f"LABEL_{index}" for index in range(count)))


class SequenceLogps(NamedTuple):
    """Log-probabilities of answers.

    Attributes:
        logps: `(B,)` sums of the log-probabilities of the trained tokens (those of weight 1), float32.
        lengths: `(B,)` numbers of trained tokens.
        reference: `(B,)` the same sums under the reference model, without a gradient; None if the task needs none.
    """

    logps: "torch.Tensor"
    lengths: "torch.Tensor"
    reference: "torch.Tensor | None" = None

    @property
    def means(self) -> "torch.Tensor":
        """`(B,)` mean log-probabilities of a trained token."""
        return self.logps / self.lengths

    @property
    def ratios(self) -> "torch.Tensor":
        """`(B,)` log-probability ratios of the model and its reference."""
        assert self.reference is not None, "the task has needs_reference = False"
        return self.logps - self.reference


class TokenLogps(NamedTuple):
    """What the model says of each token of a batch that trains; 0 elsewhere. Entry `t` is of token `t`.

    Attributes:
        logps: `(N, T)` float32 log-probabilities, at the sampling temperature of the run.
        trains: `(N, T)` bool, which tokens train.
        entropies: `(N, T)` float32 entropies of the distributions that the tokens are drawn from, in nats, without a
            gradient.
        values: `(N, T)` float32, what the value head predicts before each token is known; None without such a head.
    """

    logps: "torch.Tensor"
    trains: "torch.Tensor"
    entropies: "torch.Tensor"
    values: "torch.Tensor | None" = None


class TaskLoss(NamedTuple):
    """The loss of a batch.

    Attributes:
        sums: The parts of the loss, each a scalar: a sum over what its name counts (see `Task.counts`). It is divided
            by that count over the whole accumulation step and all processes, so that the loss does not depend on how a
            step is cut into batches.
        logged: What is logged of it: a tensor for each name, of any shape, empty too, whose mean over all batches since
            the last log is taken. Names that the run logs (`loss`, `learning_rate`, `eval_...`) are refused.
    """

    sums: dict[str, "torch.Tensor"]
    logged: Mapping[str, "torch.Tensor"] = MappingProxyType({})


class TaskModel:
    """The model in training, as a task's loss uses it."""

    def sequence_logps(self, batch: Batch, conversations: Sequence[int] | None = None) -> list[SequenceLogps]:
        """The log-probabilities of the trained tokens of a batch, in one pass of the model.

        The logits exist at trained positions only, and where the model's head is of a known form a few hundred
        positions at a time.

        Args:
            batch: The batch, with `labels`.
            conversations: Which conversations of each row: 0 is the first, 1 the second. None is all.

        Returns:
            One for each of these conversations.
        """
        raise NotImplementedError

    def token_logps(self, batch: Batch) -> TokenLogps:
        """The log-probability of each trained token of a batch, in one pass of the model.

        Args:
            batch: The batch, with `labels`.
        """
        raise NotImplementedError

    def outputs(self, batch: Batch) -> Any:
        """The model's output for a batch: `logits` are `(N, C)` for a head on the sequence, `(N, T, C)` for others."""
        raise NotImplementedError

    def mean(self, values: "torch.Tensor") -> "torch.Tensor":
        """The mean over the rows of this batch, and of those that the other processes have at the same time.

        Args:
            values: `(B,)`, one for each row.

        Returns:
            A scalar without a gradient.
        """
        raise NotImplementedError


class Task:
    """Base class of tasks; the parameters of `__init__` are the options of the plugin.

    A preference objective is shorter as a `PreferenceTask`.

    Attributes:
        rows: Which rows it reads.
        kinds: Which of `TASK_KINDS` act in it. With `loss`, a plugin of that kind computes the loss.
        weights: The weights that loss scales may give: any that is at least 0, or only 0 and 1.
        trains_prompt: Whether tokens of the prompt, and others whose weight is 0, may act in its loss all the same.
        head: The output head of its model: that of a language model, or one that gives `num_labels` numbers for the
            whole sequence or for each token (as in Transformers' classes for classification).
        num_labels: The numbers that such a head gives; None: as many as the rows have classes.
        needs_reference: Whether `SequenceLogps.reference` is needed.
        problem: What the labels of `Rows.LABELLED` are; None: what they look like.
        labels: The classes of `Rows.LABELLED` in the order of their numbers; None: those of the training rows.
        step_separator: The text behind each step, for `Rows.STEPS`.

    Example:
        >>> class Unlikelihood(Task):
        ...     rows = Rows.RATED
        ...     kinds = frozenset({"loss_scale"})
        ...     weights = "binary"
        ...
        ...     def loss(self, model, batch):
        ...         [answers] = model.sequence_logps(batch, [0])
        ...         logps = torch.where(batch["rating"], answers.means, torch.log1p(-answers.means.exp()))
        ...         return TaskLoss({"rows": -logps.sum()}, {"logps": logps.detach()})
    """

    rows: ClassVar[Rows]
    kinds: ClassVar[frozenset[str]] = frozenset()
    weights: ClassVar[Literal["any", "binary"]] = "binary"
    trains_prompt: bool = False
    head: ClassVar[Literal["language", "sequence", "token"]] = "language"
    num_labels: ClassVar[int | None] = None
    needs_reference: bool = False
    problem: Literal["single", "multi", "regression"] | None = None
    labels: Sequence[str | int] | None = None
    step_separator: str = "\n"

    def check_run(self, args: "RunArguments") -> None:
        """Refuse a run that cannot work, with a UserError; called before the data is read."""

    def check_data(self, dataset: Any) -> Iterable[str]:
        """What the user should know of the encoded training set, a line each; called before the model is loaded.

        Raises:
            UserError: The task cannot learn from it.
        """
        return ()

    def counts(self, batch: Batch) -> dict[str, Any]:
        """What the parts of the loss are divided by, for a batch: numbers or scalar tensors, by the names in `sums`."""
        return {"rows": row_count(batch)}

    def log_names(self) -> Iterable[str] | None:
        """The names in `TaskLoss.logged`, by which the best checkpoint can then be chosen, with `eval_` before them.

        None: they are known at the first evaluation only, and so is whether a run asks for one that is not there.
        """
        return None

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The loss of a batch.

        Args:
            model: The model.
            batch: See `Rows`. It may have fewer rows than others of the run.
        """
        raise NotImplementedError


def row_count(batch: Batch) -> int:
    """The number of rows of a batch."""
    return int(batch["length"].shape[0])


class PreferenceTask(Task):
    """Base class of preference objectives on pairs: subclass it and define `pair_loss`.

    Attributes:
        beta: The factor of the logged rewards.
        nll_weight: The weight of a further part of the loss: the negative log-likelihood of the chosen answers, per
            token.

    Example:
        >>> @register_task("hinge")
        ... class Hinge(PreferenceTask):
        ...     needs_reference = False
        ...
        ...     def __init__(self, margin: float = 1.0):
        ...         self.margin = margin
        ...
        ...     def pair_loss(self, chosen, rejected):
        ...         return torch.relu(self.margin - chosen.logps + rejected.logps)
    """

    rows = Rows.PAIRS
    kinds = frozenset({"loss_scale"})
    needs_reference = True
    beta: float = 1.0
    nll_weight: float = 0.0

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> "torch.Tensor":
        """The loss of each pair.

        Args:
            chosen: Of the better answers.
            rejected: Of the worse answers.

        Returns:
            `(B,)` losses.
        """
        raise NotImplementedError

    def check_data(self, dataset: Any) -> Iterable[str]:
        """Say how many rows have a `margin`, which `pair_loss` does not get; override it if your `loss` reads them."""
        having = sum(margin != 0 for margin in dataset["margin"][:])
        if having:
            yield f"`margin` of {format_count(having, 'pair')}: not read by {type(self).__name__}"

    def reward(self, answers: SequenceLogps) -> "torch.Tensor":
        """The implicit rewards that are logged, `(B,)`."""
        return self.beta * (answers.logps if answers.reference is None else answers.ratios)

    def counts(self, batch: Batch) -> dict[str, Any]:
        """Pairs, and the trained tokens of chosen answers."""
        pairs = row_count(batch)
        return {"pairs": pairs, "chosen tokens": (batch["labels"][:pairs, 1:] >= 0).sum()}

    def log_names(self) -> Iterable[str]:
        """Rewards and log-probabilities, and the likelihood of chosen answers where it is part of the loss."""
        names = [f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")]
        return [*names, "logps/chosen", "logps/rejected", *(["nll_loss"] if self.nll_weight else [])]

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The sum of the pairs' losses, and the share of the chosen answers' likelihood."""
        chosen, rejected = model.sequence_logps(batch)
        sums = {"pairs": _checked(self.pair_loss(chosen, rejected), row_count(batch)).sum()}
        better, worse = self.reward(chosen).detach(), self.reward(rejected).detach()
        logged = {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/accuracies": (better > worse).float(),
            "rewards/margins": better - worse,
            "logps/chosen": chosen.logps.detach(),
            "logps/rejected": rejected.logps.detach(),
        }
        if self.nll_weight:
            sums["chosen tokens"] = -self.nll_weight * chosen.logps.sum()
            logged["nll_loss"] = -chosen.logps.detach().sum() / chosen.lengths.sum()
        return TaskLoss(sums, logged)


def _checked(losses: Any, pairs: int) -> "torch.Tensor":
    """What `pair_loss` returned; raises a ContractError unless it is a tensor with one loss for each pair."""
    import torch

    expected = f"expected one loss per pair, a tensor of shape ({pairs},)"
    if not isinstance(losses, torch.Tensor):
        raise ContractError(f"returned a {type(losses).__name__} from pair_loss, {expected}")
    if losses.shape != (pairs,):
        raise ContractError(f"returned a tensor of shape {tuple(losses.shape)} from pair_loss, {expected}")
    return losses
