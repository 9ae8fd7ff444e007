"""Parts of a model replaced for faster generation: a cache that grows in place, and packed linear layers."""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoRALinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from swiftplug.builtin.tuners.lora_layer import RoundsOnce

_SPARE_TOKENS = 128


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, `(rows, heads, length, head_dim)`, views of buffers with room for more tokens.

    Transformers' own layer concatenates, so each step copies everything: a third of the time of float32 generation on
    two CPU cores. Here a step writes only its own token, and the last rows overwrite those that ended.

    Args:
        longest: Maximum number of tokens of a row; buffers never have room for more.
    """

    keys: Any
    values: Any

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._longest = longest
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens; return all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states  # of the prompts; buffers are made for the candidates
            return self.keys, self.values
        rows, start, end = key_states.shape[0], self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._move(torch.arange(rows, device=key_states.device), end)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = states
        self.keys, self.values = (buffer[:rows, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Make row `i` what row `beam_idx[i]` was; rows may repeat, or be left out."""
        rows, length = beam_idx.numel(), self.keys.shape[-2]
        if self._buffers is None or rows > self._buffers[0].shape[0]:
            self._move(beam_idx)
            return
        targets = (beam_idx != torch.arange(rows, device=beam_idx.device)).nonzero().squeeze(1)
        for buffer in self._buffers:
            buffer[targets, :, :length] = buffer[beam_idx[targets], :, :length]
        self.keys, self.values = (buffer[:rows, :, :length] for buffer in self._buffers)

    def keep(self, length: int, longest: int) -> None:
        """Forget all tokens but the first `length`; rows may then grow to `longest`."""
        self._longest = longest
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]

    def _move(self, rows: torch.Tensor, least: int = 0) -> None:
        """Copy rows into buffers with room for more tokens, `least` in all."""
        length = self.keys.shape[-2]
        capacity = max(length + 1, least, min(self._longest, length + max(_SPARE_TOKENS, length // 2)))

        def copy(states: torch.Tensor) -> torch.Tensor:
            buffer = states.new_empty(rows.numel(), states.shape[1], capacity, states.shape[3])
            buffer[:, :, :length] = states[rows]
            return buffer

        self._buffers = copy(self.keys), copy(self.values)
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def growing_cache(config: PreTrainedConfig, longest: int) -> DynamicCache:
    """The cache of a model, with growing layers for full attention.

    Layers with a sliding window or with a recurrent state are small and stay as they are.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PackedLinear(nn.Module):
    """A linear layer for inference whose weight is converted to oneDNN's layout once, not at every call.

    With few rows a plain product spends much of its time on that conversion. On two cores with AVX2, SmolLM2-135M's
    layers take 0.85 of the time at 64 rows, 0.6 at 16. `rows` is the usual number of rows; any other works too.
    """

    def __init__(self, linear: nn.Linear, weight: torch.Tensor, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, `(out_features, in_features)`, for modelling code that reads it directly."""
        dense: torch.Tensor = self.packed.to_dense()
        return dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, `(..., in_features)` to `(..., out_features)`."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return product


@torch.no_grad()
def pack_linears(model: nn.Module, rows: int) -> list[tuple[nn.Module, str, nn.Module]]:
    """Pack the plain linear layers of a float32 model on the CPU, each with its LoRA, if torch has oneDNN.

    Layers with hooks stay as they are. The model can no longer be trained, unless they are put back.

    Returns:
        The layers that packed ones replaced: of each the parent, its name there, and the layer.
    """
    if not torch.backends.mkldnn.is_available():
        return []
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for name, module in model.named_children():
        linear: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        weight = _packable(module, linear)
        if weight is not None:
            setattr(model, name, PackedLinear(linear, weight, rows))
            replaced.append((model, name, module))
        elif module is linear:  # other adapters read the weight of their layer
            replaced += pack_linears(module, rows)
    return replaced


def _packable(module: nn.Module, linear: Any) -> torch.Tensor | None:
    """The weight of a layer that may be packed, with that of its LoRA; else None."""
    if type(linear) is not nn.Linear or linear.weight.device.type != "cpu" or linear.weight.dtype != torch.float32:
        return None
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in (module, linear)):
        return None
    weight = linear.weight.detach()
    if module is linear:
        return weight
    if not isinstance(module, LoRALinear) or type(module) not in (LoRALinear, RoundsOnce):
        return None
    if module.merged or module.disable_adapters:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if any(name in module.lora_variant or module.lora_bias[name] for name in active):
        return None
    return sum((module.get_delta_weight(name) for name in active), weight)
