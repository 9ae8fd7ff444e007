"""Each common mistake at the terminal gets the one line that helps."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from swiftplug.cli.main import app
from swiftplug.config.load import load_sample_config, load_train_config
from swiftplug.data.read.sources import open_source
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.plugins import check_plugin_names, resolve_plugins
from swiftplug.training.arguments import check_training_section

CONFIG = """\
model: tiny
dataset: d
metrics: [acc]
callbacks:
- {name: early_stop, patience: true}
tuner: {name: lora, q: 3}
"""


def error_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --set tuner.r 8", "--set tuner.r 8: expected KEY=VALUE; did you mean '--set tuner.r=8'?"),
        (
            "train t.yaml --set tuner.r 8 --debug",
            "--set tuner.r 8: expected KEY=VALUE; did you mean '--set tuner.r=8'?",
        ),
        ("train --lr 1e-4", "no such option: --lr; did you mean '--set training.learning_rate=1e-4'?"),
        ("train --lr", "no such option: --lr; did you mean '--set training.learning_rate=VALUE'?"),
        ("train --learning_rate=3", "no such option: --learning_rate; did you mean '--set training.learning_rate=3'?"),
        ("train --learning-rate 3", "no such option: --learning-rate; did you mean '--set training.learning_rate=3'?"),
        ("train --bf16 --debug", "no such option: --bf16; did you mean '--set training.bf16=VALUE'?"),
        ("train --lora_rank 8", "no such option: --lora_rank; did you mean '--set tuner.r=8'?"),
        ("train --max-length 9", "no such option: --max-length; did you mean '--set data.max_length=9'?"),
        ("train --stage dpo", "no such option: --stage; did you mean '--task'?"),
        ("train --beta 0.1", "no such option: --beta; did you mean '--set task.beta=0.1'?"),
        (
            "train --loss_type ipo",
            "no such option: --loss_type; did you mean '--loss' or '--set task.loss=ipo' or '--set task.loss_type=ipo'",
        ),
        ("train --model_name_or_path x", "no such option: --model_name_or_path; did you mean '--model'?"),
        ("train --output_dir x", "no such option: --output_dir; did you mean '--output-dir'?"),
        ("train --Model x", "no such option: --Model; did you mean '--model'?"),
        ("train --modle x", "no such option: --modle; did you mean '--model'?"),
        ("train --xyz", "no such option: --xyz; see swiftplug train --help"),
        ("train --output-dir a --output-dir b", "--output-dir is given 2 times; it takes one value"),
        ("sample --num_generations 4", "no such option: --num_generations; did you mean '--num-return-sequences'?"),
        ("sample --reward_funcs x", "no such option: --reward_funcs; did you mean '--orm'?"),
        ("sample --loss focal", "no such option: --loss; it is an option of swiftplug train"),
        ("chat --orm math", "no such option: --orm; it is an option of swiftplug sample"),
        ("sample --lr 1", "no such option: --lr; see swiftplug sample --help"),
        (
            "sample --candidates-file a --orm x --candidates-file=b",
            "--candidates-file is given 2 times; it takes one value",
        ),
        ("list-plugins --knd loss", "no such option: --knd; did you mean '--kind'?"),
        ("trian", "no such command 'trian'; did you mean 'train'?"),
    ],
)
def test_options(line: str, message: str) -> None:
    assert error_of(app, line.split(), prog_name="swiftplug", standalone_mode=False).startswith(message)


def test_a_plugin_that_is_named_twice_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    error_of(
        app, ["train", "no.yaml", "--tuner", "lora", "--tuner", "ia3"], prog_name="swiftplug", standalone_mode=False
    )
    assert capsys.readouterr().err == "--tuner is given 2 times; the last one counts\n"


@pytest.mark.parametrize("command", ["", "train", "sample", "preview", "list-plugins"])
def test_h_is_help(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "-h"])
    assert done.exit_code == 0
    assert "Usage: " in done.stdout


@pytest.mark.parametrize(
    ("key", "here"),
    [
        ("model_name_or_path", "model"),
        ("lora_rank", "tuner.r"),
        ("num_epochs", "training.num_train_epochs"),
        ("per_device_train_batch_size", "training.per_device_train_batch_size"),
        ("lr", "training.learning_rate"),
        ("rlhf_type", "task"),
        ("pref_beta", "task.beta"),
        ("simpo_gamma", "task.gamma"),
        ("kto_chosen_weight", "task.desirable_weight"),
        ("cutoff_len", "data.max_length"),
        ("external_plugins", "plugins.files"),
        ("Model", "model"),
        ("output-dir", "output_dir"),
    ],
)
def test_keys_of_other_tools(key: str, here: str) -> None:
    message = error_of(load_train_config, None, {"model": "m", "dataset": ["d"]}, [f"{key}=1"])
    assert message.startswith(f"--set {key}=1: unknown key {key!r}; did you mean {here!r}?")


def test_a_key_that_may_be_one_of_two_here() -> None:
    message = error_of(load_train_config, None, {"model": "m", "dataset": ["d"]}, ["loss_type=dft"])
    assert (
        message
        == "--set loss_type=dft: unknown key 'loss_type'; did you mean 'loss' or 'task.loss' or 'task.loss_type'?"
    )


def test_keys_of_other_tools_that_a_command_lacks() -> None:
    message = error_of(load_sample_config, None, {"model": "m", "dataset": ["d"]}, ["num_epochs=1"])
    assert "did you mean" not in message


def test_an_option_of_a_plugin_is_reported_with_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(CONFIG)

    def error(*sets: str) -> str:
        config = load_train_config(str(path), {}, ["callbacks=[]", *sets] if sets else []).config
        return error_of(resolve_plugins, config).replace(f"{tmp_path}/", "")

    assert error("tuner.q=1").startswith("--set tuner.q=1: tuner 'lora' of swiftplug")
    assert error("tuner={name: lora, R: 8}").endswith("takes no option 'R'; did you mean 'r'?")
    assert error("tuner.r=true", "tuner.name=lora").startswith("t.yaml:6: tuner.q: tuner 'lora' of swiftplug")
    assert error().startswith("t.yaml:6: tuner.q: tuner 'lora' of swiftplug")
    path.write_text(CONFIG.replace("q: 3", "r: 3"))
    assert error().startswith("t.yaml:5: callbacks.0.patience: callback 'early_stop' of swiftplug")
    assert error("tuner.r=true").endswith("cannot take option 'r': input should be a number, found True")
    assert error("tuner.use_dora=1").endswith("cannot take option 'use_dora': input should be true or false, found 1")


def test_the_name_of_another_kind(tmp_path: Path) -> None:
    config = load_train_config(None, {"model": "tiny", "dataset": ["d"], "loss": "muon"}, []).config
    assert error_of(check_plugin_names, config) == "--loss: there is no loss 'muon'; did you mean '--optimizer muon'?"


def test_true_is_no_number_in_training_arguments() -> None:
    for setting, message in {
        "max_steps=true": "found True; input should be a number",
        "gradient_checkpointing=1": "found 1; input should be true or false",
        "lr=1": "unknown field; did you mean 'training.learning_rate'?",
    }.items():
        config = load_train_config(None, {"model": "m", "dataset": ["d"]}, [f"training.{setting}"]).config
        assert error_of(check_training_section, config) == f"--set training.{setting}: {message}"


def test_a_broken_link_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "t.yaml", "mine.py", "folder"):
        Path(name).symlink_to(f"old/{name}")
    registry = Registry.discover()
    for message in (
        error_of(open_source, PluginChoice(name="rows.jsonl"), registry),
        error_of(load_train_config, "t.yaml", {}, []),
        error_of(Registry.discover, files=["mine.py"]),
        error_of(open_source, PluginChoice(name="folder"), registry),
    ):
        assert "a link to old/" in message
        assert message.endswith(", which does not exist")


def test_the_word_itself_is_no_suggestion() -> None:
    assert nearest("q_proj", ["q_proj", "k_proj"]) == "; did you mean 'k_proj'?"
    assert nearest("x", ["x"]) == ""
    assert nearest("FOCAL", ["focal", "dft"]) == "; did you mean 'focal'?"
    assert nearest("loss-scale", ["loss_scale", "loss"]) == "; did you mean 'loss_scale'?"
