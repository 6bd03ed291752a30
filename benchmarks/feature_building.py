"""How fast events become features: rate, peak memory, growth with twice the events, and Polars and DuckDB beside it.

    python benchmarks/feature_building.py [--events 10000000] [--compare-events 2000000]

Every measurement runs in a fresh process. ``build`` is the whole stage, from a snapshot on disk to both artifacts,
digests and syncs included, for N/2 and N events, and for the compared number on threads and on Dask in the process.
The comparison is its history and aggregate part alone, for a query at every click: the history's end, counts of the
five event types over three windows and all time, and the time since the last of each, written with Polars' as-of joins
over running counts and with DuckDB's range windows. Ours computes distinct items and advertisers on top. Time runs
from after the imports.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conversion_retrieval.contracts import new_artifact
from conversion_retrieval.schema import EVENT_TYPES, TIMESTAMP

DAY = 86_400_000_000
DAYS = 60
EVENTS_PER_USER = 100
NUM_ITEMS = 100_000
USERS_PER_PART = 10_000
WINDOWS = (1, 7, 28)
SHARES = (0.72, 0.2, 0.03, 0.03, 0.02)
SURFACES = np.array(["home_feed", "related_items", "search"])


def write_snapshot(directory: Path, num_events: int) -> None:
    """A seeded snapshot: Zipf-like items, three surfaces, impressions before most clicks, late conversions."""
    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, NUM_ITEMS + 1) ** 0.8
    edges = np.cumsum(popularity) / popularity.sum()
    with new_artifact(directory, kind="snapshot") as working_dir:
        (working_dir / "events").mkdir()
        for part, first in enumerate(range(0, num_events // EVENTS_PER_USER, USERS_PER_PART)):
            users = np.arange(first, min(first + USERS_PER_PART, num_events // EVENTS_PER_USER))
            table = _events(random, users, edges)
            path = working_dir / "events" / f"part-{part:05d}.parquet"
            pq.write_table(table, path, row_group_size=250_000, compression="snappy")
        items = {
            "item_id": [f"i{item:07d}" for item in range(NUM_ITEMS)],
            "advertiser_id": [f"a{item % 2000:05d}" for item in range(NUM_ITEMS)],
            "category": [f"c{item % 50}" for item in range(NUM_ITEMS)],
            "price": random.lognormal(3, 1, NUM_ITEMS),
        }
        pq.write_table(pa.table(items), working_dir / "items.parquet")


def _events(random: np.random.Generator, users: np.ndarray, edges: np.ndarray) -> pa.Table:
    count = len(users) * EVENTS_PER_USER
    user = np.repeat(users, EVENTS_PER_USER)
    when = random.integers(0, DAYS * DAY, count)
    when = when.reshape(len(users), -1)
    when.sort(axis=1)
    when = when.reshape(-1) + 1_760_000_000_000_000
    kind = random.choice(len(EVENT_TYPES), count, p=SHARES).astype(np.int8)
    item = np.minimum(np.searchsorted(edges, random.random(count)), NUM_ITEMS - 1)
    surface = random.integers(0, 3, count)
    # An engagement or conversion often follows the event before it, on the same item.
    follows = (kind > 0) & (random.random(count) < 0.7) & (np.arange(count) % EVENTS_PER_USER > 0)
    item[follows], surface[follows] = item[np.flatnonzero(follows) - 1], surface[np.flatnonzero(follows) - 1]
    when[follows] = when[np.flatnonzero(follows) - 1] + random.integers(1, 60_000_000, int(follows.sum()))
    order = np.lexsort((when, user))
    user, when, kind, item, surface = user[order], when[order], kind[order], item[order], surface[order]
    converted = kind >= 3
    reported = when + (random.exponential(1.5, count) * DAY).astype(np.int64)
    words = pa.DictionaryArray.from_arrays(pa.array(kind), pa.array(EVENT_TYPES))
    return pa.table(
        {
            "event_id": pa.array([f"e{number}" for number in range(int(user[0]) * 100, int(user[0]) * 100 + count)]),
            "user_id": pa.array([f"u{u:09d}" for u in users]).take(pa.array(user - users[0])),
            "item_id": pa.array([f"i{i:07d}" for i in range(NUM_ITEMS)]).take(pa.array(item)),
            "event_type": words.cast(pa.string()),
            "event_time": pa.array(when).cast(TIMESTAMP),
            "surface": pa.array(SURFACES).take(pa.array(surface, mask=converted)),
            "click_duration_seconds": pa.array(random.lognormal(3, 1, count), mask=kind != 1),
            "context_item_id": pa.nulls(count, pa.string()),
            "context_embedding": pa.nulls(count, pa.list_(pa.float32())),
            "reported_time": pa.array(reported, mask=~converted).cast(TIMESTAMP),
            "value": pa.array(random.lognormal(3, 1, count), mask=~converted),
        }
    )


def build(snapshot_dir: Path, output_dir: Path, *overrides: str) -> int:
    """The whole stage."""
    from conversion_retrieval.config import load_config
    from conversion_retrieval.features.build import build_features

    build_features(
        snapshot_dir=snapshot_dir,
        features_dir=output_dir / "features",
        spec_dir=output_dir / "spec",
        config=load_config(None, overrides),
    )
    return json.loads((output_dir / "features/features.json").read_text())["counts"]["train"]["queries"]


def build_on_dask(snapshot_dir: Path, output_dir: Path) -> int:
    """The whole stage with its partitions on a Dask cluster in the process."""
    return build(snapshot_dir, output_dir, "features.use_dask=true")


def ours(snapshot_dir: Path, _: Path) -> int:
    """Histories and aggregates for a query at every click, on threads over partitions."""
    from concurrent.futures import ThreadPoolExecutor

    from conversion_retrieval.features.build import advertiser_codes
    from conversion_retrieval.features.config import FeatureConfig
    from conversion_retrieval.features.events import ItemIndex, event_files, read_block, scan_events
    from conversion_retrieval.features.partitions import make_partitions
    from conversion_retrieval.features.timeline import timeline, user_aggregates

    files = event_files(snapshot_dir)
    items = pq.read_table(snapshot_dir / "items.parquet")
    index = ItemIndex(ids=items["item_id"].combine_chunks(), advertiser=advertiser_codes(items))
    scan = scan_events(files)
    config = FeatureConfig(aggregate_windows_days=tuple(float(days) for days in WINDOWS))

    def work(partition: object) -> int:
        block = read_block(files, partition.event_offsets, index, scan.surfaces)
        known = timeline(block)
        history = known.only(config.history_events)
        rows = np.flatnonzero(block.type == 1)
        user, when = block.user[rows], block.time[rows]
        history.known(user, when)
        return len(user_aggregates(known, user, when, advertiser=index.advertiser, config=config))

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(work, make_partitions(scan.offsets, np.arange(len(scan.user_ids)), 0)))


def with_polars(snapshot_dir: Path, output_dir: Path) -> int:
    """Running counts by user, looked up by as-of joins strictly before the query and at each window's start."""
    import polars as pl

    events = pl.scan_parquet(snapshot_dir / "events" / "*.parquet").select(
        "user_id",
        "event_type",
        pl.col("event_time").alias("time"),
        pl.max_horizontal("event_time", "reported_time").alias("available"),
    )
    counts = [(pl.col("event_type") == k).cum_sum().over("user_id").alias(k) for k in EVENT_TYPES]
    last = [
        pl.when(pl.col("event_type") == k).then("available").forward_fill().over("user_id").alias(f"{k}_last")
        for k in EVENT_TYPES
    ]
    length = (pl.col("event_type") != "impression").cum_sum().over("user_id").alias("history")
    running = events.sort("available").with_columns(*counts, *last, length).drop("event_type", "time").collect()
    queries = events.filter(pl.col("event_type") == "click").select("user_id", "time").sort("time").collect()
    result = _before(queries, running, "time", "")
    for days in WINDOWS:
        shifted = queries.with_columns((pl.col("time") - pl.duration(days=days)).alias("start"))
        early = _before(shifted, running, "start", f"_{days}d")
        result = result.with_columns(
            (result[k].fill_null(0) - early[f"{k}_{days}d"].fill_null(0)).alias(f"{k}_count_{days}d")
            for k in EVENT_TYPES
        )
    result.write_parquet(output_dir / "polars.parquet")
    return result.height


