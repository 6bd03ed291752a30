"""Validates many events from Parquet part files into a snapshot: seconds and peak memory.

    python benchmarks/validation.py --events 10000000

Events are made here with NumPy, so that the figure does not depend on the synthetic world's shape.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conversion_retrieval.config import load_config
from conversion_retrieval.schema import EVENT_TYPES, TIMESTAMP
from conversion_retrieval.validation.stage import validate_data

ITEMS = 50_000
PARTS = 10
START = 1_767_225_600_000_000  # 2026-01-01
DAY = 86_400_000_000


def write_tables(directory: Path, events: int) -> None:
    """Ten part files of events of ``events / 30`` users over 30 days, and a catalogue."""
    generator = np.random.default_rng(0)
    (directory / "events").mkdir(parents=True)
    items = {"item_id": [f"i{n}" for n in range(ITEMS)], "advertiser_id": [f"a{n % 997}" for n in range(ITEMS)]}
    pq.write_table(pa.table(items | {"price": generator.lognormal(3, 1, ITEMS)}), directory / "items.parquet")
    for part in range(PARTS):
        pq.write_table(_events(generator, part, events), directory / "events" / f"part-{part:02d}.parquet")


def _events(generator: np.random.Generator, part: int, total: int) -> pa.Table:
    size = total // PARTS
    kinds = np.array(EVENT_TYPES)[generator.choice(5, size, p=[0.75, 0.17, 0.04, 0.025, 0.015])]
    times = START + generator.integers(0, 30 * DAY, size)
    return pa.table(
        {
            "event_id": np.char.add("e", (part * size + np.arange(size)).astype(str)),
            "user_id": np.char.add("u", generator.integers(0, max(total // 30, 1), size).astype(str)),
            "item_id": np.char.add("i", (generator.zipf(1.3, size) % ITEMS).astype(str)),
            "event_type": kinds,
            "event_time": pa.array(times, TIMESTAMP),
            "surface": np.array(["home_feed", "related_items", "search"])[generator.integers(0, 3, size)],
            "click_duration_seconds": pa.array(generator.exponential(30, size), mask=kinds != "click"),
            "reported_time": pa.array(times + DAY // 24, TIMESTAMP, mask=kinds != "checkout"),
        }
    )


def main() -> None:
    """Make the tables, validate them, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        data_dir, out = Path(directory) / "data", Path(directory) / "out"
        write_tables(data_dir, options.events)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start, cpu = time.perf_counter(), time.process_time()
        verdict = validate_data(
            data_uri=str(data_dir),
            snapshot_dir=out / "snapshot",
            report_dir=out / "report",
            page_path=out / "page.html",
            config=load_config(),
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.events:,} events {verdict} in {seconds:.1f} s ({options.events / seconds:,.0f}/s, "
        f"{cpu:.1f} s of CPU), peak memory {peak:,.0f} MiB ({before:,.0f} MiB before)"
    )


if __name__ == "__main__":
    main()
