"""A run that starts from the folder of another run: what it trains, and that its own folder is whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.plugins import resolve_plugins

IDS = torch.arange(3, 40)[None]
STILL = ["training.max_steps=1", "training.learning_rate=0"]
NORMS = (Path(__file__).parents[1] / "norms.py").read_text(encoding="utf-8")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def plain(folder: Path) -> torch.Tensor:
    """What plain PEFT, or Transformers, makes of a run's folder."""
    loader = AutoPeftModelForCausalLM if (folder / "adapter_config.json").is_file() else AutoModelForCausalLM
    return logits(loader.from_pretrained(folder, dtype=torch.float32))


def ours(folder: Path, **config: Any) -> torch.Tensor:
    """What a plugin gets of a run's folder."""
    made = SampleConfig.model_validate({"model": str(folder), "dataset": ["unread"], **config})
    return logits(Arguments(made, resolve_plugins(made)).load_model(torch.float32))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `first` is kept for all tests."""
    return tmp_path_factory.mktemp("kept") / "first"


@pytest.fixture
def first(run: Any, kept: Path, tmp_path: Path) -> Path:
    """A run that trained LoRA: a copy, for tests change it."""
    if not kept.exists():
        run(str(kept), ["training.learning_rate=1e-2"], tuner="lora")
    return Path(shutil.copytree(kept, tmp_path / "first"))


@pytest.mark.parametrize(
    ("tuner", "sets", "line"),
    [
        ("lora", [], "the adapter of {first} is trained further (tuner and options are the same)"),
        ("lora", ["tuner.r=2", "tuner.target_modules=[embed_tokens]"], "merged into its base model and kept in"),
        ("peft", ["tuner.type=vera", "tuner.r=4", "tuner.target_modules=[q_proj]"], "and kept in {out}/base_model"),
        ("full", [], "merged into its base model, and training starts from there"),
    ],
)
def test_a_second_stage_builds_on_the_first(
    run: Any, first: Path, tiny_model_dir: Path, capfd: Any, tuner: str, sets: list[str], line: str
) -> None:
    """A step at a learning rate of zero leaves the first stage's model, for plain PEFT and Transformers too."""
    expected = plain(first)
    assert not torch.allclose(expected, plain(tiny_model_dir), atol=1e-2)
    capfd.readouterr()
    second = run("second", [*STILL, *sets, "training.save_strategy=epoch"], model=str(first), tuner=tuner).run_dir
    said = " ".join(capfd.readouterr().out.split())
    assert line.format(first=first, out=second) in said
    for folder in (second, second / "checkpoint-1"):
        torch.testing.assert_close(plain(folder), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(folder), expected, rtol=1e-4, atol=1e-5)
    assert (second / "base_model").is_dir() == ("base_model" in line or "kept" in line)


