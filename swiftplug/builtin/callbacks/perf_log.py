"""Throughput, utilization and memory of a training run."""

import re
import resource
import sys
import time
from typing import Any

import torch
from pydantic import PositiveFloat
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

_GIB = 2**30


class PerfLog(TrainerCallback):
    """Logs tokens per second, model FLOPs utilization and peak memory with each training loss.

    They are added to every log that has the training loss, and so to `log.jsonl`:

    - `tokens_per_second`: input tokens of all processes, without padding, per second of training since the last log;
      the time of evaluations and checkpoints does not count.
    - `mfu`: model FLOPs utilization (arXiv 2204.02311, appendix B), from 0 to 1: the FLOPs of the matrix products with
      the model's parameters, divided by the devices' peak. A frozen weight needs no gradient, so a token costs
      4 FLOPs for it instead of 6. Products inside attention, and recomputation, are not counted. Missing if the device
      is unknown, and for mixtures of experts.
    - `peak_memory_gib`: the highest memory of one process so far: allocated on its GPU, or resident if it has none.
    """

    def __init__(self, peak_tflops: PositiveFloat | None = None) -> None:
        """Set the peak performance of a device.

        Args:
            peak_tflops: Peak of one device, in 10^12 operations per second; None looks it up by the device's name.
        """
        self.peak_tflops = peak_tflops
        self._flops_per_token: float | None = None
        self._peak: float | None = None
        self._last_time = 0.0
        self._seconds = 0.0
        self._tokens = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        model = unwrap_model(kwargs["model"])
        self._flops_per_token = _flops_per_token(model)
        in_half = args.bf16 or args.fp16 or next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        self._peak = self.peak_tflops or known_peak_tflops(args.device, in_half)
        self._tokens = state.num_input_tokens_seen
        self._seconds = 0.0
        self._last_time = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the time of a step."""
        self._add_time()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the figures to a log of the training loss."""
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" not in logs:
            return
        self._add_time()  # until now: reading the loss waited for the device
        tokens_per_second = (state.num_input_tokens_seen - self._tokens) / self._seconds
        figures = {"tokens_per_second": round(tokens_per_second, 1)}
        if self._peak is not None and self._flops_per_token is not None:
            per_device = tokens_per_second * self._flops_per_token / args.world_size
            figures["mfu"] = round(per_device / (self._peak * 1e12), 4)
        figures["peak_memory_gib"] = round(_peak_memory(args.device) / _GIB, 3)
        logs.update(figures)
        # Trainer has already put a copy of the logs into the history.
        state.log_history[-1].update(figures)
        self._tokens, self._seconds = state.num_input_tokens_seen, 0.0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restart the clock: the time of an evaluation or a checkpoint does not count."""
        self._last_time = time.perf_counter()

    on_save = on_evaluate

    def _add_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._last_time
        self._last_time = now


def _flops_per_token(model: Any) -> float | None:
    """FLOPs of forward and backward pass for one token; None for a mixture of experts, as a token skips most experts.

    Per weight: 2 forward, 2 for the gradient of its input, and 2 for its own gradient if it is trained.
    """
    config = model.config.to_dict()
    if any((config.get(name) or 0) > 1 for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    weights: int = model.num_parameters(exclude_embeddings=True)
    trained: int = model.num_parameters(only_trainable=True, exclude_embeddings=True)
    head = model.get_output_embeddings().weight
    if head is model.get_input_embeddings().weight:  # tied: excluded above, but its product is computed
        weights += head.numel()
        trained += head.numel() * head.requires_grad
    return 4.0 * weights + 2.0 * trained


def _peak_memory(device: torch.device) -> int:
    """The highest memory of this process so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# Dense matrix products in 10^12 operations per second: bfloat16 or float16, TF32, float32 without tensor cores.
# From NVIDIA's data sheets, by words in the device's name; the first match counts.
_PEAKS = {
    "B200": (2250.0, 1125.0, 75.0),
    "H200 NVL": (835.5, 417.5, 60.0),
    "H200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.5, 378.0, 51.2),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100": (989.4, 494.7, 66.9),
    "H800 PCIe": (756.5, 378.0, 51.2),
    "H800": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "A800": (312.0, 156.0, 19.5),
    "A10": (125.0, 62.5, 31.2),
    "L40S": (362.1, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "V100-PCIE": (112.0, 14.0, 14.0),
    "V100": (125.0, 15.7, 15.7),
}


def known_peak_tflops(device: torch.device, half: bool) -> float | None:
    """The peak of a device in 10^12 operations per second; None for a CPU, an unknown device, or a part of one (MIG).

    Args:
        device: Where the model is trained.
        half: Whether matrix products are in bfloat16 or float16.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name.split():
        return None
    peaks = next((peaks for words, peaks in _PEAKS.items() if re.search(rf"\b{words}\b", name)), None)
    if peaks is None:
        return None
    in_half, in_tf32, in_float32 = peaks
    if half:
        return in_half
    # This setting also reflects torch's two other TF32 settings, and Trainer's `tf32`.
    return in_tf32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else in_float32
