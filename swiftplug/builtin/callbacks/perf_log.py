"""Logs how fast and how large a run is: tokens per second, model FLOPs utilization, peak memory."""

import resource
import sys
import time
from typing import Any

import torch
from pydantic import PositiveFloat
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from swiftplug.builtin.callbacks.peak_flops import peak_tflops as known_peak

_GIB = 2**30


class PerfLog(TrainerCallback):
    """Adds to each log of the training loss, and so to `log.jsonl`:

    - `tokens_per_second`: input tokens without padding, of all processes, over the time since the last log that went
      into training; evaluations and checkpoints do not count.
    - `mfu`: model FLOPs utilization (arXiv 2204.02311, appendix B), from 0 to 1: the FLOPs of the matrix products that
      the model needs by its parameters, over what the devices could do. A frozen weight needs no gradient, so a token
      costs 4 FLOPs for it rather than 6. Attention's own products are left out, recomputation is not model. Absent
      where the device is not known, and for mixtures of experts.
    - `peak_memory_gib`: the most memory of one process so far: allocated on its GPU, or resident where there is none.

    Args:
        peak_tflops: What one device could do, in 10^12 operations a second, where it is not known or to be another.
    """

    def __init__(self, peak_tflops: PositiveFloat | None = None) -> None:
        self.peak_tflops = peak_tflops
        self._flops_per_token: float | None = None
        self._peak: float | None = None
        self._mark = 0.0
        self._seconds = 0.0
        self._tokens = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        model = unwrap_model(kwargs["model"])
        self._flops_per_token = _flops_per_token(model)
        self._peak = self.peak_tflops or known_peak(args.device, _computes_in_half(args, model))
        self._tokens = state.num_input_tokens_seen
        self._seconds = 0.0
        self._mark = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the time of a step."""
        self._count_time()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add to a log of the training loss."""
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" not in logs:
            return
        self._count_time()  # until now: reading the loss has waited for the device
        tokens_per_second = (state.num_input_tokens_seen - self._tokens) / self._seconds
        figures = {"tokens_per_second": round(tokens_per_second, 1)}
        if self._peak is not None and self._flops_per_token is not None:
            per_device = tokens_per_second * self._flops_per_token / args.world_size
            figures["mfu"] = round(per_device / (self._peak * 1e12), 4)
        figures["peak_memory_gib"] = round(_peak_memory(args.device) / _GIB, 3)
        logs.update(figures)
        # Trainer has put a copy of the logs into the history already.
        state.log_history[-1].update(figures)
        self._tokens, self._seconds = state.num_input_tokens_seen, 0.0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of an evaluation out."""
        self._mark = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of a checkpoint out."""
        self._mark = time.perf_counter()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now


def _flops_per_token(model: Any) -> float | None:
    """FLOPs of forward and backward pass for one token: 2 a weight forward, 2 for its input's gradient, 2 for its own.

    None for a mixture of experts: a token does not pass all of its weights.
    """
    config = model.config.to_dict()
    if any((config.get(name) or 0) > 1 for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    weights: int = model.num_parameters(exclude_embeddings=True)
    trained: int = model.num_parameters(only_trainable=True, exclude_embeddings=True)
    head = model.get_output_embeddings().weight
    if head is model.get_input_embeddings().weight:  # then it was left out, but its product is made
        weights += head.numel()
        trained += head.numel() * head.requires_grad
    return 4.0 * weights + 2.0 * trained


def _computes_in_half(args: TrainingArguments, model: torch.nn.Module) -> bool:
    return args.bf16 or args.fp16 or next(model.parameters()).dtype in (torch.bfloat16, torch.float16)


def _peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
