"""What a plugin must return, by kind: the same checks in a run and in `list-plugins --check`.

All raise a ContractError, whose message continues "this plugin ...", and return what they checked.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from numbers import Real
from typing import Any

from swiftplug.errors import ContractError, nearest
from swiftplug.formatting import format_count
from swiftplug.plugin.loss import ContextType
from swiftplug.plugin.rewards import Unscored
from swiftplug.plugin.task import TaskLoss


def check_loss(value: Any) -> Any:
    """What a loss returns: a tensor with one number, and in training with a gradient."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise ContractError(f"returned a {type(value).__name__}, expected a scalar tensor")
    if value.dim():
        raise ContractError(f"returned a tensor of shape {tuple(value.shape)}, expected a scalar tensor")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ContractError("returned a tensor without a gradient, expected one that depends on the logits")
    return value


LOGGED_BY_THE_RUN = {"loss", "learning_rate", "grad_norm", "epoch", "step", "total_flos", "num_input_tokens_seen"}


def check_task_loss(computed: Any, counts: Mapping[str, Any]) -> TaskLoss:
    """What a task returns from `loss`: scalars by what they are divided by, in training with a gradient."""
    import torch

    if not isinstance(computed, TaskLoss) or not computed.sums:
        raise ContractError(f"returned a {type(computed).__name__} from loss, expected a TaskLoss with sums")
    for name, part in computed.sums.items():
        if name not in counts:
            raise ContractError(f"returned the part {name!r} of a loss that it does not count{nearest(name, counts)}")
        if not isinstance(part, torch.Tensor) or part.dim():
            found = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, torch.Tensor) else type(part).__name__
            raise ContractError(f"returned {found} as the part {name!r} of a loss, expected a scalar tensor")
    if torch.is_grad_enabled() and not any(part.requires_grad for part in computed.sums.values()):
        raise ContractError("returned a loss without a gradient, expected one that depends on the model")
    for name, values in computed.logged.items():
        if name in LOGGED_BY_THE_RUN or name.startswith(("train_", "eval_")):
            raise ContractError(f"returned {name!r} to be logged, which the run itself logs; give it another name")
        if not isinstance(values, torch.Tensor):
            raise ContractError(f"returned {name!r}: {values!r:.60} to be logged, expected a tensor")
    return computed


def check_estimate(returned: Any, trains: Any) -> dict[str, Any]:
    """What an online task returns from `estimate`: tensors of the candidates; `trains` says which tokens train."""
    import torch

    if not isinstance(returned, Mapping) or "advantages" not in returned:
        found = (
            f"{returned!r:.60}" if not isinstance(returned, Mapping) else ", ".join(map(repr, returned)) or "nothing"
        )
        raise ContractError(f"returned {found} from estimate, expected a dict with 'advantages'")
    for name, value in returned.items():
        if not isinstance(value, torch.Tensor) or value.shape[:1] != trains.shape[:1]:
            found = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f": {value!r:.60}"
            raise ContractError(
                f"returned {name!r} {found} from estimate, expected a tensor whose first dimension is of the "
                f"{format_count(len(trains), 'candidate')}"
            )
    advantages = returned["advantages"]
    if advantages.shape not in (trains.shape[:1], trains.shape) or not advantages.is_floating_point():
        raise ContractError(
            f"returned advantages of shape {tuple(advantages.shape)} and {advantages.dtype} from estimate, expected "
            f"{tuple(trains.shape[:1])} or {tuple(trains.shape)}, of a floating point type"
        )
    return dict(returned)


def check_weights(returned: Any, context: str, context_type: ContextType) -> tuple[list[str], list[float]]:
    """What a loss scale returns for a context: parts that join to it, and a weight for each."""
    try:
        parts, weights = (list(each) for each in returned)
        joined = "".join(parts)
    except (TypeError, ValueError):
        raise ContractError(f"returned {returned!r:.60}, expected a list of texts and a list of weights") from None
    if joined != context:
        different = (i for i, (a, b) in enumerate(zip(joined, context, strict=False)) if a != b)
        at = next(different, min(len(joined), len(context)))
        raise ContractError(
            f"its parts do not join to the {context_type.value} they were cut from: "
            f"at character {at} found {joined[at : at + 20]!r}, expected {context[at : at + 20]!r}"
        )
    if len(parts) != len(weights):
        raise ContractError(f"found {len(parts)} parts and {len(weights)} weights, expected one weight per part")
    numbers = [_number(weight) for weight in weights]
    for number, weight in zip(numbers, weights, strict=True):
        if not number >= 0:
            raise ContractError(f"found the weight {weight!r}, expected a finite number of at least 0")
    return parts, numbers


