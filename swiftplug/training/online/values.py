"""The value head of an online task: it predicts the rewards to come, before each token, from the output head's states.

It is a submodule of the model in training, so that its optimizer, several processes and the clipping of gradients see
it. What else takes the model's weights does not: tuners that save them, and engines that draw with them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from swiftplug.errors import UserError
from swiftplug.runs.arguments import Arguments
from swiftplug.training.head import LabelledForward, run_headless

_NAME = "value_head"
_FILE = "value_head.safetensors"
_SPEED = 10.0  # of its learning rate and the policy's, as is usual (verl, OpenRLHF): it begins knowing nothing


class ValueHead(nn.Module):
    """A linear layer that begins at 0, computes in float32, and learns ten times as fast as the model.

    With any optimizer: its parameters count tenfold in the values, but not in their own gradient.

    Args:
        size: The size of the states.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The values of `(P, H)` states, `(P,)` float32."""
        weight, bias = (it + (_SPEED - 1) * it.detach() for it in (self.weight, self.bias))
        with torch.autocast(states.device.type, enabled=False):
            return nn.functional.linear(states.float(), weight, bias).squeeze(-1)


def add_value_head(args: Arguments, model: nn.Module, checkpoint: Path | None) -> None:
    """Give a model its value head: that of a checkpoint, or a new one, also where a finished run is evaluated.

    Raises:
        UserError: The states that the model's output head reads cannot be had, or the checkpoint has no value head.
    """
    task = args.plugins.one("task").found
    head = LabelledForward(model, args.training_args).head
    if head is None:
        raise UserError(
            f"{task} needs a value head beside the output head, but that of {type(model).__name__} has a form that is "
            "not known or, with torch_compile, fsdp, deepspeed or ddp_find_unused_parameters, runs within the model "
            "alone"
        )
    with torch.no_grad():
        ids = torch.ones(1, 2, dtype=torch.long, device=next(model.parameters()).device)
        _, states = run_headless(model, head, {"input_ids": ids})
    added = ValueHead(states.shape[-1])
    if checkpoint is not None and checkpoint.name.startswith("checkpoint-"):
        if not (checkpoint / _FILE).is_file():
            raise UserError(f"--resume: {checkpoint} has no {_FILE}, which {task} saves in each checkpoint")
        added.load_state_dict(load_file(checkpoint / _FILE))
    model.add_module(_NAME, added.to(states.device))


def value_head_of(model: nn.Module) -> ValueHead | None:
    """The value head of a model, if it has one."""
    head = model._modules.get(_NAME)
    return head if isinstance(head, ValueHead) else None


def save_value_head(model: nn.Module, checkpoint: Path) -> None:
    """Write the value head of a model, if it has one, into a checkpoint."""
    if (head := value_head_of(model)) is not None:
        save_file({name: it.contiguous() for name, it in head.state_dict().items()}, checkpoint / _FILE)


@contextmanager
def without_value_head(model: nn.Module) -> Iterator[None]:
    """Take the value head off a model for a while."""
    head = value_head_of(model)
    if head is None:
        yield
        return
    del model._modules[_NAME]
    try:
        yield
    finally:
        model.add_module(_NAME, head)
