"""A training run, from a config to a folder with a trained model.

1. Plugins are found, imported and checked.            4. The base model is loaded, the tuner wraps it.
2. The arguments are checked, the tokenizer loaded.    5. Transformers' Trainer trains, with the plugins.
3. The data is read, encoded and counted.              6. The model, the log and its picture are left in the folder.

All that can fail on bad input fails in the first three, and nothing is written to the run's folder before the fourth.
"""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import PrinterCallback, set_seed

from swiftplug.config.schema import TrainConfig
from swiftplug.data.batching import Collator
from swiftplug.data.prepare import PreparedData
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice
from swiftplug.runs.console import format_duration, print_line, print_plan
from swiftplug.runs.errors import naming_full_disk, naming_plugins
from swiftplug.runs.folder import CONFIG, Marker, check_output_folder, write_run_files
from swiftplug.runs.model import absolute_name, autocast_dtype
from swiftplug.training.curves import draw_curves
from swiftplug.training.loss_contract import LossContract
from swiftplug.training.packing import check_packing
from swiftplug.training.precision import set_precision
from swiftplug.training.progress import ProgressLine
from swiftplug.training.run_log import RunLog
from swiftplug.training.setup import RunSetup, find_checkpoint, plan_facts, read_data, set_up
from swiftplug.training.trainer import PlugTrainer


class TrainResult(NamedTuple):
    """What a finished run left.

    Attributes:
        run_dir: Its folder.
        metrics: The last values logged, by name: `train_loss`, `train_runtime`, and those of the last evaluation.
    """

    run_dir: Path
    metrics: dict[str, float]


def train(
    config: TrainConfig, *, resume: bool = False, allow_changed_plugins: bool = False, dry_run: bool = False
) -> TrainResult | None:
    """Run a training, or with `dry_run` everything up to the model.

    Args:
        config: The run's config, with its `output_dir`.
        resume: Whether to continue from the newest checkpoint in `output_dir`, or from the start if there is none yet.
        allow_changed_plugins: Whether to resume although a plugin's source has changed.
        dry_run: Whether to stop before the model and print the plan.

    Returns:
        What the run left; None of a dry run.

    Raises:
        UserError: Something is wrong with the input; what was on disk before is unharmed.

    Example:
        >>> train(load_train_config("configs/sft_lora.yaml", {}, []).config)
    """
    console = Console(quiet=int(os.environ.get("RANK", "0")) != 0)
    run_dir = Path(str(config.output_dir)).expanduser()
    check_output_folder(run_dir, CONFIG, resume=resume)
    setup = set_up(config)
    data = read_data(setup)
    _check_weights(setup, data)
    _check_size(setup, data)
    for line in [*setup.args.notes, *data.report.lines()]:
        print_line(console, line)
    if dry_run:
        print_plan(console, plan_facts(setup, data), "nothing was trained or written")
        return None

    checkpoint = find_checkpoint(run_dir, setup, allow_changed_plugins) if resume else None
    run_dir.mkdir(parents=True, exist_ok=True)
    with naming_plugins(setup.plugins.all()), naming_full_disk(run_dir):
        model = _model_to_train(setup, checkpoint)
        trainer = _make_trainer(setup, data, model, run_dir, console)
        if config.data.packing:
            check_packing(model, trainer.accelerator)
        if trainer.is_world_process_zero():
            write_run_files(run_dir, config, setup.plugins.all())
        _print_start(console, setup, model, checkpoint)
        started = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, ProgressLine):
                    callback.stop()
        trainer.save_final()
        history = trainer.state.log_history
        metrics = {name: value for entry in history for name, value in entry.items()}
        if trainer.is_world_process_zero():
            draw_curves(history, run_dir / "loss.png")
            _print_end(console, run_dir, metrics, time.monotonic() - started)
        return TrainResult(run_dir, metrics)


