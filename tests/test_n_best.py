"""The best texts of a recording in stretches, against all of them."""

import itertools

import numpy as np
import pytest

from samba_asr.decoding.n_best import join_n_best
from samba_asr.decoding.prefix_beam import Hypothesis


@pytest.mark.parametrize("counts", [(), (1,), (4,), (3, 1, 5), (2, 2, 2, 2), (6, 5, 4)])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_they_are_the_best_of_all_ways(counts, count):
    random = np.random.default_rng(len(counts))
    stretches = [
        sorted(
            (Hypothesis((place, number), float(random.normal(-9, 4))) for number in range(size)),
            key=lambda text: -text.log_prob,
        )
        for place, size in enumerate(counts)
    ]
    ways = [(sum((t.tokens for t in way), ()), sum(t.log_prob for t in way)) for way in itertools.product(*stretches)]
    expected = sorted(ways, key=lambda way: -way[1])[:count]
    found = join_n_best(stretches, count)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])
