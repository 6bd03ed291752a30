"""The ablation runner: named variants on one split and catalogue, compared with the default over users and seeds.

Every (variant, seed) is an artifact of its own, so a stopped run continues where it was and a cluster can make them
side by side; ``compare_variants`` needs only those artifacts.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval import contracts
from conversion_retrieval.config import PipelineConfig, config_digest, config_values
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.evaluation.crossed_bootstrap import Interval, crossed_recalls, percentile_interval
from conversion_retrieval.evaluation.jobs import Job, run_jobs
from conversion_retrieval.evaluation.variants import DEFAULT, changing_variants, reference_of, variant_config
from conversion_retrieval.evaluation.window import CONVERSION_TASK
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec, read_spec, spec_file
from conversion_retrieval.progress import say

KS: Final = (100, 1000)
RANKS: Final = "ranks.parquet"
REQUEST: Final = "request.json"
_NEEDS_CONVERSIONS: Final = "expected conversions in the test window, by which an ablation compares its variants"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the ablation's table: a variant's recall@k and its difference to what it is compared with."""

    variant: str
    reference: str
    k: int
    recall: Interval
    difference: Interval | None
    num_seeds: int
    num_users: int
    num_positives: int


def ablate(
    data_uri: str,
    output_dir: Path,
    *,
    config: PipelineConfig,
    num_seeds: int,
    variants: tuple[str, ...] = (),
    num_processes: int = 1,
) -> Path:
    """Run every variant that changes anything with every seed, skipping what is there; returns the HTML page's path.

    With ``num_processes`` above 1 as many variants train side by side, each with its share of the cores and with its
    log in ``logs/``. Raises ``UserError`` for an unknown variant, invalid data, a test window without conversions, or
    an output directory that cannot be written to or is another ablation's; in processes also, at the end, for a variant
    that failed; and ``Interrupted`` (a ``SystemExit``) after SIGTERM.
    """
    names = changing_variants(config, variants)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if any(output_dir.iterdir()) and not (output_dir / REQUEST).exists():
            raise UserError(
                f"expected nothing or an ablation in {output_dir}, found other files: choose a new --output"
            )
        _claim(output_dir, data_uri, config)
    except OSError as error:
        raise UserError(f"expected a directory to write to at {output_dir}, found: {error}") from None
    snapshot_dir = _snapshot(data_uri, output_dir, config)
    runs = [(name, seed) for seed in range(num_seeds) for name in names]
    dirs = {run: output_dir / "variants" / f"{run[0]}-seed{run[1]}" for run in runs}
    missing = [run for run in runs if not is_complete(dirs[run], "variant")]
    if missing:
        default = variant_config(config, DEFAULT, seed=0)
        _require_conversions(*_features(snapshot_dir, output_dir / "features", default))
    jobs = [
        Job(
            name=f"{name}, seed {seed}",
            work=partial(
                run_variant,
                snapshot_dir=snapshot_dir,
                variant_dir=dirs[name, seed],
                features_root_dir=output_dir / "features",
                config=config,
                variant=name,
                seed=seed,
            ),
            log_path=output_dir / "logs" / f"{name}-seed{seed}.log",
        )
        for name, seed in missing
    ]
    if num_processes > 1:
        for name, seed in missing:  # before the processes, which would build the shared ones at the same time
            _features(snapshot_dir, output_dir / "features", variant_config(config, name, seed=seed))
        run_jobs(jobs, num_processes=num_processes)
    else:
        for position, job in enumerate(jobs, start=1):
            say(f"[{position}/{len(jobs)}] {job.name}")
            job.work()
    page_path = output_dir / "ablation.html"
    compare_variants(
        variant_dirs=list(dirs.values()), ablation_dir=output_dir / "ablation", page_path=page_path, config=config
    )
    return page_path


def run_variant(
    *, snapshot_dir: Path, variant_dir: Path, features_root_dir: Path, config: PipelineConfig, variant: str, seed: int
) -> None:
    """Train and evaluate one variant with one seed; writes a ``variant`` artifact with the test ranks."""
    from conversion_retrieval.evaluation.stage import evaluate
    from conversion_retrieval.training.stage import train

    own = variant_config(config, variant, seed=seed)
    features_dir, spec_dir = _features(snapshot_dir, features_root_dir, own)
    work_dir = variant_dir.with_name(f"{variant_dir.name}.work")
    train(
        features_dir=features_dir,
        spec_dir=spec_dir,
        model_dir=work_dir / "model",
        config=own,
        checkpoint_dir=work_dir / "checkpoints",
    )
    evaluate(
        features_dir=features_dir,
        spec_dir=spec_dir,
        model_dir=work_dir / "model",
        evaluation_dir=work_dir / "evaluation",
        page_path=work_dir / "evaluation.html",
        config=own,
    )
    write_variant(evaluation_dir=work_dir / "evaluation", variant_dir=variant_dir, variant=variant, seed=seed)
    shutil.rmtree(work_dir)


