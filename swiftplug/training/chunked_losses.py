"""Token losses from hidden states, in chunks, so that the logits of a batch never exist at once.

The gradient of each chunk is taken at once, as Liger does for cross entropy (arXiv 2410.10989); here for any loss that
is a sum over tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# 2**26 float32 logits are 256 MB, small beside a model whose vocabulary makes chunks matter.
LOGITS_IN_CHUNK = 2**26

TokenLossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(logits (N, V), targets (N,)) -> losses (N,)`."""


class KnownHead(NamedTuple):
    """An output head whose logits are `softcap * tanh(scale * module(h) / softcap)`.

    Attributes:
        module: The head; a linear layer, or one that a tuner wrapped.
        vocab_size: The width of its logits.
        scale: The factor on the logits (Cohere, Granite, Falcon-H1); 1 for most models.
        softcap: The bound of the logits (Gemma); None for most models.
    """

    module: nn.Module
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """The model's logits from the head's output, of any shape."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def token_losses(
    token_loss: TokenLossFunction, head: KnownHead, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The loss of each token, whose logits are computed a chunk at a time.

    As the loss of a token depends on its own state alone, one gradient for each state is all that is kept of a chunk's
    logits. For the gradient of a head that trains, those of several chunks are computed again.

    Args:
        token_loss: The loss.
        head: The model's output head.
        hidden: `(N, H)` states of the positions that have a target.
        targets: `(N,)` token ids.

    Returns:
        `(N,)` float32 losses.
    """

    def losses(states: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        return token_loss(head.finish(head.module(states).float()), chunk)

    with_grad = torch.is_grad_enabled()
    head_trains = with_grad and any(parameter.requires_grad for parameter in head.module.parameters())
    # Several buffers of this size exist at once. Where no gradient is added up over chunks, small ones take no longer.
    size = _chunk_size(head) if head_trains else max(64, _chunk_size(head) // 4)
    chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
    if not with_grad or (head_trains and len(chunks) == 1):
        return torch.cat([losses(*chunk) for chunk in chunks])
    if head_trains:
        return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([_TokenLosses.apply(losses, *chunk) for chunk in chunks])


class _TokenLosses(torch.autograd.Function):
    """The losses of tokens, each a function of its own state; takes the gradient of each at once."""

    @staticmethod
    def forward(
        ctx: Any,
        losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        with torch.enable_grad():
            states = hidden.detach().requires_grad_()
            computed = losses(states, targets)
            ctx.save_for_backward(*torch.autograd.grad(computed.sum(), states))
        return computed.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (state_grads,) = ctx.saved_tensors
        return None, state_grads * grad[:, None].to(state_grads.dtype), None


def token_loss_sum(
    token_loss: TokenLossFunction,
    head: KnownHead,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The weighted sum of token losses, whose logits are computed a chunk at a time.

    Args:
        token_loss: The loss.
        head: The model's output head.
        hidden: `(N, H)` states of the positions that have a target.
        targets: `(N,)` token ids.
        weights: `(N,)` weights, or None for 1 everywhere.
        chunk_size: Positions per chunk; None keeps a chunk's logits within 256 MB.

    Returns:
        A float32 scalar, with a gradient for `hidden` and the head's trainable parameters.
    """
    size = chunk_size or _chunk_size(head)
    chunks = [slice(start, start + size) for start in range(0, len(targets), size)]

    def chunk_sum(states: torch.Tensor, chunk: slice) -> torch.Tensor:
        losses = token_loss(head.finish(head.module(states).float()), targets[chunk])
        return (losses if weights is None else losses * weights[chunk]).sum()

    if not torch.is_grad_enabled():
        return sum((chunk_sum(hidden[chunk], chunk) for chunk in chunks), torch.zeros((), device=hidden.device))
    trained = [parameter for parameter in head.module.parameters() if parameter.requires_grad]
    total: torch.Tensor = _ChunkedSum.apply(chunk_sum, chunks, hidden, *trained)
    return total


def _chunk_size(head: KnownHead) -> int:
    return max(64, LOGITS_IN_CHUNK // head.vocab_size)


class _ChunkedSum(torch.autograd.Function):
    """Sums a function over chunks of rows; takes the gradient of each chunk before the next one's logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        chunk_sum: Callable[[torch.Tensor, slice], torch.Tensor],
        chunks: list[slice],
        hidden: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        wants_hidden = ctx.needs_input_grad[2]
        hidden_grad = torch.zeros_like(hidden) if wants_hidden else None
        parameter_grads = [torch.zeros_like(parameter) for parameter in parameters]
        total = torch.zeros((), device=hidden.device)
        for chunk in chunks:
            with torch.enable_grad():
                states = hidden[chunk].detach().requires_grad_(wants_hidden)
                part = chunk_sum(states, chunk)
            wanted = [*([states] if wants_hidden else []), *parameters]
            grads = list(torch.autograd.grad(part, wanted))
            if hidden_grad is not None:
                hidden_grad[chunk] = grads.pop(0)
            for total_grad, grad in zip(parameter_grads, grads, strict=True):
                total_grad += grad
            total += part.detach()
        ctx.grads = [hidden_grad, *parameter_grads]
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *(None if part is None else part * grad.to(part.dtype) for part in ctx.grads))
