"""Encoded datasets are made once, used only when nothing changed, and complete or not there."""

import errno
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console
from transformers import AutoTokenizer

import swiftplug
from swiftplug.builtin.tasks.language import Pretraining, SupervisedFineTuning
from swiftplug.config.schema import DataOptions
from swiftplug.data import prepare
from swiftplug.data.prepare import prepare_data
from swiftplug.data.read.report import SplitReport
from swiftplug.data.store import EncodedStore
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.console import RunProgress

PT, SFT = Pretraining(), SupervisedFineTuning()

# Counts its calls in a file, so that a test sees whether rows were encoded or read from the cache.
COUNTING = """
import os, signal, time
from pathlib import Path
from swiftplug.plugin import LossScale, register_loss_scale

@register_loss_scale("counting")
class Counting(LossScale):
    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        with Path(os.environ["COUNT"]).open("a") as file:
            file.write("x")
        if "deadly" in context and "DEADLY" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SLOW", 0)))
        parts, weights = super().get_loss_scale(context, context_type, is_last_round)
        return parts, [weight * self.factor for weight in weights]
"""

ROWS = [{"prompt": f"q {n}", "completion": f"answer {n}{' deadly' if n == 700 else ''}"} for n in range(1100)]


class Bench:
    """Calls `prepare_data` with a loss scale that counts its calls, here or in a process of its own."""

    def __init__(self, folder: Path, model: Path, dataset: Path) -> None:
        self.folder, self.cache, self.dataset, self.model = folder, folder / "cache", dataset, model
        self.plugin = folder / "counting.py"
        self.plugin.write_text(COUNTING)
        self.counted = folder / "count"
        os.environ["COUNT"] = str(self.counted)

    def run(
        self,
        dataset: str | None = None,
        template: str | None = None,
        task: Any = SFT,
        scale: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[list[list[int]], list[str]]:
        """The ids of the examples and the lines of the report."""
        registry = Registry.discover(files=[self.plugin])
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        tokenizer.chat_template = template or tokenizer.chat_template
        counting = PluginChoice(name="counting", options=scale or {})
        data = prepare_data(
            dataset=[PluginChoice(name=dataset or str(self.dataset))],
            registry=registry,
            tokenizer=tokenizer,
            tools=registry.resolve("tools", PluginChoice(name="template"), "tools"),
            loss_scales=[registry.resolve("loss_scale", counting, "loss_scale")],
            task=task,
            options=DataOptions(**{"cache_dir": str(self.cache), **options}),
            seed=42,
            progress=RunProgress(Console(quiet=True)).start,
        )
        return data.train.with_format(None)[:]["input_ids"], data.report.lines()

    def start(self, env: dict[str, str], file_size: int | None = None, **given: Any) -> ForkProcess:
        """Run it in a process of its own, which writes its error to `error`."""

        def target() -> None:
            os.environ.update(env)
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            try:
                self.run(**given)
            except UserError as error:
                self.error.write_text(str(error))
                os._exit(2)

        process = multiprocessing.get_context("fork").Process(target=target)
        process.start()
        return process

    @property
    def error(self) -> Path:
        return self.folder / "error"

    def calls(self) -> int:
        """The calls since this was last asked."""
        count = self.counted.stat().st_size if self.counted.exists() else 0
        self.counted.unlink(missing_ok=True)
        return count

    def entries(self) -> list[Path]:
        return [each for each in self.cache.iterdir() if each.is_dir()]


@pytest.fixture
def bench(
    tmp_path: Path, tiny_model_dir: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv("COUNT", "")  # is put back after the test
    return Bench(tmp_path, tiny_model_dir, write_jsonl(ROWS))


def test_nothing_is_encoded_twice(bench: Bench) -> None:
    ids, lines = bench.run()
    assert bench.calls() >= len(ROWS)
    sames: list[dict[str, Any]] = [{}, {"num_proc": 2}, {"packing": True}, {"too_long": "drop"}]
    for same in sames:
        assert bench.run(**same)[1][0] == lines[0]
        assert bench.calls() == 0, same
    assert bench.run() == (ids, lines)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": {"factor": 2.0}},
        {"max_length": 1000},
        {"too_long": "truncate"},
        {"columns": {"completion": "chosen"}},
        {"template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"},
        {"task": PT},
    ],
)
def test_every_change_is_seen(bench: Bench, change: dict[str, Any]) -> None:
    bench.dataset.write_text(json.dumps(ROWS[0]))
    bench.run()
    bench.calls()
    bench.run(**change)
    assert bench.calls() > 0


def test_a_change_of_the_code_that_encodes_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(swiftplug.__file__).parent
    assert all(list(package.glob(pattern)) for pattern in prepare.CODE)
    bench.dataset.write_text(json.dumps(ROWS[0]))
    bench.run()
    bench.calls()
    monkeypatch.setattr(prepare, "CODE", (*prepare.CODE, "errors.py"))
    bench.run()
    assert bench.calls() > 0


