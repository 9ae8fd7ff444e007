"""The ledger of a sampling run: a SQLite file from which a killed run continues.

A row, its candidates and their rewards are each written in one transaction, so the ledger holds exactly what was
finished. Only the current batch is kept in memory.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from swiftplug.data.read.report import EXAMPLES, Dropped
from swiftplug.errors import UserError
from swiftplug.runs.errors import is_disk_full
from swiftplug.sampling.rows import Candidate, Row, prompt_key, to_json

NO_INDEX = -1
NO_CANDIDATES = "NOT EXISTS (SELECT 1 FROM candidates WHERE candidates.position = rows.position)"
NO_REFERENCE = "reference IS NULL"
UNSCORED = "EXISTS (SELECT 1 FROM candidates WHERE candidates.position = rows.position AND rewards IS NULL)"
USABLE = "problem = ''"

_CHECK = "SELECT unscored FROM candidates LIMIT 1"  # fails if the file is not a ledger
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
    content TEXT NOT NULL,
    reference TEXT,
    problem TEXT NOT NULL,
    failure TEXT NOT NULL
);
CREATE INDEX rows_by_prompt ON rows (prompt_key);
CREATE TABLE candidates (
    position INTEGER NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    rewards TEXT,
    unscored TEXT NOT NULL,
    PRIMARY KEY (position, number)
) WITHOUT ROWID;
"""


class LedgerInUseError(UserError):
    """Another process is sampling into the folder."""


