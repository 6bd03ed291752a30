"""Which part of the work is this process's."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Process ``rank`` of ``world_size``."""

    rank: int = 0
    world_size: int = 1

    def slice(self, count: int) -> slice:
        """Our part of ``count`` things; parts are consecutive and differ in size by at most one."""
        bounds = [count * rank // self.world_size for rank in range(self.world_size + 1)]
        return slice(bounds[self.rank], bounds[self.rank + 1])
