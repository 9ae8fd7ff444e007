"""The contract of a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from swiftplug.errors import ContractError
from swiftplug.plugin import IGNORED_LABEL, Batch, Rows, Task
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_task_loss
from swiftplug.testing.inputs import number, on
from swiftplug.testing.tiny import TinyRun
from swiftplug.training.task_loss import TaskLossComputer

_TOLERANCE = 1e-4
_PARTS = ((0, 1, 2, 3), (4,), (5,))  # rows of micro-batches


def check(plugin: LoadedPlugin) -> None:
    """Compute the loss of rows in ways that must give the same, and train and evaluate on them."""
    task: Task = plugin.bound
    with TemporaryDirectory() as folder:
        run = TinyRun(plugin, Path(folder), evaluates=True, max_steps=2)
        run.args.check_plugins()
        with on("check_data"):
            list(task.check_data(run.data.train))
        trainer = run.trainer()
        if "loss" not in task.kinds:  # else it is the loss plugin that computes it
            computer = trainer.loss_computer
            assert isinstance(computer, TaskLossComputer)
            _Loss(task, computer, run).check()
        with on("a training with evaluation"):
            trainer.train()
            trainer.save_final()


class _Result(NamedTuple):
    """The parts of a loss, what they are divided by, what is logged, and the gradient of a weight."""

    sums: dict[str, float]
    counts: dict[str, float]
    logged: Mapping[str, torch.Tensor]
    gradient: torch.Tensor


class _Loss:
    """The loss of a task for batches of a tiny run."""

    def __init__(self, task: Task, computer: TaskLossComputer, run: TinyRun) -> None:
        self.task = task
        self.computer = computer
        self.run = run
        computer.model.eval()  # no dropout
        # What depends on the batch by `mean`, may; for all else it is no other here.
        vars(computer)["mean"] = lambda values: torch.full((), 0.1)

    def check(self) -> None:
        """Raise a ContractError if it breaks the contract."""
        batch = self.run.batch()
        whole = self(batch, "a batch of six rows")
        padded = self(_padded(batch, self.run.args.load_tokenizer().pad_token_id), "a batch with 4 padded columns")
        for name, total in whole.sums.items():
            self._check_equal(
                total,
                padded.sums[name],
                f"the part {name!r}",
                f"without, {number(padded.sums[name])} with 4 padded columns (attention_mask 0, labels -100)",
            )
        parts = [self(self.run.batch(rows), _rows(rows)) for rows in _PARTS]
        self._check_logged([whole, *parts])
        for name, count in whole.counts.items():
            counts = [part.counts.get(name, 0.0) for part in parts]
            if sum(counts) != count:
                raise ContractError(
                    f"counts {number(count)} {name} in six rows, but {' + '.join(map(number, counts))} in {_cut()}; "
                    "counts must return a sum over the batch"
                )
        for name, total in whole.sums.items():
            sums = [part.sums.get(name, 0.0) for part in parts]
            self._check_equal(
                total, sum(sums), f"the part {name!r}", f"for six rows, {' + '.join(map(number, sums))} for {_cut()}"
            )
        gradient = torch.stack([part.gradient for part in parts]).sum(dim=0)
        if not torch.allclose(
            gradient, whole.gradient, rtol=1e-3, atol=1e-5 + 1e-4 * float(whole.gradient.abs().max())
        ):
            raise ContractError(
                f"has another gradient for six rows than for {_cut()}; sums are sums over rows, each of which depends "
                "on its own row, or on model.mean of others"
            )
        if self.task.head == "language" and "loss_scale" in self.task.kinds and not self.task.trains_prompt:
            self._check_untrained(batch)

    def __call__(self, batch: Batch, what: str) -> _Result:
        """Compute it; raises a ContractError if that is no finite loss with a finite gradient."""
        given = {name: value.clone() for name, value in batch.items()}
        model: Any = self.computer.model
        model.zero_grad()
        with on(what):
            counts = self.computer.counts(given)
            computed = check_task_loss(self.task.loss(self.computer, given), counts)
            for name, part in computed.sums.items():
                if not torch.isfinite(part):
                    raise ContractError(f"has {part.item()} as the part {name!r} of a loss, expected a finite number")
            torch.stack([part.float() for part in computed.sums.values()]).sum().backward()
            for name, value in batch.items():
                if not torch.equal(given[name], value):
                    raise ContractError(f"changes {name!r} of the batch; work on a copy")
            gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
            # Of candidates, some may teach nothing.
            must_learn = self.task.rows is not Rows.PROMPTS or len(batch["labels"]) == len(self.run.batch()["labels"])
            if must_learn and not any(gradient.abs().sum() > 0 for gradient in gradients.values()):
                raise ContractError("has a gradient of 0 everywhere; let the loss depend on the model")
            if bad := [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]:
                raise ContractError(f"has a gradient that is not finite, at {bad[0]}; keep logarithms and roots off 0")
        weight = max(gradients, key=lambda name: float(gradients[name].abs().max()))
        weight = "model.embed_tokens.weight" if "model.embed_tokens.weight" in gradients else weight
        sums = {name: part.item() for name, part in computed.sums.items()}
        return _Result(
            sums, {name: float(count) for name, count in counts.items()}, computed.logged, gradients[weight].clone()
        )

    def _check_logged(self, results: Sequence[_Result]) -> None:
        logged: set[str] = set()
        for rows, result in zip((range(6), *_PARTS), results, strict=True):
            logged |= result.logged.keys()
            for name, values in result.logged.items():
                if not torch.isfinite(values.float()).all():
                    raise ContractError(
                        f"logs {name!r} as {values.float().mean().item()} for {_rows(rows)}; log a tensor of the "
                        "values (one for each row, empty if there is none), of which the mean is taken over all batches"
                    )
        names = self.task.log_names()
        if names is not None and {*names} != logged:
            names = {*names}
            extra, missing = sorted(logged - names), sorted(names - logged)
            besides = f"logs {', '.join(extra)}, which log_names() leaves out" if extra else ""
            never = f"never logs {', '.join(missing)}, which log_names() has" if missing else ""
            raise ContractError(
                f"{' and '.join(filter(None, (besides, never)))}; name "
                "there exactly what loss puts into TaskLoss.logged, or return None"
            )

    def _check_untrained(self, batch: Batch) -> None:
        """Check that a last token whose weight is 0 does not act: nothing that trains follows it."""
        pad = self.run.args.load_tokenizer().pad_token_id
        labels, ids = batch["labels"].clone(), batch["input_ids"].clone()
        last = batch["attention_mask"].sum(dim=1) - 1
        rows = torch.arange(len(last))
        labels[rows, last] = IGNORED_LABEL
        ids[rows, last] = pad + 7
        one = self({**batch, "labels": labels}, "a batch whose last tokens have the weight 0")
        other = self({**batch, "labels": labels, "input_ids": ids}, "a batch whose last tokens have the weight 0")
        for name, total in one.sums.items():
            self._check_equal(
                total,
                other.sums[name],
                f"the part {name!r}",
                f"or {number(other.sums[name])}, depending on a token that does not train (its label is -100, where a "
                "loss scale gives 0; a task that means it sets trains_prompt)",
            )

    def _check_equal(self, one: float, other: float, what: str, how: str) -> None:
        if abs(one - other) > _TOLERANCE * max(abs(one), abs(other), 1.0):
            raise ContractError(
                f"has {number(one)} as {what} {how}; a part is a sum over rows (or tokens whose label is not -100), "
                "each of which depends on its own row alone"
            )


def _padded(batch: Batch, pad_token_id: int) -> dict[str, torch.Tensor]:
    fills = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORED_LABEL}
    shape = batch["labels"].shape  # what else has a value for each token is 0 where there is none
    return {
        name: torch.nn.functional.pad(value, (0, 4), value=fills.get(name, 0))
        if name in fills or value.shape == shape
        else value
        for name, value in batch.items()
    }


def _rows(rows: Sequence[int]) -> str:
    return "a batch of one row" if len(rows) == 1 else f"a batch of {len(rows)} rows"


def _cut() -> str:
    return f"batches of {', '.join(str(len(rows)) for rows in _PARTS[:-1])} and {len(_PARTS[-1])}"
