"""What the signature of a loss plugin shows that it can take."""

import inspect
from collections.abc import Callable
from typing import Any

from swiftplug.plugin.loss import TokenLoss


class LossContract:
    """What a loss plugin's signature says it can take.

    Attributes:
        takes_scale: It weighs tokens by `loss_scale`.
        takes_num_items: It divides by `num_items_in_batch`, and not by its own micro-batch.
        is_token_loss: It is a sum over tokens, and needs no whole logits.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        # A module's own signature is that of any call; its `forward` says what it takes.
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_scale = takes_any or "loss_scale" in parameters
        self.takes_num_items = takes_any or "num_items_in_batch" in parameters
        self.is_token_loss = isinstance(function, TokenLoss) and type(function).__call__ is TokenLoss.__call__
