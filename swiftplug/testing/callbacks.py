"""The contract of a callback."""

import copy
import inspect
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.contracts import is_function
from swiftplug.testing.inputs import on
from swiftplug.testing.tiny import TinyRun

_STEPS, _SAVED = 4, 2


def check(plugin: LoadedPlugin) -> None:
    """Train a tiny model with it: with evaluations, from a checkpoint, and without evaluations."""
    with TemporaryDirectory() as folder:
        refusals = [_check_resume(plugin, Path(folder, "evaluated")), _check_plain(plugin, Path(folder, "plain"))]
    if all(refusals):
        raise UserError(str(refusals[0]))


def _check_plain(plugin: LoadedPlugin, folder: Path) -> UserError | None:
    """Check a run without evaluation; returns how it is refused."""
    folder.mkdir()
    run = TinyRun(plugin, folder, max_steps=1)
    try:
        run.args.check_plugins()
        with on("a run without evaluation"):
            run.trainer([_make(plugin, run)]).train()
    except UserError as refused:
        return refused
    return None


def _check_resume(plugin: LoadedPlugin, folder: Path) -> UserError | None:
    """Check that a run which goes on from a checkpoint is the unbroken one; returns how it is refused."""
    settings: Any = {"max_steps": _STEPS, "save_strategy": "steps", "save_steps": _SAVED, "eval_steps": 1}
    ends: list[dict[str, torch.Tensor]] = []
    states: list[int] = []
    name = f"checkpoint-{_SAVED}"
    for place in ("unbroken", "resumed"):
        (folder / place).mkdir(parents=True)
        run = TinyRun(plugin, folder / place, evaluates=True, **settings)
        try:
            run.args.check_plugins()
            callback = _make(plugin, run)
        except UserError as refused:
            return refused
        checkpoint = None
        if place == "resumed":
            source = folder / "unbroken" / "run" / name
            if not source.is_dir():  # it stopped the run, or kept it from saving
                return None
            checkpoint = Path(shutil.copytree(source, folder / place / "run" / name))
        with on("a resumed run with evaluations" if checkpoint else "a run with evaluations"):
            trainer = run.trainer([callback], checkpoint)
            if checkpoint:
                _check_state(callback, checkpoint, trainer)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model: Any = trainer.model
        if isinstance(callback, ExportableState):
            _check_json(callback.state())
        ends.append({key: weight.clone() for key, weight in model.state_dict().items()})
        states.append(trainer.state.global_step)
    for key, weight in ends[0].items():
        if states[0] != states[1] or not torch.equal(weight, ends[1][key]):
            seen = f"ends with another {key}"
            if states[0] != states[1]:
                seen = f"ends at step {states[1]}, not {states[0]}"
            raise ContractError(
                f"does not resume exactly: a run that goes on from step {_SAVED} {seen} as the unbroken one; subclass "
                "transformers.trainer_callback.ExportableState and return what it needs from state(), or let it depend "
                "on args and state.global_step alone"
            )
    return None


def _make(plugin: LoadedPlugin, run: TinyRun) -> Any:
    """A callback of its own for a run, as another process makes it."""
    made = copy.deepcopy(plugin.found.load())
    with on("making the callback"):
        if inspect.isclass(made):
            made = made(**plugin.options)
        elif is_function(made):
            made = made(run.args, **plugin.options)
    if not isinstance(made, TrainerCallback):
        raise ContractError(f"returned {type(made).__name__} from its function, expected a TrainerCallback")
    return made


def _check_state(callback: Any, checkpoint: Path, trainer: Any) -> None:
    """Check that a checkpoint gives a callback its state back as it was."""
    saved: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
    if not isinstance(callback, ExportableState) or type(callback).__name__ not in saved:
        return
    before = saved[type(callback).__name__][0]
    trainer.keeper.resume(checkpoint, trainer.control)
    after = callback.state()
    if after != before:
        raise ContractError(
            f"has the state {before} in a checkpoint, and {after} once it is resumed; state() returns 'args' and "
            "'attributes', each the value of the attribute of that name"
        )


def _check_json(state: dict[str, Any]) -> None:
    """Check that a state is the same after it has been in a file."""
    read = json.loads(json.dumps(state))
    if read != state:
        raise ContractError(
            f"has the state {state}, which is {read} once it has been in a checkpoint; use only what JSON keeps as it "
            "is (no tuples, no keys that are numbers)"
        )
