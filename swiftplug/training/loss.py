"""The loss of one micro-batch: from a model and a loss plugin to a checked scalar, by the leanest exact path."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import TrainingArguments

from swiftplug.errors import UserError
from swiftplug.plugin.loss import IGNORED_LABEL, TokenLoss
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.errors import ContractError
from swiftplug.plugin.registry.returns import check_loss
from swiftplug.training.head import KnownHead, find_known_head, run_headless, token_loss_sum


def optional_arguments(loss: Callable[..., Any]) -> set[str]:
    """Which of `loss_scale` and `num_items_in_batch` a loss plugin accepts."""
    # A module's own signature is that of any call; its `forward` shows what it takes.
    parameters = inspect.signature(getattr(loss, "forward", loss)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name for name in ("loss_scale", "num_items_in_batch") if takes_any or name in parameters}


class LossComputer:
    """Runs a model and its loss plugin.

    A loss that is a sum over tokens (`TokenLoss`) gets logits at labelled positions only: in chunks where the head is
    of a known form, else by the model's own `logits_to_keep`. Any other loss, and whoever needs the logits, gets
    them whole.

    Args:
        plugin: The loss plugin.
        model: The model to train, not wrapped for several processes.
        accelerator: The trainer's.
        args: The run's `TrainingArguments`.
    """

    def __init__(
        self, plugin: LoadedPlugin, model: torch.nn.Module, accelerator: Accelerator, args: TrainingArguments
    ) -> None:
        self.plugin = plugin
        self.name = f"loss {plugin.found.qualified_name!r} {plugin.found.version}".rstrip()
        self.function = plugin.bound
        self.takes = optional_arguments(self.function)
        loss_class = type(self.function)
        self.is_token_loss = issubclass(loss_class, TokenLoss) and loss_class.__call__ is TokenLoss.__call__
        self.accelerator = accelerator
        self.aux_coefficient = _aux_coefficient(model)
        self.head: KnownHead | None = None
        # These keep the head's weights where only the wrapped forward finds them.
        whole_forward_only = args.torch_compile or args.fsdp or args.deepspeed or args.ddp_find_unused_parameters
        if self.is_token_loss and not whole_forward_only:
            self.head = find_known_head(model)
        # The positions to keep are those of a row; virtual tokens that a tuner puts in front would shift them.
        shifted = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self.keeps_logits = not shifted and "logits_to_keep" in inspect.signature(_base(model).forward).parameters

    def __call__(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items: torch.Tensor | int | None,
        need_logits: bool = False,
    ) -> tuple[torch.Tensor, Any]:
        """The loss of a batch, and the model's output.

        Args:
            model: The model, wrapped for several processes or not.
            inputs: A batch of the collator; `labels` and `loss_scale` are taken out of it.
            num_items: What the sum is divided by, if the plugin takes it; None: the batch's own trained tokens.
            need_logits: Whether `outputs.logits` must be whole.

        Raises:
            UserError: The plugin returned something other than a scalar tensor with a gradient.
        """
        labels, scale = inputs.pop("labels"), inputs.pop("loss_scale", None)
        if self.is_token_loss and not need_logits:
            outputs, loss = self._on_labels(model, inputs, labels, scale, num_items)
        else:
            outputs = model(**inputs)
            # Virtual tokens that a tuner put in front have no labels.
            outputs.logits = outputs.logits[:, -labels.shape[1] :]
            optional = {"loss_scale": scale, "num_items_in_batch": num_items}
            loss = self.function(outputs, labels, **{name: optional[name] for name in self.takes})
            try:
                check_loss(loss)
            except ContractError as error:
                raise UserError(f"{self.name}: {error}") from None
        # In training only: it depends on how rows are batched, and `eval_loss` must not.
        if self.aux_coefficient and model.training and outputs.aux_loss is not None:
            loss = loss + self.aux_coefficient * self._share(labels, num_items) * outputs.aux_loss.to(loss.device)
        return loss, outputs

    def check_finite(self, loss: torch.Tensor, step: int) -> None:
        """Stop where a loss is not a number, before it reaches the weights.

        Raises:
            UserError: It is nan or infinite.
        """
        if not torch.isfinite(loss):
            raise UserError(
                f"step {step}: the loss {self.plugin.found.qualified_name!r} is {loss.item()}; the weights are as they "
                "were before this step. Look at the loss plugin, or lower training.learning_rate"
            )

    def _on_labels(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        scale: torch.Tensor | None,
        num_items: torch.Tensor | int | None,
    ) -> tuple[Any, torch.Tensor]:
        trained = torch.nn.functional.pad(labels[:, 1:] != IGNORED_LABEL, (0, 1))  # the positions that predict one
        targets = labels[:, 1:][trained[:, :-1]]
        weights = None if scale is None else scale[:, 1:][trained[:, :-1]]
        if self.head is not None:
            outputs, hidden = run_headless(model, self.head, inputs)
            hidden = hidden[:, -labels.shape[1] :][trained]
            with self.accelerator.autocast():
                total = token_loss_sum(self._token_loss, self.head, hidden, targets, weights)
        else:
            if self.keeps_logits:
                outputs = model(**inputs, logits_to_keep=trained)
                logits = outputs.logits
            else:
                outputs = model(**inputs)
                logits = outputs.logits[:, -labels.shape[1] :][trained]
            losses = self._token_loss(logits.float(), targets)
            total = (losses if weights is None else losses * weights).sum()
        return outputs, total / (max(len(targets), 1) if num_items is None else num_items)

    def _share(self, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor | float:
        """The micro-batch's share of its accumulation step, by trained tokens, for what is not a sum over them."""
        if num_items is None or "num_items_in_batch" not in self.takes:
            return 1.0
        return (labels[:, 1:] != IGNORED_LABEL).sum() / num_items

    def _token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = self.function.token_loss(logits, targets)
        if not isinstance(losses, torch.Tensor):
            raise UserError(
                f"{self.name}: returned a {type(losses).__name__} from token_loss, expected one loss per position"
            )
        if losses.shape != targets.shape:
            raise UserError(
                f"{self.name}: returned shape {tuple(losses.shape)} from token_loss, expected one loss per position, "
                f"{tuple(targets.shape)}"
            )
        return losses


def _base(model: torch.nn.Module) -> torch.nn.Module:
    """The model under PEFT's wrapper, whose own `forward` hides what it takes."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def _aux_coefficient(model: torch.nn.Module) -> float:
    """The weight of a mixture-of-experts' load-balancing loss; 0 where the model has none or does not return it."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "output_router_logits", False):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", 0.0))
