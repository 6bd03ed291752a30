"""The configuration that a model of some release recorded, read so that it means what it meant then.

A later release may know an option that the recording one did not. Its default need not be what was done before, and
a wrong guess would serve another network in silence. So an option of a served section that is absent takes the value
that its field declares for that case, ``field(default=True, metadata={BEFORE: False})``; without a declaration the
model is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from conversion_retrieval import __version__
from conversion_retrieval.config import PipelineConfig, parse_config
from conversion_retrieval.errors import CorruptArtifactError, UserError

BEFORE: Final = "before"
"""Key of a configuration field's metadata: what was done before the option existed."""

SERVED_SECTIONS: Final = ("features", "model")
"""What answers depend on; absent options of the other sections take their defaults."""


def recorded_config(values: Mapping[str, Any], *, release: str, where: str) -> PipelineConfig:
    """The configuration in ``values`` as ``release`` wrote it.

    Raises ``CorruptArtifactError`` naming that release and the first option that only one of the two releases knows.
    """
    sections = {field.name: field.type for field in dataclasses.fields(PipelineConfig)}
    completed = dict(values)
    for name in SERVED_SECTIONS:
        completed[name] = complete(values.get(name, {}), sections[name], prefix=name, release=release, where=where)
    try:
        return parse_config(completed, where=where)
    except UserError as error:
        raise _refusal(str(error), release=release, where=where) from None


def complete(
    values: Mapping[str, Any], owner: Any, *, prefix: str, release: str = "", where: str = ""
) -> dict[str, Any]:
    """``values`` of the dataclass ``owner`` with what was done ``BEFORE`` in the place of absent options."""
    completed = dict(values)
    for field in dataclasses.fields(owner):
        name = f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(field.type) and isinstance(values.get(field.name), Mapping):
            completed[field.name] = complete(values[field.name], field.type, prefix=name, release=release, where=where)
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
