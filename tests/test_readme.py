"""What README tells can be done as it stands."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.plugin.registry import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "plugins_example/README.md"]


def block(language: str, holding: str) -> str:
    (found,) = (it for it in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holding in it)
    return str(found)


def test_the_plugin_trains_with_the_command_behind_it(tmp_path: Path, tiny_model_dir: Path, write_jsonl: Any) -> None:
    (tmp_path / "my_plugins.py").write_text(block("python", "register_loss_func"))
    command = block("bash", "--plugin my_plugins.py").split()
    rows = [{"prompt": "1 + 1 =", "completion": " 2"}, {"prompt": "2 + 2 =", "completion": " 4"}]
    settings = ["--dataset", write_jsonl(rows), "--output-dir", "run", "--set", "training.max_steps=1"]
    line = [sys.executable, "-m", *command, "--model", tiny_model_dir, *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = {it["name"]: it["options"] for it in json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]}
    assert used["file:poly"] == {"epsilon": 2.0}
    assert used["file:nesterov"] == {}


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_plugin_ends_as_well_as_the_quickstart(tmp_path: Path) -> None:
    (tmp_path / "my_plugins.py").write_text(block("python", "register_loss_func"))
    line = [sys.executable, "-m", *block("bash", "--plugin my_plugins.py").split()]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "runs/quickstart/log.jsonl").read_text().splitlines()]
    assert [entry["eval_exact_match"] for entry in log if "eval_exact_match" in entry][-1] >= 0.8


def test_the_config_is_one(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(block("yaml", "output_dir"))
    config = load_train_config(str(path), {}, []).config
    assert config.training == {"learning_rate": 1e-4, "num_train_epochs": 1}
    assert [metric.name for metric in config.metrics] == ["acc", "nlg"]


def test_the_table_has_every_kind() -> None:
    options = set(re.findall(r"^\| [a-z ]+ \| `(--[a-z-]+)` \|", README, re.MULTILINE))
    assert options == {kind.option for kind in KINDS.values()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not (folder / link).exists()] == []


def test_a_package_index_shows_it_without_links_that_lead_nowhere() -> None:
    shown = importlib.metadata.metadata("swiftplug")["Description"]
    assert "\nplugins_example has one plugin of every kind" in shown
    assert set(re.findall(r"\]\(([^)]*)\)", shown)) == set(re.findall(r"\]\((https:[^)]*)\)", README))
