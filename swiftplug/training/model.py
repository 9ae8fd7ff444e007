"""The model that a run trains: loaded, wrapped by the tuner, in the right precision, and fit for packed rows."""

from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import set_seed

from swiftplug.errors import UserError
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.model import autocast_dtype


def load_model_to_train(args: Arguments, checkpoint: Path | None) -> torch.nn.Module:
    """The base model, wrapped by the tuner anew or as a checkpoint has it.

    Raises:
        UserError: The tuner returned no model, or one without a parameter to train.
    """
    set_seed(args.config.seed)
    compute_dtype = autocast_dtype(args.training_args)
    # In mixed precision the checkpoint's own type is kept until the tuner has decided what trains.
    base = args.load_model(torch.float32 if compute_dtype == torch.float32 else None)
    tuner = args.plugins.one("tuner")
    if checkpoint is None:
        model = tuner.bound.prepare_model(args, base)
    else:
        model = tuner.bound.from_pretrained(base, str(checkpoint), is_trainable=True)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{tuner.found} returned a {type(model).__name__}; expected a torch.nn.Module")
    _set_precision(model, compute_dtype)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{tuner.found} leaves no parameter to train")
    return model


def _set_precision(model: torch.nn.Module, compute_dtype: torch.dtype) -> None:
    """Make trainable weights float32, and frozen ones the type of autocast; quantized weights stay as they are."""
    quantized = getattr(model, "is_quantized", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
        elif parameter.is_floating_point() and not quantized:
            parameter.data = parameter.data.to(compute_dtype)


def check_packing(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Prove that a model keeps packed examples apart, by running two of them packed and alone.

    Raises:
        UserError: An example's logits change when another stands before it.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(1, 100, (1, length), generator=generator) for length in (9, 7))
    alone = _logits(model, accelerator, second)
    packed = _logits(model, accelerator, torch.cat([first, second], dim=1), restart=first.shape[1])
    difference = (packed[:, first.shape[1] :] - alone).abs().max() / alone.std().clamp(min=1e-12)
    # Half precision rounds differently when rows are longer; a leak changes the logits by far more.
    tolerance = 1e-3 if accelerator.mixed_precision == "no" else 0.1
    if difference > tolerance:
        raise UserError(
            f"data.packing: {type(model).__name__} does not keep packed examples apart (the second of two differs by "
            f"{difference:.2g} standard deviations from what it gives alone); set packing: false"
        )


def _logits(model: torch.nn.Module, accelerator: Accelerator, ids: torch.Tensor, restart: int = 0) -> torch.Tensor:
    """The logits of a row whose position ids start again at `restart`."""
    length = ids.shape[1]
    positions = torch.arange(length)
    positions[restart:] -= restart
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), accelerator.autocast():
            output = model(
                input_ids=ids.to(accelerator.device),
                position_ids=positions[None].to(accelerator.device),
                use_cache=False,
            )
    finally:
        model.train(was_training)
    logits: torch.Tensor = output.logits[:, -length:].float()
    return logits
