"""An evaluation: metrics and rewards of trained models, without training.

1. Of each model, the plugins are resolved, and the rows are read: what is wrong with the input is found here.
2. The loss and the metrics are computed as an evaluation during a training does.
3. Answers to the same rows are generated and scored as in a sampling run, whose folder they leave.
4. The figures of all models are printed side by side, and written as `evaluation.json`.

Errors in config, plugins and data are raised in step 1; nothing in the folder changes before.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from swiftplug.config.evaluation import EvaluationConfig, answer_folders, differing_keys
from swiftplug.evaluation.figures import difference
from swiftplug.evaluation.model import EvaluatedModel
from swiftplug.evaluation.table import print_figures
from swiftplug.formatting import format_count
from swiftplug.runs.console import RunProgress, print_line
from swiftplug.runs.errors import explaining_interruption, naming_full_disk
from swiftplug.runs.folder import (
    check_output_folder,
    describe_environment,
    locked_folder,
    run_folder,
    write_atomically,
)
from swiftplug.sampling.outputs import PAGE
from swiftplug.sampling.run import LEDGER

RESULTS = "evaluation.json"


def evaluate(
    configs: Sequence[EvaluationConfig],
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Evaluate models on the same rows, and print and write their figures side by side.

    Args:
        configs: What is evaluated, and how.
        output_dir: The folder of the evaluation.
        resume: Whether to keep the answers that an interrupted evaluation has left in the folder.
        overwrite: Whether to replace the evaluation in the folder.
        as_json: Whether to print the contents of `evaluation.json`, and all else to stderr, in place of the table.
        dry_run: Whether to print the plan and stop before a model is loaded.

    Returns:
        The contents of `evaluation.json`; None for a dry run.

    Raises:
        UserError: The input is wrong. Files from before are unchanged.
        Interrupted: Ctrl-C, or SIGTERM, has stopped it. What was generated and scored before is kept.

    Example:
        >>> evaluate(load_evaluation_configs(["runs/first"], {"dataset": ["test.jsonl"]}, [], "runs/e"), Path("runs/e"))
    """
    console = Console(stderr=as_json)
    with ExitStack() as stack:
        stack.enter_context(explaining_interruption(lambda: _stopped(output_dir, configs)))
        stack.enter_context(naming_full_disk(output_dir))
        progress = stack.enter_context(RunProgress(console))
        if not dry_run:
            _check_folder(output_dir, configs, resume=resume, overwrite=overwrite)
        models = [
            EvaluatedModel(config, progress, resume=resume, overwrite=overwrite, dry_run=dry_run) for config in configs
        ]
        for model in models:
            model.read_rows()
            if dry_run:
                model.print_plan()
        if dry_run:
            print_line(console, "dry run: nothing was evaluated or written", "bold")
            return None
        stack.enter_context(run_folder(output_dir))
        stack.enter_context(locked_folder(output_dir))
        _check_folder(output_dir, configs, resume=resume, overwrite=overwrite)
        ledgers = [model.open_ledger(stack) for model in models]
        if overwrite:
            _remove(output_dir, configs)
        for model, ledger in zip(models, ledgers, strict=True):
            model.measure()
            if ledger is not None:
                model.answer(ledger)
        results = _results(models)
        write_atomically(output_dir / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    else:
        print_line(console, "")
        print_line(console, "; ".join(_conditions(models)), "dim")
        print_figures(console, [(model.config.label, model.figures) for model in models])
    print_line(console, f"figures: {output_dir / RESULTS}")
    for model in models:
        if model.sampling is not None:
            print_line(console, f"answers of {model.config.label}: {model.sampling.folder / PAGE}")
    return results


def _conditions(models: Sequence[EvaluatedModel]) -> Iterator[str]:
    """What the figures are of."""
    first = models[0]
    yield f"rows: {', '.join(choice.name for choice in first.config.train.dataset)}"
    if first.sampling is not None:
        count = first.sampling.config.num_return_sequences
        answers = format_count(count, "answer")
        yield f"{answers} per question: {dict(first.sampling.facts).get('sampling', '')}".rstrip(": ")
    if keys := differing_keys([model.config for model in models]):
        yield f"each with its run's own {', '.join(keys)}"


def _results(models: Sequence[EvaluatedModel]) -> dict[str, Any]:
    """The contents of `evaluation.json`."""
    first, *others = models
    differences = []
    for other in others:
        found = {
            name: difference(figure, first.figures[name])
            for name, figure in other.figures.items()
            if name in first.figures
        }
        differences.append(
            {
                "of": other.config.label,
                "to": first.config.label,
                "metrics": {name: each.value for name, each in found.items()},
                "standard_errors": {name: each.error for name, each in found.items() if each.error is not None},
            }
        )
    return {
        "command": sys.argv[1:],
        **describe_environment(),
        "models": [model.record() for model in models],
        "differences": differences,
    }


def _check_folder(folder: Path, configs: Sequence[EvaluationConfig], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the evaluation must not write into."""
    has_begun = (folder / RESULTS).is_file() or any(_answers(folder, configs))
    check_output_folder(folder, is_own=has_begun, holds_results=has_begun, resume=resume, overwrite=overwrite)


def _answers(folder: Path, configs: Sequence[EvaluationConfig]) -> Iterator[Path]:
    """The folders of answers in the folder of an evaluation: of its models, and of those in `evaluation.json`.

    Other sampling runs there are not its own.
    """
    names = {*answer_folders([config.label for config in configs])}
    with suppress(OSError, ValueError, TypeError, KeyError):
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        names |= {*answer_folders([str(model["label"]) for model in results["models"]])}
    return (ledger.parent for ledger in folder.glob(f"*/{LEDGER}") if ledger.parent.name in names)


def _remove(folder: Path, configs: Sequence[EvaluationConfig]) -> None:
    """Remove what an evaluation has left in its folder, but the answers that will be replaced when others are there."""
    kept = {Path(str(config.sample.output_dir)).name for config in configs if config.sample is not None}
    removed = [answers for answers in _answers(folder, configs) if answers.name not in kept]
    (folder / RESULTS).unlink(missing_ok=True)
    for answers in removed:
        shutil.rmtree(answers)


def _stopped(folder: Path, configs: Sequence[EvaluationConfig]) -> str:
    """What an evaluation that is interrupted has kept, and how to go on."""
    if any(_answers(folder, configs)):
        return f"stopped; the answers so far are kept in {folder}; the same command with --resume goes on"
    return "stopped; the same command starts again"
