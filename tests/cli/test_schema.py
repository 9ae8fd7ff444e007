"""`swiftplug schema`, judged by the library jsonschema: it takes every config, and refuses what a run would refuse."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from swiftplug.cli.schema import schema
from swiftplug.config.load import QUICKSTART, QUICKSTART_SAMPLE
from swiftplug.config.yaml_file import read_config, read_value
from swiftplug.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = [*sorted((ROOT / "configs").rglob("*.yaml")), QUICKSTART, QUICKSTART_SAMPLE]


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> jsonschema.Draft7Validator:
    file = tmp_path_factory.mktemp("schema") / "swiftplug.schema.json"
    schema(output=str(file))
    written = json.loads(file.read_text())
    jsonschema.Draft7Validator.check_schema(written)
    return jsonschema.Draft7Validator(written)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_is_valid(validator: jsonschema.Draft7Validator, config: Path) -> None:
    assert not [error.message for error in validator.iter_errors(read_config(str(config))[0])]


@pytest.mark.parametrize(
    "text",
    [
        "{model: a/b, dataset: x.jsonl#50, tuner: null}",
        "{model: {name: tiny, num_layers: 2}, dataset: [a.jsonl, {name: arithmetic, size: 5}]}",
        "{loss_scale: last_round+react, loss: 'swiftplug:focal', metrics: acc}",
        "{loss_scale: {name: last_round+keywords, words: {a: 2}}}",
        "{tuner: {name: peft, type: vera, r: 256}}",
        "{orm: [{name: math, weight: 2}, {name: org/reward, batch_size: 4, weight: 0.5}], prm: runs/prm}",
        "{training: {learning_rate: 1e-4, eval_steps: 0.1, lr_scheduler_type: cosine, save_total_limit: null}}",
        "{optimizer: {name: muon, momentum: 0.9, adamw_lr: null}, seed: 1, data: {val_size: 0.1}}",
    ],
)
def test_what_a_run_takes_is_valid(validator: jsonschema.Draft7Validator, text: str) -> None:
    assert not [error.message for error in validator.iter_errors(read_value(text, "test"))]


@pytest.mark.parametrize(
    "text",
    [
        "{modle: a}",
        "{loss: foccal}",
        "{loss: {gamma: 2}}",
        "{loss: {name: focal, gama: 2}}",
        "{loss: {name: 'swiftplug:focal', gama: 2}}",
        "{loss: {name: focal, gamma: much}}",
        "{tuner: {name: lora, lora_dropout: 1.5}}",
        "{tuner: {name: lora, bias: some}}",
        "{orm: [{name: cosine}]}",
        "{orm: [{name: math, weight: -1}]}",
        "{metrics: [acc, no_such]}",
        "{loss_scale: last_round+no_such}",
        "{data: {max_lenght: 5}}",
        "{dtype: float8}",
        "{training: {learning_rat: 1}}",
        "{training: {output_dir: x}}",
        "{seed: -1}",
        "{task: sft, candidates_file: x.jsonl}",
        "[model]",
    ],
)
def test_what_a_run_refuses_is_not(validator: jsonschema.Draft7Validator, text: str) -> None:
    assert not validator.is_valid(read_value(text, "test"))


def test_names_and_options_have_their_descriptions(validator: jsonschema.Draft7Validator) -> None:
    written: Any = validator.schema
    tuner = written["anyOf"][0]["properties"]["tuner"]["anyOf"][0]
    names = {each["const"]: each["description"] for each in tuner["anyOf"] if "const" in each}
    assert names["lora"].startswith("LoRA (arXiv 2106.09685)")
    [lora] = [it["then"] for it in tuner["anyOf"][-1]["allOf"] if "lora" in it["if"]["properties"]["name"]["enum"]]
    assert lora["properties"]["r"] == {
        "description": "The rank.",
        "type": "integer",
        "exclusiveMinimum": 0,
        "default": 8,
    }
    training = written["anyOf"][0]["properties"]["training"]["anyOf"][0]["properties"]
    assert training["learning_rate"]["type"] == "number"
    assert training["learning_rate"]["description"]


def test_one_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    schema("sample")
    written = json.loads(capsys.readouterr().out)
    [sample] = written["anyOf"]
    assert "engine" in sample["properties"]
    assert "tuner" not in sample["properties"]


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("model: m\n")
    with pytest.raises(UserError, match=r"train.yaml: exists and is no JSON schema, so it is not replaced$"):
        schema(output=str(tmp_path / "train.yaml"))
    with pytest.raises(UserError, match=r"there is no folder '.*/missing'$"):
        schema(output=str(tmp_path / "missing" / "x.json"))
    with pytest.raises(UserError, match=r"^--output: expected the name of a file$"):
        schema(output="")
    assert (tmp_path / "train.yaml").read_text() == "model: m\n"
