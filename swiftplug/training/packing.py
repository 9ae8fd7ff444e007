"""The proof that a model keeps packed examples apart, given before it trains on them."""

import torch
from accelerate import Accelerator

from swiftplug.errors import UserError


def check_packing(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Run two examples packed and alone, and compare.

    Args:
        model: The model to train.
        accelerator: The trainer's, for its autocast.

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


def _logits(
    model: torch.nn.Module, accelerator: Accelerator, ids: torch.Tensor, restart: int | None = None
) -> torch.Tensor:
    length = ids.shape[1]
    positions = torch.arange(length)
    if restart is not None:
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
