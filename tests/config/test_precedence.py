"""Who beats whom: options, then `--set`, then the YAML, then the defaults."""

from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError

BASE = "model: m\ndataset: data.jsonl\n"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Load YAML lines (behind a model and a dataset) with options and `--set`."""

    def load_lines(text: str, options: dict[str, Any] | None = None, *sets: str) -> TrainConfig:
        path = tmp_path / "train.yaml"
        path.write_text(BASE + text, encoding="utf-8")
        return load_train_config(str(path), options or {}, sets).config

    return load_lines


def chosen(choice: Any) -> Any:
    if isinstance(choice, list):
        return [chosen(item) for item in choice]
    return (choice.name, choice.options)


def test_each_layer_beats_the_one_below(load: Any) -> None:
    assert load("").task.name == "swiftplug:sft"
    assert load("task: pt").task.name == "pt"
    assert load("task: pt", {}, "task=sft").task.name == "sft"
    assert load("task: sft", {"task": "pt"}, "task=sft").task.name == "pt"
    config = load("data: {template: yaml.jinja}", {"data.template": "option.jinja"}, "data.template=set.jinja")
    assert config.data.template == "option.jinja"


def test_an_option_not_given_changes_nothing(load: Any) -> None:
    assert chosen(load("loss: focal\nmetrics: [acc]", {"loss": None, "metrics": [], "task": None}).metrics) == [
        ("acc", {})
    ]


@pytest.mark.parametrize("by_set", [False, True], ids=["option", "--set"])
def test_another_plugin_drops_the_options_and_the_same_keeps_them(load: Any, by_set: bool) -> None:
    def name(text: str, loss: str) -> Any:
        config = load(text, {}, f"loss={loss}") if by_set else load(text, {"loss": loss})
        return chosen(config.loss)

    assert name("loss: {name: focal, gamma: 3}", "dft") == ("dft", {})
    assert name("loss: {name: focal, gamma: 3}", "focal") == ("focal", {"gamma": 3})


def test_set_gives_options_to_the_plugin_that_is_named_in_the_end(load: Any) -> None:
    yaml = "tuner: {name: freeze, train: ['.*']}"
    assert chosen(load(yaml, {"tuner": "lora"}, "tuner.r=8").tuner) == ("lora", {"r": 8})
    assert chosen(load(yaml, {"tuner": "lora"}, "tuner.r=8", "tuner=ia3", "tuner.alpha=2").tuner) == (
        "lora",
        {"r": 8, "alpha": 2},
    )
    assert chosen(load(yaml, {}, "tuner.train=[a]").tuner) == ("freeze", {"train": ["a"]})
    assert chosen(load(yaml, {}, "tuner.name=lora", "tuner.r=4").tuner) == ("lora", {"r": 4})
    assert chosen(load(yaml, {}, "tuner={name: lora, r: 2}", "tuner.r=4").tuner) == ("lora", {"r": 4})


def test_set_gives_options_to_a_default(load: Any) -> None:
    assert chosen(load("", {}, "tuner.r=8").tuner) == ("swiftplug:full", {"r": 8})


def test_values_of_set_are_yaml(load: Any) -> None:
    config = load(
        "",
        {},
        "optimizer.betas=[0.9,0.95]",
        "training.learning_rate=1e-4",
        "data.max_length=512",
        "data.columns.question=prompt",
        "training.lr_scheduler_kwargs.num_cycles=2",
        "training.run_name='1e-4'",
        "loss.words={a: 1.5}",
        "output_dir=a=b",
    )
    assert config.optimizer.options == {"betas": [0.9, 0.95]}
    assert config.training == {
        "learning_rate": 0.0001,
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "run_name": "1e-4",
    }
    assert (config.data.max_length, config.data.columns) == (512, {"question": "prompt"})
    assert config.loss.options == {"words": {"a": 1.5}}
    assert config.output_dir == "a=b"


def test_the_last_set_wins_and_the_rest_of_a_section_stays(load: Any) -> None:
    config = load("training: {a: 1, b: 2}", {}, "training.a=3", "training.a=4")
    assert config.training == {"a": 4, "b": 2}


def test_null_means_the_default(load: Any) -> None:
    assert chosen(load("loss: focal\nmetrics:\n", {}, "loss=null").loss) == ("swiftplug:cross_entropy", {})


def test_repeated_option_replaces_the_list_and_keeps_options_of_the_same_name(load: Any) -> None:
    yaml = "metrics: [acc, {name: nlg, max_new_tokens: 128}]"
    assert chosen(load(yaml, {"metrics": ["nlg", "perplexity"]}).metrics) == [
        ("nlg", {"max_new_tokens": 128}),
        ("perplexity", {}),
    ]


def test_options_of_one_in_a_list(load: Any) -> None:
    yaml = "metrics: [acc, nlg]\ncallbacks: {name: early_stop, patience: 3}"
    config = load(yaml, {}, "metrics.nlg.max_new_tokens=64", "callbacks.early_stop.threshold=1e-3")
    assert chosen(config.metrics) == [("acc", {}), ("nlg", {"max_new_tokens": 64})]
    assert chosen(config.callbacks) == [("early_stop", {"patience": 3, "threshold": 0.001})]
    config = load(yaml, {"metrics": ["dist:bleu"]}, "metrics.bleu.n=2", "metrics.dist:bleu.m=3")
    assert chosen(config.metrics) == [("dist:bleu", {"n": 2, "m": 3})]


def test_datasets_are_found_by_path_and_by_name_without_the_number_of_rows(load: Any) -> None:
    config = load(
        "", {"dataset": ["data/a.b.jsonl", "arithmetic#100"]}, "dataset.data/a.b.jsonl.x=1", "dataset.arithmetic.n=2"
    )
    assert chosen(config.dataset) == [("data/a.b.jsonl", {"x": 1}), ("arithmetic#100", {"n": 2})]


def test_another_number_of_rows_keeps_the_options_of_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("model: m\ndataset: {name: arithmetic, seed: 3}\n")
    config = load_train_config(str(path), {"dataset": ["arithmetic#10"]}, []).config
    assert chosen(config.dataset) == [("arithmetic#10", {"seed": 3})]


def test_plugin_files_add_up(load: Any) -> None:
    config = load("plugins: {files: a.py, allow: [d]}", {"plugins.files": ["b.py", "a.py"]})
    assert config.plugins.files == ["a.py", "b.py"]
    assert config.plugins.allow == ["d"]


def test_where_names_the_line_or_the_option(load: Any, tmp_path: Path) -> None:
    yaml = "loss: focal\ntraining:\n  a: 1\n  b: 2\nmetrics:\n- acc\n- name: nlg\n  n: 1\ntuner: lora\noptimizer: muon"
    config = load(yaml, {"tuner": "ia3"}, "training.b=3", "optimizer.lr=1")
    file = tmp_path / "train.yaml"
    assert config.where("loss") == f"{file}:3: loss"
    assert config.where("training", "a") == f"{file}:5: training.a"
    assert config.where("training", "b") == "--set training.b=3"
    assert config.where("metrics", 1) == f"{file}:9: metrics.1"
    assert config.where("tuner") == "--tuner"
    assert config.where("optimizer") == f"{file}:12: optimizer"
    assert config.where("seed") == "seed"


def test_merge_keys_and_anchors_do_not_tie_parts_together(load: Any) -> None:
    yaml = "optimizer: &o {name: a, lr: 1, eps: 2}\nloss: *o\ntraining: {<<: *o, lr: 3}"
    config = load(yaml, {}, "loss.lr=9")
    assert chosen(config.loss) == ("a", {"lr": 9, "eps": 2})
    assert chosen(config.optimizer) == ("a", {"lr": 1, "eps": 2})
    assert config.training == {"name": "a", "lr": 3, "eps": 2}


def test_first_of_several_merged_mappings_wins_as_yaml_has_it(load: Any) -> None:
    import yaml

    text = "training:\n  x: &x {a: 1}\n  y: &y {a: 2, b: 2}\n  z: {<<: [*x, *y], c: 3}"
    assert load(text).training == yaml.safe_load(text)["training"]


class TestQuickstart:
    def test_it_is_what_runs_without_input(self) -> None:
        loaded = load_train_config(None, {}, [])
        assert loaded.quickstart
        assert loaded.config.model is not None and loaded.config.model.name.endswith("tiny")
        assert {choice.name.partition("#")[0].rpartition(":")[2] for choice in loaded.config.dataset} == {"arithmetic"}

    def test_options_and_sets_apply_on_top(self) -> None:
        loaded = load_train_config(
            None, {"optimizer": "custom", "loss": "custom_loss"}, ["optimizer.betas=[0.9,0.95]", "training.max_steps=3"]
        )
        assert loaded.quickstart
        assert chosen(loaded.config.optimizer) == ("custom", {"betas": [0.9, 0.95]})
        assert loaded.config.loss.name == "custom_loss"
        assert loaded.config.training["max_steps"] == 3

    def test_a_model_and_a_dataset_are_no_quickstart(self) -> None:
        assert not load_train_config(None, {"model": "m", "dataset": ["d"]}, []).quickstart
        assert not load_train_config(None, {}, ["model=m", "dataset=d"]).quickstart

    def test_a_task_that_draws_goes_on_from_the_last_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"^no model .* no finished quickstart run .* --task ppo --model FOLDER"):
            load_train_config(None, {"task": "ppo"}, [])
        (tmp_path / "runs/quickstart").mkdir(parents=True)
        (tmp_path / "runs/quickstart/swiftplug.json").touch()
        config, quickstart = load_train_config(None, {"task": "grpo"}, ["task.loss=dapo", "training.max_steps=3"])
        assert quickstart
        assert config.model is not None and config.model.name == "runs/quickstart"
        assert chosen(config.task) == ("grpo", {"filter_groups": 3, "loss": "dapo"})
        assert (config.training["max_steps"], config.output_dir) == (3, "runs/grpo")
        assert not config.metrics
        assert chosen(load_train_config(None, {"task": "rloo"}, []).config.task) == ("rloo", {})

    def test_a_task_for_other_rows_says_what_to_name(self) -> None:
        with pytest.raises(UserError, match=r"^--task: no model .* task dpo reads rows of pairs, .* --model FOLDER"):
            load_train_config(None, {"task": "dpo"}, [])


class TestOutputDir:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        Path("my_run.yaml").write_text(BASE)
        return tmp_path

    @staticmethod
    def leave_run(*folders: str) -> None:
        for folder in folders:
            Path(folder).mkdir(parents=True)
            Path(folder, "config.yaml").touch()

    @staticmethod
    def default(path: str | None = "my_run.yaml", resume: bool = False, **options: Any) -> str | None:
        return load_train_config(path, options, [], resume=resume).config.output_dir

    def test_is_named_for_the_config_or_the_task(self) -> None:
        assert self.default() == "runs/my_run"
        assert self.default(None, model="m", dataset=["d"]) == "runs/sft"
        assert self.default(None) == "runs/quickstart"

    def test_takes_the_next_number_where_a_run_is(self) -> None:
        self.leave_run("runs/my_run", "runs/my_run-2")
        assert self.default() == "runs/my_run-3"

    def test_an_empty_folder_is_free(self) -> None:
        Path("runs/my_run").mkdir(parents=True)
        assert self.default() == "runs/my_run"

    def test_resume_means_the_last_run_there(self) -> None:
        assert self.default(resume=True) == "runs/my_run"
        self.leave_run("runs/my_run", "runs/my_run-2")
        assert self.default(resume=True) == "runs/my_run-2"

    def test_a_named_folder_is_never_changed(self) -> None:
        self.leave_run("mine")
        assert self.default(output_dir="mine") == "mine"

    def test_processes_of_one_launch_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        self.leave_run("runs/my_run")
        assert self.default() == "runs/my_run"
