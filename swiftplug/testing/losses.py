"""The contract of a loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import CausalLMOutput

from swiftplug.errors import ContractError
from swiftplug.plugin import IGNORED_LABEL, TokenLoss
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_loss
from swiftplug.testing.inputs import number, on
from swiftplug.training.loss import optional_arguments

_ROWS, _LENGTH, _VOCABULARY = 3, 8, 11
_SHORT = 2  # rows of a first micro-batch
_TOLERANCE = 1e-4


class _Result(NamedTuple):
    """What a loss is, and its gradient with respect to the logits, `(B, T, V)`."""

    value: float
    gradient: torch.Tensor


class _Loss:
    """A loss plugin, called as a run calls it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.takes = optional_arguments(function)

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        what: str,
        *,
        scale: torch.Tensor | None = None,
        count: torch.Tensor | None = None,
    ) -> _Result:
        """Call it; raises a ContractError, with what it was called on, if it is no finite scalar with a gradient."""
        logits, given = logits.clone().requires_grad_(), (labels.clone(), None if scale is None else scale.clone())
        before = logits.detach().clone()
        optional = {"loss_scale": given[1], "num_items_in_batch": count}
        with on(what), torch.random.fork_rng():
            torch.manual_seed(0)  # dropout and the like are the same in all calls
            outputs = CausalLMOutput(logits=logits)
            value = check_loss(self.function(outputs, given[0], **{name: optional[name] for name in self.takes}))
            if not torch.isfinite(value):
                raise ContractError(f"is {value.item()}, expected a finite number")
            value.backward()
        if not torch.equal(given[0], labels) or not torch.equal(before, logits.detach()):
            raise ContractError(
                f"changes the {'logits' if torch.equal(given[0], labels) else 'labels'} that it gets, which metrics "
                f"read too (for {what}); work on a copy"
            )
        if logits.grad is None:
            raise ContractError(f"sends no gradient to the logits (for {what}); do not detach them")
        if not torch.isfinite(logits.grad).all():
            raise ContractError(
                f"is {number(value.item())}, but its gradient is not finite (for {what}); keep the argument of a "
                "logarithm or root away from 0"
            )
        return _Result(value.item(), logits.grad)


def check(plugin: LoadedPlugin) -> None:
    """Compute the loss of random logits in many ways that must give the same."""
    loss = _Loss(plugin.bound)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_ROWS, _LENGTH, _VOCABULARY, generator=generator)
    labels = torch.randint(0, _VOCABULARY, (_ROWS, _LENGTH), generator=generator)
    for row, start in enumerate((3, 2, 4)):  # as after a prompt
        labels[row, :start] = IGNORED_LABEL
    labels[1, 5] = labels[2, 6:] = IGNORED_LABEL
    count = (labels[:, 1:] != IGNORED_LABEL).sum()

    if isinstance(plugin.bound, TokenLoss):
        _check_chunks(plugin.bound, logits[:, :-1].reshape(-1, _VOCABULARY), labels[:, 1:].reshape(-1).clamp(min=0))
    whole = loss(logits, labels, "plain input", count=count)
    _check_places(whole, labels)
    _check_numerics(loss, logits, labels, count)
    _check_padding(loss, logits, labels, count)
    if "num_items_in_batch" in loss.takes:
        _check_micro_batches(loss, logits, labels, count, whole)
        _check_padding(loss, logits, labels, None)
    if "loss_scale" in loss.takes:
        _check_weights(loss, logits, labels, count, whole, generator)


