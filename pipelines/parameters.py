"""Pipeline parameters checked against the compiled YAML before anything is sent: the backend takes whatever comes."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from conversion_retrieval.config import stage_config
from conversion_retrieval.errors import UserError, one_line
from conversion_retrieval.evaluation.variants import select_variants, split_names
from conversion_retrieval.options import hint
from conversion_retrieval.storage import check_shared_uri
from conversion_retrieval.training.gpu_nodes import check_gpu_count, check_gpu_type
from pipelines import cluster

BOOLEANS: Final = {"true": True, "false": False}


def _boolean(text: str) -> bool:
    return BOOLEANS[text.lower()]


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("not a number that JSON can carry")
    return number


def _json_of(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(f"a JSON {type(value).__name__}")
        return value

    return parse


# The field names of PipelineSpec's ParameterTypeEnum, what a person calls them, and how their text is read.
PARSERS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "STRING": ("text", str),
    "NUMBER_INTEGER": ("a whole number", int),
    "NUMBER_DOUBLE": ("a number", _number),
    "BOOLEAN": ("true or false", _boolean),
    "STRUCT": ("a JSON object", _json_of(dict)),
    "LIST": ("a JSON list", _json_of(list)),
}


def read_pipeline(path: Path) -> dict[str, Any]:
    """A compiled pipeline's first document, the PipelineSpec; ``UserError`` if the file holds none."""
    try:
        spec = next(yaml.safe_load_all(path.read_bytes()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, StopIteration) as error:
        reason = one_line(error)
        raise UserError(f"expected a compiled pipeline at {path}, found: {reason}; make it with `compile`") from None
    if not isinstance(spec, dict) or not {"pipelineInfo", "root", "deploymentSpec"} <= set(spec):
        raise UserError(f"expected a compiled pipeline at {path}, found other YAML; make it with `compile`")
    return spec


def check_parameters(spec: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """``name=value`` texts as typed values.

    Raises ``UserError`` for an unknown name (with the nearest), a text that is not of the parameter's type, a missing
    parameter without default, a ``config_json`` or variants that the stages would refuse, or a registry that pods
    cannot keep.
    """
    definitions = spec["root"]["inputDefinitions"]["parameters"]
    values = dict(_parse(text, definitions) for text in given)
    missing = [
        n for n, d in definitions.items() if n not in values and "defaultValue" not in d and not d.get("isOptional")
    ]
    if missing:
        raise UserError(f"expected a value for {', '.join(missing)}, found none; give --param {missing[0]}=VALUE")
    _check_meaning(values)
    return values


def _parse(text: str, definitions: Mapping[str, Any]) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"expected --param name=value, found {text!r}")
    if name not in definitions:
        raise UserError(f"the pipeline has no parameter {name!r}; {hint(name, definitions)}")
    words, parse = PARSERS[definitions[name]["parameterType"]]
    try:
        return name, parse(value)
    except (ValueError, KeyError):
        raise UserError(f"expected {words} for parameter {name}, found {value!r}") from None


def _check_meaning(values: Mapping[str, Any]) -> None:
    gate = {name: values[name] for name in ("min_recall", "min_conversions") if name in values}
    stage_config(values.get("config_json", ""), as_of=values.get("as_of", ""), **gate)
    select_variants(split_names(values.get("variants", "")))
    if values.get("num_seeds", 1) < 1:
        raise UserError(f"expected at least 1 for parameter num_seeds, found {values['num_seeds']}")
    for name in ("data_uri", "registry_uri"):
        if name in values:
            check_shared_uri(values[name], name)
    checkpoint_dir = PurePosixPath(values.get("checkpoint_dir", cluster.CHECKPOINT_DIR))
    if not checkpoint_dir.is_relative_to(cluster.CHECKPOINT_DIR) or ".." in checkpoint_dir.parts:
        raise UserError(
            f"expected {cluster.CHECKPOINT_DIR} or a directory below it for checkpoint_dir, found "
            f"{str(checkpoint_dir)!r}: the volume is mounted there, and all else is gone with the pod"
        )
    check_gpu_count(values.get("gpu_count", "1"))
    check_gpu_type(values.get("gpu_type", ""))
    url = values.get("notification_url", "")
    if url and not url.startswith(("http://", "https://")):
        # Not what was found: a webhook's address is its password.
        raise UserError("expected an http:// or https:// address for parameter notification_url, found another kind")
