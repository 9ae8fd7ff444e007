"""What a run leaves, what it refuses to write over, and how it is made again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.runs.folder import locked_folder
from swiftplug.training.run import train
from swiftplug.training.setup import read_data

CALLBACK = """
from transformers import TrainerCallback
from swiftplug.plugin import register_callback

@register_callback("noted")
class Noted(TrainerCallback):
    pass
"""


def test_the_folder_holds_what_it_should(run: Any, chat_file: Path) -> None:
    result = run(
        "r", ["training.save_strategy=epoch"], plugins=CALLBACK, callbacks=["noted"], eval_dataset=[f"{chat_file}#4"]
    )
    log = [json.loads(line) for line in (result.run_dir / "log.jsonl").read_text().splitlines()]
    assert any("eval_loss" in entry for entry in log)
    assert "train_runtime" in log[-1]
    manifest = json.loads((result.run_dir / "run.json").read_text())
    assert manifest["versions"]["transformers"]
    (noted,) = [plugin for plugin in manifest["plugins"] if plugin["name"] == "file:noted"]
    assert len(noted["source_sha256"]) == 64
    assert (result.run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    for folder in (result.run_dir, result.run_dir / "checkpoint-2"):
        assert json.loads((folder / "swiftplug.json").read_text())["tuner"]["name"] == "swiftplug:full"
        AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not list(result.run_dir.rglob("training_args.bin"))


def test_config_yaml_makes_the_same_run_again(run: Any, tmp_path: Path) -> None:
    first = run("first", ["training.learning_rate=1e-3", "tuner.r=4"], tuner="lora", loss="focal")
    config = load_train_config(str(first.run_dir / "config.yaml"), {"output_dir": str(tmp_path / "again")}, []).config
    train(config)
    weights = load_file(first.run_dir / "adapter_model.safetensors")
    for name, tensor in load_file(tmp_path / "again" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, weights[name])


def test_an_adapter_loads_with_plain_peft_and_trains_on(run: Any, tiny_model_dir: Path) -> None:
    first = run("adapter", ["training.learning_rate=1e-2", "training.save_strategy=epoch"], tuner="lora")
    assert not list(first.run_dir.rglob("README.md"))  # PEFT's has nothing but blanks to fill in
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = torch.arange(3, 20)[None]
    before = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, first.run_dir).eval()
    expected = adapted(input_ids=ids).logits
    assert not torch.allclose(before, expected, atol=1e-3)
    # The folder of a run is a model: the adapter is merged, and what trains next starts from there.
    second = run("next", ["training.max_steps=1", "training.learning_rate=0"], model=str(first.run_dir))
    merged = AutoModelForCausalLM.from_pretrained(second.run_dir).eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_another_run_is_not_written_over(run: Any) -> None:
    first = run("r")
    before = {path: path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds another run; name another folder, continue that run with --resume"):
        run("r")
    with pytest.raises(UserError, match=r"is another run's: training.learning_rate: .* there, 0.001 here"):
        run("r", ["training.learning_rate=1e-3"], resume=True)
    assert {path: path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()} == before


def test_other_files_are_not_written_over(run: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            run("r", resume=resume)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["thesis.tex"]


FEW = ["training.save_steps=1", "training.max_steps=2", "training.save_strategy=steps"]


def test_overwrite_removes_what_the_old_run_left_and_nothing_else(run: Any, chat_file: Path) -> None:
    first = run("r", FEW, tuner="lora")
    (first.run_dir / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()}
    for mistake in (
        {"sets": ["training.max_steps=many"]},
        {"dataset": ["no.jsonl"]},
        {"sets": ["tuner.target_modules=[nowhere]"], "tuner": "lora"},
        {"model": str(first.run_dir)},
        {"model": str(first.run_dir / "checkpoint-2")},
        {"dataset": [str(first.run_dir / "log.jsonl")]},
    ):
        with pytest.raises((UserError, ValueError)):
            run("r", overwrite=True, **mistake)
        assert {path: path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()} == before
    run("r", overwrite=True)
    left = {path.name for path in first.run_dir.iterdir()}
    assert {"notes.txt", "model.safetensors"} <= left
    assert not {"adapter_model.safetensors", "adapter_config.json", "checkpoint-1", "checkpoint-2"} & left
    assert len(json.loads((first.run_dir / "run.json").read_text())["commands"]) == 1


def test_overwrite_is_for_runs_alone(run: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("of another program: 1")
    with pytest.raises(UserError, match="holds other files"):
        run("r", overwrite=True)
    with pytest.raises(UserError, match="cannot be combined"):
        run("r", overwrite=True, resume=True)


def test_a_run_that_failed_before_its_first_checkpoint_begins_again(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is nan"):
        run("r", plugins=NAN, loss="nan")
    assert (tmp_path / "r" / "config.yaml").exists()
    assert run("r").metrics["step"] == 2


NAN = """
from swiftplug.plugin import register_loss_func
@register_loss_func("nan")
def nan(outputs, labels):
    return outputs.logits.sum() * float("nan")
