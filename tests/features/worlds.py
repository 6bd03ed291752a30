"""Building features of small tables and reading them back in terms of ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conversion_retrieval.config import PipelineConfig, parse_config
from conversion_retrieval.contracts import read_manifest
from conversion_retrieval.features.build import build_features
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.features.windows import parse_time
from conversion_retrieval.schema import EVENT_TYPES
from tests.features.tables import write_snapshot

SHORT = {
    "split": {"validation_days": 5, "test_days": 5},
    "labels": {"click_window_days": 6, "view_window_days": 3},
    "features": {"aggregate_windows_days": [1, 5]},
}


def short_config(**sections) -> PipelineConfig:
    """Windows that fit a log of thirty days; keyword arguments add to each section."""
    return parse_config({name: {**SHORT.get(name, {}), **sections.get(name, {})} for name in {**SHORT, **sections}})


@dataclass(frozen=True)
class Built:
    """A built world."""

    features_dir: Path
    spec_dir: Path
    dataset: FeatureDataset

    @property
    def digests(self):
        """Content digests of both artifacts."""
        features = read_manifest(self.features_dir, kind="features").digest
        return features, read_manifest(self.spec_dir, kind="spec").digest

    def window(self, name):
        """A split's (start, end) in microseconds."""
        span = self.dataset.metadata["windows"][name]
        return parse_time(span["start"]), parse_time(span["end"])

    def known_at(self, name):
        """When labels of a split had to be known."""
        text = self.dataset.metadata["windows"]["known_until"]
        return self.window(name)[1] if name in ("train", "recent") else parse_time(text)

    def queries(self, name):
        """(user, time, surface, context item, context embedding) of each query, in ids."""
        data, split = self.dataset, self.dataset.split(name)
        surfaces = [None, *data.spec.surfaces]
        users, items = data.user_ids.to_pylist(), data.item_ids.to_pylist()
        vectors = np.asarray(split.context_embeddings)
        return [
            (
                users[split.user[q]],
                int(split.time[q]),
                surfaces[split.surface[q]],
                items[split.context_item[q]] if split.context_item[q] >= 0 else None,
                tuple(vectors[split.context_embedding[q]].tolist()) if split.context_embedding[q] >= 0 else None,
            )
            for q in range(len(split))
        ]

    def positives(self, name):
        """(query, item, event type, attributed, new to user, weight) of each positive, in ids."""
        found, items = self.dataset.split(name).positives, self.dataset.item_ids.to_pylist()
        return [
            (
                int(found.query[p]),
                items[found.item[p]],
                EVENT_TYPES[found.event_type[p]],
                bool(found.attributed[p]),
                bool(found.new_to_user[p]),
                float(found.weight[p]),
            )
            for p in range(len(found))
        ]


def build_world(directory: Path, rows, *, items=None, users=None, config=None, parts=1, row_group_size=None) -> Built:
    """Snapshot, features and spec under ``directory``."""
    snapshot = write_snapshot(directory / "snapshot", rows, items, users, parts=parts, row_group_size=row_group_size)
    features_dir, spec_dir = directory / "features", directory / "spec"
    build_features(snapshot_dir=snapshot, features_dir=features_dir, spec_dir=spec_dir, config=config or short_config())
    return Built(features_dir, spec_dir, FeatureDataset.open(features_dir, FeatureSpec.load(spec_dir)))
