"""The benchmark for a GPU, every line of which also runs on a CPU, in a tiny shape."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests import forks

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


def forked(command: list[str], folder: Path, environment: Mapping[str, str], timeout: float) -> tuple[int, str]:
    """Run a command of the benchmark as it does itself, but without importing PyTorch and Transformers each time."""
    words = command[1:]
    script = words.pop(0) if words[0] != "-m" else ""
    arguments = words if script else words[2:]
    process = forks.start(folder, *arguments, stdout="output", stderr="output", environment=environment, script=script)
    process.join(timeout)
    assert process.exitcode is not None
    return process.exitcode, (folder / "output").read_text()


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu.main(["--tiny", f"--json={tmp_path / 'gpu.json'}", "--minutes=4"], forked)
    table = capsys.readouterr().out
    assert code == 0, table
    rows = {row["name"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert sum("ok" in row for row in rows.values()) == 4
    for tuner in ("lora", "full"):
        ours, theirs = rows[f"swiftplug {tuner}"], rows[f"TRL {tuner}"]
        assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=0.01)
        assert ours["last_loss"] < ours["first_loss"]
    for name in ("swiftplug sample", "generate"):
        assert rows[name]["tokens_per_second"] > 0
    for name in ("swiftplug grpo", "TRL grpo"):
        assert rows[name]["seconds_per_step"] > 0
        assert re.search(f"^{name} .* {rows[name]['seconds_per_step']:.2f} ", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("minutes", "said"), [("1", "failed: error: out of memory"), ("0", "not measured: the time was up")]
)
def test_what_is_not_measured_is_said(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], minutes: str, said: str
) -> None:
    options = ["--tiny", f"--json={tmp_path / 'gpu.json'}", f"--minutes={minutes}", "--only=generate|resume"]
    assert gpu.main(options, lambda *_: (1, "Traceback\nerror: out of memory\n\n")) == 1
    assert re.findall(f"^(.*?)  +{said}$", capsys.readouterr().out, re.MULTILINE) == ["resume", "generate"]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows == [{"name": "resume", "failed": said}, {"name": "generate", "failed": said}]
