"""The best texts of a recording in stretches, against all of them."""

import itertools
import time

import numpy as np
import pytest

from samba_asr.decoding.n_best import join_n_best


@pytest.mark.parametrize("counts", [(), (1,), (4,), (3, 1, 5), (2, 2, 2, 2), (6, 5, 4)])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_they_are_the_best_of_all_ways(counts, count):
    random = np.random.default_rng(len(counts))
    stretches = [
        sorted(((f" {place}-{i}", float(random.normal(-9, 4))) for i in range(size)), key=lambda text: -text[1])
        for place, size in enumerate(counts)
    ]
    ways = [("".join(t for t, _ in way), sum(score for _, score in way)) for way in itertools.product(*stretches)]
    expected = sorted(ways, key=lambda way: -way[1])[:count]
    found = join_n_best(stretches, count)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])


def test_an_hour_takes_no_time():
    stretches = [[(f" text {i}" * 40, -float(i)) for i in range(40)] for _ in range(120)]
    begin = time.process_time()
    assert len(join_n_best(stretches, 30)) == 30
    assert time.process_time() - begin < 5


def test_time_grows_with_the_number_of_stretches():
    """Texts are joined once, not anew with each stretch."""

    def seconds(count):
        stretches = [[("a" * 400, -float(i)) for i in range(8)]] * count
        begin = time.process_time()
        join_n_best(stretches, 8)
        return time.process_time() - begin

    assert seconds(6400) < 16 * max(seconds(800), 0.01)
