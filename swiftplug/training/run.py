"""A training run, from a config to a folder with a trained model.

1. Plugins are found, imported and checked.
2. The arguments are checked, and the tokenizer is loaded.
3. The data is read, encoded and counted.
4. The base model is loaded, and the tuner wraps it.
5. Transformers' Trainer trains it, with the plugins.
6. The model, the log and the loss plot are written into the folder.

Errors in config, plugins and data are raised in steps 1-3; what needs the loaded model (packing, some plugins) is
checked right after step 4. Nothing is written into the folder before; `--resume` first removes unfinished checkpoints.
"""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import PrinterCallback

from swiftplug.config.schema import TrainConfig
from swiftplug.data.batching import Collator
from swiftplug.formatting import format_duration, format_number, format_percent
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice
from swiftplug.runs.console import RunProgress, print_line, print_plan
from swiftplug.runs.errors import naming_full_disk, naming_plugins
from swiftplug.runs.folder import CONFIG, check_output_folder, write_run_files
from swiftplug.training.checkpoint import find_checkpoint
from swiftplug.training.model import check_packing, load_model_to_train
from swiftplug.training.progress import BOOKKEEPING, ProgressLine, RunLog, draw_curves
from swiftplug.training.setup import plan_facts, read_data, set_up
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
    progress = RunProgress(console)
    with progress:
        with progress.start("loading the tokenizer", live=False):
            args = set_up(config)
        data = read_data(args, progress)
    for line in [*args.plugins.registry.notes, *args.notes, *data.report.lines()]:
        print_line(console, line)
    if dry_run:
        print_plan(console, plan_facts(args, data), "nothing was trained or written")
        return None

    checkpoint = find_checkpoint(run_dir, args, allow_changed_plugins) if resume else None
    run_dir.mkdir(parents=True, exist_ok=True)
    plugins = args.plugins.all()
    with naming_plugins(plugins), naming_full_disk(run_dir), progress:
        name = config.model.name if config.model else ""
        with progress.start(f"loading {name}", live=Path(name).expanduser().is_dir()):
            model = load_model_to_train(args, checkpoint)
        callbacks = [plugin.bound(args) for plugin in args.plugins.of("callback")]
        trainer = PlugTrainer(
            args,
            model,
            progress,
            train_dataset=data.train,
            eval_dataset=data.eval,
            data_collator=Collator(args.load_tokenizer().pad_token_id),
            callbacks=[*callbacks, RunLog(run_dir), ProgressLine(progress)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints every log a second time
        if config.data.packing:
            check_packing(model, trainer.accelerator)
        if trainer.is_world_process_zero():
            write_run_files(run_dir, config, plugins)
        _print_start(console, plugins, model, checkpoint)

        started = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with progress.start("saving the model"):
            trainer.save_final()
        history = trainer.state.log_history
        metrics = {name: value for entry in history for name, value in entry.items()}
        if trainer.is_world_process_zero():
            draw_curves(history, run_dir / "loss.png")
            _print_end(console, run_dir, metrics, time.monotonic() - started)
        return TrainResult(run_dir, metrics)


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


def _print_end(console: Console, run_dir: Path, metrics: dict[str, Any], seconds: float) -> None:
    measured = sorted(name for name in metrics if name.startswith("eval_") and name not in {*BOOKKEEPING, "eval_loss"})
    shown = [*(name for name in ("train_loss", "eval_loss") if name in metrics), *measured]
    values = ", ".join(f"{name} {format_number(metrics[name])}" for name in shown)
    print_line(console, f"finished in {format_duration(seconds)}: {values}".rstrip(": "), "bold")
    print_line(console, f"model, log (log.jsonl) and curves (loss.png): {run_dir}")
