"""`swiftplug train`."""

from typing import Annotated

import typer
from typer import Option

from swiftplug.cli.process import is_first, loading_libraries, prepare_process, run_in_processes
from swiftplug.cli.run_options import DryRun, Overwrite, RunRequest, flag, takes_run_options
from swiftplug.config.resume import numbered_folders
from swiftplug.config.schema import RUN, TrainConfig
from swiftplug.formatting import format_command


@takes_run_options(TrainConfig, "training.num_train_epochs=3 or metrics.nlg.max_new_tokens=64")
def train(
    request: RunRequest,
    resume: Annotated[bool, flag("--resume", "Continue from the last checkpoint in the output folder.")] = False,
    overwrite: Overwrite = False,
    allow_changed_plugins: Annotated[
        bool, flag("--allow-changed-plugins", "Resume even if the source code of a plugin has changed.")
    ] = False,
    dry_run: DryRun = False,
    report_to: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Tracker to report to, such as wandb, tensorboard, trackio or mlflow: sets training.report_to. "
            "Repeat for several.",
            rich_help_panel=RUN,
        ),
    ] = None,
    nproc: Annotated[
        int, Option(metavar="N", min=1, help="Number of training processes on this machine.", rich_help_panel=RUN)
    ] = 1,
) -> None:
    """Train a model. Options override --set, which overrides CONFIG, which overrides the defaults.

    Any field of transformers.TrainingArguments: --set training.FIELD=VALUE, such as training.learning_rate=1e-4.

    Names of plugins: swiftplug list-plugins. Option of a plugin: --set KEY.OPTION=VALUE, such as tuner.r=8.

    Tasks that draw answers while they train, such as grpo, need --orm or --prm, and draw as sample does.

    With no model, dataset or config it runs the built-in quickstart, which takes about a minute on a laptop; after it,
    --task grpo trains its model further on rewards alone.

    Example: swiftplug train --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset train.jsonl --tuner lora
    """
    from swiftplug.config.load import load_train_config
    from swiftplug.runs.plugins import check_plugin_names

    given = {**request.options, "training.report_to": report_to}
    config, quickstart = load_train_config(request.path, given, request.sets, resume=resume)
    # A plugin file, which is run to learn its names, may import torch.
    prepare_process(debug=request.debug, num_proc=config.data.num_proc)
    check_plugin_names(config)
    if nproc > 1:
        flags = {
            "--resume": resume,
            "--overwrite": overwrite,
            "--allow-changed-plugins": allow_changed_plugins,
            "--dry-run": dry_run,
        }
        own = [
            *(flag for flag, is_given in flags.items() if is_given),
            *(f"--report-to={each}" for each in report_to or ()),
        ]
        options = {**request.options, "output_dir": config.output_dir}
        raise typer.Exit(run_in_processes(nproc, ["train", *request._replace(options=options).arguments(), *own]))
    if quickstart and is_first():
        model = str(config.model and config.model.name)
        begun = "" if model == "swiftplug:tiny" else f" in task {config.task.name}, from the model in {model}"
        typer.echo(f"No model, dataset or config given: the built-in quickstart{begun}, no download.")
    with loading_libraries():
        from swiftplug.training.run import train as run

    run(config, resume=resume, overwrite=overwrite, allow_changed_plugins=allow_changed_plugins, dry_run=dry_run)
    if quickstart and not dry_run and is_first():
        words = ["sample"]
        if str(config.output_dir) not in map(str, numbered_folders("quickstart").values()):  # where `sample` looks
            words += ["--model", str(config.output_dir), "--dataset", "arithmetic#300", "--orm", "math"]
        typer.echo(f"Next: {format_command(*words)}   # answers problems, and keeps the best answers to train on")
