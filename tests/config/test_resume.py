"""Which folder and which config a resumed run takes, and how a difference is reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_sample_config, load_train_config, to_yaml
from swiftplug.config.resume import config_difference
from swiftplug.config.schema import SampleConfig, TrainConfig
from swiftplug.config.yaml_file import read_value
from swiftplug.errors import UserError

GIVEN = {"model": "m", "dataset": ["d"]}


def difference(before: list[str], now: list[str], model: Any = TrainConfig) -> str:
    """How the config made by some `--set` differs from the one made by others and written to a file."""
    load: Any = load_train_config if model is TrainConfig else load_sample_config
    there, here = (load(None, GIVEN, sets).config for sets in (before, now))
    free = {"engine:openai": ("base_url",), "prm:client": ("base_url",)}
    return config_difference(read_value(to_yaml(there), ""), here, free_options=free)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (["metrics=[acc]"], ["metrics=[acc, nlg]"], "metrics: [acc] there, [acc, nlg] here"),
        (["tuner=lora"], ["tuner={name: lora, r: 4}"], "tuner.r: not given there, 4 here"),
        (["tuner={name: lora, r: 4}"], ["tuner=full"], "tuner: {name: lora, r: 4} there, full here"),
        ([], ["training.learning_rate=1e-3"], "training.learning_rate: not given there, 0.001 here"),
        (["data.packing=true"], [], "data.packing: true there, false here"),
        (["seed=1"], ["seed=2", "task=pt"], "seed: 1 there, 2 here; task: sft there, pt here"),
        (["training.max_steps=3"], ["training.max_steps=6"], "(the learning rate is planned over the whole run)"),
        ([], ["tuner=full", "loss=cross_entropy", "tools=template"], ""),
        ([], ["data.num_proc=2", "data.cache_dir=x", "training.logging_steps=1", "plugins.files=[p.py]"], ""),
        (["training.report_to=[none]"], ["training.dataloader_num_workers=1", "output_dir=moved"], ""),
    ],
)
def test_a_difference_is_reported_by_key(before: list[str], now: list[str], expected: str) -> None:
    found = difference(before, now)
    assert found == expected or (expected.startswith("(") and expected in found)


def test_how_a_server_is_reached_may_change() -> None:
    begun = ["engine={name: openai, base_url: a}", "prm=[{name: client, model: j, base_url: a}]"]
    moved = ["engine={name: openai, base_url: b}", "prm=[{name: client, model: j, base_url: b}]"]
    assert difference(begun, moved, SampleConfig) == ""
    other = ["engine={name: openai, base_url: a, model: x}", begun[1], "score_timeout=9"]
    assert difference(begun, other, SampleConfig) == "engine.model: not given there, x here"


def test_a_key_that_an_earlier_version_lacked_acts_as_its_default() -> None:
    config = load_train_config(None, GIVEN, []).config
    written = read_value(to_yaml(config), "")
    del written["data"]["group_by_length"], written["callbacks"]
    assert config_difference(written, config) == ""
    written["retired"] = 3
    assert "retired: 3 there, not given here" in config_difference(written, config)


def begun(folder: str, sets: Sequence[str] = ()) -> None:
    """A folder with the config of a run."""
    Path(folder).mkdir(parents=True)
    config = load_train_config("c.yaml", {"output_dir": folder}, sets).config
    Path(folder, "config.yaml").write_text(to_yaml(config))


def test_resume_takes_the_newest_folder_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("model: m\ndataset: d\n")

    def taken(*sets: str, resume: bool = True) -> str | None:
        return load_train_config("c.yaml", {}, sets, resume=resume).config.output_dir

    assert taken() == "runs/c"
    begun("runs/c", ["seed=1"])
    begun("runs/c-2")
    begun("runs/c-10", ["seed=1"])
    begun("runs/c-9")
    begun("runs/c-x")
    assert taken() == "runs/c-9"
    assert taken("seed=1") == "runs/c-10"
    assert taken("seed=3") == "runs/c-10"  # none: the newest, so that the difference is reported
    assert taken(resume=False) == "runs/c-11"


def test_a_folder_stands_for_the_run_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("model: m\ndataset: d\nseed: 7\n")
    begun("runs/c")
    Path("runs/c/checkpoint-4").mkdir()
    Path("runs/c").rename("moved")
    config = load_train_config("moved", {}, [], resume=True).config
    assert (config.output_dir, config.seed) == ("moved", 7)
    again = load_train_config("moved", {"output_dir": "new"}, ["seed=8"]).config
    assert (again.output_dir, again.seed) == ("new", 8)
    assert load_train_config(None, {"output_dir": "moved"}, [], resume=True).config.seed == 7
    with pytest.raises(UserError, match=r"moved/checkpoint-4: is a folder, expected .*; did you mean 'moved'"):
        load_train_config("moved/checkpoint-4", {}, [])
    with pytest.raises(UserError, match=r"moved: is the folder of a training run; .*--model moved"):
        load_sample_config("moved", {}, [])


def test_resume_of_nothing_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for load, command in (load_train_config, "train"), (load_sample_config, "sample"):
        with pytest.raises(UserError, match=f"swiftplug {command} FOLDER --resume"):
            load(None, {}, [], resume=True)
