"""The file of one machine's workers, in which they note things for each other."""

import logging
import sqlite3
import time
from functools import cached_property
from pathlib import Path
from threading import Lock

# Nobody needs to find the file whole after a crash, so a write need not wait for the disk.
OPENED = """
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS notes (name TEXT UNIQUE NOT NULL, until REAL NOT NULL);
"""
# The newest note has the largest rowid, also where it replaces one.
NOTED = "INSERT OR REPLACE INTO notes (name, until) VALUES (?, ?)"
KEPT = "DELETE FROM notes WHERE rowid <= (SELECT max(rowid) FROM notes) - ?"
TAKEN = "DELETE FROM notes WHERE name = ? AND until > ?"
# How long one waits for another, who may have been halted.
BUSY_SECONDS = 0.5
# They take some 34 MB, and hours to come: a live account's renewals are reported at 20 events a
# second.
MOST_NOTED = 250_000

log = logging.getLogger("app")


class SharedFile:
    """The names that were noted last in a file.

    Where it cannot be read or written, it is done without, with one warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock, self.is_gone = Lock(), False

    @cached_property
    def file(self) -> sqlite3.Connection:
        """Open the file. Raises sqlite3.Error."""
        # Our lock lets one thread at a time use it.
        opened = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            opened.executescript(OPENED)
        except sqlite3.Error:
            opened.close()
            raise
        return opened

    def note(self, name: str, seconds: int) -> bool:
        """Note a name for so many seconds, for all workers; say whether it is noted."""
        is_noted = self.change(NOTED, name, time.time() + seconds) == 1
        self.change(KEPT, MOST_NOTED)
        return is_noted

    def take(self, name: str) -> bool:
        """Say whether a name is noted, to one of all who ask."""
        return self.change(TAKEN, name, time.time()) == 1

    def change(self, statement: str, *values: object) -> int:
        """Return how many notes a statement changed; none where the file is gone."""
        if self.is_gone:
            return 0
        try:
            with self.lock:
                return self.file.execute(statement, values).rowcount
        except sqlite3.Error as error:
            self.is_gone = True
            log.warning(
                "the workers' notes cannot be used (%s): each remembers its own late answers alone",
                error,
            )
            return 0
