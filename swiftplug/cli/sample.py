"""`swiftplug sample`."""

from typing import Annotated

import typer
from typer import Argument, Option

from swiftplug.cli.options import DATA, PLUGINS, RUN, Dataset, Debug, DryRun, OutputDir, PluginFiles, Tools

_DRAW = "Candidates"
_KEEP = "Selection"


def sample(
    config: Annotated[
        str | None,
        Argument(metavar="CONFIG", help="A YAML file. Without it, a model and a dataset: the last quickstart run."),
    ] = None,
    model: Annotated[
        str | None,
        Option(metavar="NAME", help="Folder, hub id, run folder or model plugin.", rich_help_panel=DATA),
    ] = None,
    adapter: Annotated[
        str | None, Option(metavar="FOLDER", help="A run's or PEFT's adapter for the model.", rich_help_panel=DATA)
    ] = None,
    dataset: Dataset = None,
    candidates_file: Annotated[
        str | None,
        Option(metavar="FILE", help="Candidates to score with --engine none.", rich_help_panel=DATA),
    ] = None,
    system: Annotated[
        str | None, Option(metavar="TEXT", help="The system message of rows without one.", rich_help_panel=DATA)
    ] = None,
    shard: Annotated[
        str | None, Option(metavar="I/N", help="Only part I (from 0) of N of the rows.", rich_help_panel=DATA)
    ] = None,
    engine: Annotated[
        str | None,
        Option(metavar="NAME", help="What samples: transformers, vllm, openai or none.", rich_help_panel=PLUGINS),
    ] = None,
    orm: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Scores answers: a plugin or a reward model. Repeat.", rich_help_panel=PLUGINS),
    ] = None,
    prm: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Scores the steps of answers, likewise. Repeat.", rich_help_panel=PLUGINS),
    ] = None,
    tools: Tools = None,
    plugin: PluginFiles = None,
    num_return_sequences: Annotated[
        int | None, Option(metavar="N", help="Candidates a row. Default: 8.", rich_help_panel=_DRAW)
    ] = None,
    max_new_tokens: Annotated[
        int | None, Option(metavar="N", help="Where a candidate is cut off. Default: 512.", rich_help_panel=_DRAW)
    ] = None,
    temperature: Annotated[
        float | None, Option(metavar="X", help="Of the draw; 0 is greedy. Default: 1.", rich_help_panel=_DRAW)
    ] = None,
    top_p: Annotated[
        float | None, Option(metavar="X", help="Draw from the likeliest X of probability.", rich_help_panel=_DRAW)
    ] = None,
    top_k: Annotated[
        int | None, Option(metavar="N", help="Draw from the N likeliest tokens.", rich_help_panel=_DRAW)
    ] = None,
    include_reference: Annotated[
        bool,
        Option("--include-reference", metavar="", help="Let the reference be a candidate.", rich_help_panel=_DRAW),
    ] = False,
    n_best_to_keep: Annotated[
        int | None, Option(metavar="N", help="The most to keep of a row. Default: 1.", rich_help_panel=_KEEP)
    ] = None,
    prm_threshold: Annotated[
        float | None, Option(metavar="X", help="What the PRMs' reward must reach.", rich_help_panel=_KEEP)
    ] = None,
    prm_reduce: Annotated[
        str | None,
        Option(metavar="HOW", help="Steps to one reward: min (default), mean, last, prod.", rich_help_panel=_KEEP),
    ] = None,
    easy_query_threshold: Annotated[
        float | None,
        Option(metavar="X", help="Leave rows out of which a larger share is right.", rich_help_panel=_KEEP),
    ] = None,
    output_dir: OutputDir = None,
    resume: Annotated[
        bool, Option("--resume", metavar="", help="Go on where a run was stopped.", rich_help_panel=RUN)
    ] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", metavar="", help="Begin the folder's run again.", rich_help_panel=RUN)
    ] = False,
    dry_run: DryRun = False,
    sets: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of the config, such as engine.batch_size=32 or orm.math.weight=2. Repeat.",
            rich_help_panel=RUN,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Answer each row several times, score the answers, and keep the best to train on.

    Options beat --set, which beats CONFIG, which beats the defaults.

    Example: swiftplug sample --model runs/my-run --dataset test.jsonl --orm math --num-return-sequences 8
    """
    from swiftplug.cli.quiet import quiet_libraries, settle_tokenizer_threads
    from swiftplug.config.load import load_sample_config
    from swiftplug.sampling.plugins import check_sample_names

    options = {
        "model": model,
        "adapter": adapter,
        "dataset": dataset,
        "candidates_file": candidates_file,
        "system": system,
        "shard": shard,
        "engine": engine,
        "orm": orm,
        "prm": prm,
        "tools": tools,
        "plugins.files": plugin,
        "num_return_sequences": num_return_sequences,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "include_reference": include_reference or None,
        "n_best_to_keep": n_best_to_keep,
        "prm_threshold": prm_threshold,
        "prm_reduce": prm_reduce,
        "easy_query_threshold": easy_query_threshold,
        "output_dir": output_dir,
    }
    loaded = load_sample_config(config, options, sets or [], resume=resume)
    check_sample_names(loaded.config)
    model_name = loaded.config.model.name if loaded.config.model else ""
    if loaded.quickstart:
        typer.echo(f"No model, dataset or config given: sampling from the quickstart run {model_name}.")
    _settle(loaded.config.engine.name)
    settle_tokenizer_threads(1)
    if not debug:
        quiet_libraries()
    from swiftplug.sampling.run import sample as run

    result = run(loaded.config, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if loaded.quickstart and result is not None:
        typer.echo(
            f"Next: swiftplug train --model {model_name} --dataset {result.run_dir}/samples.jsonl "
            "--set training.learning_rate=1e-3    (trains on what was kept)"
        )


def _settle(engine: str) -> None:
    """What must be set before torch is imported, where it will be."""
    from swiftplug.cli.allocator import keep_freed_memory
    from swiftplug.cli.threads import wait_without_spinning

    if engine not in ("none", "swiftplug:none"):
        keep_freed_memory()
        wait_without_spinning()
