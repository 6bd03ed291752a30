"""What every command line of the project does with an error that its user can fix, and with Ctrl-C."""

import sys
from typing import Final

import typer

from conversion_retrieval.errors import UserError

USER_ERROR_CODE: Final = 2
INTERRUPTED_CODE: Final = 130


def run(app: typer.Typer, *, interrupted: str) -> None:
    """Run ``app``; a ``UserError`` becomes one line on standard error and exit code 2, Ctrl-C a line and 130."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(USER_ERROR_CODE)
    except SystemExit as end:
        if end.code == INTERRUPTED_CODE:  # typer's word for a KeyboardInterrupt, which it keeps to itself
            typer.echo(f"error: interrupted; {interrupted}", err=True)
        raise