def check_metrics(returned: Any) -> dict[str, float]:
    """What a metric computes: numbers, which may be nan, by name."""
    if not isinstance(returned, dict):
        raise ContractError(f"returned a {type(returned).__name__}, expected a dict of numbers")
    for name, value in returned.items():
        if not isinstance(name, str) or not _is_number(value):
            raise ContractError(f"returned {name!r}: {value!r:.60}, expected a name and a number")
    return {name: float(value) for name, value in returned.items()}


def check_optimizer(made: Any) -> tuple[Any, Any]:
    """What an optimizer plugin makes: an optimizer or None, and a scheduler or None."""
    import torch

    if not isinstance(made, tuple) or len(made) != 2:
        found = f"tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ContractError(f"returned a {found}, expected a pair (optimizer, scheduler)")
    optimizer, scheduler = made
    if not isinstance(optimizer, torch.optim.Optimizer | None):
        raise ContractError(f"returned a {type(optimizer).__name__} first, expected a torch.optim.Optimizer or None")
    if optimizer is None and scheduler is not None:
        raise ContractError("returned a scheduler without its optimizer")
    if scheduler is not None and not hasattr(scheduler, "step"):
        raise ContractError(f"returned a {type(scheduler).__name__} second, expected a learning rate scheduler or None")
    return optimizer, scheduler


def check_rewards(returned: Any, count: int) -> list[Any]:
    """What a scorer returns for so many candidates: a list, an array or a tensor of as many rewards."""
    rewards = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(rewards, list | tuple):
        raise ContractError(f"returned a {type(rewards).__name__}, expected a list of {format_count(count, 'reward')}")
    if len(rewards) != count:
        found = format_count(len(rewards), "reward")
        raise ContractError(f"returned {found} for {format_count(count, 'candidate')}")
    return list(rewards)


def check_reward(kind: str, reward: Any) -> float | list[float] | Unscored:
    """The reward of one candidate: a finite number, or for a PRM a list of one per step; None is no reward."""
    if reward is None:
        return Unscored("gave no score")
    if isinstance(reward, Unscored):
        return reward
    value = reward.tolist() if hasattr(reward, "tolist") else reward
    steps = value if kind == "prm" and isinstance(value, list | tuple) else [value]
    rewards = [_number(step) for step in steps]
    if not all(map(math.isfinite, rewards)):
        expected = "a finite number" + (", or a list of one per step" if kind == "prm" else "")
        raise ContractError(f"returned the reward {reward!r:.60}, expected {expected}")
    if steps is value:
        return rewards or Unscored("found no step to reward")
    return rewards[0]


def check_step_ends(ends: Any, rewards: int, text: str) -> list[int]:
    """What a process reward model says of where steps end in a text, to which it gave so many rewards."""
    if not isinstance(ends, list | tuple) or not all(isinstance(end, int) for end in ends):
        raise ContractError(f"returned {ends!r:.60} from step_ends, expected a list of integers")
    if len(ends) != rewards:
        found = format_count(len(ends), "end")
        raise ContractError(f"returned {found} from step_ends for {format_count(rewards, 'step')} that it rewards")
    if any(one >= other for one, other in pairwise([0, *ends, len(text) + 1])):
        raise ContractError(
            f"returned {ends!r:.60} from step_ends for a text of {format_count(len(text), 'character')}, expected "
            "ascending numbers from 1 up to that"
        )
    return list(ends)


def check_messages(returned: Any) -> list[dict[str, Any]]:
    """The messages that an environment returns, none for None; the model's turn follows them."""
    if returned is None:
        return []
    messages = list(returned) if isinstance(returned, list | tuple) else []
    if not messages:
        raise ContractError(f"returned {returned!r:.60}, expected a list of messages, or None for none")
    for message in messages:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ContractError(
                f"returned {message!r:.60} among messages, expected a dict of role and content, both texts"
            )
    if messages[-1]["role"] == "assistant":
        raise ContractError("returned an assistant's message last, which the model's own turn would follow")
    return [dict(message) for message in messages]


def _is_number(value: Any) -> bool:
    """Whether it is a number, or an array or a tensor of one."""
    return isinstance(value, Real) or (hasattr(value, "item") and getattr(value, "ndim", 0) == 0)


def _number(value: Any) -> float:
    """A finite number as a float; nan for anything else."""
    number = float(value) if type(value) is float or _is_number(value) else math.nan
    return number if math.isfinite(number) else math.nan
