"""Token losses from hidden states, in chunks, so that the logits of a batch never exist at once.

The output head of a causal language model is its widest layer: for a vocabulary of 128k, the float32 logits of one
sequence of 4,096 tokens take 2 GB, and most of their rows have no label. Here the head is kept from running inside the
model; it runs afterwards on the labelled positions only, a few hundred at a time, and the gradient of each chunk is
taken at once (as Liger does for cross entropy, arXiv 2410.10989; here for any loss that is a sum over tokens).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, TrainingArguments

from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.task import TokenLogps

# 2**26 float32 logits are 256 MB, small beside a model whose vocabulary makes chunks matter.
LOGITS_IN_CHUNK = 2**26


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


def find_known_head(model: Any) -> KnownHead | None:
    """A model's head, its form read from the config and proven on the model; None where it is of another form.

    The proof: with the head made to answer known values, the model must return what the form makes of them.

    Args:
        model: A causal language model, wrapped by a tuner or not.
    """
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        return None
    config = model.config.get_text_config()
    module = model.get_output_embeddings()
    if module is None:
        return None
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    if getattr(config, "logits_scaling", None):
        scale = 1.0 / config.logits_scaling
    head = KnownHead(module, config.vocab_size, float(scale), getattr(config, "final_logit_softcapping", None))

    def known_values(hidden: torch.Tensor) -> torch.Tensor:
        positions = hidden.shape[:-1]
        return torch.linspace(-300, 300, positions.numel() * 8, device=hidden.device).reshape(*positions, 8)

    ids = torch.arange(1, 7, device=next(model.parameters()).device).reshape(2, 3)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), replaced_forward(module, known_values):
            logits = model(input_ids=ids).logits[:, -3:]
    finally:
        model.train(was_training)
    expected = head.finish(known_values(ids.new_empty(2, logits.shape[1], 1)))
    same = logits.shape == expected.shape and torch.allclose(logits.float(), expected, rtol=1e-2, atol=1e-2)
    return head if same else None


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let another function stand in for a module's `forward`."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def run_headless(model: nn.Module, head: KnownHead, inputs: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """Run a model up to its head: its output, without meaningful logits, and `(B, T, H)` states to give to the head."""
    seen: list[torch.Tensor] = []

    def capture(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        # One column keeps the graph in the outputs, where DistributedDataParallel looks for it.
        return hidden[..., :1]

    with replaced_forward(head.module, capture):
        outputs = model(**inputs)
    return outputs, seen[0]


class LabelledForward:
    """Runs a model so that its logits exist at labelled positions only.

    Args:
        model: A language model, not wrapped for several processes.
        args: The run's `TrainingArguments`.

    Attributes:
        head: The model's head, if its form is known and it can run outside the model.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments) -> None:
        # These keep the head's weights where only the wrapped forward finds them.
        whole_forward_only = args.torch_compile or args.fsdp or args.deepspeed or args.ddp_find_unused_parameters
        self.head = None if whole_forward_only else find_known_head(model)
        # The positions to keep are those of a row; virtual tokens that a tuner puts in front would shift them.
        shifted = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self.keeps_logits = not shifted and "logits_to_keep" in inspect.signature(_base(model).forward).parameters

    def __call__(
        self, model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Run the model, wrapped for several processes or not.

        Args:
            model: The model.
            inputs: What it takes.
            labels: `(N, T)` token ids, not shifted; -100 where there is no target.

        Returns:
            The model's output; `(P, H)` states for the head or, without one, `(P, V)` float32 logits, at the P
            positions before a label; and `(N, T)` which these positions are.
        """
        trained = nn.functional.pad(labels[:, 1:] != IGNORED_LABEL, (0, 1))
        if self.head is not None:
            outputs, hidden = run_headless(model, self.head, inputs)
            return outputs, hidden[:, -labels.shape[1] :][trained], trained
        if self.keeps_logits:
            outputs = model(**inputs, logits_to_keep=trained)
            return outputs, outputs.logits.float(), trained
        outputs = model(**inputs)
        return outputs, outputs.logits[:, -labels.shape[1] :][trained].float(), trained


def _base(model: nn.Module) -> nn.Module:
    """The model under PEFT's wrapper, whose own `forward` hides what it takes."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


TokenLossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(logits (N, V), targets (N,)) -> losses (N,)`."""


def sequence_logps(
    forward: LabelledForward,
    model: nn.Module,
    inputs: dict[str, Any],
    labels: torch.Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The log-probabilities of the labels of each row, summed.

    Args:
        forward: Runs the model.
        model: The model, wrapped for several processes or not.
        inputs: What it takes.
        labels: `(N, T)` token ids, not shifted; -100 where there is no target.
        autocast: Gives the context in which the head runs outside the model.

    Returns:
        The model's output, `(N,)` float32 sums, and `(N,)` numbers of labels.
    """
    outputs, _, trained, losses = _label_losses(_negative_logps, forward, model, inputs, labels, autocast)
    logps = losses.new_zeros(labels.shape).masked_scatter(trained, -losses).sum(dim=1)
    return outputs, logps, trained.sum(dim=1)


def token_logps(
    forward: LabelledForward,
    model: nn.Module,
    inputs: dict[str, Any],
    labels: torch.Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    temperature: float = 1.0,
) -> tuple[Any, TokenLogps, torch.Tensor]:
    """The log-probability of each label, and the entropy of what it is drawn from.

    Args:
        forward: Runs the model.
        model: The model, wrapped for several processes or not.
        inputs: What it takes.
        labels: `(N, T)` token ids, not shifted; -100 where there is no target.
        autocast: Gives the context in which the head runs outside the model.
        temperature: What the logits are divided by.

    Returns:
        The model's output; `(N, T)` log-probabilities and entropies; and for the P labels, row by row, the `(P, H)`
        states that the head reads or, without a known head, `(P, V)` logits.
    """
    entropies: list[torch.Tensor] = []

    def negative_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps = (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
        with torch.no_grad():
            entropies.append(-(logps.exp() * logps).sum(dim=-1))
        return -logps.gather(1, targets[:, None]).squeeze(1)

    outputs, states, _, losses = _label_losses(negative_logps, forward, model, inputs, labels, autocast)
    trains = nn.functional.pad(labels[:, 1:] != IGNORED_LABEL, (1, 0))
    blank = losses.new_zeros(labels.shape)
    logps = blank.masked_scatter(trains, -losses)
    return outputs, TokenLogps(logps, trains, blank.masked_scatter(trains, torch.cat(entropies))), states


def _label_losses(
    loss: TokenLossFunction,
    forward: LabelledForward,
    model: nn.Module,
    inputs: dict[str, Any],
    labels: torch.Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `LabelledForward` returns, and the loss of each label, row by row."""
    outputs, states, trained = forward(model, inputs, labels)
    targets = labels[:, 1:][trained[:, :-1]]
    if forward.head is None:
        return outputs, states, trained, loss(states, targets)
    with autocast():
        return outputs, states, trained, token_losses(loss, forward.head, states, targets)


def _negative_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")


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
