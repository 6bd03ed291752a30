"""What the configuration's dataclasses share: how a field tells its past, and checks of names and bounds."""

import difflib
import math
from collections.abc import Collection, Iterable
from typing import Final

BEFORE: Final = "before"
"""Key of a field's metadata, ``field(default=True, metadata={BEFORE: False})``: see ``recorded_config``."""


def hint(name: str, known: Collection[str], *, prefix: str = "") -> str:
    """The nearest of the ``known`` names as a question, or all of them where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"


def require_known(option: str, found: Iterable[str], known: Collection[str]) -> None:
    """``ValueError`` for the first name in ``option`` that is not known, with the nearest that is."""
    for name in found:
        if name not in known:
            raise ValueError(f"{option} has the unknown name {name!r}; {hint(name, known)}")


def require_at_least(options: object, minimum: int, *names: str) -> None:
    """``ValueError`` for the first of an object's options called ``names`` that is below ``minimum``."""
    for name in names:
        if (value := getattr(options, name)) < minimum:
            raise ValueError(f"{name} must be at least {minimum}, found {value}")


def require_resamples(num_resamples: int, confidence_level: float) -> None:
    """``ValueError`` for fewer resamples than give a percentile interval of that level one draw beyond each bound.

    With fewer the interval is the range of the draws, with one a point, and any difference counts as certain.
    """
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be between 0 and 1, found {confidence_level}")
    minimum = math.ceil(round(2 / (1 - confidence_level), 6))
    if num_resamples < minimum:
        raise ValueError(
            f"num_resamples must be at least {minimum} at a confidence_level of {confidence_level}, "
            f"found {num_resamples}"
        )
