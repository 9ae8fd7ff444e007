"""A loss: cross entropy with a small penalty on the size of the logits."""

from functools import cache
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from swiftplug.plugin import IGNORED_LABEL


def custom_loss(
    outputs: Any,
    labels: torch.Tensor,
    loss_scale: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    z: float = 1e-4,
) -> torch.Tensor:
    """Cross entropy with the auxiliary z-loss of PaLM (Chowdhery et al., arXiv 2204.02311, section 5).

    The normalizer Z of the softmax can drift; `z * log(Z)^2` pulls it towards 1, which keeps the logits small.

    Args:
        outputs: The model's output, with `logits` of `(B, T, V)`.
        labels: `(B, T)` token ids, not shifted; -100 where there is no target.
        loss_scale: `(B, T)` weights; None means 1 everywhere.
        num_items_in_batch: Number of trained tokens in the whole accumulation step; None: in this batch.
        z: The weight of the z-loss. Keyword-only parameters are a plugin's options: `--set loss.z=1e-3`.

    Returns:
        A scalar: the weighted sum over tokens, divided by `num_items_in_batch`.
    """
    _print_once(f"custom_loss: cross entropy + {z:g} * log(Z)^2")
    targets = labels[:, 1:]  # the logits at one position predict the token at the next
    trained = targets != IGNORED_LABEL
    logits: torch.Tensor = outputs.logits[:, :-1][trained].float()
    losses = cross_entropy(logits, targets[trained], reduction="none") + z * logits.logsumexp(-1) ** 2
    if loss_scale is not None:
        losses = losses * loss_scale[:, 1:][trained]
    return losses.sum() / (trained.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


@cache
def _print_once(text: str) -> None:
    print(text, flush=True)