def _check_places(whole: _Result, labels: torch.Tensor) -> None:
    """Check that exactly the logits before a label act: those at position t predict the token at t + 1."""
    acts = whole.gradient.abs().sum(dim=-1) > 0
    if not acts.any():
        raise ContractError("sends no gradient to the logits: it is 0 everywhere; let the loss depend on the logits")
    has_label = labels != IGNORED_LABEL
    predicts = torch.zeros_like(has_label)
    predicts[:, :-1] = has_label[:, 1:]
    if torch.equal(acts, has_label):
        raise ContractError(
            "compares the logits at a position with the label of the same position, but they predict the next token; "
            "use outputs.logits[:, :-1] with labels[:, 1:]"
        )
    if (acts & ~predicts).any():
        row, position = (acts & ~predicts).nonzero()[0].tolist()
        raise ContractError(
            f"depends on the logits at row {row}, position {position}, although the next label is -100; leave out "
            "positions where labels[:, 1:] is -100"
        )


def _check_numerics(loss: _Loss, logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor) -> None:
    low = loss(logits.bfloat16(), labels, "bfloat16 logits", count=count)
    exact = loss(logits.bfloat16().float(), labels, "plain input", count=count)
    if abs(low.value - exact.value) > 0.02 * max(abs(exact.value), 1):
        raise ContractError(
            f"loses precision: {number(low.value)} for bfloat16 logits, {number(exact.value)} for the same in float32; "
            "compute with logits.float()"
        )
    loss(40 * logits, labels, f"logits of up to {40 * logits.abs().max():.0f}, as of a confident model", count=count)
    right = torch.nn.functional.one_hot(labels[:, 1:].clamp(min=0), _VOCABULARY)
    certain = torch.cat([60.0 * right, torch.zeros(_ROWS, 1, _VOCABULARY)], dim=1)
    loss(certain, labels, "a model that is certain of every right token", count=count)
    ignored = torch.full_like(labels, IGNORED_LABEL)
    loss(logits, ignored, "a batch without a trained token", count=torch.tensor(1))
    with torch.no_grad():
        optional = {"loss_scale": None, "num_items_in_batch": count}
        with on("an evaluation, under torch.no_grad"):
            value = loss.function(
                CausalLMOutput(logits=logits), labels.clone(), **{name: optional[name] for name in loss.takes}
            )
            check_loss(value)


def _check_padding(loss: _Loss, logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | None) -> None:
    plain = loss(logits, labels, "plain input", count=count)
    columns = torch.cat([logits, 5 * torch.ones(_ROWS, 3, _VOCABULARY)], dim=1)
    wide = torch.cat([labels, torch.full((_ROWS, 3), IGNORED_LABEL)], dim=1)
    rows = torch.cat([logits, 5 * torch.ones(2, _LENGTH, _VOCABULARY)])
    tall = torch.cat([labels, torch.full((2, _LENGTH), IGNORED_LABEL)])
    for what, padded in (
        ("3 padded columns", loss(columns, wide, "3 padded columns", count=count)),
        ("2 rows without a label", loss(rows, tall, "2 rows without a label", count=count)),
    ):
        if _differ(plain.value, padded.value):
            by = "num_items_in_batch" if count is not None and "num_items_in_batch" in loss.takes else "their number"
            raise ContractError(
                f"changes with padding: {number(plain.value)} without, {number(padded.value)} with {what}; divide the "
                f"sum over labelled tokens by {by}, not by labels.numel() or the number of rows"
            )


def _check_micro_batches(
    loss: _Loss, logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor, whole: _Result
) -> None:
    doubled = loss(logits, labels, "twice num_items_in_batch", count=2 * count)
    if not _differ(doubled.value, whole.value):
        raise ContractError(
            f"ignores num_items_in_batch: {number(whole.value)} whether {count} or {2 * count} tokens train in the "
            "step; divide the sum over tokens by it, or drop the parameter"
        )
    parts = [
        loss(logits[rows], labels[rows], f"{len(labels[rows])} of {_ROWS} rows", count=count)
        for rows in (slice(0, _SHORT), slice(_SHORT, None))
    ]
    total, gradient = sum(part.value for part in parts), torch.cat([part.gradient for part in parts])
    if _differ(total, whole.value) or not torch.allclose(gradient, whole.gradient, rtol=_TOLERANCE, atol=1e-6):
        raise ContractError(
            f"does not add up over micro-batches: {number(whole.value)} for {_ROWS} rows, "
            f"{' + '.join(number(part.value) for part in parts)} for {_SHORT} and {_ROWS - _SHORT}; return a sum over "
            "tokens, divided by num_items_in_batch and by nothing else"
        )


