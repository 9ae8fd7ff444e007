"""Checkpoints: each takes its name only when it is complete, loses it before it is deleted, and resumes exactly."""

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from swiftplug.config.resume import CONFIG, config_difference, read_record
from swiftplug.config.yaml_file import read_config
from swiftplug.data.read.report import DataReport
from swiftplug.errors import UserError
from swiftplug.formatting import format_command, format_count
from swiftplug.plugin import Rows
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.folder import KEPT_BASE, MARKER, STAGED_BASE, Marker, absolute_name, add_to_record
from swiftplug.runs.plugins import free_options
from swiftplug.sampling.outputs import CANDIDATES
from swiftplug.training.page.curves import LOG

TRAINER_STATE = "trainer_state.json"
CURVES = "loss.png"
REPORT = "report.html"
ANSWERS = "answers.jsonl"
CONFUSION = "confusion.png"
TENSORBOARD = "tensorboard"
STAGING = ".saving-checkpoint"
FINAL_STAGING = ".saving-final"
DELETING = ".deleting-"
STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")  # with the processes, the rows of a step


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    named = [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in named if path.is_dir()), key=lambda path: int(path.name.split("-")[1]))


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint, to resume from; what a killed run left incomplete is removed."""
    clear_leftovers(run_dir)
    return next(reversed(checkpoints(run_dir)), None)


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a killed run was writing or deleting; several processes of a run may do so at once."""
    for pattern in (".saving-*", f"{DELETING}*"):
        for path in run_dir.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def marker_of(args: Arguments, run_dir: Path, place: Path) -> Marker:
    """The contents of `swiftplug.json` for the weights of this run, when they are in the folder `place`."""
    tuner, base, head = args.plugins.one("tuner"), args.base, args.head
    model = base.config.model
    name = str(model and model.name)
    base_model = {
        "name": name if base.plugins.model else absolute_name(name),
        "options": model.options if model else {},
    }
    kept, own = run_dir / KEPT_BASE, None if base.plugins.model else Path(base_model["name"])
    folder = kept if kept.is_dir() else own
    if folder is not None and folder.is_dir():
        base_model["relative"] = os.path.relpath(folder.resolve(), place.resolve())
    return Marker(
        base_model=base_model,
        model_options=base.config.model_options.model_dump(),
        seed=base.config.seed,
        tuner={"name": tuner.found.qualified_name, "options": tuner.options},
        task={
            "name": args.plugins.one("task").found.qualified_name,
            "head": args.task.head,
            **({"step_separator": args.task.step_separator} if args.task.rows is Rows.STEPS else {}),
            **({"labels": head.labels.names, "problem_type": head.labels.problem_type} if head else {}),
        },
    )


def step_shares(given: Mapping[str, Any], group: int = 1) -> tuple[int, int]:
    """The values of `STEP` of a `training:` section: without both, a step has as many prompts as others have rows."""
    size, accumulated = (int(given.get(name, getattr(TrainingArguments, name))) for name in STEP)
    return size, accumulated if given.keys() & set(STEP) else accumulated * group


def check_same_run(folder: Path, args: Arguments, allow_changed_plugins: bool) -> None:
    """Check that what is to be resumed is this run, as far as can be told before the data is read.

    Its steps may be shared out among other numbers of micro-batches and processes if they take as many rows.

    Raises:
        UserError: It has another config or takes other steps than this one, or a plugin of it has changed.
    """
    if not (folder / CONFIG).exists():
        return
    before, _ = read_config(str(folder / CONFIG))
    record = read_record(folder)
    group = args.config.num_return_sequences if args.task.rows is Rows.PROMPTS else 1
    here = [*(int(getattr(args.training_args, name)) for name in STEP), args.training_args.world_size]
    there = [*step_shares(before.get("training") or {}, group), record.get("processes", here[-1])]
    rows, now = math.prod(there), math.prod(here)
    free = [f"training.{name}" for name in STEP] if rows == now else []
    differences = [
        config_difference(
            before,
            args.config,
            ignoring=("dataset", "eval_dataset", *free),
            free_options=free_options(args.plugins),
        )
    ]
    if rows != now and there[-1] != here[-1]:
        fitting, rest = divmod(rows, math.prod(here[1:]))
        keep = "" if rest else f"; --set training.{STEP[0]}={fitting} keeps them"
        differences.append(
            f"processes: {there[-1]} there, {here[-1]} here, so a step takes {now} rows, not {rows}{keep}"
        )
    if difference := "; ".join(filter(None, differences)):
        as_begun = format_command("train", folder, "--resume", *(["--nproc", there[-1]] if there[-1] > 1 else []))
        raise UserError(
            f"--resume: {folder / CONFIG} is another run's: {difference}; `{as_begun}` continues it as it began"
        )
    if not allow_changed_plugins:
        _check_plugins_unchanged(record, args.plugins.all())
    _check_same_sharding(folder, args.training_args)
    if there != here:
        shares = [
            f"{size} x {steps} accumulated x {format_count(count, 'process')}" for size, steps, count in (here, there)
        ]
        newest = checkpoints(folder)
        if newest and int(newest[-1].name.partition("-")[2]) % getattr(args.task, "num_iterations", 1):
            raise UserError(
                f"--resume: {newest[-1]} is in the middle of the {args.task.num_iterations} steps with one drawing, "
                f"which are shared out as they were, {shares[1]}; found {shares[0]}"
            )
        anew = "" if there[-1] == here[-1] else "; random numbers of the model (dropout) start anew"
        args.notes.append(f"--resume: a step takes {rows} rows as before, now {shares[0]}, not {shares[1]}{anew}")


