"""Trackers, such as Weights & Biases, which Transformers' callbacks report to: the name and the config of their runs.

A tracker's run is called like the folder of the run, in the project `training.project`; a resumed run continues it.
`run.json` has what the tracker calls it.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from swiftplug.config.load import to_yaml
from swiftplug.config.resume import CONFIG, read_record
from swiftplug.errors import UserError, nearest
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.folder import add_to_record
from swiftplug.training.checkpoint import TENSORBOARD

_PACKAGES = {  # whose names differ: the module, and what is installed
    "azure_ml": ("azureml", "azureml-mlflow"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "flyte": ("flytekit", "flytekit"),
}


def check_trackers(names: Iterable[str], where: str) -> None:
    """Check that trackers can be reported to.

    Args:
        names: As in `TrainingArguments.report_to`.
        where: The beginning of an error message.

    Raises:
        UserError: One is unknown, not installed, or has no key.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"{where}: unknown tracker {name!r}{nearest(name, INTEGRATION_TO_CALLBACK)}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            module, package = _PACKAGES.get(name, (name, name))
            if find_spec(module) is None:
                raise UserError(f"{where}: {name} needs its package; pip install {package}") from error
            raise UserError(f"{where}: {name}: {error}") from error
        if name == "tensorboard" and find_spec(name) is None:  # Transformers takes tensorboardX too
            raise UserError(f"{where}: {name} needs its package; pip install {name}")
        if name == "wandb":
            import wandb

            if wandb.setup().settings.mode in ("online", "run") and not wandb.login(prompt=False):
                raise UserError(f"{where}: wandb has no API key; run `wandb login`, or set WANDB_MODE=offline")


class Trackers(TrainerCallback):
    """Begins or continues the runs of the trackers, and gives them the config; it must come after their callbacks.

    Args:
        args: The run's arguments.
        run_dir: Its folder.
    """

    def __init__(self, args: Arguments, run_dir: Path) -> None:
        self.arguments: Any = args.training_args
        self.config = args.config
        self.run_dir = run_dir
        self.writer: Any = None

    @contextmanager
    def active(self, callbacks: list[TrainerCallback], first_step: int) -> Iterator[None]:
        """Have the trackers' runs open in the block.

        Args:
            callbacks: Those of the trainer.
            first_step: The step after which the run goes on; 0 if it is new.
        """
        self.known: dict[str, str] = read_record(self.run_dir).get("trackers", {})
        begin = {"wandb": self._begin_wandb, "mlflow": self._begin_mlflow, "trackio": self._begin_trackio}
        try:
            ids = {name: begin[name](self.known.get(name)) for name in self.arguments.report_to if name in begin}
            if ids:
                add_to_record(self.run_dir, trackers={**self.known, **ids})
            for callback in callbacks:
                if isinstance(callback, TensorBoardCallback):
                    from torch.utils.tensorboard import SummaryWriter

                    folder = callback.logging_dir or str(self.run_dir / TENSORBOARD)
                    # What a killed run has logged after its checkpoint is logged again.
                    self.writer = callback.tb_writer = SummaryWriter(folder, purge_step=first_step + 1)
            yield
        finally:
            self._end(failed=sys.exc_info()[0] is not None)

    def _begin_wandb(self, known: str | None) -> str:
        import wandb

        project = os.environ.get("WANDB_PROJECT") or self.arguments.project
        resume: Any = {"id": known, "resume": "allow"} if known else {}
        run = wandb.run or wandb.init(project=project, name=self.arguments.run_name, **resume)
        return str(run.id)

    def _begin_mlflow(self, known: str | None) -> str:
        import mlflow

        run = mlflow.active_run()
        if run is None:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.arguments.project)
            run = mlflow.start_run(run_id=known or os.environ.get("MLFLOW_RUN_ID"), run_name=self.arguments.run_name)
        return str(run.info.run_id)

    def _begin_trackio(self, known: str | None) -> str:
        """Nothing: its callback continues the run of this name."""
        return known or str(self.arguments.run_name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give each tracker the config of the run."""
        if not state.is_world_process_zero:
            return
        values = self.config.plain()
        if "wandb" in args.report_to:
            import wandb

            wandb.config.update({"swiftplug": values}, allow_val_change=True)
        if "trackio" in args.report_to:
            import trackio

            trackio.config.update({"swiftplug": values})
        if "mlflow" in args.report_to and "mlflow" not in self.known:  # a value cannot be changed there
            import mlflow

            mlflow.log_params({f"swiftplug/{name}": str(value)[:500] for name, value in values.items()})
        if self.writer is not None:
            self.writer.add_text(CONFIG, f"```yaml\n{to_yaml(self.config)}\n```")

    def _end(self, *, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()
        if "wandb" in self.arguments.report_to:
            import wandb

            wandb.finish(exit_code=int(failed))
        if "mlflow" in self.arguments.report_to:
            import mlflow

            mlflow.end_run("FAILED" if failed else "FINISHED")
        if "trackio" in self.arguments.report_to and failed:
            import trackio

            with suppress(RuntimeError):  # its callback has not begun a run
                trackio.finish()
