"""The ledger of a sampling run: a SQLite file to which nothing half-done ever gets.

A row, its candidates and their scores are each written in one transaction, so a run that is killed at any moment finds
here just what it had finished. Nothing is kept in memory but the batch at hand.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.errors import UserError
from swiftplug.plugin.engine import Completion
from swiftplug.runs.disk import is_disk_full
from swiftplug.sampling.rows import Question, prompt_key, to_json

Reward = float | list[float] | None
"""What a scorer gave: a number, one a step, or nothing."""

_LOOK = "SELECT 1 FROM meta"  # fails where the file is no ledger
_SCHEMA = """
DROP TABLE IF EXISTS meta;
DROP TABLE IF EXISTS rows;
DROP TABLE IF EXISTS candidates;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    position INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    prompt_key TEXT NOT NULL,
    origin TEXT NOT NULL,
    prompt TEXT NOT NULL,
    tools TEXT NOT NULL,
    columns TEXT NOT NULL,
    reference TEXT NOT NULL,
    problem TEXT NOT NULL,
    failure TEXT NOT NULL DEFAULT ''
);
CREATE INDEX rows_by_prompt ON rows (prompt_key);
CREATE TABLE candidates (
    position INTEGER NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    rewards TEXT,
    PRIMARY KEY (position, number)
) WITHOUT ROWID;
"""


class StoredRow(NamedTuple):
    """A row of the ledger.

    Attributes:
        position: Its number in the dataset, from 0.
        id: A hash of its content, numbered where rows are the same.
        origin: Where it was read.
        prompt: The messages up to the question.
        tools: Descriptions of the tools, or None.
        columns: Every other column.
        reference: The right answer, or None.
        problem: Why it cannot be answered; empty if it can.
        failure: Why an engine could not answer it; empty if it could, or was not asked yet.
    """

    position: int
    id: str
    origin: str
    prompt: list[dict[str, Any]]
    tools: list[Any] | None
    columns: dict[str, Any]
    reference: Any
    problem: str
    failure: str


@dataclass(frozen=True)
class StoredCandidate:
    """A candidate of the ledger.

    Attributes:
        number: Its number among those of its row, from 0.
        text: The answer.
        finish_reason: Why it ended.
        rewards: By scorer, what it gave; None where the candidate is not scored yet.
        unscored: By scorer that gave nothing, why.
    """

    number: int
    text: str
    finish_reason: str
    rewards: dict[str, Reward] | None = None
    unscored: dict[str, str] | None = None


class LedgerInUseError(UserError):
    """Another process is sampling into the folder."""


class Ledger:
    """The rows, candidates and scores of a run, in a file that is locked against other processes.

    Args:
        path: The file.
        is_new: Whether to begin an empty one, in place of what a killed run may have left there.

    Attributes:
        path: The file.

    Raises:
        LedgerInUseError: Another process is using the file.
        UserError: It is no ledger.
    """

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self._open(path, _SCHEMA if is_new else _LOOK)

    def _open(self, path: Path, statements: str) -> None:
        self.path = path
        try:
            self._file = sqlite3.connect(path, isolation_level=None, timeout=0)
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("BEGIN EXCLUSIVE")
            for statement in statements.split(";"):
                self._file.execute(statement)
            self._file.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise LedgerInUseError(f"{path.parent}: another process is sampling into this folder") from None
            if is_disk_full(error):
                raise
            raise UserError(f"{path}: cannot be used as the ledger of a run: {error}") from None

    def rename(self, path: Path) -> None:
        """Give the file another name, in place of what had that."""
        self._file.close()
        self.path.replace(path)
        self._open(path, _LOOK)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written within is written, or nothing of it."""
        self._file.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    def get(self, key: str) -> str | None:
        """A fact of the run, or None."""
        found = self._file.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, value: str) -> None:
        """Note a fact of the run."""
        self._file.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def add_rows(self, questions: Iterable[Question]) -> None:
        """Add rows behind those that are there; rows of one content are numbered, as each is answered by itself."""
        for question in questions:
            self.add_row(question)

    def add_row(self, question: Question) -> int:
        """Add one row likewise; returns its position."""
        position = self.count_rows()
        self._file.execute(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '')",
            (
                position,
                self._free_id(question.id),
                prompt_key(question.prompt),
                question.origin,
                *(to_json(value) for value in (question.prompt, question.tools, question.columns, question.reference)),
                question.problem,
            ),
        )
        return position

    def _free_id(self, row_id: str) -> str:
        if not self.has_row(row_id):
            return row_id
        key = f"copies of {row_id}"
        number = int(self.get(key) or 1) + 1
        while self.has_row(f"{row_id}-{number}"):
            number += 1
        self.put(key, str(number))
        return f"{row_id}-{number}"

    def has_row(self, row_id: str) -> bool:
        """Whether a row has this id."""
        return self._file.execute("SELECT 1 FROM rows WHERE id = ?", (row_id,)).fetchone() is not None

    def count_rows(self) -> int:
        """How many rows there are, whatever became of them."""
        return int(self._file.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM rows").fetchone()[0])

    def position_of(self, prompt: str, row_id: str | None = None) -> int | None:
        """The position of the first row with a prompt (by `prompt_key`), and with an id if one is given."""
        query = "SELECT MIN(position) FROM rows WHERE prompt_key = ? AND (? IS NULL OR id = ?)"
        found = self._file.execute(query, (prompt, row_id, row_id)).fetchone()[0]
        return None if found is None else int(found)

    def rows(self, positions: range) -> Iterator[StoredRow]:
        """The rows at some positions, in order."""
        found = self._file.execute(
            "SELECT position, id, origin, prompt, tools, columns, reference, problem, failure FROM rows "
            "WHERE position >= ? AND position < ? ORDER BY position",
            (positions.start, positions.stop),
        )
        for position, row_id, origin, *content, problem, failure in found:
            prompt, tools, columns, reference = map(json.loads, content)
            yield StoredRow(position, row_id, origin, prompt, tools, columns, reference, problem, failure)

    def candidates(self, position: int) -> list[StoredCandidate]:
        """The candidates of a row, by number."""
        found = self._file.execute(
            "SELECT number, text, finish_reason, rewards FROM candidates WHERE position = ? ORDER BY number",
            (position,),
        )
        return [_candidate(*it) for it in found]

    def add_candidates(self, position: int, completions: Sequence[Completion]) -> None:
        """Write the candidates of a row that has none yet."""
        self._file.executemany(
            "INSERT INTO candidates VALUES (?, ?, ?, ?, NULL)",
            [(position, number, it.text, it.finish_reason) for number, it in enumerate(completions)],
        )
        self._file.execute("UPDATE rows SET failure = '' WHERE position = ?", (position,))

    def add_candidate(self, position: int, number: int | None, completion: Completion) -> None:
        """Write one candidate that exists already, with its own number where that is free and else the next one."""
        query = "SELECT COALESCE(MAX(number) + 1, 0), COALESCE(MAX(number = ?), 0) FROM candidates WHERE position = ?"
        following, is_taken = self._file.execute(query, (number, position)).fetchone()
        free = following if number is None or is_taken else number
        self._file.execute(
            "INSERT INTO candidates VALUES (?, ?, ?, ?, NULL)",
            (position, free, completion.text, completion.finish_reason),
        )

    def set_reference(self, position: int, reference: Any) -> None:
        """Give a row the right answer."""
        self._file.execute("UPDATE rows SET reference = ? WHERE position = ?", (to_json(reference), position))

    def set_failure(self, position: int, failure: str) -> None:
        """Note why an engine could not answer a row."""
        self._file.execute("UPDATE rows SET failure = ? WHERE position = ?", (failure, position))

    def forget_failures(self) -> None:
        """Let rows that an engine could not answer be asked again."""
        self._file.execute("UPDATE rows SET failure = '' WHERE failure != ''")

    def set_rewards(
        self, position: int, number: int, rewards: dict[str, Reward], unscored: dict[str, str] | None = None
    ) -> None:
        """Write what the scorers gave a candidate, and why where they gave nothing."""
        told = to_json({"rewards": rewards, "unscored": unscored or {}})
        self._file.execute(
            "UPDATE candidates SET rewards = ? WHERE position = ? AND number = ?", (told, position, number)
        )

    def forget_unscored(self) -> None:
        """Let every candidate be scored again to which a scorer gave nothing."""
        self._file.execute("UPDATE candidates SET rewards = NULL WHERE rewards NOT LIKE '%\"unscored\": {}}'")

    def forget_rewards(self) -> None:
        """Let every candidate be scored again."""
        self._file.execute("UPDATE candidates SET rewards = NULL WHERE rewards IS NOT NULL")

    def mark(self, problem: str, condition: str) -> None:
        """Give every row without a problem that meets a condition (in SQL, of the columns of `rows`) this one."""
        self._file.execute(f"UPDATE rows SET problem = ? WHERE problem = '' AND {condition}", (problem,))

    def count(self, condition: str, positions: range) -> int:
        """How many of the rows at some positions meet a condition (in SQL, of the columns of `rows`)."""
        query = f"SELECT COUNT(*) FROM rows WHERE position >= ? AND position < ? AND {condition}"
        return int(self._file.execute(query, (positions.start, positions.stop)).fetchone()[0])

    def problems(self, positions: range) -> list[tuple[str, int, str]]:
        """Each problem of the rows at some positions, how many have it, and where the first was read."""
        query = (
            "SELECT problem, COUNT(*), origin FROM rows WHERE position >= ? AND position < ? AND problem != '' "
            "GROUP BY problem ORDER BY COUNT(*) DESC, MIN(position)"
        )
        return list(self._file.execute(query, (positions.start, positions.stop)))


NO_CANDIDATES = "NOT EXISTS (SELECT 1 FROM candidates WHERE candidates.position = rows.position)"
NO_REFERENCE = "reference = 'null'"


def _candidate(number: int, text: str, finish_reason: str, told: str | None) -> StoredCandidate:
    if told is None:
        return StoredCandidate(number, text, finish_reason)
    scored = json.loads(told)
    return StoredCandidate(number, text, finish_reason, scored["rewards"], scored["unscored"])
