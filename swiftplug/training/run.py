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

from swiftplug.config.load import to_yaml
from swiftplug.config.schema import TrainConfig
from swiftplug.data.batching import Collator
from swiftplug.data.prepare import PreparedData
from swiftplug.errors import UserError
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.runs.blame import blaming
from swiftplug.runs.disk import explained_disk
from swiftplug.runs.manifest import write_run_files
from swiftplug.runs.marker import Marker
from swiftplug.runs.model import place_of
from swiftplug.runs.say import duration, say
from swiftplug.training.curves import draw_curves
from swiftplug.training.folder import check_run_dir, open_run_dir
from swiftplug.training.packing import check_packing
from swiftplug.training.plan import print_data, print_plan
from swiftplug.training.plugins import LossContract, RunPlugins
from swiftplug.training.precision import set_precision
from swiftplug.training.progress import ProgressLine
from swiftplug.training.run_log import RunLog
from swiftplug.training.setup import RunSetup, set_up
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
        resume: Whether to go on from the newest checkpoint in `output_dir`, or from the start if there is none yet.
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
    check_run_dir(run_dir, resume)
    setup = set_up(config)
    data = setup.data
    _check_weights(setup.plugins, data)
    _check_size(setup)
    print_data(console, setup)
    if dry_run:
        print_plan(console, setup)
        return None

    every_plugin = setup.plugins.all()
    checkpoint = open_run_dir(run_dir, config, every_plugin, resume, allow_changed_plugins)
    with blaming(every_plugin), explained_disk(run_dir):
        model = _model_to_train(setup, checkpoint)
        trainer = _trainer(setup, model, run_dir, console)
        if config.data.packing:
            check_packing(model, trainer.accelerator)
        if trainer.is_world_process_zero():
            write_run_files(run_dir, to_yaml(config), config.seed, every_plugin)
        _print_start(console, setup, model, checkpoint)
        return _train_and_leave(trainer, run_dir, checkpoint, console)


def _check_weights(plugins: RunPlugins, data: PreparedData) -> None:
    """Weights that the loss would not look at are refused."""
    weighted = "loss_scale" in data.train.column_names
    if weighted and not LossContract(plugins.loss.bound).takes_scale:
        raise UserError(
            f"loss: {plugins.loss.found} takes no loss_scale, but tokens have weights other than 0 and 1 "
            f"(loss_scale: {'+'.join(scale.found.name for scale in plugins.loss_scales)}); choose another of the two"
        )


def _check_size(setup: RunSetup) -> None:
    """A dataset that makes no batch is refused."""
    arguments, rows = setup.args.training_args, len(setup.data.train)
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise UserError(f"training.dataloader_drop_last: drops all {rows} examples, as a batch takes {batch}")


def _model_to_train(setup: RunSetup, checkpoint: Path | None) -> torch.nn.Module:
    """The base model, wrapped by the tuner anew or as a checkpoint has it."""
    set_seed(setup.config.seed)
    base = setup.source.make()
    tuner = setup.plugins.tuner.bound
    if checkpoint is None:
        model = tuner.prepare_model(setup.args, base)
    else:
        model = tuner.from_pretrained(base, str(checkpoint), is_trainable=True)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{setup.plugins.tuner.found} returned a {type(model).__name__}; expected a torch.nn.Module")
    set_precision(model, setup.args)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{setup.plugins.tuner.found} leaves no parameter to train")
    return model


def _trainer(setup: RunSetup, model: torch.nn.Module, run_dir: Path, console: Console) -> PlugTrainer:
    config, tuner = setup.config, setup.plugins.tuner
    model_name = str(config.model and config.model.name)
    marker = Marker(
        base_model={
            "name": model_name if setup.plugins.model else place_of(model_name),
            "options": config.model.options if config.model else {},
        },
        model_options=config.model_options.model_dump(),
        seed=config.seed,
        tuner={"name": tuner.found.qualified_name, "options": tuner.options},
    )

    def reload_best(checkpoint: str) -> torch.nn.Module:
        return _model_to_train(setup, Path(checkpoint))

    callbacks = [plugin.bound(setup.args) for plugin in setup.plugins.callbacks]
    trainer = PlugTrainer(
        model=model,
        run_args=setup.args,
        plugins=setup.plugins,
        marker=marker,
        tokenizer=setup.source.tokenizer,
        reload_best=reload_best,
        train_dataset=setup.data.train,
        eval_dataset=setup.data.eval,
        data_collator=Collator(setup.source.tokenizer.pad_token_id),
        callbacks=[*callbacks, RunLog(run_dir), ProgressLine(console)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train_and_leave(trainer: PlugTrainer, run_dir: Path, checkpoint: Path | None, console: Console) -> TrainResult:
    """Train, then leave the weights and the curves in the run's folder."""
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


def _print_start(console: Console, setup: RunSetup, model: torch.nn.Module, checkpoint: Path | None) -> None:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    defaults = {
        field.default.name for field in TrainConfig.model_fields.values() if isinstance(field.default, PluginChoice)
    }
    say(console, f"model: {trained:,} of {total:,} parameters train ({trained / total:.2%})")
    for plugin in setup.plugins.all():
        if plugin.found.qualified_name not in defaults:
            say(console, f"plugin: {plugin.found}")
    if checkpoint is not None:
        say(console, f"going on from {checkpoint}")


def _print_end(console: Console, run_dir: Path, metrics: dict[str, Any], seconds: float) -> None:
    first = ("train_loss", "eval_loss")
    hidden = ("runtime", "per_second", "preparation_time")
    others = sorted(name for name in metrics if name.startswith("eval_") and not name.endswith(hidden))
    told = [*(name for name in first if name in metrics), *(name for name in others if name not in first)]
    values = ", ".join(f"{name} {metrics[name]:.4f}" for name in told)
    say(console, f"finished in {duration(seconds)}: {values}".rstrip(": "), "bold")
    say(console, f"the model, its log and its curves (loss.png) are in {run_dir}")
