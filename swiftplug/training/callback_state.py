"""What callbacks keep over a resume."""

from collections.abc import Sequence
from typing import Any

from transformers.trainer_callback import ExportableState


def states_of(callbacks: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """The states of those callbacks that have one, by the names of their classes, in order."""
    states: dict[str, list[dict[str, Any]]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    return states


def restore_states(callbacks: Sequence[Any], saved: Any) -> None:
    """Give callbacks their states back, in place: Trainer would make them anew, at the end of the order.

    Args:
        callbacks: Those of a resumed run.
        saved: What `states_of` gave before.
    """
    states = {name: list(each) for name, each in saved.items()}
    for callback in callbacks:
        if isinstance(callback, ExportableState) and states.get(type(callback).__name__):
            state = states[type(callback).__name__].pop(0)
            for name, value in {**state["args"], **state["attributes"]}.items():
                setattr(callback, name, value)
