"""A linear layer with LoRA that rounds to half precision once, when all of its output is added up."""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional

# With fewer, as in decoding, a copy of the weight would take longer than the product.
_TOKENS = 256


class RoundsOnce(Linear):
    """PEFT's layer, whose product with the base weight and that with the adapter are one sum under autocast.

    PEFT adds what the adapter gives to an output that is rounded already. In bf16 that has 8 bits, so what is less than
    about half a percent of an output is lost, every time: a new adapter has no effect for many steps. A GPU adds up in
    float32 within a product, so both are computed as one: `[x, xA] [W, sB]^T`.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `peft.tuners.lora.Linear.forward`, which does whatever else there may be: variants, several adapters."""
        base: Any = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]
        device = x.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if (
            args
            or kwargs
            or half not in (torch.bfloat16, torch.float16)
            or len(names) != 1
            or self.disable_adapters
            or self.merged
            or names[0] in self.lora_variant
            or self.lora_bias[names[0]]
            or type(base) is not torch.nn.Linear
            or base._forward_hooks
            or base._forward_pre_hooks
            or base.weight.requires_grad
            or base.weight.dim() != 2  # its parts are on several devices
            or x.numel() < _TOKENS * x.shape[-1]
        ):
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        [name] = names
        x = x.to(half)
        hidden = self.lora_A[name](self.lora_dropout[name](x))
        up = (self.lora_B[name].weight * self.scaling[name]).to(half)
        bias = None if base.bias is None else base.bias.to(half)
        summed: torch.Tensor = _Sum.apply(x, hidden, base.weight.to(half), up, bias)
        return summed


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
