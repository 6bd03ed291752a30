"""The configuration of a run: frozen dataclasses beside their owners, composed here, read from YAML and overrides.

Nothing here imports torch, kfp or pandas, so that command lines answer at once.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.evaluation.config import ENGAGEMENT_ONLY, EvaluationConfig
from conversion_retrieval.features.config import FeatureConfig, LabelConfig, SplitConfig
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.options import hint
from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.training.config import TrainingConfig
from conversion_retrieval.validation.config import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything that shapes a run; the resolved form travels in the bundle."""

    validation: ValidationConfig = field(default_factory=ValidationConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        """Refuse a gate that asks for a baseline that the evaluation leaves out; one without any is an ablation's."""
        measured = (*self.evaluation.baselines, ENGAGEMENT_ONLY)
        if self.evaluation.baselines and (missing := [name for name in self.gate.must_beat if name not in measured]):
            raise ValueError(
                f"gate.must_beat needs baselines out of evaluation.baselines, {', '.join(self.evaluation.baselines)}; "
                f"found {missing[0]!r}"
            )


def load_config(path: Path | str | None = None, overrides: Iterable[str] = ()) -> PipelineConfig:
    """Read a YAML file (all defaults if none) and apply ``section.key=value`` overrides, values in YAML syntax.

    Raises ``UserError`` for an unreadable file, an unknown key (naming the nearest one), or a value out of range.
    """
    values: dict[str, Any] = {}
    if path:
        try:
            loaded = _read_yaml(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:  # a ValueError for a date that there is not
            raise UserError(f"expected a YAML configuration at {path}, found: {one_line(error)}") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"expected a mapping of sections at {path}, found {type(loaded).__name__}")
        # A section whose every line is commented out reads as null.
        values = {name: {} if value is None else value for name, value in (_plain(loaded) or {}).items()}
    for override in overrides:
        _set(values, override)
    return parse_config(values, where=str(path or "the overrides"))


def parse_config(values: Mapping[str, Any], *, where: str = "the configuration") -> PipelineConfig:
    """Check plain values against the dataclasses; ``UserError`` names the key, what it found and the nearest match.

    No number may be NaN or infinite: every comparison with NaN is false, so it would pass for any limit, and neither
    can be recorded with the model.
    """
    _refuse_unknown(values, PipelineConfig, where=where, prefix="")
    try:
        config = TypeAdapter(PipelineConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(": ".join(filter(None, (where, ".".join(map(str, first["loc"])), _reason(first))))) from None
    for name, number in _numbers(config_values(config)):
        if not math.isfinite(number):
            raise UserError(f"{where}: {name}: expected a finite number, found {number}")
    return config


def stage_config(
    config_json: str, *, as_of: str = "", min_recall: float = -1.0, min_conversions: int = -1
) -> PipelineConfig:
    """A stage's configuration: the pipeline's ``config_json`` with the run's own parameters on top.

    An empty or negative parameter leaves what the JSON says; empty JSON is all defaults.
    """
    try:
        values = json.loads(config_json or "{}", object_pairs_hook=_once)
    except ValueError as error:
        raise UserError(f"expected a JSON object in config_json, found: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"expected a JSON object in config_json, found {type(values).__name__}")
    given = {
        ("split", "as_of"): as_of,
        ("gate", "min_recall"): "" if min_recall < 0 else min_recall,  # NaN is refused rather than left out
        ("gate", "min_conversions"): "" if min_conversions < 0 else min_conversions,
    }
    for (section, name), value in given.items():
        own = values.get(section) or {}
        if value != "" and isinstance(own, dict):  # what is no section is refused below
            values[section] = {**own, name: value}
    return parse_config(values, where="config_json")


def config_values(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    values = TypeAdapter(type(config)).dump_python(config, mode="json")
    assert isinstance(values, dict)
    return values


def changed_values(config: PipelineConfig) -> dict[str, Any]:
    """The plain values that are not the defaults', by section; ``parse_config`` makes the configuration of them."""
    return _changed(config, PipelineConfig(), config_values(config))


def config_digest(config: Any) -> str:
    """SHA-256 of a configuration's resolved values."""
    return hashlib.sha256(json.dumps(config_values(config), sort_keys=True).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML's loaders take the last one, and drop the section before it unsaid."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        _once((key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))
        return node


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of its pairs; ``ValueError`` for a key that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def _changed(section: Any, default: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    changed = {}
    for name in (f.name for f in dataclasses.fields(section)):
        own, usual = getattr(section, name), getattr(default, name)
        if own != usual:
            changed[name] = _changed(own, usual, values[name]) if dataclasses.is_dataclass(own) else values[name]
    return changed


def _set(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"expected section.key=value, found {override!r}")
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"expected a section at {section!r} in {override!r}, found a value")
    try:
        values[name] = _plain(_read_yaml(text))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"expected a YAML value in {override!r}, found: {one_line(error)}") from None


def _refuse_unknown(values: Mapping[str, Any], owner: type, *, where: str, prefix: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(owner)}
    for key, value in values.items():
        if key not in fields:
            elsewhere = [name for name in _options() if name.rpartition(".")[2] == key]
            nearest = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else hint(str(key), fields, prefix=prefix)
            raise UserError(f"{where}: unknown key {prefix}{key}; {nearest}")
        nested = fields[key].type
        if isinstance(nested, type) and dataclasses.is_dataclass(nested) and isinstance(value, Mapping):
            _refuse_unknown(value, nested, where=where, prefix=f"{prefix}{key}.")


def _options(owner: type = PipelineConfig, prefix: str = "") -> Iterator[str]:
    """The dotted names of all options."""
    for option in dataclasses.fields(owner):
        nested = option.type
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield from _options(nested, f"{prefix}{option.name}.")
        else:
            yield f"{prefix}{option.name}"


def _reason(error: Mapping[str, Any]) -> str:
    """What the dataclasses' own checks say tells what they found; pydantic's does not."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "tuple_type":
        return f"expected a list, found {error.get('input')!r}"
    if error["type"] == "dataclass_type":
        return f"expected a section of settings, found {error.get('input')!r}"
    return f"{error['msg']}, found {error.get('input')!r}"


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All floating-point numbers of plain values with their dotted names."""
    if isinstance(values, float):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, f"{name}.{key}" if name else key)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, name)


def _plain(value: Any) -> Any:
    """YAML's values with dates and times as the text that they were: ``as_of: 2026-01-31`` needs no quotes."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
