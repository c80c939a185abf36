"""Voices of synthetic speech, without the engine where that will do."""

import numpy as np
import pytest

from samba_asr.training.voices import SAMPLE_RATE, Speaker, Voice, bend, random_voice, stretch

SAME = Voice(tract=1.0, pitch=1.0, melody=1.0, speed=1.0, breath=0.0, tilt=0.0)


@pytest.fixture
def parameters():
    rng = np.random.default_rng(0)
    spectra = rng.normal(size=(5, 601, 40)).astype(np.float32)
    pitch = rng.uniform(150, 300, 40).astype(np.float32)
    pitch[10:20] = 0.0
    return (*spectra, pitch)


def test_the_same_voice_changes_nothing(parameters):
    for before, after in zip(parameters, bend(*parameters, SAME), strict=True):
        assert after.dtype == np.float32
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_longer_tract_lowers_formants():
    spectrum = np.exp(-0.5 * ((np.arange(601) - 300) / 10) ** 2)[:, None].astype(np.float32)
    for factor in (0.92, 1.2):
        assert stretch(spectrum, factor).argmax() == round(300 / factor)


def test_stretching_is_linear_interpolation(parameters):
    for factor in (0.93, 1.0, 1.24):
        places = np.minimum(np.arange(601) * factor, 600)
        expected = np.stack([np.interp(places, np.arange(601), frame) for frame in parameters[0].T], 1)
        np.testing.assert_allclose(stretch(parameters[0], factor), expected, rtol=1e-4, atol=1e-4)


def test_pitch_moves_where_there_is_one(parameters):
    before, voiced = parameters[-1], parameters[-1] > 40
    after = bend(*parameters, SAME._replace(pitch=0.5, melody=1.3))[-1]
    assert (after[~voiced] == 0).all()
    assert np.median(np.log(after[voiced])) == pytest.approx(np.median(np.log(before[voiced])) + np.log(0.5), abs=1e-5)
    assert np.log(after[voiced]).std() == pytest.approx(1.3 * np.log(before[voiced]).std(), rel=1e-4)
    assert bend(*parameters, SAME._replace(pitch=5.0))[-1].max() == 500


def test_breath_and_tilt_change_their_spectra_alone(parameters):
    after = bend(*parameters, SAME._replace(breath=0.7, tilt=-1.0))
    np.testing.assert_allclose(after[2] - parameters[2], 0.7, atol=1e-5)
    difference = after[0] - parameters[0]
    np.testing.assert_allclose(difference, np.linspace(0, -1, 601)[:, None].repeat(40, 1), atol=1e-5)
    for place in (1, 3, 4, 5):
        np.testing.assert_allclose(after[place], parameters[place], rtol=1e-5)


def test_random_voices_are_of_two_kinds_and_as_fast_as_asked():
    voices = [random_voice(np.random.default_rng(seed), 1.1, 1.2) for seed in range(200)]
    low = [voice for voice in voices if voice.pitch < 0.8]
    assert 70 < len(low) < 130
    assert all(voice.tract > 1.07 for voice in low)
    assert all(1.1 <= voice.speed <= 1.2 for voice in voices)
    assert len(set(voices)) == 200


def test_the_engine_itself():
    pytest.importorskip("hibari")
    speaker, rng = Speaker(), np.random.default_rng
    usual = speaker("The quick brown fox jumps over the lazy dog.", SAME, rng(0))
    fast = speaker("The quick brown fox jumps over the lazy dog.", SAME._replace(speed=1.4), rng(0))
    assert usual.dtype == np.float32 and np.abs(usual).max() <= 1
    assert 2 < len(usual) / SAMPLE_RATE < 5
    assert len(fast) / len(usual) == pytest.approx(1 / 1.4, rel=0.1)
    assert len(speaker("...", SAME, rng(0))) < SAMPLE_RATE
