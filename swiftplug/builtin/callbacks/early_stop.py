"""Early stopping."""

import logging
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from swiftplug.plugin import RunArguments, UserError, nearest

logger = logging.getLogger(__name__)


class EarlyStop(TrainerCallback, ExportableState):
    """Stops training after `patience` consecutive evaluations without a better metric.

    A metric whose name ends in `loss` or `perplexity` is better when lower, any other when higher; for
    `training.metric_for_best_model`, `training.greater_is_better` decides. A resumed run continues the count.
    """

    def __init__(self, patience: PositiveInt = 3, threshold: NonNegativeFloat = 0.0, metric: str | None = None) -> None:
        """Set when to stop.

        Args:
            patience: Number of consecutive evaluations without a new best after which training stops.
            threshold: How much better than the previous best a new best must be.
            metric: The metric, with or without `eval_`. None is `training.metric_for_best_model`, or else `eval_loss`.
        """
        self.patience = patience
        self.threshold = threshold
        self.metric = metric
        self.best: float | None = None
        self.waited = 0

    def check_run(self, args: RunArguments) -> None:
        """Reject a run without evaluations, or without the metric.

        Raises:
            UserError: It is one.
        """
        _check_evaluates(args)
        chosen = self.metric or args.metric_for_best_model or "loss"
        if args.eval_names is not None and chosen.removeprefix("eval_") not in args.eval_names:
            known = [f"eval_{name}" for name in args.eval_names]
            raise UserError(f"callback early_stop: no evaluation gives {chosen!r}{nearest(chosen, known)}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reject a run without evaluations."""
        _check_evaluates(args)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare the metric with the best so far; stop the run when patience runs out.

        Raises:
            UserError: The evaluation has no such metric.
        """
        metrics: dict[str, float] = kwargs["metrics"]
        chosen = self.metric or args.metric_for_best_model or "loss"
        name = f"eval_{chosen.removeprefix('eval_')}"
        if name not in metrics:
            raise UserError(f"callback early_stop: no evaluation gives {name!r}{nearest(name, metrics)}")
        value = metrics[name]
        gain = 0.0 if self.best is None else value - self.best
        if not _greater_is_better(args, name):
            gain = -gain
        # NaN is never a best.
        if (self.best is None and value == value) or gain > self.threshold:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            control.should_training_stop = True
            logger.warning(
                "early_stop: %s has not been better than %s for %d evaluations; stopping at step %d",
                name,
                self.best,
                self.waited,
                state.global_step,
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the options, and the count so far."""
        return {
            "args": {"patience": self.patience, "threshold": self.threshold, "metric": self.metric},
            "attributes": {"best": self.best, "waited": self.waited},
        }


def _check_evaluates(args: Any) -> None:
    if args.eval_strategy == "no":
        raise UserError("callback early_stop: there are no evaluations; give eval_dataset and training.eval_strategy")


def _greater_is_better(args: TrainingArguments, name: str) -> bool:
    for_best = args.metric_for_best_model
    if for_best is not None and args.greater_is_better is not None and f"eval_{for_best.removeprefix('eval_')}" == name:
        return args.greater_is_better
    return not name.endswith(("loss", "perplexity"))
