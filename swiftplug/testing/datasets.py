"""The contract of a dataset."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset

from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.files import arrow_rows
from swiftplug.data.read.formats import to_conversation
from swiftplug.data.read.tasks import to_conversations
from swiftplug.errors import ContractError
from swiftplug.plugin import Rows
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.testing.inputs import on

_ROWS = 200  # are read, at most


def check(plugin: LoadedPlugin) -> None:
    """Make the dataset twice, and read its rows as each task would."""
    first, second = _make(plugin), _make(plugin)
    if not len(first):
        raise ContractError("has no rows")
    if len(first) != len(second):
        raise ContractError(
            f"has {len(first)} rows and then {len(second)}; give the same ones each time, or a resumed run is another"
        )
    for index in range(min(len(first), _ROWS)):
        if first[index] != second[index]:
            raise ContractError(
                f"has another row {index} the second time: {second[index]!r:.60}, at first {first[index]!r:.60}; seed "
                "its random numbers by an option"
            )
    _check_readable(plugin.found.name, first)


def _make(plugin: LoadedPlugin) -> Dataset:
    with on("its function"):
        made = plugin.bound()
    if isinstance(made, IterableDataset):  # for data.streaming
        made = Dataset.from_list([*made.take(_ROWS)])
    if not isinstance(made, Dataset):
        raise ContractError(f"returned a {type(made).__name__}, expected a datasets.Dataset (of one split)")
    return made


def _check_readable(name: str, dataset: Dataset) -> None:
    """Check that a task, or `sample`, can read the rows, all or all but a few."""
    rows = list(islice(arrow_rows(dataset.with_format("arrow").iter(_ROWS), name), _ROWS))
    least: tuple[int, str] | None = None
    for sort in Rows:
        read: Callable[..., Any] = to_conversation if sort is Rows.PROMPTS else to_conversations
        reasons = Counter[str]()
        for row in rows:
            try:
                partial(read, rows=sort)(row.row, row.origin)
            except RowError as error:
                reasons[f"{error} (row {row.origin})"] += 1
        unread = sum(reasons.values())
        if unread == 0:
            return
        if least is None or unread < least[0]:
            least = unread, next(iter(reasons))
    assert least is not None
    columns = ", ".join(dataset.column_names)
    raise ContractError(
        f"has rows that no task reads whole: {least[0]} of {len(rows)} at best, as {least[1]}; it has the columns "
        f"{columns}, expected messages, or prompt and completion, or text"
    )
