"""A training run, from a config to a folder with a trained model.

1. Plugins are found, imported and checked.
2. The arguments are checked, and the tokenizer is loaded.
3. The data is read, encoded and counted.
4. The base model is loaded, and the tuner wraps it.
5. Transformers' Trainer trains it, with the plugins.
6. The model, the log, the loss plot and the page are written into the folder.

Errors in config, plugins and data are raised in steps 1-3; what needs the loaded model (packing, some plugins) is
checked right after step 4. Nothing in the folder changes before; then `--overwrite` removes what the old run left.
"""

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object, wait_for_everyone
from rich.console import Console
from transformers import PrinterCallback

from swiftplug.config.resume import read_record
from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError
from swiftplug.formatting import format_command, format_duration, format_number, format_percent
from swiftplug.plugin import OnlineTask
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice
from swiftplug.plugin.registry.errors import one_line
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress, on_disk, print_line, print_plan
from swiftplug.runs.errors import explaining_interruption, naming_full_disk, naming_plugins
from swiftplug.runs.folder import (
    KEPT_BASE,
    MARKER,
    STAGED_BASE,
    base_models,
    begin_record,
    check_inputs_are_kept,
    check_output_folder,
    locked_folder,
    run_folder,
)
from swiftplug.training.checkpoint import (
    CONFUSION,
    CURVES,
    REPORT,
    check_same_data,
    check_same_run,
    checkpoints,
    newest_checkpoint,
    put_base_in_place,
    remove_saved_files,
    saved_files,
)
from swiftplug.training.model import check_packing, load_model_to_train
from swiftplug.training.page.curves import BOOKKEEPING, DETAILS, History
from swiftplug.training.page.report import RunReport
from swiftplug.training.progress import ProgressLine, RunLog, draw_curves
from swiftplug.training.reference import add_reference_logps, describe_reference, load_reference
from swiftplug.training.setup import plan_facts, read_data, set_up
from swiftplug.training.trackers import Trackers
from swiftplug.training.trainer import PlugTrainer

RUN = "train"

_SECONDS_TO_APPEAR = 10  # of a file on another machine, at most


