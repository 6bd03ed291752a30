"""The validation report as one HTML page that needs nothing else: no scripts, no style sheets from elsewhere."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(report: Mapping[str, Any]) -> str:
    """The page of a report as ``stage`` writes it to ``validation.json``; verdict on top, values escaped."""
    environment = Environment(
        loader=PackageLoader("conversion_retrieval.validation"), autoescape=True, undefined=StrictUndefined
    )
    volume = (report["facts"] or {}).get("volume", [])
    days = _totals(volume, "day")
    return environment.get_template("validation.html").render(
        report=report,
        number=_number,
        days=sorted(days.items()),
        surfaces=_totals(volume, "surface").most_common(),
        most=max(days.values(), default=1),
    )


def _totals(volume: list[dict[str, Any]], key: str) -> Counter[str]:
    totals: Counter[str] = Counter()
    for row in volume:
        totals[row[key]] += row["events"]
    return totals


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)