def test_changes_of_files_are_seen(bench: Bench) -> None:
    ids, _ = bench.run()
    once = bench.calls()
    bench.plugin.write_text(COUNTING + "\n# another version\n")
    assert bench.run()[0] == ids
    assert bench.calls() == once
    bench.dataset.write_text(bench.dataset.read_text().replace("q 5", "q X"))
    assert bench.run()[0] != ids
    assert bench.calls() == once
    assert bench.run(dataset=f"{bench.dataset}#700")[0] == bench.run()[0][:700]


def test_killed_while_writing(bench: Bench) -> None:
    process = bench.start(env={"DEADLY": "1"})
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (part,) = bench.entries()
    assert part.suffix == ".part"
    assert (part / "rows.arrow").stat().st_size > 0, "it was killed before it wrote, and the test is none"
    bench.calls()
    assert len(bench.run()[0]) == len(ROWS)
    assert bench.calls() >= len(ROWS)
    assert len(bench.entries()) == 1


def test_what_a_killed_run_left_is_removed_by_another(bench: Bench) -> None:
    bench.start(env={"DEADLY": "1"}).join()
    (part,) = bench.entries()
    bench.run(max_length=1000)
    assert not part.exists()


def test_a_worker_that_dies_is_reported(bench: Bench) -> None:
    process = bench.start(env={"DEADLY": "1"}, num_proc=2)
    process.join()
    assert process.exitcode == 2
    assert bench.error.read_text() == (
        "data.num_proc: one of the 2 processes that encode rows was killed by SIGKILL "
        "(as the system does when memory runs out)"
    )
    assert bench.entries() == []


