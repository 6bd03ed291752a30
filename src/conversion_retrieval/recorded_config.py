"""The configuration that a model of some release recorded, read so that it means what it meant then.

A later release may know an option that the recording one did not. Its default need not be what was done before, and
a wrong guess would serve another network in silence. So an absent option that answers depend on takes the value that
its field declares for that case, ``field(default=True, metadata={BEFORE: False})``; without a declaration the model
is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from conversion_retrieval import __version__
from conversion_retrieval.config import PipelineConfig, parse_config
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.options import BEFORE

SERVED: Final[Mapping[str, tuple[str, ...]]] = {
    "model": tuple(field.name for field in dataclasses.fields(ModelConfig)),
    "features": ("aggregate_windows_days",),
}
"""The options that answers depend on, by section; any other that is absent takes its default."""


def recorded_config(values: Mapping[str, Any], *, release: str, where: str) -> PipelineConfig:
    """The configuration in ``values`` as ``release`` wrote it.

    Raises ``CorruptArtifactError`` naming that release and the first option that only one of the two releases knows.
    """
    sections = {field.name: field.type for field in dataclasses.fields(PipelineConfig)}
    completed = dict(values)
    for name, served in SERVED.items():
        recorded = values.get(name, {})
        completed[name] = complete(recorded, sections[name], served, prefix=name, release=release, where=where)
    try:
        return parse_config(completed, where=where)
    except UserError as error:
        raise _refusal(str(error), release=release, where=where) from None


def complete(
    values: Mapping[str, Any],
    owner: Any,
    served: Sequence[str],
    *,
    prefix: str,
    release: str = "",
    where: str = "",
) -> dict[str, Any]:
    """``values`` of the dataclass ``owner`` with what was done ``BEFORE`` in the place of absent ``served`` options."""
    completed = dict(values)
    for field in (field for field in dataclasses.fields(owner) if field.name in served):
        name = f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(field.type) and isinstance(values.get(field.name), Mapping):
            inner = [own.name for own in dataclasses.fields(field.type)]
            completed[field.name] = complete(
                values[field.name], field.type, inner, prefix=name, release=release, where=where
            )
        elif field.name not in values:
            if BEFORE not in field.metadata:
                raise _refusal(f"{name} is missing", release=release, where=where)
            completed[field.name] = field.metadata[BEFORE]
    return completed


def _refusal(reason: str, *, release: str, where: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"expected a configuration that release {__version__} understands at {where}, found one of release {release}: "
        f"{reason}; use release {release}, or train and promote with {__version__}"
    )
