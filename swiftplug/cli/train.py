"""`swiftplug train`."""

from typing import Annotated

import typer
from typer import Option

from swiftplug.cli.options import RUN, DryRun
from swiftplug.cli.run_options import RunRequest, takes_run_options


@takes_run_options
def train(
    request: RunRequest,
    resume: Annotated[
        bool, Option("--resume", metavar="", help="Go on from the run folder's last checkpoint.", rich_help_panel=RUN)
    ] = False,
    allow_changed_plugins: Annotated[
        bool,
        Option(
            "--allow-changed-plugins",
            metavar="",
            help="Resume although the source of a plugin has changed.",
            rich_help_panel=RUN,
        ),
    ] = False,
    dry_run: DryRun = False,
    nproc: Annotated[
        int, Option(metavar="N", min=1, help="Processes of this machine to train in.", rich_help_panel=RUN)
    ] = 1,
) -> None:
    """Train a model. Options beat --set, which beats CONFIG, which beats the defaults.

    With no model, no dataset and no config it runs the embedded quickstart, about a minute on a laptop.

    Example: swiftplug train --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset train.jsonl --tuner lora
    """
    from swiftplug.cli.allocator import keep_freed_memory
    from swiftplug.cli.launch import is_first, run_in_processes
    from swiftplug.cli.quiet import quiet_libraries, settle_tokenizer_threads
    from swiftplug.cli.threads import wait_without_spinning
    from swiftplug.config.load import load_train_config
    from swiftplug.training.plugins import check_names

    loaded = load_train_config(request.path, request.options, request.sets, resume=resume)
    config = loaded.config
    check_names(config)
    if nproc > 1:
        flags = {"--resume": resume, "--allow-changed-plugins": allow_changed_plugins, "--dry-run": dry_run}
        given = [flag for flag, is_given in flags.items() if is_given]
        arguments = [*request.arguments(), *given, f"--output-dir={config.output_dir}"]
        raise typer.Exit(run_in_processes(nproc, ["train", *arguments]))
    if loaded.quickstart and is_first():
        typer.echo("No model, dataset or config given: this is the embedded quickstart. Nothing is downloaded.")
    keep_freed_memory()
    wait_without_spinning()
    settle_tokenizer_threads(config.data.num_proc)
    if not request.debug:
        quiet_libraries()
    from swiftplug.training.run import train as run

    run(config, resume=resume, allow_changed_plugins=allow_changed_plugins, dry_run=dry_run)
    if loaded.quickstart and not dry_run and is_first():
        typer.echo(
            "Next: swiftplug sample    (answers harder problems with this model, scores the answers and keeps the best)"
        )
