"""A linear layer with LoRA that rounds to half precision once, when all of its output is added up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional


class RoundsOnce(Linear):
    """PEFT's layer, whose product with the base weight and that with the adapter are one sum under autocast.

    PEFT adds what the adapter gives to an output that is rounded already. In bf16 that has 8 bits, so what is less than
    about half a percent of an output is lost, every time: a new adapter has no effect for many steps. A GPU adds up in
    float32 within a product, so both are computed as one: `[x, xA] [W, sB]^T`.
    """

    _joined: torch.Tensor | None = None  # `[W, sB]`, while it does not change

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `peft.tuners.lora.Linear.forward`, which does whatever else there may be: variants, several adapters."""
        device = x.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        name = None if args or kwargs or half not in (torch.bfloat16, torch.float16) else self._only_adapter()
        if name is None:
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        base: Any = self.base_layer
        x = x.to(half)
        hidden = self.lora_A[name](self.lora_dropout[name](x))
        bias = None if base.bias is None else base.bias.to(half)
        if self._joined is not None and not torch.is_grad_enabled():
            return functional.linear(torch.cat([x, hidden], -1), self._joined, bias)
        summed: torch.Tensor = _Sum.apply(x, hidden, base.weight.to(half), self._up(name, half), bias)
        return summed

    def _only_adapter(self) -> str | None:
        """The name of the adapter, if there is one alone, of the plain kind, that acts on a plain layer."""
        names, base = [name for name in self.active_adapters if name in self.lora_A], self.base_layer
        is_plain = (
            len(names) == 1
            and not self.disable_adapters
            and not self.merged
            and names[0] not in self.lora_variant
            and not self.lora_bias[names[0]]
            and type(base) is torch.nn.Linear
            and not base._forward_hooks
            and not base._forward_pre_hooks
            and not base.weight.requires_grad
            and base.weight.dim() == 2  # else its parts are on several devices
        )
        return names[0] if is_plain else None

    def _up(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """`sB`."""
        up: torch.Tensor = (self.lora_B[name].weight * self.scaling[name]).to(dtype)
        return up

    @torch.no_grad()
    def join(self, dtype: torch.dtype) -> None:
        """Keep `[W, sB]`, a copy, until `_joined` is None again."""
        name = self._only_adapter()
        if name is not None:
            base: Any = self.base_layer
            self._joined = torch.cat([base.weight.to(dtype), self._up(name, dtype)], 1)


@contextmanager
def joined(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Keep the joined weights of a model's layers while its weights do not change: each token takes one product less.

    They take as much memory as the weights of these layers.
    """
    layers = [module for module in model.modules() if isinstance(module, RoundsOnce)]
    try:
        for layer in layers:
            layer.join(dtype)
        yield
    finally:
        for layer in layers:
            layer._joined = None


class _Sum(torch.autograd.Function):
    """`x W^T + h U^T + bias`, rounded once; keeps no copy of the frozen W for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        up: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, up)
        return functional.linear(torch.cat([x, hidden], -1), torch.cat([weight, up], 1), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, weight, up = ctx.saved_tensors
        [gradient] = gradients
        of_x, of_hidden, _, of_up, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            gradient @ weight if of_x else None,
            gradient @ up if of_hidden else None,
            None,
            rows.T @ hidden.flatten(0, -2) if of_up else None,
            rows.sum(0) if of_bias else None,
        )


def round_once(model: torch.nn.Module) -> torch.nn.Module:
    """A model with PEFT's layers of LoRA on linear layers made into `RoundsOnce`."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = RoundsOnce
    return model