def _before(queries, running, key: str, suffix: str):
    renamed = running.rename({c: f"{c}{suffix}" for c in running.columns if c not in ("user_id", "available")})
    return queries.join_asof(
        renamed, left_on=key, right_on="available", by="user_id", allow_exact_matches=False, check_sortedness=False
    )


def with_duckdb(snapshot_dir: Path, output_dir: Path) -> int:
    """Range windows that end one microsecond before the query."""
    import duckdb

    spans = {f"{days}d": f"interval {days} day preceding" for days in WINDOWS} | {"total": "unbounded preceding"}
    columns = [f"count(*) filter (kind = '{k}') over w_{n} as {k}_{n}" for k in EVENT_TYPES for n in spans]
    columns += [f"max(available) filter (kind = '{k}') over w_total as {k}_last" for k in EVENT_TYPES]
    columns += ["count(*) filter (kind not in ('impression', 'query')) over w_total as history"]
    windows = ", ".join(
        f"w_{n} as (partition by user_id order by available range between {span} and interval 1 microsecond preceding)"
        for n, span in spans.items()
    )
    source = f"read_parquet('{snapshot_dir}/events/*.parquet')"
    query = f"""
        with known as (
            select user_id, event_type as kind, greatest(event_time, coalesce(reported_time, event_time)) as available
            from {source}
            union all select user_id, 'query', event_time from {source} where event_type = 'click'
        ), windowed as (select user_id, kind, available, {", ".join(columns)} from known window {windows})
        select * from windowed where kind = 'query'
    """
    connection = duckdb.connect(config={"threads": os.cpu_count()})
    target = output_dir / "duckdb.parquet"
    connection.execute(f"copy ({query}) to '{target}' (format parquet)")
    return pq.read_metadata(target).num_rows


