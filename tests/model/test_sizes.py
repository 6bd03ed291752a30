"""Log popularity, read back from normalised features."""

import numpy as np

from conversion_retrieval.features.spec import Statistic
from conversion_retrieval.model.sizes import log_popularity


def test_weights_recover_differences_of_the_mean_log_decayed_conversion_count():
    names = ("click_decayed_7d", "checkout_decayed_7d", "add_to_cart_decayed_30d", "checkout_rate")
    columns = tuple(
        Statistic(name=name, transform="log1p" if "decayed" in name else "identity", mean=float(i), std=i + 0.5)
        for i, name in enumerate(names)
    )
    raw = np.array([[9.0, 3.0, 4.0, 0.1], [1.0, 8.0, 0.0, 0.9]])
    log_scaled = np.where([c.transform == "log1p" for c in columns], np.log1p(raw), raw)
    normalized = (log_scaled - [c.mean for c in columns]) / [c.std for c in columns]
    scores = normalized @ np.array(log_popularity(columns))
    expected = np.log1p(raw[:, 1:3]).mean(axis=1)
    np.testing.assert_allclose(scores[0] - scores[1], expected[0] - expected[1])


def test_no_conversion_counts_leave_the_start_to_chance():
    assert log_popularity((Statistic(name="click_decayed_7d", transform="log1p"),)) == ()