def _check_same_sharding(folder: Path, arguments: TrainingArguments) -> None:
    """Check that the optimizer's state is kept as this run would read it: whole, or in parts (FSDP)."""
    by_fsdp = {"FULL_STATE_DICT": "optimizer.bin", "SHARDED_STATE_DICT": "optimizer_0"}
    forms = {"optimizer.pt": "without FSDP", **{file: f"with FSDP and {kind}" for kind, file in by_fsdp.items()}}
    kind = (arguments.fsdp_plugin_args or {}).get("state_dict_type", os.environ.get("FSDP_STATE_DICT_TYPE", ""))
    now = by_fsdp.get(kind, "optimizer_0") if arguments.fsdp else "optimizer.pt"
    for checkpoint in checkpoints(folder)[-1:]:
        there = [name for name in forms if (checkpoint / name).exists()]
        if there and now not in there:
            processes = f"{forms[now]}, in {format_count(arguments.world_size, 'process')}"
            raise UserError(f"--resume: {checkpoint} was saved {forms[there[0]]}; this run would go on {processes}")


def check_same_data(folder: Path, args: Arguments, data: DataReport) -> None:
    """Check that the datasets give the rows that they gave when the run to resume began, wherever they are now.

    Raises:
        UserError: One gives others.
    """
    before = read_record(folder).get("data", {})
    for key, now in data.fingerprints().items():
        if before.get(key, now) == now:
            continue
        there, here = before[key]["rows"], now["rows"]
        rows = f"{there:,} rows there, {here:,} here" if there != here else "other rows, or in another order"
        names = ", ".join(choice.name for choice in getattr(args.config, key) or args.config.dataset)
        raise UserError(
            f"--resume: the {key} {names} has changed since this run began: {rows}; restore it, or start over with "
            "--overwrite"
        )


def _check_plugins_unchanged(record: dict[str, Any], plugins: list[LoadedPlugin]) -> None:
    before = {(each["kind"], each["name"]): each["source_sha256"] for each in record.get("plugins", ())}
    for plugin in plugins:
        kind, name = plugin.found.kind, plugin.found.qualified_name
        if before.get((kind, name), plugin.source_hash) != plugin.source_hash:
            raise UserError(
                f"--resume: the {kind} plugin {name!r} ({plugin.source_file}, or a module of its own that it imports) "
                "has changed since this run began; "
                "restore it, or use the new code with --allow-changed-plugins"
            )


def remove_folder(path: Path) -> None:
    """Delete a checkpoint or a model, renamed first, so that a partly deleted one is never taken for a complete one."""
    renamed = path.with_name(f"{DELETING}{path.name}")
    path.rename(renamed)
    shutil.rmtree(renamed)


def saved_files(run_dir: Path) -> list[Path]:
    """What a run has left that another one must not mix with: its model, checkpoints and curves, the marker first."""
    outputs = [LOG, CURVES, CONFUSION, REPORT, ANSWERS, TENSORBOARD, CANDIDATES]
    names = [MARKER, *read_record(run_dir).get("files", ()), *outputs, KEPT_BASE]
    files = [run_dir / name for name in dict.fromkeys(names) if Path(name).name == name]
    return [path for path in [*files, *checkpoints(run_dir)] if path.exists()]


def remove_saved_files(run_dir: Path) -> None:
    """Remove what an earlier run has left; the files that show that a run has begun there stay."""
    clear_leftovers(run_dir)
    for path in saved_files(run_dir):
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()


def put_base_in_place(run_dir: Path) -> None:
    """Give a new copy of the base model, if there is one, the name of `KEPT_BASE`."""
    if (run_dir / STAGED_BASE).is_dir():
        (run_dir / STAGED_BASE).replace(run_dir / KEPT_BASE)


def move_into(run_dir: Path, staging: Path) -> None:
    """Move the saved model into the run's folder; `MARKER`, which shows that it is complete, comes last."""
    (run_dir / MARKER).unlink(missing_ok=True)
    add_to_record(run_dir, files=sorted(path.name for path in staging.iterdir()))
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MARKER):
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
        """Find the best checkpoint of a resumed run, and log as often as is asked for now."""
        state.compute_steps(args, state.max_steps)
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
                remove_folder(final)
            written.rename(final)
            written.parent.rmdir()
            self._delete_old(args.save_total_limit, state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """With a limit of one, keep the best checkpoint alone."""
        if args.should_save and args.save_total_limit == 1 and state.best_model_checkpoint:
            for path in checkpoints(self.run_dir):
                if path != Path(state.best_model_checkpoint):
                    remove_folder(path)

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
            remove_folder(path)


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