def _check_weights(
    loss: _Loss,
    logits: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor,
    whole: _Result,
    generator: torch.Generator,
) -> None:
    def weighted(scale: torch.Tensor, what: str) -> _Result:
        return loss(logits, labels, what, scale=scale, count=count)

    row, position = 0, 5  # the label there is predicted by the logits before it
    everywhere = torch.ones(labels.shape)
    changed = everywhere.clone()
    changed[row, position] = 3
    gradients = [weighted(scale, "weights of 1 and 3").gradient for scale in (everywhere, changed)]
    acts = (gradients[1] - gradients[0]).abs().sum(dim=-1) > 1e-7
    if acts.any() and not acts[row, position - 1]:
        raise ContractError(
            f"lays the weight of the label at position {position} on the logits at position "
            f"{acts[row].nonzero()[0].item()}, but those at {position - 1} predict it; use loss_scale[:, 1:] with "
            "labels[:, 1:]"
        )
    trained = (labels != IGNORED_LABEL).float()
    ones = weighted(trained, "weights of 1")
    if _differ(ones.value, whole.value):
        raise ContractError(
            f"is {number(whole.value)} without loss_scale and {number(ones.value)} with weights of 1; None stands for "
            "weights of 1"
        )
    first, second = (torch.rand(labels.shape, generator=generator) * trained for _ in range(2))
    one, other = weighted(first, "random weights"), weighted(second, "random weights")
    twice = weighted(2 * first, "random weights, doubled")
    if not _differ(one.value, whole.value) and not _differ(other.value, whole.value):
        raise ContractError(
            f"ignores loss_scale: {number(whole.value)} whatever the weights; multiply each token's loss by its "
            "weight, or drop the parameter"
        )
    if not _differ(twice.value, one.value):
        raise ContractError(
            f"divides by the weights: {number(one.value)} for some weights, and for twice as much; divide by the "
            "number of trained tokens (num_items_in_batch), not by loss_scale.sum()"
        )
    both = weighted(first + second, "the sum of two weights")
    if _differ(twice.value, 2 * one.value) or _differ(both.value, one.value + other.value):
        raise ContractError(
            f"is not linear in loss_scale: {number(one.value)} for some weights, {number(twice.value)} for twice as "
            "much; multiply each token's loss by its weight"
        )


def _check_chunks(loss: TokenLoss, logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Check that a token's loss depends on its own logits alone: they are computed in chunks."""
    whole = _token_loss(loss, logits, targets)
    cuts: Sequence[int] = (1, 6, len(targets) - 7)
    pieces = [_token_loss(loss, *chunk) for chunk in zip(logits.split(cuts), targets.split(cuts), strict=True)]
    if not torch.allclose(torch.cat(pieces), whole, rtol=_TOLERANCE, atol=1e-6):
        at = int((torch.cat(pieces) - whole).abs().argmax())
        raise ContractError(
            f"gives position {at} the loss {number(torch.cat(pieces)[at])} or {number(whole[at])}, depending on the "
            "positions beside it in token_loss; each must depend on its own logits and target alone"
        )
    _token_loss(loss, logits[:0], targets[:0])


def _token_loss(loss: TokenLoss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with on(f"{len(targets)} positions (token_loss)"):
        losses = loss.token_loss(logits, targets)
        if not isinstance(losses, torch.Tensor) or losses.shape != targets.shape:
            found = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise ContractError(f"returned {found} from token_loss, expected one loss per position, ({len(targets)},)")
    return losses.detach()


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > _TOLERANCE * max(abs(one), abs(other), 1e-3)
