"""The error about a wrong config is one line: the place, what was found, what was expected, the nearest right word."""

from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError


def error_of(text: str | bytes, folder: Path, *sets: str, **options: Any) -> str:
    """The error of a config whose file is `train.yaml`, with the path of its folder taken out."""
    path = folder / "train.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as raised:
        load_train_config(str(path), options, sets)
    message = str(raised.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("metric: acc", "train.yaml:3: unknown key 'metric'; did you mean 'metrics'?"),
        ("data: {max_lenght: 3}", "train.yaml:3: unknown key 'max_lenght' in 'data'; did you mean 'max_length'?"),
        (
            "data:\n  num_proc: 2\n  too_lon: drop",
            "train.yaml:5: unknown key 'too_lon' in 'data'; did you mean 'too_long'?",
        ),
        ("max_length: 3", "train.yaml:3: unknown key 'max_length'; did you mean 'data.max_length'?"),
        ("data: {max_length: '512'}", "train.yaml:3: data.max_length: found '512', expected a whole number"),
        ("data: {max_length: true}", "train.yaml:3: data.max_length: found true, expected a whole number"),
        ("data: {max_length: 1}", "train.yaml:3: data.max_length: found 1, expected greater than or equal to 2"),
        ("data: {packing: 1}", "train.yaml:3: data.packing: found 1, expected true or false"),
        ("data: {columns: {a: 3}}", "train.yaml:3: data.columns.a: found 3, expected text; put it in quotes"),
        ("data: 3", "train.yaml:3: data: found 3, expected a mapping"),
        ("seed: -1", "train.yaml:3: seed: found -1, expected greater than or equal to 0"),
        ("training: [1]", "train.yaml:3: training: found a list, expected a mapping"),
        ("model_options: {revision: 2024}", "model_options.revision: found 2024, expected text; put it in quotes"),
        ("metrics:\n- acc\n- 3", "train.yaml:5: metrics.1: found 3, expected the name of a plugin"),
        ("metrics:\n- acc\n- {n: 3}", "train.yaml:5: metrics.1: has no 'name'"),
        ("tuner: {r: 8}", "train.yaml:3: tuner: has no 'name'"),
        ("loss: ''", "train.yaml:3: loss: found '', expected text that is not empty"),
        ("loss: focal\nseed: 3\nloss: dft", "train.yaml:5: key 'loss' is given twice, first on line 3"),
        ("loss: {name: a, b: {c: 1, c: 2}}", "train.yaml:3: key 'c' is given twice"),
        ("seed: [1", "not YAML: "),
        ("seed: 1\n\tloss: x", "train.yaml:4: not YAML: "),
        ("training: !!python/object:os.system {a: 1}", "train.yaml:3: unknown tag"),
        ("training:\n  a: !!python/name:os.system ''", "train.yaml:4: unknown tag"),
        ("training:\n  a: !!int x", "train.yaml:4: 'x' is not a valid int"),
        ("training: &a {b: *a}", "train.yaml:3: an alias that contains itself"),
        ("training: {1: 2}", "train.yaml:3: key 1 is not text; put it in quotes"),
        ("training: {<<: [3]}", "train.yaml:3: expected a mapping for merging, but found scalar"),
        ("--- \na: 1", "train.yaml:3: not YAML: "),
        ("training: {a: 99999999999999999999e}\nx\x07y: 1", "train.yaml:4: not YAML: the character '\\x07'"),
    ],
)
def test_lines_of_yaml(line: str, message: str, tmp_path: Path) -> None:
    assert message in error_of(f"model: m\ndataset: d\n{line}\n", tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainng.x=1", "--set trainng.x=1: unknown key 'trainng'; did you mean 'training'?"),
        (
            "data.max_lenght=3",
            "--set data.max_lenght=3: unknown key 'max_lenght' in 'data'; did you mean 'max_length'?",
        ),
        ("data.max_length=x", "--set data.max_length=x: found 'x', expected a whole number"),
        ("learning_rate=1", "(fields of TrainingArguments go under 'training')"),
        ("loss", "--set loss: expected KEY=VALUE, such as training.learning_rate=1e-4"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("data.=3", "--set data.=3: expected KEY=VALUE"),
        ("training.a=[1", "--set training.a=[1: not YAML: "),
        ("training.a={b: 1, b: 2}", "--set training.a={b: 1, b: 2}: key 'b' is given twice"),
        ("seed.x=3", "--set seed.x=3: 'seed' is 7, which has no keys"),
        ("metrics.nlg.n=3", "--set metrics.nlg.n=3: no 'nlg' among 'metrics'; choose from: acc"),
        ("metrics.ac.n=3", "--set metrics.ac.n=3: no 'ac' among 'metrics'; did you mean 'acc'?"),
        ("metrics.n=3", "--set metrics.n=3: no 'n' among 'metrics'"),
        ("callbacks.lisa.n=3", "no 'lisa' among 'callbacks'; name one with --callback"),
        ("callbacks.twin.n=3", "no 'twin' among 'callbacks'"),
        ("dataset.d.n=3", "several of 'dataset' have that name"),
        ("metrics.acc.n.m=3", "--set metrics.acc.n.m=3: 'metrics.0.n' is 1, which has no keys"),
    ],
)
def test_set(override: str, message: str, tmp_path: Path) -> None:
    assert message in error_of(
        "model: m\ndataset: [d, d#3]\nmetrics: [{name: acc, n: 1}]\nseed: 7\n", tmp_path, override
    )


def test_options(tmp_path: Path) -> None:
    assert error_of("model: m\ndataset: d\nplugins: {files: 3}", tmp_path, **{"plugins.files": ["a.py"]}) == (
        "--plugin: found 3, expected text; put it in quotes"
    )
    assert error_of("model: m\ndataset: d\nplugins: 3", tmp_path, **{"plugins.files": ["a.py"]}) == (
        "--plugin: 'plugins' is 3, which has no keys"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.yaml: is empty, expected keys such as model and dataset"),
        ("# nothing\n", "train.yaml: is empty"),
        ("- a\n", "train.yaml: expected a mapping of keys such as model and dataset, found a list"),
        ("focal\n", "train.yaml: expected a mapping of keys such as model and dataset, found 'focal'"),
        ("dataset: d", "train.yaml: no model; name a folder, a hub id or a model plugin"),
        ("model: m", "train.yaml: no dataset; name a file"),
        ("model: m\ndataset: []", "train.yaml: no dataset"),
        (b"model: \xff\xfe", "train.yaml: is not UTF-8 text (byte 0xff at 7)"),
    ],
)
def test_whole_files(text: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in error_of(text, tmp_path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m\ndataset: d\n")
    assert load_train_config(str(path), {}, []).config.model is not None


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    with pytest.raises(UserError, match=r"trian\.yaml: no such config; did you mean '.*/train\.yaml'\?"):
        load_train_config(str(tmp_path / "trian.yaml"), {}, [])
    with pytest.raises(UserError, match="is a folder, expected a YAML file"):
        load_train_config(str(tmp_path), {}, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model": "m"}, "no dataset; "), ({"dataset": ["d"]}, "no model; ")],
)
def test_one_without_the_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        load_train_config(None, options, [])
