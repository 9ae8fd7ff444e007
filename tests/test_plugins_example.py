"""The example distribution: found, checked, and used by runs of the real command line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftplug.cli.main import app
from swiftplug.plugin.registry import KINDS
from tests import forks

EXAMPLE = Path(__file__).parents[1] / "plugins_example"
DISTRIBUTION = "swiftplug-plugins-example"
TOOL = {"name": "dice", "description": "Roll it.", "parameters": {"properties": {"times": {"type": "integer"}}}}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} and {n}?"},
            {"role": "assistant", "content": f"{n} + {n} = {2 * n}, I think"},
        ],
        "tools": [TOOL],
    }
    for n in range(3, 9)
]


def swiftplug(*arguments: object, cwd: Path) -> str:
    """Run the command and return what it printed."""
    done = forks.run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sets(**settings: object) -> list[str]:
    return [f"--set=training.{key}={value}" for key, value in settings.items()]


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_every_kind_is_there_once_with_two_tasks_and_none_takes_the_name_of_a_built_in(tmp_path: Path) -> None:
    listed = json.loads(swiftplug("list-plugins", "--json", cwd=tmp_path))
    ours = {(it["kind"], it["name"]) for it in listed if it["distribution"] == DISTRIBUTION}
    theirs = {(it["kind"], it["name"]) for it in listed if it["distribution"] == "swiftplug"}
    assert sorted(kind for kind, _ in ours) == sorted([*KINDS, "task"])
    assert {("loss", "custom_loss"), ("optimizer", "custom"), ("task", "dpo_positive")} < ours
    assert not ours & theirs


def test_every_one_fits_its_contract(tmp_path: Path) -> None:
    checked = json.loads(swiftplug("list-plugins", "--check", "--json", cwd=tmp_path))
    assert [it["status"] for it in checked if it["distribution"] == DISTRIBUTION] == ["fits"] * (len(KINDS) + 1)


def test_optimizer_and_loss_act_on_the_quickstart(tmp_path: Path) -> None:
    printed = swiftplug(
        *("train", "--optimizer", "custom", "--loss", "custom_loss", "--output-dir", "run"),
        *("--set=loss.z=0.125", "--set=optimizer.lr_scale=0.5", "--set=metrics=[]"),
        *sets(max_steps=3, logging_steps=1, eval_strategy="no", save_strategy="no"),
        cwd=tmp_path,
    )
    assert "custom: Lion, lr " in printed
    assert printed.count("custom_loss: cross entropy + 0.125 * log(Z)^2") == 1
    used = {it["name"]: it["options"] for it in json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]}
    assert used[f"{DISTRIBUTION}:custom_loss"]["z"] == 0.125
    assert used[f"{DISTRIBUTION}:custom"]["lr_scale"] == 0.5


def test_a_step_of_the_optimizer_moves_every_weight_by_the_same(
    tmp_path: Path, tiny_model_dir: Path, write_jsonl: Any
) -> None:
    swiftplug(
        *("train", "--model", tiny_model_dir, "--dataset", write_jsonl(ROWS), "--output-dir", "run"),
        *("--optimizer", "custom"),
        *sets(learning_rate=0.01, max_steps=1, lr_scheduler_type="constant", max_grad_norm=0),
        cwd=tmp_path,
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model_dir, tmp_path / "run"))
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    moved = moved[moved != 0]
    assert len(moved) > 1000
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01 * 0.3), rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run with seven kinds, resumed from its middle; `whole`, next to it, is a copy of the run before that."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    line = [
        *("train", "--model", tiny_model_dir, "--dataset", "data.jsonl", "--eval-dataset", "data.jsonl"),
        *("--output-dir", "run", "--optimizer", "custom", "--loss", "custom_loss", "--loss-scale", "digits"),
        *("--metric", "topk", "--tuner", "bitfit", "--callback", "progress_file", "--tools", "python_stubs"),
        *("--set=metrics.topk.k=3", "--set=loss_scale.weight=4", "--set=loss.z=0.01"),
        *sets(max_steps=6, save_steps=3, logging_steps=1, learning_rate=0.1, per_device_train_batch_size=2),
        *sets(eval_on_start="true", max_grad_norm=0),
    ]
    swiftplug(*line, cwd=folder)
    shutil.copytree(folder / "run", folder / "whole")
    for path in (folder / "run").iterdir():
        if path.name not in ("checkpoint-3", "config.yaml", "run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    printed = swiftplug(*line, "--resume", cwd=folder)
    assert "checkpoint-3" in printed
    return folder / "run"


def test_the_tuner_trains_norms_only_and_resumes_bit_for_bit(run: Path) -> None:
    whole, resumed = (load_file(folder / "bitfit.safetensors") for folder in (run.parent / "whole", run))
    assert len(whole) == 5
    assert all("norm" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(not torch.equal(weight, torch.ones_like(weight)) for weight in whole.values())
    assert not list(run.glob("**/model.safetensors"))


def test_the_callback_keeps_its_best_loss_through_the_resume(run: Path) -> None:
    losses = [entry["loss"] for entry in log_of(run.parent / "whole") if "loss" in entry]
    for folder in (run.parent / "whole", run):
        progress = json.loads((folder / "progress.json").read_text())
        assert progress == {"step": 6, "of": 6, "loss": losses[-1], "best_loss": min(losses)}


def test_loss_weights_tools_and_metric_are_those_of_the_plugins(run: Path, tiny_model_dir: Path) -> None:
    """The first evaluation, done again with plain Transformers from the text up; a token is a character."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    stub = "def dice(times: int): ...  # Roll it."
    system = f"Call these Python functions, one call a line:\n```python\n{stub}\n```"
    losses, hits = [], []
    for row in ROWS:
        query, answer = (message["content"] for message in row["messages"])
        turns = [{"role": "system", "content": system}, {"role": "user", "content": query}]
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(head).input_ids)
        ids = tokenizer(head + answer + "<|im_end|>", return_tensors="pt").input_ids[0]
        with torch.no_grad():
            logits = model(ids[None]).logits[0].double()
        weights = [4.0 if letter.isdigit() else 1.0 for letter in answer]
        for position, weight in zip(range(start, len(ids)), [*weights, weights[-1]], strict=True):
            scores, target = logits[position - 1], ids[position]
            log_z = float(scores.logsumexp(-1))
            losses.append(weight * (log_z - float(scores[target]) + 0.01 * log_z**2))
            hits.append(bool(target in scores.topk(3).indices))
    first = next(entry for entry in log_of(run.parent / "whole") if "eval_loss" in entry)
    assert first["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert first["eval_top3_acc"] == pytest.approx(np.mean(hits))


def test_a_model_and_a_dataset_of_plugins_train(tmp_path: Path) -> None:
    options = ["--set=model.hidden_size=32", "--set=model.num_heads=2", "--set=dataset.backwards.size=40"]
    line = ["train", "--model", "byte_llama", "--dataset", "backwards", *options, *sets(max_steps=4, save_steps=2)]
    line += ["--output-dir", "run"]
    assert "train: 40 of 40 rows" in swiftplug(*line, cwd=tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run").config
    assert (config.hidden_size, config.num_attention_heads) == (32, 2)
    (tmp_path / "run" / "model.safetensors").rename(tmp_path / "whole.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert "checkpoint-2" in swiftplug(*line, "--resume", cwd=tmp_path)
    one, other = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_engine_of_plugins_samples_what_its_file_knows(tmp_path: Path, write_jsonl: Any) -> None:
    asked = [{"messages": [{"role": "user", "content": f"What is {n} and {n}, please?"}]} for n in range(3, 9)]
    asked[0]["messages"].append({"role": "assistant", "content": "6"})
    line = [
        *("sample", "--engine", "similar_question", f"--set=engine.file={write_jsonl(ROWS)}"),
        *("--dataset", write_jsonl(asked, "asked.jsonl"), "--num-return-sequences", 3, "--temperature"),
    ]
    swiftplug(*line, 0, "--output-dir", "nearest", cwd=tmp_path)
    nearest = [json.loads(it) for it in (tmp_path / "nearest" / "candidates.jsonl").read_text().splitlines()]
    assert [it["messages"][-1]["content"] for it in nearest] == [
        f"{n} + {n} = {2 * n}, I think" for n in range(3, 9) for _ in range(3)
    ]
    swiftplug(*line, 1, "--output-dir", "drawn", cwd=tmp_path)
    for part in (0, 1):
        swiftplug(*line, 1, "--output-dir", f"part{part}", "--shard", f"{part}/2", cwd=tmp_path)
    texts = [(tmp_path / run / "candidates.jsonl").read_text() for run in ("drawn", "part0", "part1")]
    assert texts[0] == texts[1] + texts[2]
    assert len({json.loads(it)["messages"][-1]["content"] for it in texts[0].splitlines()}) > 3


def test_the_plugin_of_the_page_for_authors_works_as_it_stands(
    tmp_path: Path, tiny_model_dir: Path, write_jsonl: Any
) -> None:
    page = (EXAMPLE / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_plugins.py").write_text(snippet)
    (command,) = re.findall(r"^swiftplug train (--plugin my_plugins.py .*)$", page, re.MULTILINE)
    swiftplug(
        *("train", *command.split(), "--model", tiny_model_dir, "--dataset", write_jsonl(ROWS)),
        *("--output-dir", "run", *sets(max_steps=1)),
        cwd=tmp_path,
    )
    used = {it["name"]: it["options"] for it in json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]}
    assert used["file:poly"] == {"epsilon": 0.5}


def test_the_package_of_the_page_for_authors_builds_beside_the_folders_of_runs(tmp_path: Path) -> None:
    page = (EXAMPLE / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (project,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(project)
    for folder in ("my_plugins", "runs/quickstart", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "my_plugins/__init__.py").touch()
    (tmp_path / "my_plugins/loss.py").write_text(snippet.replace('@register_loss_func("poly")\n', ""))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    with ZipFile(*tmp_path.glob("*.whl")) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == {
            "my_plugins/__init__.py",
            "my_plugins/loss.py",
        }
        (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "poly = my_plugins.loss:poly" in wheel.read(entry_points).decode()


def test_the_tasks_train_on_pairs(tmp_path: Path, tiny_model_dir: Path, write_jsonl: Any) -> None:
    """The objective on pairs that `sample` writes, and the other task on the same ones, taken apart."""
    data = write_jsonl([{**row, "rejected_response": "I do not know"} for row in ROWS])
    for task, option, logged in [
        ("dpo_positive", "penalty=5", {"rewards/accuracies", "rewards/margins"}),
        ("unlikelihood", "alpha=0.5", {"logps/good", "logps/bad"}),
    ]:
        line = ["train", "--task", task, "--model", tiny_model_dir, "--dataset", data, "--output-dir", tmp_path / task]
        line += [
            f"--set=task.{option}",
            *sets(learning_rate=0.01, max_steps=8, logging_steps=1, per_device_train_batch_size=12),
        ]
        assert not app([str(each) for each in line], standalone_mode=False)
        first, *_, last = (entry for entry in log_of(tmp_path / task) if "loss" in entry)
        assert logged < first.keys()
        assert last["loss"] < first["loss"]