@pytest.mark.parametrize("file", ["rows.arrow", "report.json"])
def test_a_torn_entry_is_made_again(bench: Bench, file: str) -> None:
    first = bench.run()
    bench.calls()
    (entry,) = bench.entries()
    os.truncate(entry / file, (entry / file).stat().st_size // 2)
    assert bench.run() == first
    assert bench.calls() >= len(ROWS)
    assert bench.run() == first
    assert bench.calls() == 0


def test_processes_at_the_same_time_encode_once(bench: Bench) -> None:
    bench.dataset.write_text("".join(bench.dataset.read_text().splitlines(keepends=True)[:50]))
    processes = [bench.start(env={"SLOW": "0.005"}) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    together = bench.calls()
    assert len(bench.run()[0]) == 50
    assert bench.calls() == 0
    bench.run(cache_dir=str(bench.folder / "alone"))
    assert bench.calls() == together


def test_a_cache_that_cannot_be_written(bench: Bench) -> None:
    bench.cache.write_text("a file where the folder should be")
    ids, lines = bench.run(packing=True)
    assert sum(map(len, ids)) > 0
    assert lines[-1].startswith(f"cannot write the data cache {bench.cache} (")
    assert bench.cache.read_text() == "a file where the folder should be"


def test_a_disk_that_fills(bench: Bench) -> None:
    process = bench.start(env={}, file_size=20_000)
    process.join()
    assert process.exitcode == 2
    assert bench.error.read_text().startswith(f"cannot write {bench.cache}")
    assert bench.entries() == []
    assert len(bench.run()[0]) == len(ROWS)


def test_default_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWIFTPLUG_CACHE", str(tmp_path / "by environment"))
    assert EncodedStore().folder == tmp_path / "by environment"
    assert EncodedStore(str(tmp_path / "given")).folder == tmp_path / "given"
    monkeypatch.delenv("SWIFTPLUG_CACHE")
    assert EncodedStore().folder == Path.home() / ".cache" / "swiftplug" / "data"


Make = Callable[[SplitReport], Generator[pa.RecordBatch, None, None]]


def _rows(*numbers: int, error: str = "") -> Make:
    def make(report: SplitReport) -> Generator[pa.RecordBatch, None, None]:
        for number in numbers:
            report.rows += 1
            yield pa.RecordBatch.from_pydict({"a": [number]})
        if error:
            raise UserError(error)

    return make


def test_an_entry_is_made_by_the_first_who_asks(tmp_path: Path) -> None:
    store = EncodedStore(str(tmp_path / "store"))
    with pytest.raises(UserError):
        store.get("key", _rows(1, 2, 3, error="no"))
    first = store.get("key", _rows(1, 2, 3))
    second = store.get("key", _rows(error="no"))
    assert first.examples["a"][:] == second.examples["a"][:] == [1, 2, 3]
    assert first.report == second.report == SplitReport(rows=3)
    assert first.folder == second.folder == tmp_path / "store" / "key"


def _in_another_process(action: Callable[[], None]) -> None:
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join()
    assert process.exitcode == 0


def _keys(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir() if each.is_dir()}


def test_the_entries_unused_for_longest_go_when_the_store_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def make(*keys: str) -> None:
        for key in keys:
            EncodedStore(str(folder)).get(key, _rows(1, 2, 3))

    _in_another_process(lambda: make("first", "second", "third"))
    size = (folder / "first" / "rows.arrow").stat().st_size
    for age, key in enumerate(["third", "second", "first"]):
        os.utime(folder / key / "rows.arrow", (1000 - age, 1000 - age))
    _in_another_process(lambda: make("first"))  # is now the latest one used
    EncodedStore(str(folder), limit=2 * size).get("fourth", _rows(4))
    assert _keys(folder) == {"first", "fourth"}


def test_what_is_not_of_the_store_is_kept(tmp_path: Path) -> None:
    """`data.cache_dir` may name a folder with other things in it."""
    folder = tmp_path / "store"
    for name in ("thesis", "download.part"):
        (folder / name).mkdir(parents=True)
        (folder / name / "rows.arrow").write_text("mine")
        (folder / name / "report.json").write_text("{}")
        (folder / name / "thesis.tex").write_text("precious")
    (folder / "notes.part").write_text("precious")
    EncodedStore(str(folder), limit=0).get("key", _rows(1))
    assert (folder / "thesis" / "thesis.tex").exists()
    assert (folder / "download.part" / "thesis.tex").exists()
    assert (folder / "notes.part").exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = EncodedStore(str(tmp_path / "store"), limit=0)
    store.get("first", _rows(1))
    assert store.get("second", _rows(2)).examples["a"][:] == [2]
    assert _keys(tmp_path / "store") == {"first", "second"}, "nothing is removed, as it may be in use"


def test_an_entry_that_a_living_process_uses_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    used = EncodedStore(str(folder)).get("used", _rows(1, 2, 3))
    os.utime(folder / "used" / "rows.arrow", (0, 0))
    _in_another_process(lambda: EncodedStore(str(folder), limit=0).get("another", _rows(4)) and None)
    assert _keys(folder) == {"used", "another"}
    assert used.examples["a"][:] == [1, 2, 3]
    EncodedStore(str(folder), limit=0).get("third", _rows(5))
    assert _keys(folder) == {"used", "third"}, "what no process uses any more has gone"


def test_an_entry_that_another_process_writes_is_kept(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")

    def make(report: SplitReport) -> Generator[pa.RecordBatch, None, None]:
        yield from _rows(1)(report)
        _in_another_process(lambda: EncodedStore(folder, limit=0).get("another", _rows(4)) and None)
        yield from _rows(2)(report)

    assert EncodedStore(folder).get("key", make).examples["a"][:] == [1, 2]


def test_entries_of_a_folder_that_cannot_be_written_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    EncodedStore(str(folder)).get("key", _rows(1, 2, 3))
    real = tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied") if dir == folder else real(dir=dir)

    monkeypatch.setattr("swiftplug.data.store.tempfile.TemporaryFile", refuse)
    store = EncodedStore(str(folder))
    assert store.get("key", _rows(error="no")).report.rows == 3
    assert store.notes == []
    assert store.get("other", _rows(4)).folder.parent != folder
    assert store.get("key", _rows(error="no")).report.rows == 3
    assert store.notes == [f"cannot write the data cache {folder} (Permission denied): encoded for this run only"]
    assert _keys(folder) == {"key"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_two_users_share_a_folder() -> None:
    """The second reads what the first has made; what is in the way and not readable costs an encoding and a line."""
    made, refused = _rows(1, 2, 3), _rows(error="no")
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o777)  # pytest's own folders are closed to other users
        folder = Path(shared) / "store"
        folder.mkdir()
        folder.chmod(0o777)
        before = os.umask(0o022)
        for key in ("open", "closed", "torn", "evicted"):
            EncodedStore(str(folder)).get(key, made)
        os.umask(before)
        (folder / "closed").chmod(0o700)
        (folder / "torn" / "rows.arrow").write_bytes(b"")
        shutil.rmtree(folder / "evicted")  # its lock stays

        def as_another_user() -> None:
            os.setgid(65534)
            os.setuid(65534)
            store = EncodedStore(str(folder), limit=0)
            assert store.get("open", refused).examples["a"][:] == [1, 2, 3]
            assert store.get("new", made).folder == folder / "new"
            assert store.notes == []
            for key in ("closed", "torn", "evicted"):
                store = EncodedStore(str(folder), limit=0)
                assert store.get(key, made).examples["a"][:] == [1, 2, 3]
                [note] = store.notes
                assert note == f"cannot write the data cache {folder} (Permission denied): encoded for this run only"

        _in_another_process(as_another_user)
        assert {"open", "closed", "torn"} <= _keys(folder), "the second user removes nothing of the first"
        assert EncodedStore(str(folder)).get("new", refused).examples["a"][:] == [1, 2, 3]
