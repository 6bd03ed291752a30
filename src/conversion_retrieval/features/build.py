"""The ``build_features`` stage: a validated snapshot in, the features and spec artifacts out."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.contracts import new_artifact, open_artifact, write_json
from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import LabelConfig
from conversion_retrieval.features.coverage import coverage, stored_query_shares
from conversion_retrieval.features.events import EventScan, event_files, scan_events
from conversion_retrieval.features.execution import run_partitions
from conversion_retrieval.features.inference import Entities, infer
from conversion_retrieval.features.label_statistics import (
    attribution_counts,
    delay_curve,
    label_variance,
    weight_statistics,
)
from conversion_retrieval.features.merge import SplitFiles, load, order_queries, write_history
from conversion_retrieval.features.partitions import Plan, make_partitions
from conversion_retrieval.features.performance import BinnedCounts, merge_counts, snapshot_grid
from conversion_retrieval.features.performance_files import PerformanceSummary, write_performance
from conversion_retrieval.features.spec import FeatureSpec, Statistic, read_spec
from conversion_retrieval.features.statistics import Moments
from conversion_retrieval.features.timeline import aggregate_names
from conversion_retrieval.features.windows import (
    FOREVER,
    SPLITS,
    TRAINING_SPLITS,
    SplitWindows,
    parse_time,
    split_windows,
)
from conversion_retrieval.progress import say
from conversion_retrieval.schema import EVENT_TYPES, KNOWN_EVENTS, TIMESTAMP

if TYPE_CHECKING:
    from conversion_retrieval.config import PipelineConfig

PROFILE = "profile.json"
SCRATCH = ".build_features."
ABANDONED_SECONDS = 86_400.0


def build_features(*, snapshot_dir: Path, features_dir: Path, spec_dir: Path, config: "PipelineConfig") -> None:
    """Write the features and spec artifacts of a snapshot.

    Bytes depend on the snapshot's rows and the configuration only: not on partitions, workers, or part files. Raises
    ``UserError`` where there is nothing to train on, and for columns that the given spec asks for in vain.
    """
    snapshot_dir = Path(snapshot_dir).absolute()  # other processes may have other working directories
    manifest = open_artifact(snapshot_dir, kind="snapshot")
    inputs = {"snapshot": manifest.digest}
    template = read_spec(config.features.spec_path) if config.features.spec_path else None
    Path(features_dir).parent.mkdir(parents=True, exist_ok=True)
    scratch_parent = Path(config.features.shared_dir or Path(features_dir).parent).absolute()
    with (
        _scratch_directory(scratch_parent) as scratch,
        new_artifact(features_dir, kind="features", inputs=inputs) as features,
        new_artifact(spec_dir, kind="spec", inputs=inputs) as spec,
    ):
        if config.features.shared_dir:  # workers of a cluster read the events there
            shutil.copytree(snapshot_dir / "events", scratch / "snapshot" / "events")
        files = event_files(scratch / "snapshot" if config.features.shared_dir else snapshot_dir)
        built = _Build(snapshot_dir, files, config, template, scratch)
        built.run()
        built.write(features, spec)
        if (snapshot_dir / PROFILE).exists():  # travels into the bundle, for the drift check of later runs
            shutil.copyfile(snapshot_dir / PROFILE, features / PROFILE)


@contextmanager
def _scratch_directory(parent: Path) -> Iterator[Path]:
    """A directory for the partitions' arrays, gone afterwards; what killed runs left at ``parent`` goes after a day."""
    for path in parent.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # another run was faster
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path)
    try:
        # A worker of a cluster may still be writing when another one's partition has failed.
        scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"expected a directory to write partitions to at {parent}, found: {error}") from None
    with scratch as directory:
        yield Path(directory)


