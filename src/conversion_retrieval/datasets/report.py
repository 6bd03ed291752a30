"""What an import read, wrote, and dropped, and why."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from conversion_retrieval.contracts import write_json
from conversion_retrieval.errors import UserError

REPORT_NAME: Final = "import_report.json"


@dataclass(kw_only=True)
class Drop:
    """Rows left out for one reason; ``example`` points at the first of them by line and value."""

    file: str
    reason: str
    rows: int
    example: str


@dataclass(kw_only=True)
class ImportReport:
    """Counts of an import. ``rows_read`` is by source file, ``rows_written`` by canonical table."""

    dataset: str
    source: str
    rows_read: dict[str, int] = field(default_factory=dict)
    rows_written: dict[str, int] = field(default_factory=dict)
    dropped: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, file: str, rows: int) -> None:
        """``rows`` more were read from ``file``."""
        self.rows_read[file] = self.rows_read.get(file, 0) + rows

    def wrote(self, table: str, rows: int) -> None:
        """``rows`` more were written to ``table``."""
        self.rows_written[table] = self.rows_written.get(table, 0) + rows

    def drop(self, file: str, reason: str, rows: int, example: str = "") -> None:
        """``rows`` of ``file`` were left out; the example of the first call for a reason is kept."""
        if not rows:
            return
        for known in self.dropped:
            if (known.file, known.reason) == (file, reason):
                known.rows += rows
                return
        self.dropped.append(Drop(file=file, reason=reason, rows=rows, example=example))

    def note(self, text: str) -> None:
        """A decision of the importer that a reader of the data should know."""
        self.notes.append(text)

    def dropped_rows(self, file: str) -> int:
        """How many rows of ``file`` were left out."""
        return sum(drop.rows for drop in self.dropped if drop.file == file)

    def require_rows(self, table: str, rows: int) -> None:
        """``UserError`` if ``rows``, those for ``table``, is 0, with the first reason for it."""
        if not rows:
            first = self.dropped[0] if self.dropped else None
            why = f"; {first.rows} rows dropped, {first.reason} ({first.example})" if first else ""
            raise UserError(f"expected rows for {table} in {self.source}, found none that can be used{why}")

    def save(self, directory: Path) -> None:
        """Write ``import_report.json``."""
        write_json(directory / REPORT_NAME, asdict(self))

    def lines(self) -> list[str]:
        """The report for people, a line a fact."""
        return [
            f"{self.dataset} from {self.source}",
            *(f"read     {rows:>12,}  {file}" for file, rows in self.rows_read.items()),
            *(f"wrote    {rows:>12,}  {table}" for table, rows in self.rows_written.items()),
            *(
                f"dropped  {d.rows:>12,}  {d.file}: {d.reason}{f' ({d.example})' if d.example else ''}"
                for d in self.dropped
            ),
            *(f"note: {note}" for note in self.notes),
        ]