class TrainResult(NamedTuple):
    """What a finished run left.

    Attributes:
        run_dir: Its folder.
        metrics: The last values logged, by name: `train_loss`, `train_runtime`, and those of the last evaluation; none
            if it had finished before.
    """

    run_dir: Path
    metrics: dict[str, float]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_changed_plugins: bool = False,
    dry_run: bool = False,
) -> TrainResult | None:
    """Run a training, or with `dry_run` everything up to the model.

    Args:
        config: The run's config, with its `output_dir`.
        resume: Whether to continue from the newest checkpoint in `output_dir`, or from the start if there is none yet.
        overwrite: Whether to replace the run in `output_dir`.
        allow_changed_plugins: Whether to resume although a plugin's source has changed.
        dry_run: Whether to stop before the model and print the plan.

    Returns:
        What the run left; None of a dry run.

    Raises:
        UserError: Something is wrong with the input; what was on disk before is unharmed.
        Interrupted: Ctrl-C, or SIGTERM, has stopped it; what was saved before is unharmed.

    Example:
        >>> train(load_train_config("configs/sft_lora.yaml", {}, []).config)
    """
    is_first = os.environ.get("RANK", "0") == "0"
    console = Console(quiet=not is_first)
    run_dir = Path(str(config.output_dir)).expanduser()
    progress = RunProgress(console)
    trainer: PlugTrainer | None = None
    with ExitStack() as stack:
        stack.enter_context(explaining_interruption(lambda: _stopped_at(run_dir, trainer, resume)))
        stack.enter_context(progress)
        with progress.start("loading plugins and tokenizer"):
            kept = run_dir / KEPT_BASE
            # Without a checkpoint, an adapter that is trained further would be lost with the model.
            args = set_up(config, kept if resume and kept.is_dir() and checkpoints(run_dir) else None)
        if not dry_run:
            _check_folder(run_dir, config, resume=resume, overwrite=overwrite)
            if args.world_size > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
                _check_shared(run_dir, is_first=is_first)
        if resume:
            check_same_run(run_dir, args, allow_changed_plugins)
            if (run_dir / MARKER).is_file() and not checkpoints(run_dir):  # to begin anew would remove its model
                print_line(console, f"the run in {run_dir} has finished; to train it again, use --overwrite")
                return TrainResult(run_dir, {})
        data = read_data(args, progress)
        if resume:
            check_same_data(run_dir, args, data.report)
        for line in [*args.plugins.registry.notes, *args.notes, *data.report.lines()]:
            print_line(console, line)
        if dry_run:
            print_plan(console, plan_facts(args, data), "nothing was trained or written")
            return None

        plugins = args.plugins.all()
        stack.enter_context(run_folder(run_dir))
        if is_first:
            stack.enter_context(locked_folder(run_dir))
            # Another run may have ended there since.
            _check_folder(run_dir, config, resume=resume, overwrite=overwrite)
            stack.callback(shutil.rmtree, run_dir / STAGED_BASE, ignore_errors=True)
        stack.enter_context(naming_plugins(plugins))
        stack.enter_context(naming_full_disk(run_dir))
        checkpoint = newest_checkpoint(run_dir) if resume else None
        if config.reference == "precompute":
            data = add_reference_logps(args, data, progress)
        name = config.model.name if config.model else ""
        with progress.start(f"loading {name}", live=on_disk([name])):
            model = load_model_to_train(args, checkpoint)
        reference = load_reference(args, model)
        callbacks = [plugin.bound(args) for plugin in args.plugins.of("callback")]
        trainer = PlugTrainer(
            args,
            model,
            progress,
            data,
            reference,
            [*callbacks, RunLog(run_dir), ProgressLine(progress, _drawn_per_step(args))],
        )
        if trainer.rollouts is not None:
            stack.callback(trainer.rollouts.engine.close)
        trainer.remove_callback(PrinterCallback)  # it prints every log a second time
        report = RunReport(run_dir, args, data, trainer)
        trainer.add_callback(report)
        if config.data.packing:
            check_packing(model, trainer.accelerator)
        if is_first:
            if checkpoint is None:
                remove_saved_files(run_dir)
            put_base_in_place(run_dir)
            facts = {"data": data.report.fingerprints(), "processes": args.world_size}
            step = int(checkpoint.name.partition("-")[2]) if checkpoint else None
            begin_record(run_dir, config, plugins, resumed=resume, step=step, run=RUN, **facts)
            if trainer.rollouts is not None:
                trainer.rollouts.record.resume(step or 0)
        _print_start(console, plugins, model, checkpoint)
        if args.task.needs_reference:
            print_line(console, f"reference: {describe_reference(args, reference)}")

        started = time.monotonic()
        if is_first and args.training_args.report_to:
            trackers = Trackers(args, run_dir)
            trainer.add_callback(trackers)
            step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
            stack.enter_context(trackers.active(trainer.callback_handler.callbacks, step))
        try:
            with naming_plugins(plugins):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            with progress.start("saving the model"):
                trainer.save_final()
        except Exception as error:
            report.error = str(error) if isinstance(error, UserError) else one_line(error)
            print_line(console, _stopped_at(run_dir, trainer, resume), "yellow")
            raise
        finally:
            if is_first:
                report.write(ended=True)
                for problem in report.problems.values():
                    print_line(console, problem, "yellow")
        history = trainer.state.log_history
        metrics = {name: value for entry in history for name, value in entry.items()}
        if is_first:
            draw_curves(history, run_dir / CURVES)
            confusion = trainer.metrics.confusion
            if confusion is not None and confusion.counts is not None:
                confusion.draw(run_dir / CONFUSION)
                print_line(console, f"confusion matrix of the last evaluation: {run_dir / CONFUSION}")
            for line in data.report.train.lines("train, all that was read") if data.stream else ():
                print_line(console, line)
            _print_end(console, run_dir, history, time.monotonic() - started)
            if trainer.rollouts is not None:
                if lost := str(trainer.rollouts.lost):
                    print_line(console, f"since it was {'resumed' if checkpoint else 'started'}: {lost}", "yellow")
                print_line(console, f"candidates of all steps: {trainer.rollouts.record.path}")
                print_line(console, f"try the model: {format_command('chat', run_dir)}")
            if REPORT not in report.problems:
                print_line(console, f"page of the run: {run_dir / REPORT}")
        return TrainResult(run_dir, metrics)


