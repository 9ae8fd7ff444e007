"""`--report-to`: what a tracker has of a run is what the run has logged, also after it was interrupted and resumed."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from swiftplug.cli.main import app
from swiftplug.errors import UserError

STOP = """
from swiftplug.plugin import register_callback
from transformers import TrainerCallback
from pathlib import Path

@register_callback("stop")
class Stop(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == 3 and not Path("stopped").exists():
            Path("stopped").touch()
            self.stop = True
    def on_step_begin(self, args, state, control, **kwargs):
        if getattr(self, "stop", False):
            raise KeyboardInterrupt
"""


@pytest.fixture
def resumed(run: Any, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train with a tracker, interrupt the run after step 3, and resume it from step 2; returns what it logged."""
    monkeypatch.chdir(tmp_path)

    def train(tracker: str) -> list[dict[str, Any]]:
        steps = ["max_steps=4", "save_strategy=steps", "save_steps=2", "eval_strategy=steps", "eval_steps=2"]
        more = ["logging_steps=1", f"report_to=[{tracker}]", "project=tests"]
        sets = [*(f"training.{each}" for each in (*steps, *more)), "metrics=[{name: exact_match, max_new_tokens: 2}]"]
        given = {"eval_dataset": [f"{chat_file}#4"], "callbacks": ["stop"], "plugins": STOP}
        with pytest.raises(KeyboardInterrupt):
            run("my-run", sets, **given)
        run("my-run", sets, resume=True, **given)
        return [json.loads(line) for line in Path("my-run/log.jsonl").read_text().splitlines()]

    return train


def history(log: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], pytest.approx(entry[name])) for entry in log if name in entry]


NAMES = {"loss": "train/loss", "eval_loss": "eval/loss", "eval_exact_match": "eval/exact_match"}


def test_tensorboard_has_each_value_once(resumed: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = resumed("tensorboard")
    events = EventAccumulator("my-run/tensorboard")
    events.Reload()
    assert len(history(log, "loss")) == 4
    for name, tag in NAMES.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == history(log, name)
    [text] = events.Tensors("config.yaml/text_summary")[-1].tensor_proto.string_val
    assert "task: swiftplug:sft" in text.decode()


@pytest.mark.parametrize("tracker", ["mlflow", "trackio", "wandb"])
def test_a_resumed_run_is_one_run_of_the_tracker(
    resumed: Any, tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    log = resumed(tracker)
    known = json.loads(Path("my-run/run.json").read_text())["trackers"][tracker]
    if tracker == "wandb":  # its files are read by its server
        parts = [folder.name.split("-")[-1] for folder in Path("wandb").glob("offline-run-*")]
        assert parts == [known, known]
    elif tracker == "mlflow":
        import mlflow

        client = mlflow.MlflowClient()
        [experiment] = [each for each in client.search_experiments() if each.name == "tests"]
        [found] = client.search_runs([experiment.experiment_id])
        assert (found.info.run_id, found.info.run_name, found.info.status) == (known, "my-run", "FINISHED")
        assert found.data.params["swiftplug/tuner"] == "swiftplug:full"
        for name in NAMES:
            values = {each.step: each.value for each in client.get_metric_history(known, name)}
            assert sorted(values.items()) == history(log, name)
    else:
        import trackio

        [found] = trackio.Api().runs("tests")
        assert found.name == known == "my-run"
        assert found.config["swiftplug"]["tuner"] == "swiftplug:full"


def test_a_run_is_ended_when_the_next_tracker_cannot_begin(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        run("my-run", ["training.report_to=[mlflow,tensorboard]", "training.project=tests"])
    assert mlflow.active_run() is None
    [experiment] = [each for each in mlflow.search_experiments() if each.name == "tests"]
    [found] = mlflow.MlflowClient().search_runs([experiment.experiment_id])
    assert found.info.status == "FAILED"


def test_the_option_is_named_as_it_was_typed(tiny_model_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    given = ["--model", str(tiny_model_dir), "--dataset", str(chat_file), "--output-dir", str(tmp_path / "r")]
    words = ["train", *given, "--set", "training.report_to=[mlflow]", "--report-to", "wandbb"]
    with pytest.raises(UserError) as raised:
        raise CliRunner().invoke(app, words, standalone_mode=False).exception or AssertionError
    assert str(raised.value) == "--report-to: unknown tracker 'wandbb'; did you mean 'wandb'?"


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("tensorbord", "training.report_to: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("dvclive", "training.report_to=[dvclive]: dvclive needs its package; pip install dvclive"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_early(run: Any, tracker: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        run("r", [f"training.report_to=[{tracker}]"])
    assert str(raised.value).endswith(message.partition(":")[2])
    assert not (tmp_path / "r").exists()
