"""Joint search of one recording, its settings given one by one, and what it must find."""

import pytest

from samba_asr.config import SearchConfig
from samba_asr.decoding.joint import joint_beam


def search_one(
    log_probs, decoder, state, beam_size, ctc_weight, length_bonus=0.0, spelling_weight=1.0, lm_weight=0.0, **others
):
    config = SearchConfig("joint", 12.0, beam_size, ctc_weight, length_bonus, spelling_weight, lm_weight)
    (found,) = joint_beam([log_probs], decoder, state, config, **others)
    return found


def check_exact(found, expected, tolerance=1e-9):
    """Every text is found, with its score, the best first; expected: scores by text."""
    assert len(found) == len(expected)
    assert [h.log_prob for h in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=tolerance)
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(expected[hypothesis.tokens], abs=tolerance)
