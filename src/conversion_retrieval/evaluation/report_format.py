"""How the report writes numbers, intervals and facts."""

import json
from pathlib import Path
from typing import Any


def number(value: float | str | None) -> str:
    """Four decimals, whole numbers with thousands separators, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.4f}"


def interval(low: float | None, high: float | None) -> str:
    """Bounds in brackets, nothing where there are none."""
    return f"[{low:.4f}, {high:.4f}]" if low is not None and high is not None else ""


def percent(level: float) -> str:
    """A confidence level, whole or not: 95%, 99.9%."""
    return f"{100 * level:g}%"


def fact(label: str, value: str) -> dict[str, str]:
    """A row of a table of facts."""
    return {"label": label.replace("_", " "), "value": value}


def read_json(path: Path) -> Any:
    """A file's JSON, an empty object where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}
