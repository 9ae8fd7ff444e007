"""A callback: ends the training when the loss is low enough."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAtLoss(TrainerCallback):
    """Ends the training at the first logged loss that is at most `loss`.

    Any other method of `transformers.TrainerCallback` can be overridden as well.

    Args:
        loss: The loss to reach.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, loss: float = 0.1) -> None:
        self.loss = loss

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called whenever Trainer logs; `control` tells it what to do next."""
        if logs and "loss" in logs and float(logs["loss"]) <= self.loss:
            control.should_training_stop = True
