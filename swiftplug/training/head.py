"""A model run up to its output head, which then runs on the labelled positions only.

The output head of a causal language model is its widest layer: for a vocabulary of 128k, the float32 logits of one
sequence of 4,096 tokens take 2 GB, and most of their rows have no label. Here the head is kept from running inside the
model; it runs afterwards, a few hundred positions at a time (see `token_losses`).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, TrainingArguments

from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.task import TokenLogps
from swiftplug.training.chunked_losses import KnownHead, TokenLossFunction, token_losses


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

    def sequence_logps(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The log-probabilities of the labels of each row, summed.

        Args:
            model: This and what follows is as `__call__` takes it.
            inputs: What it takes.
            labels: The labels.
            autocast: Gives the context in which the head runs outside the model.

        Returns:
            The model's output, `(N,)` float32 sums, and `(N,)` numbers of labels.
        """
        outputs, _, trained, losses = self._label_losses(_negative_logps, model, inputs, labels, autocast)
        logps = losses.new_zeros(labels.shape).masked_scatter(trained, -losses).sum(dim=1)
        return outputs, logps, trained.sum(dim=1)

    def token_logps(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        temperature: float = 1.0,
    ) -> tuple[Any, TokenLogps, torch.Tensor]:
        """The log-probability of each label with its logits divided by `temperature`, and the entropy there.

        Returns:
            The model's output; `(N, T)` log-probabilities and entropies; and for the P labels, row by row, the `(P, H)`
            states that the head reads or, without a known head, `(P, V)` logits. What it takes is as above.
        """
        entropies: list[torch.Tensor] = []

        def negative_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logps = (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
            with torch.no_grad():
                entropies.append(-(logps.exp() * logps).sum(dim=-1))
            return -logps.gather(1, targets[:, None]).squeeze(1)

        outputs, states, trained, losses = self._label_losses(negative_logps, model, inputs, labels, autocast)
        trains = trained.roll(1, dims=1)
        blank = losses.new_zeros(labels.shape)
        logps = blank.masked_scatter(trains, -losses)
        return outputs, TokenLogps(logps, trains, blank.masked_scatter(trains, torch.cat(entropies))), states

    def _label_losses(
        self,
        loss: TokenLossFunction,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `__call__` returns, and the loss of each label, row by row."""
        outputs, states, trained = self(model, inputs, labels)
        targets = labels[:, 1:][trained[:, :-1]]
        if self.head is None:
            return outputs, states, trained, loss(states, targets)
        with autocast():
            return outputs, states, trained, token_losses(loss, self.head, states, targets)


def _base(model: nn.Module) -> nn.Module:
    """The model under PEFT's wrapper, whose own `forward` hides what it takes."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def _negative_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")
