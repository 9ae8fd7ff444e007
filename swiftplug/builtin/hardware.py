"""The device and the precision in which a model runs on this machine."""

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device() -> torch.device:
    """The accelerator of this machine, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The given precision; for `auto`, bfloat16 on devices that support it natively, else float32.

    On a CPU without bfloat16 instructions, its products take five times as long as in float32.

    Args:
        wanted: `float32`, `bfloat16`, `float16`, or `auto`.
        device: Where the model is to run.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    elif device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = True
    return torch.bfloat16 if native else torch.float32
