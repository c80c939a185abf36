"""Which words are right, and whether confidences say so."""

import math

import numpy as np
import pytest

from samba_asr.evaluation.confidence import Bin, expected_calibration_error, fit_logistic, judge, reliability


def test_words_that_the_reference_has_are_right():
    assert judge("MISTER QUILTER IS HERE", "mister quiltar is here now") == [True, False, True, True, False]
    assert judge("it won't do", "It will not do, uh") == [True, True, True, True, None]
    assert judge("he will not", "he won't") == [True, True]
    assert judge("he will go", "he won't go") == [True, False, True]  # half of it does not make it right
    assert judge("a b", "") == [] == judge("", "")
    assert judge("", "what") == [False]


def test_bins_hold_equally_many_words():
    confidences = [0.9, 0.1, 0.8, 0.2, 0.7]
    assert reliability(confidences, [True, False, True, True, False], 2) == [
        Bin(pytest.approx(1.0 / 3), pytest.approx(1 / 3), 3),
        Bin(pytest.approx(0.85), 1.0, 2),
    ]
    assert [each.words for each in reliability(confidences, [True] * 5, 9)] == [1] * 5
    assert reliability([], []) == []


def test_the_error_is_a_mean_over_words():
    assert expected_calibration_error([Bin(0.5, 0.9, 3), Bin(0.9, 0.8, 1)]) == pytest.approx((3 * 0.4 + 0.1) / 4)
    assert expected_calibration_error([]) == 0.0


def made_up(scale, bias, words=40_000):
    """Return confidences and which words are right, as a scale and a bias of their log-odds would have it."""
    random = np.random.default_rng(0)
    odds = random.normal(1.0, 2.0, words)
    right = random.random(words) < 1 / (1 + np.exp(-(scale * odds + bias)))
    return (1 / (1 + np.exp(-odds))).tolist(), right.tolist()


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.4, 1.2), (2.0, -1.0)])
def test_what_was_made_is_found_again(scale, bias):
    confidences, right = made_up(scale, bias)
    assert fit_logistic(confidences, right) == pytest.approx((scale, bias), abs=0.06)


def test_calibration_makes_confidences_true():
    confidences, right = made_up(0.4, 1.2)
    scale, bias = fit_logistic(confidences[::2], right[::2])
    calibrated = [1 / (1 + math.exp(-(scale * math.log(p / (1 - p)) + bias))) for p in confidences[1::2]]
    assert expected_calibration_error(reliability(confidences[1::2], right[1::2])) > 0.1
    assert expected_calibration_error(reliability(calibrated, right[1::2])) < 0.02


def test_separable_words_give_finite_numbers():
    scale, bias = fit_logistic([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert math.isfinite(scale) and math.isfinite(bias) and scale > 1


@pytest.mark.parametrize("right", [[], [True, True], [False]])
def test_without_right_or_wrong_words_nothing_can_be_fitted(right):
    with pytest.raises(ValueError, match=f"of {len(right)} words"):
        fit_logistic([0.5] * len(right), right)
