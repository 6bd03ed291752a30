"""What ``conversion-retrieval retrieve`` does: candidates for one user on the screen, for many into a file."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from conversion_retrieval.command_line import output_width
from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import new_file
from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.features.encoding import as_strings
from conversion_retrieval.progress import track
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.schema import TIMESTAMP, is_text
from conversion_retrieval.serving.champion import ChampionLoader
from conversion_retrieval.serving.coverage import Coverage
from conversion_retrieval.serving.event_rules import latest_time, usable
from conversion_retrieval.serving.query_features import context_fault, last_time
from conversion_retrieval.serving.requests import MAX_K, Request, UserEvents
from conversion_retrieval.serving.retriever import Candidates, Retriever
from conversion_retrieval.tables import Tables, read_tables

BATCH_REQUESTS = 256
WORTH_SAYING = 0.01
CONSOLE: Final = Console(markup=False, highlight=False, soft_wrap=True, width=output_width())
OUTPUT_SCHEMA = pa.schema(
    [
        ("request", pa.int64()),
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("advertiser_id", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)


def retrieve_user(
    registry_uri: str,
    data_uri: str,
    user_id: str,
    *,
    surface: str | None = None,
    k: int = 100,
    exclude_seen: bool = False,
    advertiser_cap: int = 0,
) -> Candidates:
    """Print and return the champion's candidates for a user, as of just after that user's newest event.

    Raises ``UserError`` for a user who is in neither the events nor the users table.
    """
    _check_options(k, advertiser_cap)
    tables = read_tables(data_uri)
    loader = ChampionLoader(Registry.existing(registry_uri))
    retriever = loader.load()
    events = read_user_events(tables, [user_id], config=retriever.model.config)
    if user_id not in events.positions and not _is_known(events, user_id):
        raise UserError(f"expected a user of {data_uri}, found no events of {user_id!r}")
    request = Request(
        user_id=user_id,
        time=last_time(events),
        surface=surface,
        k=k,
        exclude_seen=exclude_seen,
        advertiser_cap=advertiser_cap,
    )
    known = retriever.model.spec.surfaces
    if surface is not None and surface not in known:
        CONSOLE.print(f"surface {surface!r} is unknown to the model and counts as none; it knows {', '.join(known)}")
    coverage = retriever.coverage()
    (candidates,) = _answer(retriever, events, [request], coverage)
    _print(candidates, retriever.version)
    _print_coverage(coverage)
    loader.discard_all_but("")
    return candidates


def retrieve_requests(
    registry_uri: str,
    data_uri: str,
    requests_path: Path,
    output_path: Path | None,
    *,
    k: int = 100,
    exclude_seen: bool = False,
    advertiser_cap: int = 0,
) -> Path:
    """Answer a Parquet file of requests into another, one row a candidate; returns its path.

    Columns of the requests: ``user_id``; optional ``time`` (default: after the user's newest event), ``surface``,
    ``context_item_id``, ``context_embedding``. ``UserError`` names a missing or wrong column, the row of a context
    embedding that is not as the model was trained with, or an output that cannot be written, before anything is loaded.
    """
    _check_options(k, advertiser_cap)
    output_path = output_path or requests_path.with_name(f"{requests_path.stem}_candidates.parquet")
    if output_path.resolve() == requests_path.resolve():
        raise UserError(f"expected another file than the requests to write to, found {output_path}: choose an --output")
    table = _read_requests(requests_path)
    with _output_file(output_path) as temporary:
        tables = read_tables(data_uri)
        loader = ChampionLoader(Registry.existing(registry_uri))
        retriever = loader.load()
        events = read_user_events(tables, table["user_id"].to_pylist(), config=retriever.model.config)
        options = {"k": k, "exclude_seen": exclude_seen, "advertiser_cap": advertiser_cap}
        coverage, num_candidates = retriever.coverage(), 0
        with pq.ParquetWriter(temporary, OUTPUT_SCHEMA, compression="zstd") as writer:
            for start in track(range(0, table.num_rows, BATCH_REQUESTS), "retrieve", unit="batches"):
                rows = table.slice(start, BATCH_REQUESTS).to_pylist()
                _check_context(rows, start, retriever.model.spec.context_embedding_dim, requests_path)
                batch = _requests(rows, events, options)
                answers = _answer(retriever, events, batch, coverage)
                num_candidates += sum(len(answer.item_ids) for answer in answers)
                writer.write_table(_rows(start, answers))
    CONSOLE.print(
        f"{num_candidates:,} candidates for {table.num_rows:,} requests, from {retriever.version}: {output_path}"
    )
    _print_coverage(coverage)
    loader.discard_all_but("")
    return output_path


@contextmanager
def _output_file(path: Path) -> Iterator[Path]:
    """``contracts.new_file``, but a path that cannot be written to is the user's mistake."""
    if path.is_dir():
        raise UserError(f"expected a file to write to at {path}, found a directory")
    with ExitStack() as opened:
        try:
            temporary = opened.enter_context(new_file(path))
        except OSError as error:
            raise UserError(f"expected a directory to write {path.name} to at {path.parent}, found: {error}") from None
        yield temporary


def read_user_events(
    tables: Tables, user_ids: Iterable[str] | None = None, *, config: PipelineConfig | None = None
) -> UserEvents:
    """Events and columns of some users (all if None), read batch by batch.

    Rows that a model trained with ``config`` could not have seen are left out, and one line says so.
    """
    latest = latest_time(config or PipelineConfig())
    wanted = None if user_ids is None else pa.array(sorted(set(user_ids)), pa.string())
    batches = (located.batch for located in tables.events.batches())
    asked = (b if wanted is None else b.filter(pc.is_in(b["user_id"], value_set=wanted)) for b in batches)
    item_ids = frozenset(tables.items.read(["item_id"])["item_id"].to_pylist())
    events = pa.Table.from_batches(usable(asked, latest, item_ids), tables.events.schema)
    users = tables.users.read() if tables.users else None
    if users is not None and wanted is not None:
        users = users.filter(pc.is_in(users["user_id"], value_set=wanted))
    return UserEvents.of_table(events, users)


def _answer(
    retriever: Retriever, events: UserEvents, requests: Sequence[Request], coverage: Coverage
) -> list[Candidates]:
    user_ids = list(dict.fromkeys(request.user_id for request in requests))
    rows = {user_id: row for row, user_id in enumerate(user_ids)}
    user = np.array([rows[request.user_id] for request in requests], np.int64)
    return retriever.retrieve(requests, events.of_users(user_ids), user, observe=coverage.observe)


def _check_context(rows: Sequence[dict[str, Any]], start: int, dim: int, path: Path) -> None:
    for number, row in enumerate(rows, start):
        embedding = row.get("context_embedding")
        if embedding is not None and (fault := context_fault(embedding, dim)):
            raise UserError(f"{path}, row {number}: {fault}")


def _requests(rows: Sequence[dict[str, Any]], events: UserEvents, options: dict[str, Any]) -> list[Request]:
    for row in rows:
        row["time"] = last_time(events.of_users([row["user_id"]])) if row.get("time") is None else row["time"]
        row["context_embedding"] = None if row.get("context_embedding") is None else tuple(row["context_embedding"])
    return [Request(**row, **options) for row in rows]


def _read_requests(path: Path) -> pa.Table:
    kinds = {
        "user_id": pa.string(),
        "time": TIMESTAMP,
        "surface": pa.string(),
        "context_item_id": pa.string(),
        "context_embedding": pa.list_(pa.float32()),
    }
    try:
        table = pq.read_table(path)
    except FileNotFoundError:  # whose message is the path alone
        raise UserError(f"expected requests at {path}, found no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"expected requests at {path}, found: {one_line(error)}") from None
    if "user_id" not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise UserError(f"expected requests with a column user_id in {path}, found the columns {found}")
    if unknown := [name for name in table.column_names if name not in kinds]:
        raise UserError(f"expected requests with columns out of {', '.join(kinds)} in {path}, found {unknown[0]!r}")
    for field in table.schema:
        if pa.types.is_timestamp(field.type) and field.type.tz is None:  # text without a zone fails in the cast
            raise UserError(
                f"expected times with a time zone in column {field.name} of {path}, found {field.type}: "
                "convert them to UTC"
            )
        if field.name == "time" and not _is_moment(field.type):
            raise UserError(
                f"expected times with a time zone in column time of {path}, found {field.type}: write timestamps in "
                "UTC, or texts such as 2026-01-05T12:00:00Z"
            )
    for name in {"user_id", "context_item_id"}.intersection(table.column_names):
        if pa.types.is_floating(table[name].type):  # long ids would become texts such as 1.2e+10
            table = table.set_column(table.column_names.index(name), name, as_strings(table[name]))
    try:
        table = table.cast(pa.schema([(name, kinds[name]) for name in table.column_names]))
    except pa.ArrowException as error:
        raise UserError(f"expected requests at {path}, found: {one_line(error)}") from None
    if nulls := table["user_id"].null_count:
        raise UserError(f"expected a user_id in every row of {path}, found {nulls:,} without")
    if "time" in table.column_names:
        table = table.set_column(table.column_names.index("time"), "time", table["time"].cast(pa.int64()))
    return table


def _is_moment(kind: pa.DataType) -> bool:
    """Whether values can name their moment: a timestamp or a text. Of a number the unit, of a date the zone is open."""
    return bool(pa.types.is_timestamp(kind) or is_text(kind) or pa.types.is_null(kind))


def _rows(first_request: int, answers: Sequence[Candidates]) -> pa.Table:
    lengths = [len(answer.item_ids) for answer in answers]
    return pa.table(
        {
            "request": np.repeat(first_request + np.arange(len(answers)), lengths),
            "user_id": [answer.user_id for answer in answers for _ in answer.item_ids],
            "rank": np.concatenate([np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)]),
            "item_id": [item for answer in answers for item in answer.item_ids],
            "score": [score for answer in answers for score in answer.scores],
            "advertiser_id": [advertiser for answer in answers for advertiser in answer.advertiser_ids],
            "reasons": [list(reason) for answer in answers for reason in answer.reasons],
        },
        schema=OUTPUT_SCHEMA,
    )


def _print(candidates: Candidates, version: str) -> None:
    table = Table("rank", "item", "score", "advertiser", "because of", title=f"{candidates.user_id} from {version}")
    columns = (candidates.item_ids, candidates.scores, candidates.advertiser_ids, candidates.reasons)
    for rank, (item, score, advertiser, reasons) in enumerate(zip(*columns, strict=True), start=1):
        table.add_row(str(rank), item, f"{score:.4f}", advertiser, ", ".join(reasons) or "no history")
    CONSOLE.print(table)


def _print_coverage(coverage: Coverage) -> None:
    """One line on what is missing more often than in training, so that a broken join is seen at once."""
    shares = [s for s in coverage.shares() if s.serving is not None and s.serving > (s.training or 0.0) + WORTH_SAYING]
    told = ", ".join(f"{s.feature} {s.serving:.0%} (training {_percent(s.training)})" for s in shares)
    CONSOLE.print(f"missing or unknown more often than in training: {told or 'no feature'}")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def _is_known(events: UserEvents, user_id: str) -> bool:
    return events.users is not None and user_id in events.users["user_id"].to_pylist()


def _check_options(k: int, advertiser_cap: int) -> None:
    if not 1 <= k <= MAX_K:
        raise UserError(f"expected k between 1 and {MAX_K}, found {k}")
    if advertiser_cap < 0:
        raise UserError(f"expected an advertiser cap of 0 (none) or more, found {advertiser_cap}")