"""


def test_a_folder_in_use_is_not_entered(run: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with locked_folder(tmp_path / "r"), pytest.raises(UserError, match="another process is running in"):
        run("r")
    assert not list((tmp_path / "r").iterdir())


def test_a_run_that_ended_in_the_meantime_is_kept(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_late(*args: Any) -> Any:
        monkeypatch.undo()
        run("r", FEW)
        return read_data(*args)

    monkeypatch.setattr("swiftplug.training.run.read_data", read_late)
    with pytest.raises(UserError, match="holds another run"):
        run("r", FEW)


def test_a_finished_run_without_checkpoints_is_not_trained_again(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["training.max_steps=1", "training.save_strategy=no"]
    run("r", sets)
    monkeypatch.setattr("swiftplug.training.run.load_model_to_train", pytest.fail)
    run("r", sets, resume=True)
    assert capsys.readouterr().out.splitlines()[-1].endswith("has finished; to train it again, use --overwrite")


def test_places_that_take_no_folder(run: Any, chat_file: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    for name, words in (chat_file.name, "is a file"), (f"{chat_file.name}/r", "is a file"), ("gone", "broken symlink"):
        with pytest.raises(UserError, match=words):
            run(name)


def test_a_dry_run_refuses_no_folder(run: Any, tmp_path: Path, chat_file: Path) -> None:
    config = load_train_config(None, {"model": "tiny", "dataset": [f"{chat_file}#8"], "output_dir": str(tmp_path)}, [])
    assert train(config.config, dry_run=True) is None


def test_resume_refuses_rows_that_changed_wherever_they_are(run: Any, chat_file: Path, tmp_path: Path) -> None:
    rows = chat_file.read_text().splitlines(keepends=True)
    data, moved = tmp_path / "d.jsonl", tmp_path / "moved.jsonl"
    data.write_text("".join(rows[:8]))
    given = {"eval_dataset": [f"{chat_file}#2"]}
    first = run("r", FEW, dataset=[str(data)], **given)
    shutil.rmtree(tmp_path / "cache")
    data.rename(moved)
    run("r", [*FEW, "training.logging_steps=1", "data.num_proc=2"], resume=True, dataset=[str(moved)], **given)
    for changed, words in (rows[:8][::-1], "other rows, or in another order"), (rows[:9], "8 rows there, 9 here"):
        moved.write_text("".join(changed))
        with pytest.raises(UserError, match=f"--resume: the dataset .*moved.jsonl has changed .*: {words}"):
            run("r", FEW, resume=True, dataset=[str(moved)], **given)
    with pytest.raises(UserError, match=r"--resume: the eval_dataset .* has changed"):
        run("r", FEW, resume=True, dataset=[f"{chat_file}#8"], eval_dataset=[f"{chat_file}#3"])
    assert len(json.loads((first.run_dir / "run.json").read_text())["commands"]) == 2


def test_a_step_may_be_shared_out_anew(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    size, accumulation = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    sets = ["training.save_steps=2", "training.save_strategy=steps", "training.learning_rate=1e-3", f"{size}=4"]
    first = run("r", sets)
    expected = load_file(first.run_dir / "model.safetensors")
    shutil.rmtree(first.run_dir / "checkpoint-4")
    with pytest.raises(UserError, match=f"is another run's: {accumulation}: not given there, 3 here;"):
        run("r", [*sets, f"{accumulation}=3"], resume=True)
    capsys.readouterr()
    run("r", [*sets, f"{size}=2", f"{accumulation}=2"], resume=True)
    told = "a step takes 4 rows as before, now 2 x 2 accumulated x 1 process, not 4 x 1 accumulated x 1 process"
    assert told in " ".join(capsys.readouterr().out.split())
    for name, tensor in load_file(first.run_dir / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)

    record = json.loads((first.run_dir / "run.json").read_text())
    assert record["processes"] == 1
    (first.run_dir / "run.json").write_text(json.dumps({**record, "processes": 4}))
    as_begun = "--resume --nproc 4` continues it as it began"
    with pytest.raises(UserError, match=f"so a step takes 4 rows, not 16; --set {size}=8 keeps them; .*{as_begun}"):
        run("r", [*sets, f"{size}=2", f"{accumulation}=2"], resume=True)
    run("r", [*sets, f"{size}=16"], resume=True)
    assert "now 16 x 1 accumulated x 1 process, not 2 x 2 accumulated x 4 processes" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_changed_plugin_is_named_at_resume(run: Any) -> None:
    run("r", ["training.save_strategy=epoch"], plugins=CALLBACK, callbacks=["noted"])
    with pytest.raises(UserError, match=r"callback plugin 'file:noted' .* has changed .*--allow-changed-plugins"):
        run("r", ["training.save_strategy=epoch"], plugins=CALLBACK + "\n# new", callbacks=["noted"], resume=True)


def test_a_finished_run_resumed_is_left_as_it_is(run: Any) -> None:
    sets = ["training.save_steps=1", "training.max_steps=1", "training.save_strategy=steps"]
    first = run("r", sets)
    weights = (first.run_dir / "model.safetensors").read_bytes()
    again = run("r", sets, resume=True)
    assert (again.run_dir / "model.safetensors").read_bytes() == weights
    assert again.metrics["step"] == 1
    assert "train_loss" not in again.metrics  # it trained no step: 0 would be a lie


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("learning_rat=1", "--set training.learning_rat=1: unknown field; did you mean 'learning_rate'?"),
        ("learning_rate=fast", "--set training.learning_rate=fast: found 'fast'"),
        ("output_dir=x", "--set training.output_dir=x: cannot be set; use the key output_dir"),
        ("eval_strategy=steps", "training.eval_strategy: 'steps' needs eval_dataset or data.val_size"),
        ("lr_scheduler_type=linea", "training"),
        ("lr_scheduler_kwargs={foo: 1}", "unexpected keyword argument 'foo'"),
        ("learning_rate=-1", "training: Invalid learning rate: -1.0"),
        ("per_device_train_batch_size=0", "training.per_device_train_batch_size: found 0, expected 1 or more"),
        ("gradient_accumulation_steps=0", "training.gradient_accumulation_steps: found 0, expected 1 or more"),
        ("report_to=wandbb", "training.report_to=wandbb: unknown tracker 'wandbb'; did you mean 'wandb'?"),
        ("eval_on_start=true", "training.eval_on_start: needs eval_dataset or data.val_size"),
        ("push_to_hub=true", "with `hf upload REPOSITORY FOLDER`"),
        ("enable_jit_checkpoint=true", "cannot be set; use training.save_steps"),
    ],
)
def test_wrong_fields_of_training(run: Any, tmp_path: Path, field: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        run("r", [f"training.{field}"])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("fields", "metrics", "words"),
    [
        (["save_strategy=best"], [], "training.save_strategy: best needs training.metric_for_best_model"),
        (["metric_for_best_model=acc"], [], "training.metric_for_best_model: no evaluation gives 'acc'"),
        (["eval_strategy=no"], ["acc"], "metrics: nothing is measured with training.eval_strategy: no"),
        (["load_best_model_at_end=true"], [], "requires the save and eval strategy to match"),
    ],
)
def test_evaluations_that_do_not_fit(
    run: Any, chat_file: Path, tmp_path: Path, fields: list[str], metrics: list[str], words: str
) -> None:
    with pytest.raises(UserError) as raised:
        run("r", [f"training.{field}" for field in fields], eval_dataset=[f"{chat_file}#4"], metrics=metrics)
    assert words in str(raised.value)
    assert not (tmp_path / "r").exists()


def test_a_best_metric_that_no_evaluation_gives_is_named(run: Any, chat_file: Path) -> None:
    sets = ["training.metric_for_best_model=token_ac"]
    with pytest.raises(UserError, match=r"metric_for_best_model: no evaluation gives 'token_ac'.*eval_token_acc"):
        run("r", sets, eval_dataset=[f"{chat_file}#4"], metrics=["acc"])


def test_optim_goes_with_the_default_optimizer(run: Any) -> None:
    with pytest.raises(UserError, match="'sgd' is for the default optimizer"):
        run("r", ["training.optim=sgd"], optimizer="muon")
    run("r", ["training.optim=sgd", "training.max_steps=1"])


def test_a_dataset_of_less_than_a_batch(run: Any) -> None:
    few = ["training.per_device_train_batch_size=32"]
    assert run("kept", few).metrics["step"] == 1
    with pytest.raises(UserError, match="dataloader_drop_last: drops all 16 examples, as a batch takes 32"):
        run("dropped", [*few, "training.dataloader_drop_last=true"])


def test_an_adapter_on_a_model_plugin_is_resumed_on_the_same_base(
    run: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"""
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from swiftplug.plugin import register_model

