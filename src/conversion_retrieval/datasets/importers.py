"""The public data sets that can be imported, by name."""

import difflib
from pathlib import Path
from typing import Final, Protocol

from conversion_retrieval.datasets.completejourney import import_completejourney
from conversion_retrieval.datasets.rees46 import import_rees46
from conversion_retrieval.datasets.report import ImportReport
from conversion_retrieval.datasets.retailrocket import import_retailrocket
from conversion_retrieval.datasets.tmall import import_tmall
from conversion_retrieval.errors import UserError


class Importer(Protocol):
    """Converts a source to canonical tables in ``output_dir``."""

    def __call__(self, source: Path | None, output_dir: Path, *, seed: int = 0) -> ImportReport:
        """See ``import_dataset``."""
        ...


IMPORTERS: Final[dict[str, Importer]] = {
    "completejourney": import_completejourney,
    "rees46": import_rees46,
    "retailrocket": import_retailrocket,
    "tmall": import_tmall,
}


def import_dataset(name: str, source: Path | None, output_dir: Path, *, seed: int = 0) -> ImportReport:
    """Write ``events/``, ``items.parquet``, ``users.parquet`` where known, and ``import_report.json``.

    ``output_dir`` appears, or is replaced, only when everything is written. ``source`` is a file or directory as the
    publisher serves it; ``completejourney`` takes the installed package if it is None. Raises ``UserError`` for an
    unknown name, a missing file or column, an unreadable file, or a source without a usable row; single bad rows are
    dropped and counted in the report.
    """
    if name not in IMPORTERS:
        near = difflib.get_close_matches(name, IMPORTERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "nothing is near"
        raise UserError(f"expected a data set among {', '.join(IMPORTERS)}, found {name!r}; {hint}")
    return IMPORTERS[name](Path(source) if source is not None else None, Path(output_dir), seed=seed)