@dataclass(frozen=True, kw_only=True)
class Users:
    """All users, sorted: those of the users table and those of the events."""

    table: pa.Table
    event_rows: NDArray[np.int64]  # row of each user that has events, in their order

    @classmethod
    def join(cls, path: Path, event_users: pa.Array) -> "Users":
        """Users of events without attributes get nulls."""
        known = pq.read_table(path) if path.exists() else pa.table({"user_id": pa.array([], pa.string())})
        listed = known["user_id"].cast(pa.string()).combine_chunks()
        everyone = pc.unique(pa.concat_arrays([*_chunks(listed), event_users]))
        everyone = everyone.take(pc.sort_indices(everyone))
        at = pc.index_in(everyone, value_set=listed) if len(listed) else pa.nulls(len(everyone), pa.int32())
        columns = {n: known[n].take(at) if len(listed) else pa.nulls(len(everyone)) for n in known.column_names}
        table = pa.table({**columns, "user_id": everyone})
        rows = pc.index_in(event_users, value_set=everyone).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(table=table, event_rows=rows)


def _chunks(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def advertiser_codes(items: pa.Table) -> NDArray[np.int32]:
    """Dense codes of ``advertiser_id`` in the order of the sorted distinct ids."""
    ids = items["advertiser_id"].cast(pa.string())
    distinct = pc.unique(ids).drop_null()
    distinct = distinct.take(pc.sort_indices(distinct))
    codes = pc.fill_null(pc.index_in(ids, value_set=distinct), -1)
    return np.asarray(codes.to_numpy(), np.int32)


def duration_cap(scan: EventScan, windows: SplitWindows, config: LabelConfig) -> float:
    """The configured ``t_max``, or the percentile of the training window's click durations (0 without any)."""
    if config.click_duration_cap_seconds:
        return config.click_duration_cap_seconds
    inside = (scan.click_times >= windows.train.start) & (scan.click_times < windows.train.end)
    durations = scan.click_durations[inside]
    durations = durations[np.isfinite(durations) & (durations >= 0)]
    return float(np.percentile(durations, config.click_duration_cap_percentile)) if len(durations) else 0.0


class _Build:
    """One run of the stage: plan, partitions, then files."""

    def __init__(
        self,
        snapshot_dir: Path,
        files: Sequence[Path],
        config: "PipelineConfig",
        template: FeatureSpec | None,
        scratch_dir: Path,
    ) -> None:
        self._config, self._template = config, template
        self._files = files
        self._scratch_dir = scratch_dir
        self._items = pq.read_table(snapshot_dir / "items.parquet")
        self._advertiser = advertiser_codes(self._items)
        as_of = config.split.as_of
        self._scan = scan = scan_events(self._files, before=parse_time(as_of) if as_of else FOREVER)
        self._users = Users.join(snapshot_dir / "users.parquet", scan.user_ids)
        self._windows = split_windows(
            config.split,
            first_time=scan.dense_from,
            last_time=scan.last_time,
            last_available=scan.last_available,
        )
        self._grid = snapshot_grid(
            self._windows,
            first_time=scan.dense_from,
            last_available=scan.last_available,
            config=config.features,
        )
        self._cap = duration_cap(scan, self._windows, config.labels)
        history_events = template.history_events if template else tuple(config.features.history_events)
        # More than the model's histories hold: what users did is measured by, too.
        self._stored_events = tuple(name for name in EVENT_TYPES if name in {*history_events, *KNOWN_EVENTS})
        self._directories: list[Path] = []

    def run(self) -> None:
        """Build all partitions."""
        config = self._config
        plan = Plan(
            files=tuple(self._files),
            item_ids=self._item_ids,
            advertiser=self._advertiser,
            surfaces=self._scan.surfaces,
            windows=self._windows,
            edges=self._grid.edges,
            duration_cap=self._cap,
            labels=config.labels,
            split=config.split,
            features=config.features,
            stored_events=self._stored_events,
            scratch_dir=self._scratch_dir,
        )
        partitions = make_partitions(self._scan.offsets, self._users.event_rows, config.features.num_partitions)
        self._directories = run_partitions(plan, partitions, config.features)

    def write(self, features_dir: Path, spec_dir: Path) -> None:
        """Write every file of both artifacts."""
        config = self._config.features
        write_history(self._directories, features_dir / "events", self._users.event_rows, self._users.table.num_rows)
        names = aggregate_names(config)
        for split in SPLITS:
            limit = 0 if split in TRAINING_SPLITS else self._config.split.max_evaluation_queries
            files = SplitFiles(
                directory=features_dir / split, snapshot_times=self._grid.times, num_aggregates=len(names)
            )
            files.write(order_queries(self._directories, split, limit=limit))
        _check_training(features_dir, self._windows)
        first_seen = self._reduced("first_seen", np.minimum.reduce)
        self._write_entities(features_dir, first_seen)
        performance = write_performance(
            features_dir / "performance", self._merged_counts(), self._grid, self._windows, len(self._items), config
        )
        spec = self._spec(features_dir, first_seen, aggregate_statistics(features_dir, names), performance.statistics)
        spec.save(spec_dir)
        covered = {
            "items": coverage(spec.items, spec.encode_items(self._items), first_seen < FOREVER),
            "users": coverage(spec.users, spec.encode_users(self._users.table), self._user_seen()),
            "queries": self._query_coverage(features_dir, spec),
        }
        write_json(
            features_dir / "features.json",
            {**self._metadata(features_dir, names, performance, first_seen), "coverage": covered},
        )

    @property
    def _item_ids(self) -> pa.Array:
        ids = self._items["item_id"].combine_chunks()
        return ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)

    def _reduced(self, name: str, reduce: Any) -> NDArray[Any]:
        result: NDArray[Any] = reduce([load(d / "items", name) for d in self._directories])
        return result

    def _merged_counts(self) -> BinnedCounts:
        parts = [
            BinnedCounts(keys=load(d / "items", "keys"), counts=load(d / "items", "counts")) for d in self._directories
        ]
        return merge_counts(parts, self._grid.edges, len(self._items))

    def _write_entities(self, features_dir: Path, first_seen: NDArray[np.int64]) -> None:
        cold = first_seen == FOREVER
        seen = pa.array(np.where(cold, 0, first_seen), pa.int64(), mask=cold).cast(TIMESTAMP)
        items = self._items.append_column("advertiser", pa.array(self._advertiser))
        items = items.append_column("first_seen", seen)
        pq.write_table(items, features_dir / "items.parquet", compression="zstd")
        pq.write_table(self._users.table, features_dir / "users.parquet", compression="zstd")

    def _spec(
        self,
        features_dir: Path,
        first_seen: NDArray[np.int64],
        user_aggregates: Sequence[Statistic],
        item_performance: Sequence[Statistic],
    ) -> FeatureSpec:
        surface_seen = self._reduced("surface_seen", np.logical_or.reduce)[1:]
        context = np.load(features_dir / "train" / "context_embeddings.npy", mmap_mode="r", allow_pickle=False)
        return infer(
            items=Entities(owner="items", table=self._items, seen=first_seen < FOREVER),
            users=Entities(owner="users", table=self._users.table, seen=self._user_seen()),
            config=self._config.features,
            surfaces=[name for name, seen in zip(self._scan.surfaces, surface_seen, strict=True) if seen],
            context_embedding_dim=context.shape[1],
            user_aggregates=user_aggregates,
            item_performance=item_performance,
            template=self._template,
        )

    def _query_coverage(self, features_dir: Path, spec: FeatureSpec) -> dict[str, dict[str, float | None]]:
        """Training queries against the newest ones, which stand for those that will be served."""
        known = np.array([False, *(name in spec.surfaces for name in self._scan.surfaces)])
        # More events are stored than the model's histories may hold, and a model without histories sees none.
        held = [EVENT_TYPES.index(name) + 1 for name in spec.history_events] if spec.history_length else []
        held_before = np.concatenate([[0], np.cumsum(np.isin(load(features_dir / "events", "action"), held))])
        splits = {"train": "train", "serve": "test"}
        return {
            role: stored_query_shares(
                features_dir / name,
                history_offsets=load(features_dir / "events", "offsets"),
                held_before=held_before,
                known_surface=known,
                context_dim=spec.context_embedding_dim,
            )
            for role, name in splits.items()
        }

    def _user_seen(self) -> NDArray[np.bool_]:
        seen = np.zeros(self._users.table.num_rows, bool)
        seen[self._users.event_rows] = np.concatenate([load(d / "items", "user_seen") for d in self._directories])
        return seen

    def _metadata(
        self, features_dir: Path, names: Sequence[str], performance: PerformanceSummary, first_seen: NDArray[np.int64]
    ) -> dict[str, Any]:
        conversions = {
            name: np.concatenate([load(d / "conversions", name) for d in self._directories])
            for name in ("time", "available", "touch_type", "in_catalogue")
        }
        labels = pq.read_table(features_dir / "train" / "positives.parquet", columns=["weight", "task"])
        seen = self._user_seen()
        return {
            "item_performance": list(performance.names),
            "user_aggregates": list(names),
            "surfaces": list(self._scan.surfaces),
            "history_events": list(self._stored_events),
            "windows": self._windows.described(),
            "click_duration_cap_seconds": self._cap,
            "performance_priors": performance.priors,
            "counts": {
                "events": self._scan.num_events,
                "items": len(self._items),
                "users": self._users.table.num_rows,
                "cold_items": int(np.sum(first_seen == FOREVER)),
                "cold_users": int(np.sum(~seen)),
                **{split: _split_counts(features_dir / split, first_seen == FOREVER, ~seen) for split in SPLITS},
            },
            "labels": {
                "attribution": attribution_counts(conversions["touch_type"], conversions["in_catalogue"]),
                "delay": delay_curve(conversions["time"], conversions["available"], self._windows),
                "weights": weight_statistics(labels["weight"].to_numpy(), labels["task"].to_numpy()),
                "variance": label_variance(self._reduced("in_training", np.add.reduce), self._advertiser),
            },
        }


