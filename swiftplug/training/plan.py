"""What a run is about to do, for people: the counts of its data and, for a dry run, the whole plan."""

import math

from rich.console import Console
from rich.table import Table

from swiftplug.runs.say import say
from swiftplug.training.setup import RunSetup


def print_data(console: Console, setup: RunSetup) -> None:
    """Print what became of the rows, and the notes that came up on the way."""
    for line in [*setup.notes, *setup.data.report.lines()]:
        say(console, line)


def print_plan(console: Console, setup: RunSetup) -> None:
    """Print what a run would do: plugins with their options, batches, steps, and where it would write."""
    config, arguments = setup.config, setup.args.training_args
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("task", config.task)
    table.add_row("model", str(config.model and config.model.name))
    for plugin in setup.plugins.all():
        options = ", ".join(f"{name}={value!r}" for name, value in plugin.options.items())
        version = f" {plugin.found.version}" if plugin.found.version else ""
        source = f"{plugin.found.distribution}{version}"
        table.add_row(plugin.found.kind.replace("_", " "), f"{plugin.found.name}  ({source})  {options}".rstrip())
    batch = arguments.per_device_train_batch_size
    accumulated = arguments.gradient_accumulation_steps
    table.add_row(
        "batch",
        f"{batch} x {accumulated} accumulated x {arguments.world_size} processes = "
        f"{batch * accumulated * arguments.world_size}",
    )
    table.add_row("steps", steps_of(setup))
    table.add_row("precision", "bf16 autocast" if arguments.bf16 else "fp16 autocast" if arguments.fp16 else "float32")
    table.add_row("run folder", str(config.output_dir))
    console.print(table, highlight=False, markup=False)
    say(console, "dry run: nothing was trained or written", "bold")


def steps_of(setup: RunSetup) -> str:
    """The optimizer steps that a run will take, as Trainer counts them, and how they come about."""
    arguments = setup.args.training_args
    rounded = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = rounded(rounded(len(setup.data.train) / arguments.per_device_train_batch_size) / arguments.world_size)
    per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    if arguments.max_steps > 0:
        return f"{arguments.max_steps} (max_steps; {per_epoch} an epoch)"
    total = math.ceil(arguments.num_train_epochs * per_epoch)
    return f"{total} ({per_epoch} an epoch x {arguments.num_train_epochs:g} epochs)"
