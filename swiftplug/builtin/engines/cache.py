"""A key-value cache with room to grow, for decoding many sequences at once."""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_ROOM = 128  # tokens


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, at the front of buffers with room behind them.

    Transformers' own layer concatenates, so that each step copies all that was there: a third of float32 decoding on
    two CPU cores. Here a step writes its own token only, and rows that ended are overwritten by the last ones.

    Attributes:
        keys: The keys so far, `(rows, heads, length, head_dim)`: a view of the buffer.
        values: The values so far, likewise.

    Args:
        longest: How many tokens a row may come to have; there is never room for more.
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
        """Append tokens.

        Args:
            key_states: `(rows, heads, tokens, head_dim)`.
            value_states: Likewise.
            *args: Transformers' own.
            **kwargs: Transformers' own.

        Returns:
            All keys and all values so far.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states  # of the prompts; there is no room to be had yet
            return self.keys, self.values
        rows, start, end = key_states.shape[0], self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._move(torch.arange(rows, device=key_states.device))
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = states
        self._show(rows, end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row `i` be what row `beam_idx[i]` was.

        Args:
            beam_idx: `(rows,)`; more rows than before where rows are repeated, fewer where some ended.
        """
        if self._buffers is None or beam_idx.numel() > self._buffers[0].shape[0]:
            self._move(beam_idx)
            return
        targets = (beam_idx != torch.arange(beam_idx.numel(), device=beam_idx.device)).nonzero().squeeze(1)
        length = self.keys.shape[-2]
        for buffer in self._buffers:
            buffer[targets, :, :length] = buffer[beam_idx[targets], :, :length]
        self._show(beam_idx.numel(), length)

    def _move(self, rows: torch.Tensor) -> None:
        """Copy rows into buffers with room for more tokens."""
        length = self.keys.shape[-2]
        capacity = max(length + 1, min(self._longest, length + max(_ROOM, length // 2)))
        moved = []
        for states in (self.keys, self.values):
            _, heads, _, width = states.shape
            buffer = states.new_empty(rows.numel(), heads, capacity, width)
            buffer[:, :, :length] = states[rows]
            moved.append(buffer)
        self._buffers = (moved[0], moved[1])
        self._show(rows.numel(), length)

    def _show(self, rows: int, length: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[:rows, :, :length] for buffer in self._buffers)


def roomy_cache(config: PreTrainedConfig, longest: int) -> DynamicCache:
    """The cache that a model wants, its layers of full attention replaced by roomy ones.

    Layers with a sliding window or with a recurrent state are small and stay what they are.

    Args:
        config: The model's.
        longest: Tokens that a sequence may come to have.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
