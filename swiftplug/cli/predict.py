"""`swiftplug predict`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from swiftplug.cli.process import loading_libraries, prepare_process
from swiftplug.cli.run_options import Debug, set_option
from swiftplug.errors import UserError


def predict(
    run: Annotated[str, Argument(metavar="RUN", help="Folder of a training run, of task seq_cls or rm.")],
    dataset: Annotated[
        str,
        Argument(
            metavar="DATASET",
            help="File, hub id (org/name@revision:subset/split) or dataset plugin; append #N for the first N rows.",
        ),
    ],
    output: Annotated[
        str | None, Option(metavar="FILE", help="Write to this JSONL file instead of the terminal.")
    ] = None,
    threshold: Annotated[
        float | None,
        Option(
            metavar="X",
            min=0,
            max=1,
            help="Probability from which a class applies, if rows may have several labels. [dim]\\[default: 0.5][/dim]",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        set_option("data.columns.question=prompt or training.per_device_eval_batch_size=64"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the labels that a trained classifier predicts, one row per line, in the order of the dataset.

    A line has the row's own columns, `prediction`, and for classes `probabilities`. Rows are read and rendered as the
    run's config says; they need no label. A reward model's prediction is the reward of the row's answer.

    Example: swiftplug predict runs/topics new.jsonl --output predictions.jsonl
    """
    from swiftplug.config.load import load_train_config

    if not Path(run).expanduser().is_dir():
        raise UserError(f"RUN: no folder {run!r}; name the folder of a training run")
    config = load_train_config(run, {"dataset": [dataset]}, sets or []).config
    prepare_process(debug=debug, num_proc=config.data.num_proc)
    with loading_libraries():
        from swiftplug.training.predict import predict as write_predictions

    write_predictions(config, output=Path(output).expanduser() if output else None, threshold=threshold)
