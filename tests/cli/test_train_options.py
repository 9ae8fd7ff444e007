"""What `swiftplug train` makes of its command line, and how it ends when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from swiftplug.cli.run_options import RunRequest, takes_run_options
from swiftplug.config.load import load_sample_config, load_train_config, to_yaml
from swiftplug.config.schema import RunConfig, SampleConfig, TrainConfig

# A training that writes down how it was called, or fails on request, so that no test waits for torch.
TRAINING = """
import errno, json, os, sys, types
def train(config, **options):
    if failure:
        exec(failure)
    print(json.dumps({{"config": config.model_dump(), "options": options, "torch": "torch" in sys.modules}}))
failure = {failure!r}
module = types.ModuleType("swiftplug.training.run")
module.train = train
sys.modules["swiftplug.training.run"] = module
from swiftplug.cli.main import main
main()
"""
INPUT = ["--model", "m", "--dataset", "d.jsonl"]


def train(
    *arguments: str, cwd: Path, failure: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAINING.format(failure=failure), "train", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of stderr; nothing else was printed."""
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    return line


def parsed(*arguments: str, schema: type[RunConfig] = TrainConfig) -> dict[str, Any]:
    """The config that a command line stands for, by the options that follow from a schema."""
    app = typer.Typer()
    load = load_train_config if schema is TrainConfig else load_sample_config

    @app.command()
    @takes_run_options(schema, "seed=1")
    def show(request: RunRequest) -> None:
        print(to_yaml(load(request.path, request.options, request.sets).config))

    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    return config