def _check_folder(run_dir: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the run must not write into, or where --overwrite would delete the run's own input."""
    check_output_folder(
        run_dir,
        is_own=read_record(run_dir).get("run") == RUN,
        holds_results=bool(checkpoints(run_dir)) or (run_dir / MARKER).is_file(),
        resume=resume,
        overwrite=overwrite,
    )
    if not resume and run_dir.is_dir():
        model = str(config.model and config.model.name)
        datasets = [choice.name for choice in (*config.dataset, *config.eval_dataset)]
        inputs = [model, *base_models(model), *datasets, *config.plugins.files, *filter(None, [config.data.template])]
        check_inputs_are_kept(run_dir, saved_files(run_dir), inputs)


def _check_shared(run_dir: Path, *, is_first: bool) -> None:
    """Check that the processes on all machines see one folder: each writes its part of a checkpoint there.

    Raises:
        UserError: There is one that does not see what the first process writes.
    """
    sent = [f".{uuid.uuid4().hex}.partial", socket.gethostname()]
    broadcast_object_list(sent)
    probe, first_host = run_dir / sent[0], sent[1]
    there = next(path for path in run_dir.absolute().parents if path.is_dir())
    with run_folder(run_dir) if is_first else nullcontext():
        if is_first:
            probe.touch()
        wait_for_everyone()
        end = time.monotonic() + _SECONDS_TO_APPEAR
        while not probe.exists() and time.monotonic() < end:
            list(there.iterdir())  # so that a client of NFS, which knew of no such folder, asks its server again
            time.sleep(0.1)
        unseen = [] if probe.exists() else [f"process {os.environ.get('RANK')} on {socket.gethostname()}"]
        unseen = gather_object(unseen)
        probe.unlink(missing_ok=True)
    if unseen:
        raise UserError(
            f"output_dir: {run_dir} is not one folder for all machines: {unseen[0]} does not see what process 0 on "
            f"{first_host} wrote there; name a folder on a disk that they share"
        )


def _stopped_at(run_dir: Path, trainer: PlugTrainer | None, resume: bool) -> str:
    """What a run that was interrupted has saved, and how to go on."""
    begun = trainer is not None and trainer.state.max_steps > 0
    if not begun and not resume:
        return "stopped before the first step; the same command starts the run again"
    if trainer is not None and trainer.saved_final:
        return f"stopped at the end; the trained model is saved in {run_dir}"
    state = trainer.state if trainer is not None and begun else None
    stopped = f"stopped at step {state.global_step} of {state.max_steps}" if state else "stopped before the next step"
    saved = checkpoints(run_dir)
    kept = f"{saved[-1].name} is saved; go on" if saved else "no checkpoint is saved yet; begin again"
    return f"{stopped}; {kept}: {format_command('train', run_dir, '--resume', *_processes())}"


def _processes() -> list[str]:
    """The option that starts as many processes as this run has on this machine."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return [] if count == "1" else ["--nproc", count]


def _print_start(
    console: Console, plugins: list[LoadedPlugin], model: torch.nn.Module, checkpoint: Path | None
) -> None:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    default_plugins = {
        field.default.name for field in TrainConfig.model_fields.values() if isinstance(field.default, PluginChoice)
    }
    print_line(console, f"model: {trained:,} of {total:,} parameters are trainable ({format_percent(trained / total)})")
    for plugin in plugins:
        if plugin.found.qualified_name not in default_plugins:
            print_line(console, f"plugin: {plugin.found}")
    if checkpoint is not None:
        print_line(console, f"resuming from {checkpoint}")


def _drawn_per_step(args: Arguments) -> float:
    """The number of candidates that are drawn for each optimizer step; 0 if the task draws none."""
    if not isinstance(args.task, OnlineTask):
        return 0
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return float(batch * accumulated * args.world_size / args.task.num_iterations)


def _changes(history: History) -> Iterator[str]:
    """From where to where the reward went, and at evaluations the shares of solved prompts."""
    if ends := history.ends("reward"):
        yield f"reward {ends[0]:.3f} -> {ends[1]:.3f} (first and last tenth)"
    names = history.names()
    passed = [name for name in names if name.startswith("eval_pass@")]
    for name in passed or [name for name in names if name == "eval_reward"]:
        (first, before), (last, after) = history.points(name)[0], history.points(name)[-1]
        show = format_percent if passed else format_number
        change = f"{show(before)} (step {first}) -> " if first != last else ""
        yield f"{name.removeprefix('eval_') if passed else 'evaluation reward'} {change}{show(after)}"


def _print_end(console: Console, run_dir: Path, history: Sequence[dict[str, Any]], seconds: float) -> None:
    metrics = {name: value for entry in history for name, value in entry.items()}
    if "reward" in metrics:
        changes = ", ".join(_changes(History(history)))
        print_line(console, f"finished in {format_duration(seconds)}: {changes}".rstrip(": "), "bold")
        print_line(console, f"model, log (log.jsonl) and curves (loss.png): {run_dir}")
        return
    losses = [name for name in ("train_loss", "eval_loss") if name in metrics]
    hidden = {*BOOKKEEPING, *losses, *(f"eval_{name}" for name in DETAILS)}
    measured = sorted(name for name in metrics if name.startswith("eval_") and name not in hidden)
    shown = [", ".join(f"{name} {format_number(metrics[name])}" for name in names) for names in (losses, measured)]
    print_line(console, f"finished in {format_duration(seconds)}: {shown[0]}".rstrip(": "), "bold")
    if measured:
        print_line(console, f"  {shown[1]}")
    print_line(console, f"model, log (log.jsonl) and curves (loss.png): {run_dir}")