def aggregate_statistics(features_dir: Path, names: Sequence[str]) -> list[Statistic]:
    """Mean and deviation of every user aggregate over the training queries, counts log-scaled."""
    moments = Moments(names, np.array([0.0 if name.endswith("_recency") else 1.0 for name in names]))
    with pq.ParquetFile(features_dir / "train" / "queries.parquet") as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["user_aggregates"])["user_aggregates"]
            flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            moments.add(flat.reshape(-1, len(names)))
    return moments.statistics()


def _check_training(features_dir: Path, windows: SplitWindows) -> None:
    if pq.read_metadata(features_dir / "train" / "positives.parquet").num_rows == 0:
        span = windows.described()["train"]
        raise UserError(
            f"expected engagements or conversions on catalogue items between {span['start']} and {span['end']} to "
            "train on, found none: check split.* and labels.* or bring a longer log"
        )
    for split in ("validation", "test"):
        if pq.read_metadata(features_dir / split / "positives.parquet").num_rows == 0:
            say(f"build_features: the {split} window holds no positives")


def _split_counts(directory: Path, cold_items: NDArray[np.bool_], cold_users: NDArray[np.bool_]) -> dict[str, int]:
    user = pq.read_table(directory / "queries.parquet", columns=["user"])["user"].to_numpy()
    positives = pq.read_table(directory / "positives.parquet", columns=["item", "task", "new_to_user", "attributed"])
    item, task = positives["item"].to_numpy(), positives["task"].to_numpy()
    return {
        "queries": len(user),
        "users": len(np.unique(user)),
        "conversions": int(np.sum(task == 0)),
        "engagements": int(np.sum(task == 1)),
        "attributed_conversions": int(np.sum((task == 0) & positives["attributed"].to_numpy())),
        "new_to_user": int(np.sum(positives["new_to_user"].to_numpy())),
        "positives_on_cold_items": int(np.sum(cold_items[item])),
        "queries_of_cold_users": int(np.sum(cold_users[user])),
        "hard_negatives": pq.read_metadata(directory / "hard_negatives.parquet").num_rows,
    }
