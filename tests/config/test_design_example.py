"""The config that the documentation shows, and the way of any config to YAML and back."""

from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_train_config, to_yaml
from swiftplug.config.schema import TrainConfig
from swiftplug.plugin.registry import PluginChoice

WHOLE = """\
task: sft
model: HuggingFaceTB/SmolLM2-135M-Instruct      # folder, hub id or model plugin
dataset: [data/train.jsonl#500]
eval_dataset: data/test.jsonl
output_dir: runs/gsm8k-lora
tuner: {name: lora, r: 8, target_modules: all-linear}
optimizer: {name: muon, momentum: 0.9}
loss: {name: focal, gamma: 2}
loss_scale: last_round+react
metrics: [acc, {name: nlg, max_new_tokens: 128}]
callbacks: [perf_log, {name: early_stop, patience: 3}]
tools: hermes
plugins: {files: [my_plugins.py], allow: [some-distribution]}
data: {max_length: 2048, too_long: truncate, packing: false, template: null, num_proc: 4,
       columns: {question: prompt}, val_size: 0.05}
model_options: {revision: main, attn_implementation: sdpa, quantization: null, trust_remote_code: false}
dtype: auto
training: {learning_rate: 1e-4, num_train_epochs: 1}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def choices(chosen: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(choice.name, choice.options) for choice in chosen]


def test_whole_example(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, WHOLE), {}, []).config
    assert config.model is not None and config.model.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert choices(config.dataset) == [("data/train.jsonl#500", {})]
    assert choices(config.eval_dataset) == [("data/test.jsonl", {})]
    assert choices([config.tuner]) == [("lora", {"r": 8, "target_modules": "all-linear"})]
    assert choices([config.optimizer, config.loss]) == [("muon", {"momentum": 0.9}), ("focal", {"gamma": 2})]
    assert choices([config.loss_scale, config.tools]) == [("last_round+react", {}), ("hermes", {})]
    assert choices(config.metrics) == [("acc", {}), ("nlg", {"max_new_tokens": 128})]
    assert choices(config.callbacks) == [("perf_log", {}), ("early_stop", {"patience": 3})]
    assert config.plugins.files == ["my_plugins.py"] and config.plugins.allow == ["some-distribution"]
    assert (config.data.too_long, config.data.num_proc, config.data.columns) == ("truncate", 4, {"question": "prompt"})
    assert config.data.val_size == 0.05 and config.data.template is None
    assert config.model_options.attn_implementation == "sdpa" and config.model_options.quantization is None
    assert config.training == {"learning_rate": 0.0001, "num_train_epochs": 1}
    assert config.output_dir == "runs/gsm8k-lora"


def test_defaults_are_qualified(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, "model: m\ndataset: d.jsonl\n"), {}, []).config
    chosen = [config.tuner, config.optimizer, config.loss, config.loss_scale, config.tools]
    assert all(choice.name.startswith("swiftplug:") for choice in chosen)


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        "model: m\ndataset: d.jsonl\n",
        # Texts that look like something else, text of other languages, and numbers at the edges of notation.
        "model: '1e-4'\ndataset: ['2024', 'yes', 'null', '~', '0x1F', '2024-01-01', '']\n".replace(", ''", ""),
        "model: m\ndataset: [{name: 数据, 标签: 'no', n: 1e-8, big: 1.5e+300, s: '.5', t: \"a: b # c\\n第二\"}]\n",
        "model: m\ndataset: d\nloss_scale: {name: keywords, words: {'学习': 1.0, '好': 0.5, '数学': 2.0, 'on': 0.1}}\n",
        "model: m\ndataset: d\ntraining: {a: .inf, b: [1, [2.0, null]], c: {d: {}}, e: [], f: '1_000', g: 1_000}\n",
        "model: m\ndataset: d\nloss: {name: l, options: {a: 1}}\nmetrics: {name: m, options: x}\n",
        "model: m\ndataset: d\ndata: {val_size: 5}\nseed: 0\ndtype: bfloat16\ntask: pt\n",
    ],
)
def test_to_yaml_and_back(tmp_path: Path, text: str) -> None:
    config = load_train_config(write(tmp_path, text), {}, []).config
    again = load_train_config(write(tmp_path, to_yaml(config)), {}, []).config
    assert again == config
    assert again.model_dump() == config.model_dump()


def test_an_option_may_be_called_options(tmp_path: Path) -> None:
    config = load_train_config(
        write(tmp_path, "model: m\ndataset: d\nloss: {name: l, options: {a: 1}}\n"), {}, []
    ).config
    assert config.loss == PluginChoice(name="l", options={"options": {"a": 1}})


def test_to_yaml_shows_every_key(tmp_path: Path) -> None:
    import yaml

    config = load_train_config(write(tmp_path, "model: m\ndataset: d\n"), {}, []).config
    assert set(yaml.safe_load(to_yaml(config))) == set(TrainConfig.model_fields)


def test_unequal_when_anything_differs(tmp_path: Path) -> None:
    one = load_train_config(write(tmp_path, WHOLE), {}, []).config
    other = load_train_config(write(tmp_path, WHOLE), {}, ["data.max_length=2047"]).config
    assert one != other
