"""Values as a config file writes them: the numbers of YAML 1.2, and nothing that is not a plain value."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from swiftplug.config.load import load_train_config, to_yaml
from swiftplug.errors import UserError


def load(text: str, folder: Path) -> Any:
    """The value of `training.x` in a config that gives it as `text`."""
    path = folder / "train.yaml"
    path.write_text(f"model: m\ndataset: d\ntraining: {{x: {text}}}\n", encoding="utf-8")
    return load_train_config(str(path), {}, []).config.training["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("1e-4", 0.0001),
            ("1E5", 100000.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("-1.5e+3", -1500.0),
            ("-.inf", float("-inf")),
        ),
        *(("10", 10), ("010", 10), ("0o10", 8), ("0x1F", 31), ("+3", 3), ("-3", -3), ("0", 0)),
        *(("1:30", "1:30"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"), ("0b11", "0b11"), ("1e", "1e")),
        *(("yes", True), ("off", False), ("True", True), ("null", None), ("~", None), ("y", "y"), ("=", "=")),
        *(("'010'", "010"), ("!!str 1", "1"), ("!!float 1", 1.0), ("!!int 3", 3)),
    ],
)
def test_scalars(text: str, value: Any, tmp_path: Path) -> None:
    found = load(text, tmp_path)
    assert (found, type(found)) == (value, type(value))
    config = load_train_config(None, {"model": "m", "dataset": ["d"]}, [f"training.x={text}"]).config
    assert config.training["x"] == found


@pytest.mark.parametrize("tag", ["!!set {a}", "!!binary aGk=", "!!timestamp 2024-01-01", "!!omap [a: 1]", "!own x"])
def test_no_other_types(tag: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.yaml:3: unknown tag '.+'; a config has plain values only"):
        load(tag, tmp_path)


@pytest.mark.parametrize("text", ["010", "1e-4", "0o10", "0x1F", "1:30", "1_000", "2024-01-01", "yes", "=", "<<", "~"])
def test_text_that_looks_like_something_else_survives_every_reader(text: str, tmp_path: Path) -> None:
    config = load_train_config(None, {"model": text, "dataset": [text]}, []).config
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_train_config(str(path), {}, []).config == config
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["model"] == text


def test_an_alias_of_a_mapping_with_a_merge(tmp_path: Path) -> None:
    text = "{a: &a {r: 1, s: {t: 1}}, b: &b {<<: *a, r: 2}, c: *b, d: {<<: [*b, *a], s: 3}}"
    found = load(text, tmp_path)
    assert found["c"] == found["b"] == {"r": 2, "s": {"t": 1}}
    assert found["d"] == {"r": 2, "s": 3}
    assert found["c"] is not found["b"] and found["b"]["s"] is not found["a"]["s"]