WORK = {"build": build, "dask": build_on_dask, "ours": ours, "polars": with_polars, "duckdb": with_duckdb}
LIBRARY = ("pandas", "conversion_retrieval.config", "conversion_retrieval.features.build")
IMPORTS = {"build": LIBRARY, "dask": LIBRARY, "ours": LIBRARY, "polars": ("polars",), "duckdb": ("duckdb",)}


def measure(name: str, snapshot_dir: Path, scratch_dir: Path) -> dict[str, float]:
    """Seconds, peak resident gigabytes and rows of one piece of work in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch_dir) as output_dir:
        command = [sys.executable, __file__, "--work", name, str(snapshot_dir), output_dir]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--compare-events", type=int, default=2_000_000)
    parser.add_argument("--work", nargs=3, metavar=("NAME", "SNAPSHOT", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        name, snapshot_dir, output_dir = arguments.work
        for module in IMPORTS[name]:
            importlib.import_module(module)
        start = time.perf_counter()
        rows = WORK[name](Path(snapshot_dir), Path(output_dir))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "cpu": time.process_time(), "peak": peak, "rows": rows}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        report(Path(scratch), arguments.events, arguments.compare_events)


def report(scratch_dir: Path, num_events: int, compare_events: int) -> None:
    """Run everything, one after the other."""
    seconds = {}
    for count in (num_events // 2, num_events):
        write_snapshot(scratch_dir / "snapshot", count)
        done = measure("build", scratch_dir / "snapshot", scratch_dir)
        seconds[count] = done["seconds"]
        print(
            f"build {count:,} events: {done['seconds']:.1f} s ({done['cpu']:.1f} s of processor time), "
            f"{count / done['seconds']:,.0f} events/s, peak {done['peak']:.2f} GiB, {done['rows']:,} training queries",
            flush=True,
        )
    print(f"twice the events take {seconds[num_events] / seconds[num_events // 2]:.2f}x the time")
    write_snapshot(scratch_dir / "snapshot", compare_events)
    threads, dask = (measure(name, scratch_dir / "snapshot", scratch_dir) for name in ("build", "dask"))
    print(
        f"build {compare_events:,} events: {threads['seconds']:.1f} s on threads, "
        f"{dask['seconds']:.1f} s on Dask in the process ({dask['seconds'] / threads['seconds']:.2f}x; "
        f"{threads['cpu']:.1f} and {dask['cpu']:.1f} s of processor time)",
        flush=True,
    )
    results = {name: measure(name, scratch_dir / "snapshot", scratch_dir) for name in ("ours", "polars", "duckdb")}
    for name, done in results.items():
        ratio = done["seconds"] / results["ours"]["seconds"]
        print(
            f"histories and aggregates, {compare_events:,} events, {done['rows']:,} queries, {name}: "
            f"{done['seconds']:.1f} s ({ratio:.2f}x ours; {done['cpu']:.1f} s of processor time), "
            f"peak {done['peak']:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
