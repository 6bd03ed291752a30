"""Write the images' lock files: every distribution they hold, pinned, from what is installed and resolved here.

``python containers/lock.py`` after a change of dependencies. The images install these lines with ``--no-deps``, so what
was resolved and tested is what runs.
"""

import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONTAINERS: Final = Path(__file__).parent
PROJECT: Final = "conversion-retrieval"
# The kfp executor runs inside a task without kfp's own requirements, which only compiling and submitting need.
RUNTIME_ONLY: Final = ("kfp==2.17.0",)
IMAGES: Final = {"cpu": ("serve", "dask"), "gpu": ("trainer",)}
# Base images bring setuptools, as virtual environments do; the GPU one also the torch that its CUDA belongs to.
IN_BASE: Final = {"cpu": frozenset({"setuptools"}), "gpu": frozenset({"setuptools", "torch"})}
HEADER: Final = "# Written by containers/lock.py; installed with --no-deps.\n"


def closure(extras: Iterable[str]) -> dict[str, str]:
    """Every distribution that the project with these extras requires on this platform: canonical name to version."""
    found: dict[str, str] = {}
    waiting = [(PROJECT, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = distribution(name).version.partition("+")[0]
        waiting += _requirements(name, wanted)
    del found[PROJECT]
    return found


def lock_lines(image: str) -> list[str]:
    """The lock file's lines of an image, sorted."""
    pinned = {name: version for name, version in closure(IMAGES[image]).items() if name not in IN_BASE[image]}
    return sorted([*(f"{name}=={version}" for name, version in pinned.items()), *RUNTIME_ONLY])


def lock_text(image: str) -> str:
    """The content of an image's lock file."""
    return HEADER + "".join(f"{line}\n" for line in lock_lines(image))


def _requirements(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        markers = [{"extra": extra} for extra in (*extras, "")]
        if requirement.marker is None or any(requirement.marker.evaluate(marker) for marker in markers):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def main() -> None:
    """Rewrite both lock files."""
    for image in IMAGES:
        path = CONTAINERS / f"{image}.lock"
        path.write_text(lock_text(image))
        print(f"{path}: {len(lock_lines(image))} distributions", file=sys.stderr)  # noqa: T201 - a script's report


if __name__ == "__main__":
    main()