@register_model("drawn")
def drawn(args):
    config = AutoConfig.from_pretrained({str(tiny_model_dir)!r})
    return AutoModelForCausalLM.from_config(config), AutoTokenizer.from_pretrained({str(tiny_model_dir)!r})
"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn").mkdir()  # a plugin's name is not that of the folder beside it
    losses = []
    for name in ("one", "two"):
        torch.manual_seed(len(name) * len(losses))
        result = run(name, ["training.max_steps=1"], plugins=source, model="drawn", tuner="lora")
        losses.append(result.metrics["loss"])
        marker = json.loads((result.run_dir / "swiftplug.json").read_text())
        assert marker["base_model"]["name"] == "drawn"
    assert losses[0] == losses[1]


def test_an_adapter_s_folder_does_not_allow_code(run: Any) -> None:
    first = run("adapter", ["training.max_steps=1"], tuner="lora")
    marker = json.loads((first.run_dir / "swiftplug.json").read_text())
    marker["model_options"]["trust_remote_code"] = True
    (first.run_dir / "swiftplug.json").write_text(json.dumps(marker))
    base = Path(marker["base_model"]["name"])
    config = json.loads((base / "config.json").read_text())
    copy = first.run_dir.parent / "base"
    shutil.copytree(base, copy)
    (copy / "evil.py").write_text("raise SystemExit('it ran')\n")
    config["model_type"] = "unheard-of"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    marker["base_model"]["name"] = str(copy)
    (first.run_dir / "swiftplug.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="cannot load"):
        run("next", ["training.max_steps=1"], model=str(first.run_dir))
