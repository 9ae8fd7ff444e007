"""Sampling from a model of this machine: kills, shards, adapters, and what the model is asked."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swiftplug.cli.main import app
from swiftplug.errors import UserError
from tests import forks
from tests.sampling.conftest import Command, lines

DRAW = ["--num-return-sequences", "3", "--max-new-tokens", "12", "--orm", "length", "--set", "orm.length.max_chars=50"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run `swiftplug sample` in this process, which has imported torch already."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> None:
        assert app(["sample", *map(str, arguments)], standalone_mode=False) is None

    return run


def sampled(folder: Path) -> list[str]:
    return [it["messages"][-1]["content"] for it in lines(folder / "candidates.jsonl")]


def test_variables_of_a_row_reach_the_prompt_and_the_row_that_is_written(
    here: Callable[..., None], tmp_path: Path, tiny_model_dir: Path, write_jsonl: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without its variable the template has no prompt to write, and the row fails."""
    (tmp_path / "t.jinja").write_text(
        "{{ raise_exception('quiet is missing') if quiet is not defined }}{% for m in messages %}{{ m.content }}"
        "{{ m.thinking }}{% if m.role == 'assistant' and not m.thinking %}{{ raise_exception('no thought') }}"
        "{% endif %}{% endfor %}"
    )
    earlier = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "hm"}]
    row = {"messages": [*earlier, {"role": "user", "content": "q", "mood": "good"}], "tools": [{"name": "f"}]}
    rows = [{**row, "chat_template_kwargs": '{"quiet": true}'}, row]
    here(
        "--model",
        tiny_model_dir,
        "--dataset",
        write_jsonl(rows),
        *DRAW,
        "--set",
        "data.template=t.jinja",
        "--output-dir",
        "o",
    )
    assert [line["chat_template_kwargs"] for line in lines(tmp_path / "o/candidates.jsonl")] == [{"quiet": True}] * 3
    printed = capfd.readouterr()
    assert "quiet is missing" in printed.out + printed.err
    assert "2 messages have `mood`: not read" in printed.out + printed.err
    assert "1 row has `tools`: not read (--tools hermes" in printed.out + printed.err


def test_shards_and_a_killed_run_give_what_the_whole_gives(
    questions: Callable[..., Path],
    swiftplug: Command,
    here: Callable[..., None],
    tmp_path: Path,
    tiny_model_dir: Path,
) -> None:
    # Three prompts a batch, eleven rows: neither the batches nor the shards come out even.
    options = ["--model", tiny_model_dir, "--dataset", questions(11), *DRAW, "--set", "engine.batch_size=9"]
    swiftplug("--version")  # starts the server
    started = time.monotonic()
    done = swiftplug("sample", *options, "--output-dir", "whole")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    for shard in range(3):
        here(*options, "--output-dir", f"shard-{shard}", "--shard", f"{shard}/3")
    for file in ("candidates.jsonl", "samples.jsonl"):
        joined = b"".join((tmp_path / f"shard-{shard}" / file).read_bytes() for shard in range(3))
        assert joined == (tmp_path / "whole" / file).read_bytes()
    for share in (0.6, 0.8, 0.9):
        process = forks.start(tmp_path, "sample", *map(str, options), "--output-dir", "killed", "--resume")
        process.join(share * seconds)
        process.kill()
        process.join()
    done = swiftplug("sample", *options, "--output-dir", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    for file in ("candidates.jsonl", "samples.jsonl", "report.html"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The folder of a run that left a LoRA adapter which changes what the model answers."""
    folder = tmp_path_factory.mktemp("adapter")
    row = {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "aaaaaaaaaaaa"}]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 16)
    options = ["--model", tiny_model_dir, "--dataset", "rows.jsonl", "--tuner", "lora", "--output-dir", "run"]
    sets = ["training.learning_rate=0.1", "training.max_steps=12", "training.save_strategy=no"]
    done = forks.run("train", *options, *(f"--set={it}" for it in sets), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_an_adapter_is_loaded_onto_its_base_model(
    questions: Callable[..., Path],
    here: Callable[..., None],
    tmp_path: Path,
    tiny_model_dir: Path,
    adapter_run: Path,
) -> None:
    data = ["--dataset", questions(3), "--num-return-sequences", "2", "--max-new-tokens", "8"]
    (tmp_path / "peft").mkdir()
    for path in adapter_run.glob("adapter_*"):
        (tmp_path / "peft" / path.name).write_bytes(path.read_bytes())
    ways = {
        "base": ["--model", tiny_model_dir],
        "run": ["--model", adapter_run],
        "adapter": ["--adapter", adapter_run],
        "both": ["--model", tiny_model_dir, "--adapter", adapter_run],
        "peft": ["--model", tiny_model_dir, "--adapter", "peft"],
    }
    sampled_texts = {}
    for name, options in ways.items():
        here(*options, *data, "--output-dir", f"by-{name}")
        sampled_texts[name] = sampled(tmp_path / f"by-{name}")
    assert sampled_texts["run"] != sampled_texts["base"]
    assert sampled_texts["adapter"] == sampled_texts["both"] == sampled_texts["peft"] == sampled_texts["run"]


def test_a_tuner_of_a_file_loads_what_it_saved(
    questions: Callable[..., Path],
    swiftplug: Command,
    here: Callable[..., None],
    tmp_path: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tuners.py").write_text(
        "import torch\n"
        "from swiftplug.plugin import Tuner, register_tuner\n"
        "@register_tuner('bias')\n"
        "class Bias(Tuner):\n"
        "    @staticmethod\n"
        "    def prepare_model(args, model):\n"
        "        model.requires_grad_(False)\n"
        "        model.model.norm.weight.requires_grad_(True)\n"
        "        return model\n"
        "    @staticmethod\n"
        "    def save_pretrained(model, save_directory, state_dict=None, safe_serialization=True, **kw):\n"
        "        torch.save({'w': model.model.norm.weight.data * 0 + 7}, f'{save_directory}/norm.pt')\n"
        "    @staticmethod\n"
        "    def from_pretrained(model, model_id, **kw):\n"
        "        print('loading the norm of', model_id)\n"
        "        model.model.norm.weight.data = torch.load(f'{model_id}/norm.pt', weights_only=True)['w']\n"
        "        return model\n"
    )
    data = questions(4)
    trained = swiftplug(
        *("train", "--model", tiny_model_dir, "--dataset", data, "--plugin", "tuners.py", "--tuner", "bias"),
        *("--output-dir", "run", "--set", "training.max_steps=1"),
    )
    assert trained.returncode == 0, trained.stderr
    options = ["--dataset", data, "--num-return-sequences", "1", "--max-new-tokens", "4", "--output-dir", "samples"]
    with pytest.raises(UserError, match="file:bias"):
        here("--model", "run", *options)
    here("--model", "run", "--plugin", "tuners.py", *options, "--overwrite")
    assert "loading the norm of run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--adapter", "nowhere"], "nowhere"),
        ([], "--model"),
    ],
)
def test_a_model_that_is_not_there_is_named(
    questions: Callable[..., Path], here: Callable[..., None], options: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        here(*options, "--dataset", questions(2), "--output-dir", "run")
