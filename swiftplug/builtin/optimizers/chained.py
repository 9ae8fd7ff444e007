"""Several optimizers that look like one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Chained(torch.optim.Optimizer):
    """Steps several optimizers, each on parameters of its own.

    Groups and state are shared with the chained optimizers, not copied: a schedule, a checkpoint or a gradient scaler
    acts on this one as on any other.

    Args:
        optimizers: The optimizers, no parameter in two of them.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step each optimizer once.

        Args:
            closure: Computes the loss again, and its gradients.

        Returns:
            What the closure returned, a float; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a saved state back; see `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Hand out groups and state, which torch replaces when a state is loaded."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state
