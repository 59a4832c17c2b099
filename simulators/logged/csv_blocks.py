"""Blocks of a CSV file with the numbers of their rows; rows of a wrong width, and a file that was cut off, are told."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from simulators.logged.batches import Int64Array
from simulators.logged.import_report import ImportReport, LogRefused

# Arrow reads up to 32 blocks ahead of who takes them; that is all the memory that reading needs.
_BLOCK_BYTES = 1 << 20


class CsvBlocks:
    """Reads one file once.

    Args:
        path: Of the file; `.gz` is unpacked on the way.
        report: Counts rows read, and those of a wrong width.
    """

    def __init__(self, path: Path, report: ImportReport) -> None:
        self._path = path
        self._report = report
        # Rows of a wrong width, by number in the file; the parser is ahead of the rows.
        self._skipped: list[int] = []
        self._last_skipped = 0
        self._next_row = 2

    def header(self) -> list[str]:
        """Return the names of the columns.

        Raises:
            LogRefused: there are none.
        """
        try:
            ignoring = pyarrow.csv.ParseOptions(invalid_row_handler=lambda _: "skip")
            with self._open() as file, pyarrow.csv.open_csv(file, parse_options=ignoring) as reader:
                return list(reader.schema.names)
        except (pa.ArrowInvalid, OSError, EOFError, zlib.error) as error:
            raise LogRefused(f"{self._path}: {error}") from error

    def read(self, columns: Sequence[str], *, numbers: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, Int64Array]]:
        """Yield blocks and the numbers of their rows in the file, the header being row 1.

        Numbers are float64 up to the first block that has one that is none, and text from there on.

        Args:
            columns: which to read.
            numbers: those of them that hold numbers; the others are text.

        Raises:
            LogRefused: the file cannot be read to its end.
        """
        try:
            waiting: tuple[pa.RecordBatch, Int64Array] | None = None
            for block in self._blocks(columns, numbers):
                if waiting is not None:
                    yield waiting
                waiting = block, self._rows(len(block))
            if waiting is not None:
                yield self._without_cut_row(*waiting)
        except (pa.ArrowInvalid, OSError, EOFError, zlib.error) as error:
            raise LogRefused(f"{self._path}: {error} (after row {self._next_row - 1})") from error
        if self._watched.is_cut:
            raise LogRefused(f"{self._path}: a quoted field is not closed after row {self._next_row - 1}: truncated?")
        self._report.n_read = self._next_row - 2 + len(self._skipped)

    def _open(self) -> _Watched:
        raw: Any = gzip.open if self._path.suffix == ".gz" else open
        self._watched = _Watched(raw(self._path, "rb"))
        return self._watched

    def _parsing(self) -> pyarrow.csv.ParseOptions:
        def skip(row: pyarrow.csv.InvalidRow) -> str:
            # A file that is read a second time tells of its first rows again.
            if row.number > self._last_skipped:
                self._last_skipped = row.number
                self._skipped.append(row.number)
                self._report.reject(f"columns: a row must have {row.expected_columns}", [row.number])
            return "skip"

        return pyarrow.csv.ParseOptions(invalid_row_handler=skip, newlines_in_values=False)

    def _blocks(self, columns: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield blocks with numbers as numbers; from the first that is none on, as text."""
        n = 0
        try:
            for block in self._typed(columns, numbers, pa.float64()):
                n += len(block)
                yield block
            return
        except pa.ArrowInvalid as error:
            if "conversion error" not in str(error):
                raise
        for block in self._typed(columns, numbers, pa.string()):
            fresh = block.slice(min(n, len(block)))
            n -= len(block) - len(fresh)
            if len(fresh):
                yield fresh

    def _typed(self, columns: Sequence[str], numbers: Sequence[str], number: pa.DataType) -> Iterator[pa.RecordBatch]:
        types = {column: number if column in numbers else pa.string() for column in columns}
        converting = pyarrow.csv.ConvertOptions(
            include_columns=columns, column_types=types, null_values=[""], strings_can_be_null=True
        )
        # One thread, so that the parser can number the rows that it skips.
        reading = pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
        with (
            self._open() as file,
            pyarrow.csv.open_csv(
                file, read_options=reading, parse_options=self._parsing(), convert_options=converting
            ) as reader,
        ):
            yield from reader

    def _rows(self, n: int) -> Int64Array:
        """Return int64 [n], the numbers in the file of the next rows."""
        rows = np.arange(self._next_row, self._next_row + n + len(self._skipped), dtype=np.int64)
        if self._skipped:
            rows = rows[~np.isin(rows, self._skipped)]
        rows = rows[:n]
        if n:
            passed = [row for row in self._skipped if row < rows[-1]]
            self._skipped = self._skipped[len(passed) :]
            self._next_row = int(rows[-1]) + 1
        return rows

    def _without_cut_row(self, block: pa.RecordBatch, rows: Int64Array) -> tuple[pa.RecordBatch, Int64Array]:
        """Leave out the last row of a file that does not end it: what was cut off cannot be seen."""
        if self._watched.ends_a_row or self._skipped or not len(rows):
            return block, rows
        self._report.reject("row: no line end, it may be truncated", [int(rows[-1])])
        return block.slice(0, len(rows) - 1), rows[:-1]


class _Watched(io.RawIOBase):
    """A file that remembers whether it ends inside a row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._n_quotes = 0
        self._last = b"\n"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        if block:
            self._n_quotes += block.count(b'"')
            self._last = block[-1:]
        return block

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def is_cut(self) -> bool:
        return self._n_quotes % 2 == 1

    @property
    def ends_a_row(self) -> bool:
        return self._last == b"\n"
