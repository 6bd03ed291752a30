"""The one exception that users see: a line that says what was expected, what was found, where, and what to do."""


class UserError(ValueError):
    """Something the caller can fix: a bad file, column, parameter, or a remote that refuses.

    Command-line entry points print ``str(error)`` as one line and exit with code 2; everything else is a bug and
    keeps its traceback.
    """


class CorruptArtifactError(UserError):
    """A file of an artifact is missing, truncated, altered, or of a version this release cannot read."""


class TableError(UserError):
    """The tables cannot be read as what they should be: a file, column or row is missing, broken or of another type.

    ``files`` is how many files have such a fault where all were looked at; the message tells of the first.
    """

    def __init__(self, message: str, *, files: int = 1) -> None:
        super().__init__(message)
        self.files = files


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split())
