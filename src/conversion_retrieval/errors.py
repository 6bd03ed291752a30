"""The one exception that users see: a line that says what was expected, what was found, where, and what to do."""


class UserError(ValueError):
    """Something the caller can fix: a bad file, column, parameter, or a remote that refuses.

    Command-line entry points print ``str(error)`` as one line and exit with code 2; everything else is a bug and
    keeps its traceback.
    """


class CorruptArtifactError(UserError):
    """A file of an artifact is missing, truncated, altered, or of a version this release cannot read."""
