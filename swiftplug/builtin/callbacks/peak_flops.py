"""What accelerators can do at most."""

import re
from typing import NamedTuple

import torch


class _Peak(NamedTuple):
    """Dense matrix products, 10^12 operations a second: bfloat16 or float16, TF32, and float32 without tensor cores."""

    half: float
    tf32: float
    float32: float


# From NVIDIA's data sheet of each, without sparsity; by the words of the device's name, and the first that fits counts.
_PEAKS = {
    "B200": _Peak(2250.0, 1125.0, 75.0),
    "H200 NVL": _Peak(835.5, 417.5, 60.0),
    "H200": _Peak(989.4, 494.7, 66.9),
    "H100 PCIe": _Peak(756.5, 378.0, 51.2),
    "H100 NVL": _Peak(835.5, 417.5, 60.0),
    "H100": _Peak(989.4, 494.7, 66.9),
    "H800 PCIe": _Peak(756.5, 378.0, 51.2),
    "H800": _Peak(989.4, 494.7, 66.9),
    "A100": _Peak(312.0, 156.0, 19.5),
    "A800": _Peak(312.0, 156.0, 19.5),
    "A10": _Peak(125.0, 62.5, 31.2),
    "L40S": _Peak(362.1, 183.0, 91.6),
    "L4": _Peak(121.0, 60.0, 30.3),
    "V100-PCIE": _Peak(112.0, 14.0, 14.0),
    "V100": _Peak(125.0, 15.7, 15.7),
}


def peak_tflops(device: torch.device, half: bool) -> float | None:
    """The peak of a device, in 10^12 operations a second.

    Args:
        device: Where a model trains.
        half: Whether its products are in bfloat16 or float16.

    Returns:
        None for a device that is not in the table, a CPU above all, and for a part of one (MIG).
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name.split():
        return None
    peak = next((peak for words, peak in _PEAKS.items() if re.search(rf"\b{words}\b", name)), None)
    if peak is None:
        return None
    if half:
        return peak.half
    # The one switch that follows both of torch's others, and Trainer's `tf32`.
    return peak.tf32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else peak.float32
