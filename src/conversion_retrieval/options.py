"""How a configuration's field tells what was done before it existed."""

from typing import Final

BEFORE: Final = "before"
"""Key of a field's metadata, ``field(default=True, metadata={BEFORE: False})``: see ``recorded_config``."""
