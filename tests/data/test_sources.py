"""Datasets are found by name and read as they are; what is wrong is reported with its place."""

import gzip
import json
import os
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Json, List, Value

from swiftplug.data.read.sources import Source, open_source
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry

# Rows whose columns change their type, which Arrow could not hold in one column.
MIXED: list[Any] = [
    {"messages": [{"role": "user", "content": "你好 👋"}, {"role": "assistant", "content": None, "tool_calls": []}]},
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a\u2028b"}]}],
        "tools": [{"a": {"b": [None]}}],
    },
    {"messages": "text", "tools": "[]", "extra": 1},
    [1, "two"],
]


def opened(name: str | Path, **options: Any) -> Source:
    return open_source(PluginChoice(name=str(name), options=options), Registry.discover())


def rows(name: str | Path) -> list[Any]:
    return [row.row for row in opened(name).read()]


def origins(name: str | Path) -> list[str]:
    return [str(row.origin) for row in opened(name).read()]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_rows_are_read_as_they_are(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in MIXED)
    path = written(tmp_path / "a.jsonl", text)
    assert rows(path) == MIXED
    assert origins(path) == [f"{path}:{line}" for line in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "A.JSONL"])
def test_bom_crlf_and_blank_lines(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": "\xe5\xa5\xbd"}\r\n\n\n')
    assert rows(path) == [{"a": 1}, {"a": "好"}]
    assert origins(path) == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_list_of_rows(tmp_path: Path, indent: int | None) -> None:
    path = written(tmp_path / "a.json", " \n" + json.dumps(MIXED, ensure_ascii=False, indent=indent))
    assert rows(path) == MIXED
    assert origins(path)[-1] == f"{path}:4"


def test_csv(tmp_path: Path) -> None:
    long = "长" * 100_000
    content = f'\ufeffprompt,completion\r\n"a ""b"",\nc",好\r\n\r\nx,{long}\r\nshort\r\n1,2,3\r\n'
    path = written(tmp_path / "a.csv", content)
    assert rows(path) == [
        {"prompt": 'a "b",\nc', "completion": "好"},
        {"prompt": "x", "completion": long},
        ["short"],
        ["1", "2", "3"],
    ]
    assert origins(path) == [f"{path}:{line}" for line in (2, 5, 6, 7)]


def test_parquet_without_the_nulls_that_arrow_fills_in(tmp_path: Path) -> None:
    first = {
        "messages": [
            {"role": "user", "content": "q", "loss": None},
            {"role": "assistant", "content": "a", "loss": True},
        ],
        "note": None,
    }
    second = {"messages": [{"role": "user", "content": "q"}], "note": "x"}
    path = tmp_path / "a.parquet"
    Dataset.from_list([first, second]).to_parquet(path)
    assert rows(path) == [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": True}]},
        second,
    ]
    assert origins(path) == [f"{path}:1", f"{path}:2"]


def test_parquet_of_mixed_types(tmp_path: Path) -> None:
    features = Features({"messages": [{"role": Value("string"), "content": Json()}]})
    mixed = [
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": [{"text": "q"}]}]},
    ]
    path = tmp_path / "a.parquet"
    Dataset.from_list(mixed, features=features).to_parquet(path)
    assert rows(path) == mixed


CALL = {"port": "Vigo", "date": None, "days": [None, {"from": None}]}
CALLING = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": CALL}}]}]}


def test_nulls_of_calls_survive_every_file_that_can_hold_them(tmp_path: Path) -> None:
    saved = Dataset.from_list([CALLING, CALLING], features=Features({"messages": List(Json())}))
    saved.to_parquet(tmp_path / "a.parquet")
    saved.save_to_disk(tmp_path / "saved")
    DatasetDict(train=saved, test=saved.select([1])).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    line = json.dumps(CALLING)
    written(tmp_path / "folder" / "train.jsonl", f"{line}\n\n{line}\n")
    written(tmp_path / "folder" / "test.json", json.dumps([CALLING]))
    names = (
        "a.parquet",
        "saved",
        "saved/data-00000-of-00001.arrow",
        "splits",
        "splits:train",
        "splits/train",
        "folder",
    )
    for name in names:
        assert rows(tmp_path / name) == [CALLING, CALLING], name
    for name in ("splits:test", "splits:/test", "splits#1", "folder:/test"):
        assert rows(tmp_path / name) == [CALLING], name
    assert origins(tmp_path / "folder") == [f"{tmp_path}/folder/train.jsonl:{line}" for line in (1, 3)]
    with pytest.raises(UserError, match=r"no split 'tets' \(.*splits:NAME names one\); did you mean 'test'\?"):
        opened(tmp_path / "splits:tets")
    with pytest.raises(UserError, match="one dataset without splits, found 'test'"):
        opened(tmp_path / "saved:test")
    before = opened(tmp_path / "folder").fingerprint
    written(tmp_path / "folder" / "train.jsonl", line)
    assert opened(tmp_path / "folder").fingerprint != before


def test_every_type_of_arrow_becomes_a_plain_value(tmp_path: Path) -> None:
    given: dict[str, tuple[Any, pa.DataType, Any]] = {
        "large": ("好", pa.large_string(), "好"),
        "view": ("好", pa.string_view(), "好"),
        "category": ("a", pa.dictionary(pa.int8(), pa.string()), "a"),
        "date": (date(2026, 2, 3), pa.date32(), "2026-02-03"),
        "time": (datetime(2026, 2, 3, 4, 5), pa.timestamp("us"), "2026-02-03T04:05:00"),
        "whole": (Decimal("18.00"), pa.decimal128(8, 2), 18),
        "price": (Decimal("18.25"), pa.decimal128(8, 2), 18.25),
        "half": (0.5, pa.float16(), 0.5),
        "binary": ("好".encode(), pa.binary(), "好"),
        "raw": (b"\xff", pa.large_binary(), b"\xff"),
        "list": ([{"a": "x", "b": None}], pa.large_list(pa.struct({"a": pa.string(), "b": pa.string()})), [{"a": "x"}]),
        "fixed": ([1.0, None], pa.list_(pa.float32(), 2), [1.0, None]),
        "map": ([("a", 1), ("b", None)], pa.map_(pa.string(), pa.int64()), {"a": 1, "b": None}),
        "maps": ([[("a", 1)]], pa.list_(pa.map_(pa.string(), pa.int64())), [{"a": 1}]),
        "uuid": (b"\0" * 15 + b"\1", pa.uuid(), "00000000-0000-0000-0000-000000000001"),
        "json": ('{"a": null}', pa.json_(), {"a": None}),
        "null": (None, pa.null(), None),
    }
    only_arrow = {"list_view": ([1], pa.list_view(pa.int64()), [1])}
    for name, columns in ("a.parquet", given), ("b.arrow", given | only_arrow), ("c.arrow", given):
        arrays = [
            pa.ExtensionArray.from_storage(kind, pa.array([value], kind.storage_type))
            if isinstance(kind, pa.BaseExtensionType)
            else pa.array([value], kind)
            for value, kind, _ in columns.values()
        ]
        table = pa.Table.from_arrays(arrays, names=list(columns))
        path = tmp_path / name
        if name == "a.parquet":
            pq.write_table(table, path)
        else:
            new = pa.ipc.new_stream if name == "b.arrow" else pa.ipc.new_file
            with new(path, table.schema) as writer:
                writer.write_table(table)
        [row] = rows(path)
        assert row == {column: plain for column, (_, _, plain) in columns.items() if plain is not None}, name
        assert origins(path) == [f"{path}:1"]


def test_what_cannot_be_read_of_arrow_names_file_and_column(tmp_path: Path) -> None:
    table = pa.table({"fine": ["a"], "when": pa.array([10**16], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: cannot read column 'when' of type timestamp\[ms\]: "):
        rows(tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_arrays([[1], [2]], names=["x", "x"]), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: a column is named twice: x, x"):
        rows(tmp_path / "c.parquet")
    twice = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"b": 1, "b": 2}']))
    pq.write_table(pa.table({"json": twice}), tmp_path / "d.parquet")
    with pytest.raises(
        UserError, match=r"d\.parquet: cannot read column 'json' of type .*: the key 'b' is there twice"
    ):
        rows(tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"b\.arrow: not an Arrow file: "):
        rows(written(tmp_path / "b.arrow", "ARROW?"))


def test_compressed_and_tab_separated_files(tmp_path: Path) -> None:
    text = '{"a": 1}\r\n\r\n{"a": "好"}\n'
    path = written(tmp_path / "a.JSONL.gz", gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert rows(path) == [{"a": 1}, {"a": "好"}]
    assert origins(path) == [f"{path}:1", f"{path}:3"]
    assert rows(written(tmp_path / "a.json.gz", gzip.compress(b'[{"a": 1}]'))) == [{"a": 1}]
    assert rows(written(tmp_path / "a.csv.gz", gzip.compress(b"x,y\n1,2\n"))) == [{"x": "1", "y": "2"}]
    assert rows(written(tmp_path / "a.tsv", 'x\ty\n1, "2"\t"3\t4"\n')) == [{"x": '1, "2"', "y": "3\t4"}]
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: not a complete gzip file: "):
        rows(written(tmp_path / "b.jsonl.gz", gzip.compress(text.encode() * 100)[:-20]))
    with pytest.raises(UserError, match=r"c\.txt\.gz: unknown kind of file '\.gz'"):
        rows(written(tmp_path / "c.txt.gz", gzip.compress(b"x")))
    with pytest.raises(UserError, match="gz: unknown kind of file ''"):
        rows(written(tmp_path / "gz", gzip.compress(b"x")))


@pytest.mark.parametrize("indent", [None, 2])
def test_json_object_that_holds_the_rows(tmp_path: Path, indent: int | None) -> None:
    pair = [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": None}]
    path = written(tmp_path / "a.json", json.dumps({"version": "1", "data": pair}, indent=indent))
    assert rows(path) == pair
    assert origins(path)[1] == f"{path}:2"
    one = {"prompt": "q", "completion": "a", "data": [1]}
    assert rows(written(tmp_path / "b.json", json.dumps(one, indent=indent))) == [one]
    two = {"data": pair, "rows": pair}  # there is no telling which list is meant
    assert rows(written(tmp_path / "b.json", json.dumps(two, indent=indent))) == [two]
    with pytest.raises(UserError, match=r"c\.json:4: not JSON: "):
        rows(written(tmp_path / "c.json", '{\n "data": [\n  {"a": 1},\n  {"a": }\n ]\n}'))


def test_folder_as_a_hub_repository(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for subset in ("maths", "words"):
        (folder / subset).mkdir(parents=True)
        for split, count in (("train", 4), ("test", 2)):
            Dataset.from_list([{"prompt": f"{subset} {split} {i}"} for i in range(count)]).to_parquet(
                folder / subset / f"{split}-00000-of-00001.parquet"
            )
    card = ["---", "configs:"]
    for subset in ("maths", "words"):
        card += [f"- config_name: {subset}", f"  data_dir: {subset}"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    assert [row["prompt"] for row in rows(f"{folder}:maths/test")] == ["maths test 0", "maths test 1"]
    assert len(rows(f"{folder}:words")) == 4
    assert origins(f"{folder}:words#2") == [f"{folder}:words:1", f"{folder}:words:2"]
    with pytest.raises(UserError, match=r"^dataset: cannot load '.*:maths/tets': .*tets.*test"):
        opened(f"{folder}:maths/tets")
    with pytest.raises(UserError, match=r"^dataset: cannot load '.*:logic': .*logic.*maths"):
        opened(f"{folder}:logic")


def test_a_hub_id_with_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset.from_list([{"prompt": "p"}]).to_parquet(tmp_path / "repository" / "test.parquet")
    asked = []
    real = {name: getattr(datasets, name) for name in ("load_dataset", "load_dataset_builder")}

    def load(function: str, path: str, revision: Any = None, **options: Any) -> Any:
        asked.append((path, revision, options.get("split")))
        return real[function](str(tmp_path / "repository"), **options)

    for function in real:
        monkeypatch.setattr(datasets, function, partial(load, function))
    for name, revision in ("v1.0", "v1.0"), ("refs/pr/3", "refs/pr/3"), ("", None):
        asked.clear()
        assert rows(f"org/name{'@' * bool(name)}{name}:/test#1") == [{"prompt": "p"}]
        assert asked == [("org/name", revision, None), ("org/name", revision, "test")]
    with pytest.raises(UserError, match="no such file, folder, hub id or dataset plugin: 'org/name@'"):
        opened("org/name@")


def test_first_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\nnot json\n')
    assert rows(f"{path}#2") == [{"a": 1}, {"a": 2}]
    assert rows(f"{written(tmp_path / 'b.jsonl', '{}')}#5") == [{}]
    strange = written(tmp_path / "c#1.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert len(rows(strange)) == 2
    assert len(rows(f"{strange}#1")) == 1
    assert opened(path).fingerprint != opened(f"{path}#2").fingerprint != opened(f"{path}#1").fingerprint


@pytest.mark.parametrize("limit", ["0", "x", "-3", ""])
def test_a_limit_that_is_no_count(tmp_path: Path, limit: str) -> None:
    path = written(tmp_path / "a.jsonl", "{}")
    with pytest.raises(UserError, match="expected a number of rows, 1 or more, after '#'"):
        opened(f"{path}#{limit}")


def test_dataset_plugins(tmp_path: Path) -> None:
    plugins = written(
        tmp_path / "plugins.py",
        """
from datasets import Dataset
from swiftplug.plugin import register_dataset

@register_dataset("squares")
def squares(*, rows: int = 3):
    return Dataset.from_list([{"prompt": str(i), "completion": str(i * i)} for i in range(rows)])

@register_dataset("failing")
def failing():
    raise RuntimeError("no such table")

@register_dataset("wrong")
def wrong():
    return [1]
""",
    )
    registry = Registry.discover(files=[plugins])
    source = open_source(PluginChoice(name="squares#2", options={"rows": 5}), registry)
    assert [(row.row["completion"], str(row.origin)) for row in source.read()] == [
        ("0", "squares:1"),
        ("1", "squares:2"),
    ]
    whole = open_source(PluginChoice(name="squares", options={"rows": 5}), registry)
    assert len(list(whole.read())) == len(list(whole.read())) == 5
    assert whole.fingerprint == open_source(PluginChoice(name="squares", options={"rows": 5}), registry).fingerprint
    assert whole.fingerprint != open_source(PluginChoice(name="squares", options={"rows": 6}), registry).fingerprint
    with pytest.raises(UserError, match=r"^dataset: .*wrong.* returned list, expected datasets\.Dataset"):
        open_source(PluginChoice(name="wrong"), registry)
    with pytest.raises(UserError, match=r"^dataset: .*failing.* failed: .*no such table"):
        open_source(PluginChoice(name="failing"), registry)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"a": 1}')
    stat = path.stat()
    before = opened(path).fingerprint
    assert opened(path).fingerprint == before
    written(path, '{"a": 2}')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(path).fingerprint != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": 2,}\n', "a.jsonl:2: not JSON: "),
        (b'{"a": 1}\n\n{"a": "cut of', "a.jsonl:3: not JSON: Unterminated string"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a.jsonl:1: not JSON: Exceeds the limit"),
        (b'{"a": 1}\nprompt,completion\n', "'prompt,completion'; expected one object per line"),
        (b'{"a": 1}\n{"a": "\xe9t\xe9"}\n', "a.jsonl:2: not UTF-8 text: byte 0xe9 at 8"),
        ('{"a": 1}\n'.encode("utf-16"), "a.jsonl:1: not UTF-8 text: byte 0xff at 1"),
        (b'[{"a": 1},\n {"a": }]', "a.jsonl:2: not JSON: Expecting value at column 8"),
        (b'{"a": 1}\n{"a": [{"b": 1, "c": 2, "b": 3}]}\n', "a.jsonl:2: not JSON: the key 'b' is there twice: '{\"a\""),
        (b'[{"a": 1, "a": 1}]', "a.jsonl:1: not JSON: the key 'a' is there twice"),
    ],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError) as caught:
        rows(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_csv_and_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv:1: a column is named twice: x, y, x"):
        rows(written(tmp_path / "a.csv", "x,y,x\n1,2,3\n"))
    for name, header in ("s.csv", "x;y"), ("t.csv", "x\ty"), ("u.tsv", "x,y"):
        with pytest.raises(UserError, match=r"\.[ct]sv:1: cells are separated by '(;|,|\\t)', expected ','"):
            rows(written(tmp_path / name, f"{header}\n1,2\n"))
    with pytest.raises(UserError, match=r"b\.csv:3: not CSV: "):
        rows(written(tmp_path / "b.csv", 'x,y\n1,2\n"open,3\n'))
    with pytest.raises(UserError, match=r"c\.csv:2: not UTF-8 text"):
        rows(written(tmp_path / "c.csv", b"x,y\n\xff,2\n"))
    with pytest.raises(UserError, match=r"d\.parquet: not a Parquet file: "):
        rows(written(tmp_path / "d.parquet", "PAR1 not really"))


def test_missing_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", "{}")
    with pytest.raises(UserError, match=r"^dataset: no such .*'data/trian.jsonl'; did you mean 'train.jsonl'\?$"):
        opened("data/trian.jsonl")
    with pytest.raises(UserError, match=r"'dta/train.jsonl' \(there is no folder 'dta'\)$"):
        opened("dta/train.jsonl")
    with pytest.raises(UserError, match=r"'arithmetik'; did you mean 'arithmetic'\?$"):
        opened("arithmetik")
    with pytest.raises(UserError, match=r"notes\.txt: unknown kind of file '\.txt'; expected one of \.jsonl"):
        opened(written(tmp_path / "notes.txt", "x"))
    with pytest.raises(UserError, match="is no dataset plugin and takes no options, found 'rows'"):
        opened("data/train.jsonl", rows=3)


def test_large_files_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "x" * 1000}) + "\n"
    with path.open("w") as file:
        for _ in range(100):
            file.write(line * 1000)
    code = f"""\
import resource
from swiftplug.data.read.sources import open_source
from swiftplug.plugin.registry import PluginChoice, Registry
source = open_source(PluginChoice(name={str(path)!r}), Registry.discover())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(1 for _ in source.read()) == 100_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "kilobytes, of a file of 100 MB"