def write_variant(*, evaluation_dir: Path, variant_dir: Path, variant: str, seed: int) -> None:
    """Keep of an evaluation what a comparison needs, under the variant's name: a ``variant`` artifact."""
    inputs = {"evaluation": contracts.open_artifact(evaluation_dir, kind="evaluation").digest}
    metadata = {"variant": variant, "seed": seed}
    with contracts.new_artifact(variant_dir, kind="variant", inputs=inputs, metadata=metadata) as directory:
        shutil.copyfile(evaluation_dir / RANKS, directory / RANKS)


def compare_variants(
    *, variant_dirs: Sequence[Path], ablation_dir: Path, page_path: Path, config: PipelineConfig
) -> list[Comparison]:
    """Compare all variants with their references: recall@100 and @1000, intervals over users and seeds, paired.

    Writes an ``ablation`` artifact (``ablation.md``, ``comparisons.json``) and one HTML page with a plot.
    """
    from conversion_retrieval.evaluation.ablation_report import write_ablation

    hits = HitTable.read(variant_dirs)
    comparisons = [row for k in KS for row in hits.compare(k, config)]
    with contracts.new_artifact(ablation_dir, kind="ablation") as directory:
        write_ablation(
            comparisons, directory=directory, page_path=page_path, confidence_level=config.evaluation.confidence_level
        )
    return comparisons


def is_complete(directory: Path, kind: str) -> bool:
    """Whether a whole artifact of this kind is there, byte for byte."""
    try:
        contracts.open_artifact(directory, kind=kind)
    except CorruptArtifactError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class HitTable:
    """Conversion ranks of every variant and seed over the same positives: ``ranks[variant]`` is [S, P]."""

    ranks: dict[str, NDArray[np.int64]]
    seeds: dict[str, list[int]]  # of each variant's S rows
    user: NDArray[np.int64]  # [P], dense codes

    @classmethod
    def read(cls, variant_dirs: Iterable[Path]) -> "HitTable":
        """Read ``variant`` artifacts; ``UserError`` for other positives, none at all, or the same seed twice."""
        by_variant: dict[str, dict[int, NDArray[np.int64]]] = {}
        keys: pa.Table | None = None
        for directory in variant_dirs:
            manifest = contracts.open_artifact(directory, kind="variant")
            table = _conversions(directory / RANKS)
            own_keys = table.select(["query", "item", "user"])
            if keys is not None and not own_keys.equals(keys):
                raise UserError(f"expected the same test positives in every variant, found others in {directory}")
            keys = own_keys
            name, seed = manifest.metadata["variant"], int(manifest.metadata["seed"])
            found = by_variant.setdefault(name, {})
            if seed in found:
                raise UserError(
                    f"expected each variant once a seed, found {name!r} with seed {seed} again: {directory}"
                )
            found[seed] = table["rank"].to_numpy()
        if keys is None or DEFAULT not in by_variant:
            raise UserError(f"expected results of the {DEFAULT!r} variant to compare with, found {sorted(by_variant)}")
        if not len(keys):
            raise UserError(f"{_NEEDS_CONVERSIONS}, found none in {directory}")
        _, user = np.unique(keys["user"].to_numpy(), return_inverse=True)
        ranks = {name: np.stack([rows[seed] for seed in sorted(rows)]) for name, rows in by_variant.items()}
        return cls(ranks=ranks, seeds={name: sorted(rows) for name, rows in by_variant.items()}, user=user)

    def compare(self, k: int, config: PipelineConfig) -> list[Comparison]:
        """One comparison a variant at cut-off ``k``."""
        settings = config.evaluation
        positives = np.bincount(self.user).astype(np.float64)
        resampled = {
            name: crossed_recalls(
                self._hits(name, k), positives, num_resamples=settings.num_resamples, seed=settings.seed
            )
            for name in self.ranks
        }
        values = {name: float(self._found(name, k).mean()) for name in self.ranks}
        level = settings.confidence_level
        rows = []
        for name in self.ranks:
            difference, reference = None, reference_of(name, self.ranks)
            if name != reference and self.seeds[name] == self.seeds[reference]:  # else there is nothing to pair
                change = resampled[name] - resampled[reference]
                difference = percentile_interval(values[name] - values[reference], change, confidence_level=level)
            rows.append(
                Comparison(
                    variant=name,
                    reference=reference,
                    k=k,
                    recall=percentile_interval(values[name], resampled[name], confidence_level=level),
                    difference=difference,
                    num_seeds=len(self.ranks[name]),
                    num_users=len(positives),
                    num_positives=len(self.user),
                )
            )
        return rows

    def _found(self, name: str, k: int) -> NDArray[np.bool_]:
        ranks = self.ranks[name]
        return (ranks >= 0) & (ranks < k)

    def _hits(self, name: str, k: int) -> NDArray[np.float64]:
        counts = [np.bincount(self.user, weights=found) for found in self._found(name, k)]
        return np.stack(counts)