def _check_weights(setup: RunSetup, data: PreparedData) -> None:
    """Refuse weights that the loss would not look at."""
    loss = setup.plugins.one("loss")
    if "loss_scale" in data.train.column_names and not LossContract(loss.bound).takes_scale:
        scales = "+".join(scale.found.name for scale in setup.plugins.of("loss_scale"))
        raise UserError(
            f"loss: {loss.found} takes no loss_scale, but tokens have weights other than 0 and 1 "
            f"(loss_scale: {scales}); choose another of the two"
        )


def _check_size(setup: RunSetup, data: PreparedData) -> None:
    """Refuse a dataset that makes no batch."""
    arguments, rows = setup.args.training_args, len(data.train)
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise UserError(f"training.dataloader_drop_last: drops all {rows} examples, as a batch takes {batch}")


def _model_to_train(setup: RunSetup, checkpoint: Path | None) -> torch.nn.Module:
    """The base model, wrapped by the tuner anew or as a checkpoint has it."""
    set_seed(setup.config.seed)
    # In mixed precision the checkpoint's own type is kept until the tuner has decided what trains.
    half = autocast_dtype(setup.args.training_args)
    base = setup.args.load_model(torch.float32 if half == torch.float32 else None)
    tuner = setup.plugins.one("tuner")
    if checkpoint is None:
        model = tuner.bound.prepare_model(setup.args, base)
    else:
        model = tuner.bound.from_pretrained(base, str(checkpoint), is_trainable=True)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{tuner.found} returned a {type(model).__name__}; expected a torch.nn.Module")
    set_precision(model, setup.args)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{tuner.found} leaves no parameter to train")
    return model


def _make_trainer(
    setup: RunSetup, data: PreparedData, model: torch.nn.Module, run_dir: Path, console: Console
) -> PlugTrainer:
    config, tuner = setup.config, setup.plugins.one("tuner")
    model_name = str(config.model and config.model.name)
    marker = Marker(
        base_model={
            "name": model_name if setup.plugins.model else absolute_name(model_name),
            "options": config.model.options if config.model else {},
        },
        model_options=config.model_options.model_dump(),
        seed=config.seed,
        tuner={"name": tuner.found.qualified_name, "options": tuner.options},
    )
    callbacks = [plugin.bound(setup.args) for plugin in setup.plugins.of("callback")]
    trainer = PlugTrainer(
        model=model,
        run_args=setup.args,
        marker=marker,
        tokenizer=setup.tokenizer,
        reload_best=lambda checkpoint: _model_to_train(setup, Path(checkpoint)),
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=Collator(setup.tokenizer.pad_token_id),
        callbacks=[*callbacks, RunLog(run_dir), ProgressLine(console)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _print_start(console: Console, setup: RunSetup, model: torch.nn.Module, checkpoint: Path | None) -> None:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    defaults = {
        field.default.name for field in TrainConfig.model_fields.values() if isinstance(field.default, PluginChoice)
    }
    print_line(console, f"model: {trained:,} of {total:,} parameters train ({trained / total:.2%})")
    for plugin in setup.plugins.all():
        if plugin.found.qualified_name not in defaults:
            print_line(console, f"plugin: {plugin.found}")
    if checkpoint is not None:
        print_line(console, f"resuming from {checkpoint}")


def _print_end(console: Console, run_dir: Path, metrics: dict[str, Any], seconds: float) -> None:
    first = ("train_loss", "eval_loss")
    hidden = ("runtime", "per_second", "preparation_time")
    others = sorted(name for name in metrics if name.startswith("eval_") and not name.endswith(hidden))
    shown = [*(name for name in first if name in metrics), *(name for name in others if name not in first)]
    values = ", ".join(f"{name} {metrics[name]:.4f}" for name in shown)
    print_line(console, f"finished in {format_duration(seconds)}: {values}".rstrip(": "), "bold")
    print_line(console, f"the model, its log and its curves (loss.png) are in {run_dir}")
