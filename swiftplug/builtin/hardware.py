"""Where a model runs on this machine, and in which precision."""

import torch


def pick_device() -> torch.device:
    """The accelerator of this machine, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """What a device runs a model in fastest without harm: bfloat16 where it multiplies in it natively, else float32.

    On a CPU without instructions for it, products in bfloat16 take five times as long as in float32.
    """
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    elif device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = True
    return torch.bfloat16 if native else torch.float32