def _conversions(path: Path) -> pa.Table:
    table = pq.read_table(path, columns=["model", "query", "user", "item", "task", "rank"])
    chosen = table.filter(pc.and_(pc.equal(table["model"], "candidate"), pc.equal(table["task"], CONVERSION_TASK)))
    return chosen.sort_by([("query", "ascending"), ("item", "ascending")]).combine_chunks()


def _claim(output_dir: Path, data_uri: str, config: PipelineConfig) -> None:
    """Refuse to mix the results of two configurations or data sets in one directory."""
    asked = dataclasses.replace(config, features=_wherever_computed(config.features))
    values, feature_spec = config_values(asked), _spec_digest(config.features)
    path = output_dir / REQUEST
    if not path.exists():
        contracts.write_json(path, {"data_uri": data_uri, "config": values, "feature_spec": feature_spec})
        return
    found = json.loads(path.read_text())
    if found["data_uri"] != data_uri:
        raise UserError(
            f"expected an ablation of {data_uri} in {output_dir}, found one of {found['data_uri']}: "
            "choose a new --output"
        )
    if found.get("feature_spec", "") != feature_spec:  # earlier releases did not note it
        raise UserError(
            f"expected the feature spec that the ablation in {output_dir} was begun with at "
            f"{config.features.spec_path}, found it edited since: choose a new --output"
        )
    if differing := list(_differences(found["config"], values)):
        more = f" and {len(differing) - 1} more options" if len(differing) > 1 else ""
        raise UserError(
            f"expected the configuration that the ablation in {output_dir} was begun with, found another: "
            f"{differing[0]}{more}; choose a new --output"
        )


def _differences(begun: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The options that two configurations do not share, with both values; None is one that a release did not know."""
    for name in sorted({*begun, *asked}):
        one, other = begun.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name} was {one!r} and is {other!r}"


def _snapshot(data_uri: str, output_dir: Path, config: PipelineConfig) -> Path:
    from conversion_retrieval.validation.stage import validate_data

    snapshot_dir = output_dir / "snapshot"
    if not is_complete(snapshot_dir, "snapshot"):
        page_path = output_dir / "validation.html"
        verdict = validate_data(
            data_uri=data_uri,
            snapshot_dir=snapshot_dir,
            report_dir=output_dir / "report",
            page_path=page_path,
            config=config,
        )
        if verdict != "valid":
            raise UserError(f"expected valid data at {data_uri}, found errors: see {page_path}")
    return snapshot_dir


def _features(snapshot_dir: Path, features_root_dir: Path, config: PipelineConfig) -> tuple[Path, Path]:
    """Features of these labels, split and feature settings, built once for all variants that agree on them."""
    from conversion_retrieval.features.build import build_features

    parts = (config.labels, config.split, _wherever_computed(config.features))
    digest = contracts.content_digest({type(part).__name__: config_digest(part) for part in parts})[:12]
    features_dir, spec_dir = features_root_dir / digest / "features", features_root_dir / digest / "spec"
    if not (is_complete(features_dir, "features") and is_complete(spec_dir, "spec")):
        build_features(snapshot_dir=snapshot_dir, features_dir=features_dir, spec_dir=spec_dir, config=config)
    return features_dir, spec_dir


def _require_conversions(features_dir: Path, spec_dir: Path) -> None:
    """Before hours of training that could not be compared."""
    positives = FeatureDataset.open(features_dir, FeatureSpec.load(spec_dir)).split("test").positives
    if not (positives.task == CONVERSION_TASK).any():
        raise UserError(f"{_NEEDS_CONVERSIONS}, found none among {len(positives):,} positives")


def _spec_digest(features: FeatureConfig) -> str:
    """Of the content of the spec that a person edited, whose path alone is an option; empty without one."""
    if not features.spec_path:
        return ""
    read_spec(features.spec_path)  # what is wrong with it is said now
    return contracts.file_digest(spec_file(features.spec_path))


def _wherever_computed(features: FeatureConfig) -> FeatureConfig:
    """The settings that decide what is computed: threads and Dask make the same bytes."""
    return dataclasses.replace(features, use_dask=False, dask_address="", shared_dir="")
