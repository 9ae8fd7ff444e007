"""`swiftplug sample`."""

from typing import Annotated

import typer

from swiftplug.cli.process import loading_libraries, prepare_process
from swiftplug.cli.run_options import DryRun, Overwrite, RunRequest, flag, takes_run_options
from swiftplug.config.schema import SampleConfig
from swiftplug.formatting import format_command


@takes_run_options(SampleConfig, "engine.batch_size=32 or orm.math.weight=2")
def sample(
    request: RunRequest,
    resume: Annotated[bool, flag("--resume", "Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Generate several answers to each question, score them, and keep the best to train on.

    Options override --set, which overrides CONFIG, which overrides the defaults.

    Names of plugins: swiftplug list-plugins. Option of a plugin: --set KEY.OPTION=VALUE, as below.

    With no model, dataset or config it samples from the model of the last quickstart training.

    Example: swiftplug sample --model runs/my-run --dataset test.jsonl --orm math --num-return-sequences 8
    """
    from swiftplug.config.load import load_sample_config
    from swiftplug.runs.plugins import check_plugin_names

    config, quickstart = load_sample_config(request.path, request.options, request.sets, resume=resume)
    # A plugin file, which is run to learn its names, may import torch.
    prepare_process(debug=request.debug, uses_torch=config.generates)
    check_plugin_names(config)
    model = config.model.name if config.model else ""
    if quickstart:
        typer.echo(f"No model, dataset or config given: sampling from {model}.")
    with loading_libraries():
        from swiftplug.sampling.run import sample as run

    summary = run(config, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if quickstart and summary and summary.kept:
        words = "train", "--model", model, "--dataset", f"{config.output_dir}/samples.jsonl"
        command = format_command(*words, "--set", "training.learning_rate=1e-3")
        typer.echo(f"Next: {command}   # trains on the answers that were kept")
