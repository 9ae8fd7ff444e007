"""Checkpoints: each takes its name only when it is complete, loses it before it is deleted, and resumes exactly."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from swiftplug.config.load import to_yaml
from swiftplug.config.yaml_file import read_config, read_value
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.folder import CONFIG, MANIFEST, config_difference

TRAINER_STATE = "trainer_state.json"
STAGING = ".saving-checkpoint"
FINAL_STAGING = ".saving-final"
DELETING = ".deleting-"


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    named = [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in named if path.is_dir()), key=lambda path: int(path.name.split("-")[1]))


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a killed run was writing or deleting; several processes of a run may do so at once."""
    for pattern in (".saving-*", f"{DELETING}*"):
        for path in run_dir.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(folder: Path, args: Arguments, allow_changed_plugins: bool) -> Path | None:
    """The newest complete checkpoint of the run to resume; None to start from the beginning.

    Raises:
        UserError: What is to be resumed is another run than this one, or a plugin of it has changed.
    """
    if not (folder / CONFIG).exists():
        return None
    before, _ = read_config(str(folder / CONFIG))
    if difference := config_difference(before, read_value(to_yaml(args.config), CONFIG)):
        raise UserError(f"--resume: {folder / CONFIG} is another run's: {difference}")
    if not allow_changed_plugins and (folder / MANIFEST).exists():
        _check_plugins_unchanged(folder, args.plugins.all())
    clear_leftovers(folder)
    found = checkpoints(folder)
    return found[-1] if found else None


def _check_plugins_unchanged(folder: Path, plugins: list[LoadedPlugin]) -> None:
    recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["plugins"]
    before = {(record["kind"], record["name"]): record["source_sha256"] for record in recorded}
    for plugin in plugins:
        kind, name = plugin.found.kind, plugin.found.qualified_name
        if before.get((kind, name), plugin.source_hash) != plugin.source_hash:
            raise UserError(
                f"--resume: the {kind} plugin {name!r} ({plugin.source_file}, or a module of its own that it imports) "
                "has changed since this run began; "
                "restore it, or use the new code with --allow-changed-plugins"
            )


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, renamed first, so that a partly deleted one is never taken for a complete one."""
    renamed = path.with_name(f"{DELETING}{path.name}")
    path.rename(renamed)
    shutil.rmtree(renamed)


def move_into(run_dir: Path, staging: Path, last: str) -> None:
    """Move finished files into the run's folder; the file `last`, which shows that all are there, comes last."""
    (run_dir / last).unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
        target = run_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    staging.rmdir()


class CheckpointKeeper(TrainerCallback):
    """Names a checkpoint when Trainer has written it whole, deletes those beyond `save_total_limit`, and resumes.

    It is the first of the callbacks, so that all others find a checkpoint in its place.

    Args:
        run_dir: The run's folder; Trainer writes checkpoints into `STAGING` in it.
        accelerator: The trainer's.
        callbacks: The trainer's list of callbacks, whose states a checkpoint holds.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, callbacks: Sequence[TrainerCallback]) -> None:
        self.run_dir = run_dir
        self.accelerator = accelerator
        self.callbacks = callbacks
        self.best_before: Path | None = None

    def resume(self, checkpoint: Path, control: TrainerControl) -> TrainerState:
        """Give callbacks their states back, in place: Trainer would make them anew, at the end of the order."""
        saved: TrainerState = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        states: Any = saved.stateful_callbacks
        for callback in self._with_state(control):
            if left := states.get(type(callback).__name__):
                state = left.pop(0)
                for name, value in {**state["args"], **state["attributes"]}.items():
                    setattr(callback, name, value)
        self.best_before = self.run_dir / Path(saved.best_model_checkpoint or "none").name  # the folder may have moved
        return saved

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Find the best checkpoint of a resumed run."""
        states: Any = state.stateful_callbacks
        for callback in self._with_state(control):  # Trainer expects an entry for each when it saves
            states.setdefault(type(callback).__name__, [])
        if self.best_before is not None:
            state.best_model_checkpoint = str(self.best_before) if self.best_before.is_dir() else None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the state of the trainer, name the checkpoint, and delete old ones."""
        final = self.run_dir / f"checkpoint-{state.global_step}"
        written = self.run_dir / STAGING / final.name
        best = self.run_dir / f"checkpoint-{state.best_global_step}"
        if best == final or best.is_dir():  # not every step that is evaluated is saved
            state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()  # each process has written its part
        if args.should_save:
            states: Any = {}
            for callback in self._with_state(control):
                states.setdefault(type(callback).__name__, []).append(callback.state())
            state.stateful_callbacks = states
            state.save_to_json(str(written / TRAINER_STATE))
            if final.exists():
                remove_checkpoint(final)
            written.rename(final)
            written.parent.rmdir()
            self._delete_old(args.save_total_limit, state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """With a limit of one, keep the best checkpoint alone."""
        if args.should_save and args.save_total_limit == 1 and state.best_model_checkpoint:
            for path in checkpoints(self.run_dir):
                if path != Path(state.best_model_checkpoint):
                    remove_checkpoint(path)

    def _with_state(self, control: TrainerControl) -> list[ExportableState]:
        return [each for each in [*self.callbacks, control] if isinstance(each, ExportableState)]

    def _delete_old(self, limit: int | None, best: str | None) -> None:
        """Delete the oldest checkpoints beyond a limit, never the newest or the best."""
        found = checkpoints(self.run_dir)
        if not limit:
            return
        protected = {found[-1], Path(best)} if best else {found[-1]}
        excess = len(found) - max(limit, len(protected))
        for path in [path for path in found if path not in protected][: max(excess, 0)]:
            remove_checkpoint(path)


class SaveAfterEpoch(TrainerCallback):
    """Puts off what the last step of an epoch would save until the epoch has ended.

    The end of an epoch may evaluate: a checkpoint from before it would let a resumed run miss the evaluation. It is the
    last of the callbacks, so that it sees what all others asked for.
    """

    def __init__(self) -> None:
        self.postponed = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put off a save at the last step."""
        if control.should_epoch_stop or control.should_training_stop or float(state.epoch or 0).is_integer():
            self.postponed, control.should_save = control.should_save, False

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take it up again."""
        control.should_save = control.should_save or self.postponed
        self.postponed = False