class Ledger:
    """The rows, candidates and rewards of a run, in a file that is locked against other processes.

    `is_new` empties the file, which a killed run may have left behind.

    Raises:
        LedgerInUseError: Another process is using the file.
        UserError: It is not a ledger.
    """

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self._open(path, _SCHEMA if is_new else _CHECK)

    def _open(self, path: Path, statements: str) -> None:
        self.path = path
        try:
            self._file = sqlite3.connect(path, isolation_level=None, timeout=0)
            with ExitStack() as on_error:
                on_error.callback(self._file.close)
                self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
                with self._file:
                    self._file.execute("BEGIN EXCLUSIVE")
                    for statement in statements.split(";"):
                        self._file.execute(statement)
                on_error.pop_all()
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise LedgerInUseError(f"{path.parent}: another process is sampling into this folder") from None
            if is_disk_full(error):
                raise
            if "no such column" in str(error):
                raise UserError(
                    f"{path}: an earlier version of swiftplug wrote it; continue the run with that version, or name "
                    "another folder"
                ) from None
            raise UserError(f"{path}: cannot be used as the ledger of a run: {error}") from None

    def rename(self, path: Path) -> None:
        """Rename the file, replacing any file of that name."""
        self._file.close()
        self.path.replace(path)
        self._open(path, _CHECK)

    def close(self) -> None:
        """Unlock and close the file."""
        self._file.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write everything within, or nothing if an exception is raised."""
        with self._file:
            self._file.execute("BEGIN")
            yield

    def get(self, key: str) -> Any:
        """The value stored under a key; None if there is none."""
        found = self._file.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, key: str, value: Any) -> None:
        """Store a value about the run, anything that JSON can hold."""
        self._file.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, to_json(value)))

    def count_rows(self) -> int:
        """The number of all rows, usable or not."""
        return int(self._file.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM rows").fetchone()[0])

    def count(self, condition: str, positions: range) -> int:
        """The number of rows at these positions that meet an SQL condition on the columns of `rows`."""
        query = f"SELECT COUNT(*) FROM rows WHERE position >= ? AND position < ? AND {condition}"
        return int(self._file.execute(query, (positions.start, positions.stop)).fetchone()[0])

    def problems(self, positions: range) -> dict[str, Dropped]:
        """The rows at these positions that cannot be used, by problem, the most frequent first."""
        rows, place = "FROM rows WHERE position >= ? AND position < ? AND", (positions.start, positions.stop)
        counts = f"SELECT problem, COUNT(*) {rows} problem != '' GROUP BY problem ORDER BY COUNT(*) DESC, MIN(position)"
        first = f"SELECT origin {rows} problem = ? ORDER BY position LIMIT {EXAMPLES}"
        return {
            problem: Dropped(count, [origin for (origin,) in self._file.execute(first, (*place, problem))])
            for problem, count in self._file.execute(counts, place).fetchall()
        }

    def columns(self) -> list[str]:
        """The names of the columns that any usable row has."""
        query = f"SELECT DISTINCT key FROM rows, json_each(content, '$[2]') WHERE {USABLE} ORDER BY key"
        return [name for (name,) in self._file.execute(query)]

    def has_row(self, row_id: str) -> bool:
        """Whether a row has this id."""
        return self._file.execute("SELECT 1 FROM rows WHERE id = ?", (row_id,)).fetchone() is not None

    def position_of(self, prompt: str, row_id: str | None = None) -> int | None:
        """The position of the first row with a prompt (by `prompt_key`), and with this id if one is given."""
        query = "SELECT MIN(position) FROM rows WHERE prompt_key = ? AND (? IS NULL OR id = ?)"
        found = self._file.execute(query, (prompt, row_id, row_id)).fetchone()[0]
        return None if found is None else int(found)

    def rows(self, positions: range) -> Iterator[Row]:
        """The rows at these positions with their candidates, in order."""
        found = self._file.execute(
            "SELECT position, id, origin, content, reference, problem, failure FROM rows "
            "WHERE position >= ? AND position < ? ORDER BY position",
            (positions.start, positions.stop),
        )
        for position, row_id, origin, content, reference, problem, failure in found:
            prompt, tools, columns = json.loads(content)
            reference = None if reference is None else json.loads(reference)
            candidates = self._candidates(position)
            yield Row(row_id, origin, prompt, tools, columns, reference, problem, failure, position, candidates)

    def _candidates(self, position: int) -> list[Candidate]:
        found = self._file.execute(
            "SELECT number, text, finish_reason, rewards, unscored FROM candidates WHERE position = ? ORDER BY number",
            (position,),
        )
        return [
            Candidate(number, text, finish_reason, json.loads(rewards) if rewards else None, json.loads(unscored))
            for number, text, finish_reason, rewards, unscored in found
        ]

    def add_row(self, row: Row) -> int:
        """Append a row and return its position. Without an id it gets its prompt's hash; a taken id gets a number."""
        position, key = self.count_rows(), prompt_key(row.prompt)
        self._file.execute(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, '')",
            (
                position,
                self._free_id(row.id or key),
                key,
                row.origin,
                to_json([row.prompt, row.tools, row.columns]),
                None if row.reference is None else to_json(row.reference),
                row.problem,
            ),
        )
        return position

    def _free_id(self, row_id: str) -> str:
        if not self.has_row(row_id):
            return row_id
        key = f"copies of {row_id}"
        number = (self.get(key) or 1) + 1
        while self.has_row(f"{row_id}-{number}"):
            number += 1
        self.put(key, number)
        return f"{row_id}-{number}"

    def set_reference(self, position: int, reference: Any) -> None:
        """Replace the reference of a row."""
        self._file.execute("UPDATE rows SET reference = ? WHERE position = ?", (to_json(reference), position))

    def set_failure(self, row: Row) -> None:
        """Record why the engine failed at a row; empty if it did not."""
        self._file.execute("UPDATE rows SET failure = ? WHERE position = ?", (row.failure, row.position))

    def set_problem(self, problem: str, condition: str) -> None:
        """Give a problem to every usable row that meets an SQL condition on the columns of `rows`."""
        self._file.execute(f"UPDATE rows SET problem = ? WHERE {USABLE} AND {condition}", (problem,))

    def free_index(self, position: int, wanted: int = NO_INDEX) -> int:
        """The index for another candidate of a row: the wanted one if it is free, else the next one."""
        query = "SELECT COALESCE(MAX(number) + 1, 0), COALESCE(MAX(number = ?), 0) FROM candidates WHERE position = ?"
        following, is_taken = self._file.execute(query, (wanted, position)).fetchone()
        return int(following) if wanted == NO_INDEX or is_taken else wanted

    def add_candidates(self, position: int, candidates: Sequence[Candidate]) -> None:
        """Write candidates of a row, not scored yet."""
        self._file.executemany(
            "INSERT INTO candidates VALUES (?, ?, ?, ?, NULL, '{}')",
            [(position, each.index, each.text, each.finish_reason) for each in candidates],
        )

    def set_rewards(self, row: Row) -> None:
        """Write the rewards of a row's candidates, and the reasons for missing ones."""
        self._file.executemany(
            "UPDATE candidates SET rewards = ?, unscored = ? WHERE position = ? AND number = ?",
            [(to_json(each.rewards), to_json(each.unscored), row.position, each.index) for each in row.candidates],
        )

    def has_candidates(self) -> bool:
        """Whether any row has a candidate."""
        return self._file.execute("SELECT 1 FROM candidates LIMIT 1").fetchone() is not None

    def forget_failures(self) -> None:
        """Delete what engine and scorers failed at, so that they try it again."""
        self._file.execute("UPDATE rows SET failure = '' WHERE failure != ''")
        self._file.execute("UPDATE candidates SET rewards = NULL, unscored = '{}' WHERE unscored != '{}'")

    def forget_rewards(self) -> None:
        """Delete all rewards, so that every candidate is scored again."""
        self._file.execute("UPDATE candidates SET rewards = NULL, unscored = '{}' WHERE rewards IS NOT NULL")
