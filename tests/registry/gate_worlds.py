"""Test windows with known recalls: what the candidate, the champion and popularity recall is set by hand."""

import dataclasses

import numpy as np

from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.gate_inputs import ConversionRanks, DigestPair, GateInputs, IndexRecall

CONFIG = GateConfig(k=10, min_conversions=500, min_queries=100, min_slice_conversions=200, num_resamples=400)
HIT, MISS = 3.0, -1.0
NUM_CONVERSIONS = 2000
QUALITIES = ("better", "same", "worse", "too few", "NaN")
STATES = {
    "absent": ChampionState(status="absent"),
    "present": ChampionState(status="present", version="v1", digest="c" * 64),
    "incomparable": ChampionState(status="incomparable", version="v1", digest="c" * 64, reason="without clicks"),
    "corrupt": ChampionState(status="corrupt", reason="index/index.faiss is truncated"),
    "unreachable": ChampionState(status="unreachable", reason="no answer within 60 s"),
}


def recalled(share: float, n: int = NUM_CONVERSIONS, *, offset: int = 0) -> np.ndarray:
    """Ranks with a recall of exactly ``share``: the first of every stretch of 100 conversions are hits."""
    return np.where((np.arange(n) + offset) % 100 < round(share * 100), HIT, MISS)


def ranks(candidate: np.ndarray, champion: np.ndarray | None = None) -> ConversionRanks:
    """Two conversions a query, one query a user; popularity recalls 10%; two surfaces and ten advertiser deciles."""
    rows = np.arange(len(candidate))
    compared = {"popularity": recalled(0.1, len(rows))}
    if champion is not None:
        compared["champion"] = champion
    return ConversionRanks(
        users=rows // 2,
        queries=rows // 2,
        candidate=candidate,
        compared=compared,
        slices={
            "surface": np.array(["home_feed", "search"])[rows // 100 % 2],
            "advertiser_size_decile": (rows // 100 % 10).astype(str),
        },
    )


def inputs_of(quality: str, status: str, **changes: object) -> GateInputs:
    """A candidate of a quality against a champion that recalls 30%."""
    n = 400 if quality == "too few" else NUM_CONVERSIONS
    share = {"better": 0.4, "same": 0.3, "worse": 0.2, "too few": 0.4, "NaN": 0.4}[quality]
    candidate = recalled(share, n)
    if quality == "NaN":
        candidate[7] = np.nan
    base = GateInputs(
        ranks=ranks(candidate, recalled(0.3, n) if status == "present" else None),
        index_recall=IndexRecall(value=0.99, low=0.985, high=0.995, n=1000),
        num_items=1000,
        champion=STATES[status],
        validation="valid",
        digests=(DigestPair(name="index.model", expected="m" * 64, found="m" * 64),),
        candidate_digests={"model": "m" * 64},
        allow_first=True,
    )
    return dataclasses.replace(base, **changes)