class TestOptions:
    def test_every_option_reaches_its_key(self) -> None:
        config = parsed(
            *("--task", "pt", "--model", "m", "--dataset", "a#5", "--dataset", "b", "--eval-dataset", "c"),
            *("--output-dir", "out", "--loss", "l", "--loss-scale", "all+react", "--metric", "acc", "--metric", "nlg"),
            *("--optimizer", "o", "--tools", "t", "--tuner", "u", "--callback", "x", "--callback", "y"),
            *("--plugin", "p.py", "--plugin", "q.py", "--template", "chat.jinja"),
            *("--set", "tuner.r=8", "--set", "metrics.nlg.n=1e-1", "--set", "training.learning_rate=1e-4"),
        )
        assert config["task"] == "pt" and config["model"] == "m" and config["output_dir"] == "out"
        assert config["dataset"] == ["a#5", "b"] and config["eval_dataset"] == ["c"]
        assert (config["loss"], config["loss_scale"], config["optimizer"], config["tools"]) == (
            "l",
            "all+react",
            "o",
            "t",
        )
        assert config["tuner"] == {"name": "u", "r": 8}
        assert config["metrics"] == ["acc", {"name": "nlg", "n": 0.1}]
        assert config["callbacks"] == ["x", "y"]
        assert config["plugins"]["files"] == ["p.py", "q.py"]
        assert config["data"]["template"] == "chat.jinja"
        assert config["training"] == {"learning_rate": 0.0001}

    def test_every_option_of_sampling_reaches_its_key(self) -> None:
        config = parsed(
            *("--model", "m", "--adapter", "a", "--dataset", "d#5", "--system", "Be brief.", "--shard", "0/3"),
            *("--engine", "e", "--orm", "math", "--orm", "format", "--prm", "p", "--tools", "t", "--plugin", "p.py"),
            *("--num-return-sequences", "4", "--max-new-tokens", "9", "--temperature", "0", "--top-p", "0.5"),
            *("--top-k", "0", "--include-reference", "--n-best-to-keep", "2", "--prm-threshold", "-1.5"),
            *("--prm-reduce", "mean", "--easy-query-threshold", "0.9", "--output-dir", "out"),
            *("--set", "orm.math.weight=2", "--set", "engine.batch_size=8", "--set", "top_k=5"),
            schema=SampleConfig,
        )
        assert (config["model"], config["adapter"], config["dataset"]) == ("m", "a", ["d#5"])
        assert (config["system"], config["shard"], config["tools"]) == ("Be brief.", "0/3", "t")
        assert config["engine"] == {"name": "e", "batch_size": 8}
        assert (config["orm"], config["prm"]) == ([{"name": "math", "weight": 2.0}, "format"], ["p"])
        assert config["plugins"]["files"] == ["p.py"]
        assert (config["num_return_sequences"], config["max_new_tokens"], config["n_best_to_keep"]) == (4, 9, 2)
        assert (config["temperature"], config["top_p"], config["top_k"]) == (0.0, 0.5, 0)
        assert config["include_reference"] is True
        assert (config["prm_threshold"], config["prm_reduce"], config["easy_query_threshold"]) == (-1.5, "mean", 0.9)
        assert config["output_dir"] == "out"

    def test_an_option_that_is_not_given_changes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "sample.yaml"
        path.write_text("model: m\ndataset: d\ninclude_reference: true\ntop_k: 5\nnum_return_sequences: 3\n")
        config = parsed(str(path), "--top-k", "0", schema=SampleConfig)
        assert (config["include_reference"], config["top_k"], config["num_return_sequences"]) == (True, 0, 3)

    def test_options_beat_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "train.yaml"
        path.write_text("model: m\ndataset: d\nloss: {name: focal, gamma: 3}\nmetrics: [acc]\n")
        assert parsed(str(path))["loss"] == {"name": "focal", "gamma": 3}
        config = parsed(str(path), "--loss", "dft", "--metric", "nlg")
        assert (config["loss"], config["metrics"]) == ("dft", ["nlg"])

    def test_a_request_can_be_written_as_a_command_line_again(self) -> None:
        given = ["c.yaml", "--dataset=a", "--dataset=b", "--plugin=p.py", "--task=pt", "--metric=m", "--set=a.b=[1, 2]"]
        app = typer.Typer()

        @app.command()
        @takes_run_options(TrainConfig, "seed=1")
        def show(request: RunRequest) -> None:
            assert request.arguments() == [*given, "--debug"]

        assert CliRunner().invoke(app, [*given, "--debug"]).exit_code == 0

    def test_flags_reach_the_training(self, tmp_path: Path) -> None:
        plain = yaml.safe_load(train(*INPUT, cwd=tmp_path).stdout)
        assert plain["options"] == {
            "resume": False,
            "overwrite": False,
            "allow_changed_plugins": False,
            "dry_run": False,
        }
        assert plain["config"]["output_dir"] == "runs/sft"
        assert not plain["torch"]
        flags = ["--resume", "--overwrite", "--dry-run", "--allow-changed-plugins"]
        assert set(yaml.safe_load(train(*INPUT, *flags, cwd=tmp_path).stdout)["options"].values()) == {True}

    def test_quickstart_says_that_it_is_one(self, tmp_path: Path) -> None:
        left = "os.makedirs('runs/quickstart'); open('runs/quickstart/log.jsonl', 'w').close()"
        first, second, last = train("--loss", "custom_loss", cwd=tmp_path, failure=left).stdout.splitlines()
        assert "quickstart" in first
        assert last.startswith("Next: swiftplug sample   #")
        config = yaml.safe_load(second)["config"]
        assert config["loss"]["name"] == "custom_loss" and config["output_dir"] == "runs/quickstart"
        for given in (["--output-dir", "r u"], ["--set", "output_dir='r u'"]):  # where `sample` alone does not look
            last = train(*given, cwd=tmp_path).stdout.splitlines()[-1]
            assert last.startswith("Next: swiftplug sample --model 'r u' --dataset 'arithmetic#300' --orm math   #")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["--modle", "m"], "error: no such option: --modle; did you mean '--model'?"),
            (["a.yaml", "b.yaml"], "error: got unexpected extra argument"),
            (["--nproc", "0"], "error: invalid value for '--nproc': "),
            (["--model"], "error: option '--model' requires an argument."),
            (["missing.yaml"], "error: missing.yaml: no such config"),
            (["--model", "m"], "error: no dataset; "),
            (["--set", "trainng.x=1"], "error: --set trainng.x=1: unknown key 'trainng'; did you mean 'training'?"),
            (["--task", "stf"], "error: --task: there is no task 'stf'; did you mean 'sft'?"),
            (["--task", "reward"], "error: --task: there is no task 'reward'; did you mean 'rm'?"),
            (["--task", "ipo"], "error: --task: there is no task 'ipo'; it is a loss_type of dpo: --task dpo --set "),
            (["--task", "GRPO"], "error: --task: there is no task 'GRPO'; did you mean 'grpo'?"),
        ],
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, arguments: list[str], line: str, tmp_path: Path) -> None:
        done = train(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert only_error(done).startswith(line)
        assert list(tmp_path.iterdir()) == []

    def test_nearest_command(self, tmp_path: Path) -> None:
        done = subprocess.run([sys.executable, "-m", "swiftplug", "trian"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, "error: no such command 'trian'; did you mean 'train'?\n")

    def test_a_value_that_is_not_in_a_list(self) -> None:
        done = subprocess.run([sys.executable, "-m", "swiftplug", "schema", "tran"], capture_output=True, text=True)
        line = "error: invalid value for 'train|sample': 'tran' is not one of 'train', 'sample'"
        assert (done.returncode, done.stderr) == (2, f"{line}; did you mean 'train'?\n")

    @pytest.mark.parametrize(
        ("failure", "code", "line"),
        [
            ("raise ZeroDivisionError('by\\nzero')", 1, "error: unexpected ZeroDivisionError: by zero (run again with"),
            ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'x.bin')", 1, "error: the disk is full: "),
            (
                "try:\n  raise OSError(errno.ENOSPC, 'x')\nexcept OSError:\n  raise RuntimeError('cannot write')",
                1,
                "error: the disk is full: cannot write",
            ),
            ("raise ValueError('I/O error: No space left on device')", 1, "error: the disk is full: "),
            ("raise KeyboardInterrupt", 130, "error: interrupted"),
            ("try:\n  raise KeyboardInterrupt\nexcept BaseException:\n  raise ImportError('x')", 130, "error: inter"),
            ("from swiftplug.errors import UserError; raise UserError('a: b')", 2, "error: a: b"),
        ],
    )
    def test_what_goes_wrong_later_is_one_line(self, failure: str, code: int, line: str, tmp_path: Path) -> None:
        done = train(*INPUT, cwd=tmp_path, failure=failure)
        assert done.returncode == code
        assert only_error(done).startswith(line)

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        done = train(*INPUT, "--debug", cwd=tmp_path, failure="raise ZeroDivisionError('by zero')")
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback")
        assert done.stderr.splitlines()[-1] == "ZeroDivisionError: by zero"

    def test_one_process_of_a_launch_prints_what_all_found(self, tmp_path: Path) -> None:
        ranks = [train("--set", "x", cwd=tmp_path, environment={"LOCAL_RANK": str(rank)}) for rank in (0, 1)]
        assert [done.returncode for done in ranks] == [2, 2]
        assert [len(done.stderr.splitlines()) for done in ranks] == [1, 0]

    def test_what_only_one_process_found_names_it(self, tmp_path: Path) -> None:
        done = train(*INPUT, cwd=tmp_path, failure="raise ValueError('x')", environment={"LOCAL_RANK": "3"})
        assert only_error(done).startswith("error (process 3): unexpected ValueError: x")


class TestProcesses:
    def test_exit_code_and_output_are_those_of_the_command(self, tmp_path: Path) -> None:
        code = "from swiftplug.cli.process import run_in_processes\nraise SystemExit(run_in_processes(2, {}))"

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", code.format(list(arguments))]
            return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

        good = run("--version")
        assert (good.returncode, len(good.stdout.splitlines()), good.stderr) == (0, 2, "")
        bad = run("train", "--set", "x")
        assert bad.returncode == 2
        assert bad.stderr.splitlines() == ["error: --set x: expected KEY=VALUE, such as training.learning_rate=1e-4"]

    def test_a_process_of_a_launch_launches_no_more(self, tmp_path: Path) -> None:
        done = train(*INPUT, "--nproc", "2", cwd=tmp_path, environment={"LOCAL_RANK": "0", "WORLD_SIZE": "2"})
        assert done.returncode == 2
        assert "--nproc" in only_error(done)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
class TestAllocator:
    # mallinfo2 is glibc's own account: `hblks` counts the blocks that are mapped one by one.
    CODE = """
import ctypes
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
from swiftplug.cli.process import keep_freed_memory
before = libc.mallinfo2().hblks
done = keep_freed_memory()
block = libc.malloc(1 << 28)
mapped = libc.mallinfo2().hblks - before
libc.free(block)
print(done, mapped, libc.mallinfo2().arena >= 1 << 28)
"""

    def ask(self, **environment: str) -> str:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", self.CODE], capture_output=True, text=True, env={**clean, **environment}
        )
        return done.stdout.strip()

    def test_large_blocks_come_from_the_heap_and_stay_there(self) -> None:
        assert self.ask() == "True 0 True"

    @pytest.mark.parametrize(
        "environment", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}], ids=str
    )
    def test_what_the_user_set_up_stays(self, environment: dict[str, str]) -> None:
        assert self.ask(**environment) == "False 1 False"


def test_ctrl_c_ends_the_command_while_libraries_are_imported() -> None:
    """Some of them catch whatever is raised then."""
    code = (
        "import os, signal\nfrom swiftplug.cli.process import loading_libraries, stop_on_signals\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\nstop_on_signals()\n"
        "with loading_libraries():\n  try:\n    os.kill(os.getpid(), 2)\n  except BaseException:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
