"""`swiftplug evaluate`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from swiftplug.cli.process import loading_libraries, prepare_process
from swiftplug.cli.run_options import DryRun, Overwrite, RunRequest, flag, takes_options
from swiftplug.config.evaluation import KEYS
from swiftplug.config.schema import RUN


@takes_options(KEYS, "training.per_device_eval_batch_size=64 or engine.batch_size=32")
def evaluate(
    request: RunRequest,
    models: Annotated[
        list[str],
        Argument(metavar="MODEL", help="Runs, checkpoints of a run, model folders, hub ids or model plugins."),
    ],
    output_dir: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            help="Folder for evaluation.json and the answers. Default: runs/evaluate, runs/evaluate-2 and so on.",
            rich_help_panel=RUN,
        ),
    ] = None,
    as_json: Annotated[bool, flag("--json", "Print evaluation.json instead of the table, all else to stderr.")] = False,
    resume: Annotated[bool, flag("--resume", "Keep the answers of an interrupted evaluation.")] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Measure models on a dataset without training: loss, metrics, and rewards of the answers they give.

    Task, tools format, token weights, metrics and data options are those of each run, unless options say otherwise; a
    model that is no run is measured as the first run is. The loss is what training logs as eval_loss.

    With --orm or --prm each model answers the questions, greedily or several times (--num-return-sequences), and the
    answers are scored as by swiftplug sample. Figures have standard errors; several models are compared row by row.

    Example: swiftplug evaluate runs/my-run HuggingFaceTB/SmolLM2-135M-Instruct --dataset test.jsonl#200 --orm gsm8k
    """
    from swiftplug.config.evaluation import load_evaluation_configs
    from swiftplug.config.load import numbered_folder
    from swiftplug.runs.plugins import check_plugin_names

    folder = output_dir or numbered_folder("evaluate", resume=resume)
    configs = load_evaluation_configs(models, request.options, request.sets, folder)
    prepare_process(debug=request.debug, num_proc=configs[0].train.data.num_proc)
    for config in configs:
        check_plugin_names(config.train)
        if config.sample is not None:
            check_plugin_names(config.sample)
    with loading_libraries():
        from swiftplug.evaluation.run import evaluate as run

    run(
        configs,
        Path(folder).expanduser(),
        resume=resume,
        overwrite=overwrite,
        as_json=as_json,
        dry_run=dry_run,
    )