def test_three_stages_and_what_is_left_when_the_first_two_are_gone(run: Any, first: Path) -> None:
    fast = ["training.max_steps=2", "training.learning_rate=1e-2"]
    second = run("second", [*fast, "tuner.r=2"], model=str(first), tuner="lora").run_dir
    third = run("third", [*fast, "tuner.r=2"], model=str(second), tuner="lora").run_dir  # goes on with the second's
    expected = plain(third)
    assert not torch.allclose(expected, plain(second), atol=1e-3)
    base = AutoModelForCausalLM.from_pretrained(second / "base_model", dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, third)), expected)
    shutil.rmtree(first)
    shutil.rmtree(second)
    moved = third.rename(third.parent / "moved")
    torch.testing.assert_close(ours(moved), expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_a_plugin_builds_is_kept(run: Any) -> None:
    first = run("first", ["training.learning_rate=1e-2", "training.max_steps=2"], model="tiny", tuner="lora").run_dir
    torch.testing.assert_close(plain(first), ours(first), rtol=1e-4, atol=1e-5)
    second = run("second", [*STILL, "tuner.r=4"], model=str(first), tuner="lora").run_dir
    torch.testing.assert_close(plain(second), plain(first), rtol=1e-4, atol=1e-5)
    shutil.rmtree(first / "base_model")  # the plugin builds it again
    torch.testing.assert_close(ours(first), plain(second), rtol=1e-4, atol=1e-5)


def test_a_tuner_of_a_file_before_and_after(run: Any, first: Path, tmp_path: Path) -> None:
    options = {"plugins": {"files": [str(tmp_path / "plugins_under_test.py")]}}
    second = run("second", STILL, model=str(first), tuner="norms", plugins=NORMS).run_dir
    torch.testing.assert_close(ours(second, **options), plain(first), rtol=1e-4, atol=1e-5)
    third = run("third", STILL, model=str(second), tuner="lora", plugins=NORMS).run_dir
    torch.testing.assert_close(plain(third), plain(first), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"swiftplug.json: .*norms"):
        run("fourth", STILL, model=str(second), tuner="lora", **{"plugins.files": []})


def test_a_run_and_its_base_are_moved(run: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model_dir, tmp_path / "a" / "base")
    first = run("a/first", ["training.max_steps=2"], model=str(base), tuner="lora").run_dir
    expected = plain(first)
    assert json.loads((first / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    (tmp_path / "a").rename(tmp_path / "b")  # together: it is found
    first = tmp_path / "b" / "first"
    torch.testing.assert_close(ours(first), expected)
    base = (tmp_path / "b" / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as raised:
        run("next", STILL, model=str(first))
    assert str(raised.value) == (
        f"{first}: its base model is not at {tmp_path}/a/base or {tmp_path}/b/base; if it was moved, write its new "
        f"folder into {first}/swiftplug.json as base_model.name"
    )
    marker = json.loads((first / "swiftplug.json").read_text())
    marker["base_model"]["name"] = str(base)
    (first / "swiftplug.json").write_text(json.dumps(marker))
    torch.testing.assert_close(ours(first), expected)


def test_what_cannot_be_built_on_is_refused_before_the_model(run: Any, first: Path) -> None:
    prompt = ["tuner.type=prompt_tuning", "tuner.num_virtual_tokens=3"]
    learned = run("learned", [*STILL, *prompt], tuner="peft").run_dir
    for tuner, sets in (("lora", []), ("full", []), ("peft", prompt)):
        with pytest.raises(UserError, match="holds a learned prompt, which can be neither merged nor trained further"):
            run("next", [*STILL, *sets], model=str(learned), tuner=tuner)
    marker = json.loads((first / "swiftplug.json").read_text())
    marker["model_options"]["quantization"] = "4bit"
    (first / "swiftplug.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="cannot be merged into a quantized model; to train it further, use its tuner"):
        run("next", ["tuner.r=4"], model=str(first), tuner="lora")
    with pytest.raises(UserError, match="cannot be merged into a quantized model"):
        run("next", [], model=str(first), tuner="full")


def test_a_new_stage_is_resumed_when_the_first_is_gone(run: Any, first: Path, capfd: Any) -> None:
    """Its folder has its base model; the weights are those of a run that was not interrupted."""
    sets = ["tuner.r=2", "training.max_steps=2", "training.save_strategy=steps", "training.save_steps=1"]
    second = run("second", sets, model=str(first), tuner="lora").run_dir
    expected = plain(second)
    shutil.rmtree(second / "checkpoint-2")
    shutil.rmtree(first)
    capfd.readouterr()
    run("second", sets, model=str(first), tuner="lora", resume=True)
    assert f"there is no folder {first} any more; {second}/base_model is used" in " ".join(
        capfd.readouterr().out.split()
    )
    torch.testing.assert_close(plain(second), expected, rtol=0, atol=0)
    torch.testing.assert_close(ours(second), expected, rtol=1e-4, atol=1e-5)
