"""What the project's command lines share: options for Dask, the width of tables, what becomes of errors and Ctrl-C."""

import json
import sys
from typing import Annotated, Final

import typer

from conversion_retrieval.errors import UserError

USER_ERROR_CODE: Final = 2
INTERRUPTED_CODE: Final = 130
LOG_WIDTH: Final = 120
Dask = Annotated[
    bool, typer.Option("--dask", help="Build features on dask.distributed: in this process without --dask-address.")
]
DaskAddress = Annotated[
    str, typer.Option(help="Scheduler of the Dask cluster that builds features, tcp://HOST:8786; implies --dask.")
]


class Stopped(Exception):  # noqa: N818 - what Ctrl-C did, and what goes on without it
    """Ctrl-C where something else than ``run``'s advice is to be said."""


def dask_overrides(dask: bool, dask_address: str) -> tuple[str, ...]:
    """The two options as ``section.key=value`` for the configuration."""
    address = (f"features.dask_address={json.dumps(dask_address)}",) if dask_address else ()
    return (*(("features.use_dask=true",) if dask else ()), *address)


def output_width() -> int | None:
    """Columns of standard output: a terminal's own (None), or enough for the tables in a log, which has no width."""
    return None if sys.stdout.isatty() else LOG_WIDTH


def run(app: typer.Typer, *, interrupted: str) -> None:
    """Run ``app``; a ``UserError`` becomes one line on standard error and exit code 2, Ctrl-C a line and 130.

    What Ctrl-C left is said by ``interrupted``, or by a ``Stopped`` that the command raises.
    """
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(USER_ERROR_CODE)
    except Stopped as stopped:
        typer.echo(f"error: interrupted; {stopped}", err=True)
        sys.exit(INTERRUPTED_CODE)
    except SystemExit as end:
        if end.code == INTERRUPTED_CODE:  # typer's word for a KeyboardInterrupt, which it keeps to itself
            typer.echo(f"error: interrupted; {interrupted}", err=True)
        raise
