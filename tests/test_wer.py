"""Word errors against a brute-force edit distance and cases worked out by hand."""

import math
import random
from functools import cache

import numpy as np
import pytest

from samba_asr.evaluation.wer import (
    WER,
    ScoredUtterance,
    alignment_text,
    character_error_rate,
    confidence_interval,
    count_errors,
    normalize_for_scoring,
    score,
    score_by_duration,
    score_each,
    scoring_pair,
    worst,
)


def utterance(reference, hypothesis, duration=1.0):
    return ScoredUtterance("a.wav", duration, reference, hypothesis, "speaker", "corpus")


def edit_distance(reference, hypothesis):
    """The definition, word by word."""

    @cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        changed = reference[i - 1] != hypothesis[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + changed)

    return distance(len(reference), len(hypothesis))


def test_errors_equal_a_brute_force_edit_distance():
    choose = random.Random(1)
    for _ in range(500):
        reference = choose.choices(["a", "b", "c", "dd"], k=choose.randint(0, 9))
        hypothesis = choose.choices(["a", "b", "c", "dd"], k=choose.randint(0, 9))
        wer = count_errors(" ".join(reference), " ".join(hypothesis))
        assert wer.errors == edit_distance(tuple(reference), tuple(hypothesis))
        assert wer.words == len(reference) == wer.hits + wer.substitutions + wer.deletions
        assert len(hypothesis) == wer.hits + wer.substitutions + wer.insertions
        assert min(wer.hits, wer.substitutions, wer.deletions, wer.insertions) >= 0


def test_character_errors_equal_a_brute_force_edit_distance():
    choose = random.Random(2)
    pairs = [[" ".join(choose.choices(["ab", "ba", "bab"], k=choose.randint(0, 4))) for _ in "rh"] for _ in range(60)]
    errors = sum(edit_distance(tuple(reference), tuple(hypothesis)) for reference, hypothesis in pairs)
    characters = sum(len(reference) for reference, _ in pairs)
    assert character_error_rate([utterance(*pair) for pair in pairs]) == pytest.approx(errors / characters)
    assert character_error_rate([utterance("", "")]) == 0
    assert character_error_rate([utterance("", "a")]) == math.inf


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", WER(0, 0, 0, 3)),
        ("a b c", "a x c", WER(1, 0, 0, 3)),
        ("a b c", "a c", WER(0, 1, 0, 3)),
        ("a b c", "a b b c", WER(0, 0, 1, 3)),
        ("a b c", "", WER(0, 3, 0, 3)),
        ("", "a b", WER(0, 0, 2, 0)),
        ("", "", WER(0, 0, 0, 0)),
        (" a\tb\n", "a  b", WER(0, 0, 0, 2)),
        ("a b", "a\u00a0c", WER(1, 0, 0, 2)),
        ("a", "A", WER(1, 0, 0, 1)),
    ],
)
def test_errors_by_hand(reference, hypothesis, expected):
    assert count_errors(reference, hypothesis) == expected


def test_rate_sums_errors_over_words_and_is_no_average():
    utterances = [utterance("a", "x y"), utterance("a b c d e f g h i", "a b c d e f g h i")]
    assert score(utterances) == WER(1, 0, 1, 10)
    assert score(utterances).rate == pytest.approx(0.2)  # the mean of the two rates is 1.0
    assert score(utterances[:1]).rate == 2.0


def test_rate_where_nothing_was_said():
    assert score([]).rate == 0.0
    assert score([utterance("", "")]).rate == 0.0
    assert score([utterance("", "a")]).rate == math.inf
    assert score([utterance("", "a"), utterance("b", "b")]).rate == 1.0


def test_normalised_form_forgives_what_the_raw_form_counts():
    utterances = [utterance("MISTER QUILTER DIDN'T PAY TWENTY ONE DOLLARS", "Mr. Quilter did not pay $21.")]
    assert score(utterances) == WER(0, 0, 0, 6)
    assert score(utterances, raw=True).words == 7
    assert score(utterances, raw=True).errors == 7
    assert scoring_pair(utterances[0], raw=True) == (utterances[0].reference, utterances[0].hypothesis)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Colour, IT'S  grey!", "color it is gray"),
        ("[noise] um hello (laughs)", "hello"),
        ("naïve", "naive"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalize_for_scoring(text) == expected


def test_reference_that_normalises_to_nothing():
    assert score([utterance("um [noise]", "hmm a word")]) == WER(0, 0, 2, 0)


def test_interval_holds_the_rate_and_narrows_with_more_data():
    choose = np.random.default_rng(3)
    wers = [WER(int(choose.binomial(10, 0.2)), 0, 0, 10) for _ in range(1000)]
    few, many = confidence_interval(wers[:100]), confidence_interval(wers)
    for part, (low, high), tolerance in ((wers[:100], few, 0.25), (wers, many, 0.08)):
        assert low < sum(part, WER()).rate < high
        # The spread of a binomial rate is known: 1.96 sqrt(p (1 - p) / words) to each side.
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.16 / (10 * len(part))), rel=tolerance)
    assert confidence_interval(wers) == many
    assert confidence_interval(wers, seed=1) != many


def test_interval_at_the_edges():
    assert confidence_interval([]) == (0.0, 0.0)
    assert confidence_interval([WER(0, 0, 0, 5)] * 4) == (0.0, 0.0)
    assert confidence_interval([WER(1, 0, 0, 4)]) == (0.25, 0.25)
    assert confidence_interval([WER(0, 0, 2, 0)]) == (math.inf, math.inf)
    low, high = confidence_interval([WER(0, 0, 2, 0), WER(0, 0, 0, 4)])
    assert (low, high) == (0.0, pytest.approx(0.5))


def test_buckets_hold_every_utterance_once():
    utterances = [utterance("a b", "a", seconds) for seconds in (0.0, 1.9, 2.0, 4.0, 30.0, 500.0)]
    buckets = score_by_duration(utterances, score_each(utterances))
    assert [(b.low, b.high, b.utterances) for b in buckets] == [(0, 2, 2), (2, 5, 2), (30, math.inf, 2)]
    assert all(b.wer == WER(0, b.utterances, 0, 2 * b.utterances) for b in buckets)


def test_worst_are_those_with_most_errors_then_the_highest_rate():
    wers = [WER(0, 0, 0, 9), WER(2, 0, 0, 9), WER(1, 0, 0, 1), WER(2, 0, 0, 3), WER(0, 0, 2, 0)]
    assert worst(wers, 3) == [4, 3, 1]
    assert worst(wers, 99) == [4, 3, 1, 2]
    assert worst(wers, 0) == []


def test_alignment_marks_each_error_below_its_word():
    assert alignment_text("a b cc", "a x cc d").splitlines() == ["REF: a b cc *", "HYP: a x cc d", "       S    I"]
    assert alignment_text("a b", "").splitlines() == ["REF: a b", "HYP: * *", "     D D"]


def test_long_alignments_are_folded():
    lines = alignment_text("one two three " * 30, "one two three " * 30, width=60).splitlines()
    assert max(map(len, lines)) <= 70
    assert sum(len(line.split()) - 1 for line in lines if line.startswith("REF:")) == 90
