"""Several machines train as one: here two launchers on one, which meet on loopback as those of two machines do."""

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import forks

LAUNCHER = "from torch.distributed.run import main\n\nmain()\n"


def free_port() -> str:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return str(port.getsockname()[1])


@pytest.fixture
def command(tiny_model_dir: Path, pair_file: Path) -> list[str]:
    sets = {"optim": "sgd", "learning_rate": 1, "max_steps": 3, "save_steps": 2, "logging_steps": 1}
    sets |= {"per_device_train_batch_size": 2, "use_cpu": True}
    names = [f"--model={tiny_model_dir}", f"--dataset={pair_file}#12"]
    return ["train", *names, *(f"--set=training.{key}={json.dumps(value)}" for key, value in sets.items())]


def test_two_launchers_give_the_run_of_one_process(command: list[str], tmp_path: Path) -> None:
    one = forks.run(
        *(*command, "--output-dir=one", "--set=training.gradient_accumulation_steps=2"),
        cwd=tmp_path,
        SWIFTPLUG_CACHE=f"{tmp_path}/cache",
    )
    assert one.returncode == 0, one.stderr
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    launchers = [
        forks.start(
            tmp_path,
            *(*meeting, "--rdzv-id=x", "-m", "swiftplug", *command, "--output-dir=two"),
            stdout=f"out-{machine}",
            stderr=f"err-{machine}",
            script=str(script),
        )
        for machine in range(2)
    ]
    for launcher in launchers:
        launcher.join(250)
        assert launcher.exitcode == 0, [path.read_text() for path in tmp_path.glob("err-*")]
    said = [(tmp_path / f"out-{machine}").read_text() for machine in range(2)]
    assert sorted(text.count("finished in") for text in said) == [0, 1]
    assert "" in said  # the second machine has nothing to say
    losses = [
        [line["loss"] for line in map(json.loads, (tmp_path / name / "log.jsonl").open()) if "loss" in line]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "two/checkpoint-2").glob("rng*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]


def test_a_folder_that_is_not_shared_is_refused(command: list[str], tmp_path: Path) -> None:
    """Each machine has a disk of its own under the same name."""
    group = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "SWIFTPLUG_CACHE": f"{tmp_path}/cache"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    disks = [tmp_path / "first", tmp_path / "second"]
    machines = []
    for rank, disk in enumerate(disks):
        disk.mkdir()
        options = [*command, "--output-dir=runs/x"]
        machines.append(forks.start(disk, *options, environment={**group, "RANK": str(rank)}))
    for machine, disk in zip(machines, disks, strict=True):
        machine.join(100)
        assert machine.exitcode == 2
        host = socket.gethostname()
        assert (disk / "output.txt").read_text().splitlines()[-1] == (
            f"error: output_dir: runs/x is not one folder for all machines: process 1 on {host} does not see what "
            f"process 0 on {host} wrote there; name a folder on a disk that they share"
        )
        assert [path.name for path in disk.iterdir() if path.name != "runs"] == ["output.txt"]
        assert not (disk / "runs/x").exists()
