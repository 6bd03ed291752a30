"""What a batch says about its queries: positives, exclusions, hard negatives and the weight of each candidate."""

from dataclasses import dataclass

from torch import Tensor

from conversion_retrieval.losses.partition import Pairs


@dataclass(frozen=True, kw_only=True)
class Positives:
    """P positives: ``row`` [P] of the softmax, ``candidate`` [P], ``weight`` [P]."""

    row: Tensor
    candidate: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One softmax: candidates 0..``num_candidates`` of which each row sees all but the excluded ones.

    ``offsets`` [C] are -logQ of the candidates, None where every candidate is always there. Positives and hard
    negatives may point past ``num_candidates``, at items that are encoded but are nobody else's negatives.
    """

    num_candidates: int
    excluded: Pairs
    offsets: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AdvertiserLabels:
    """The same softmax over advertisers: ``group`` [C] is the advertiser of each candidate, as 0..A."""

    contrast: Contrast
    group: Tensor
    positives: Positives


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of the queries of one process.

    ``row_query`` [R] is the query of each softmax row, None where rows are the queries; ``positives`` by task;
    ``hard`` (row, item) pairs. ``scales`` turns a task's weighted sum into its share of the loss: one over the mean
    number of queries of a batch, of all processes, and the mean weight of a query.
    """

    row_query: Tensor | None
    items: Contrast
    positives: dict[str, Positives]
    hard: Pairs | None
    advertisers: AdvertiserLabels | None
    scales: dict[str, float]
