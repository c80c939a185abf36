"""Augmentation of waveforms: powers, spectra and decays measured by scipy and by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from samba_asr.audio.load import load_audio
from samba_asr.audio.noise import (
    WaveformAugment,
    add_echo,
    add_noise,
    change_level,
    coloured_noise,
    excerpt,
    impulse_response,
    load_noises,
)
from samba_asr.training.config import WaveformAugmentConfig
from samba_asr.training.data import Selection, SpeechDataset, collate, make_waveform_augment
from samba_asr.training.manifest import Utterance

RATE = 16_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def decibels(ratio):
    return 10 * math.log10(ratio)


def power(waveform):
    return float(waveform.double().square().mean())


@pytest.fixture
def speech(clips) -> torch.Tensor:
    return torch.from_numpy(load_audio(clips[0][0], RATE))


def test_an_echo_is_a_convolution_of_the_same_power(speech):
    response = impulse_response(0.3, 3.0, RATE, generator())
    expected = scipy.signal.fftconvolve(speech.double().numpy(), response.double().numpy())[: len(speech)]
    expected *= math.sqrt(power(speech) / np.mean(expected**2))
    np.testing.assert_allclose(add_echo(speech, response).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("rt60", [0.2, 0.8])
def test_an_impulse_response_fades_by_60_decibels(rt60):
    response = impulse_response(rt60, 5.0, RATE, generator()).double()
    echo = response[1:]
    assert response[0] == 1 and decibels(1 / float(echo.square().sum())) == pytest.approx(5.0, abs=1e-3)
    tenth = int(rt60 * RATE / 10)
    begin = int(0.0025 * RATE)
    first, last = power(response[begin : begin + tenth]), power(response[begin + 9 * tenth : begin + 10 * tenth])
    assert decibels(first / last) == pytest.approx(54, abs=2)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_power_asked_for(speech, snr):
    added = add_noise(speech, torch.randn(len(speech), generator=generator()), snr) - speech
    assert decibels(power(speech) / power(added)) == pytest.approx(snr, abs=0.01)
    assert torch.equal(add_noise(speech, torch.zeros(len(speech)), snr), speech)


@pytest.mark.parametrize("slope", [0.0, -3.0, -6.0])
def test_coloured_noise_has_its_slope(slope):
    noise = coloured_noise(40 * RATE, slope, RATE, generator()).numpy()
    frequencies, density = scipy.signal.welch(noise, RATE, nperseg=4096)
    used = (frequencies > 100) & (frequencies < 7000)
    found = np.polyfit(np.log2(frequencies[used]), 10 * np.log10(density[used]), 1)[0]
    assert found == pytest.approx(slope, abs=0.1)


def test_a_level_never_passes_full_scale():
    waveform = torch.tensor([0.1, -0.5, 0.2])
    torch.testing.assert_close(change_level(waveform, -6.0), waveform * 10 ** (-6 / 20))
    torch.testing.assert_close(change_level(waveform, 3.0), waveform * 10 ** (3 / 20))
    torch.testing.assert_close(change_level(waveform, 20.0), waveform * 2)
    assert torch.equal(change_level(waveform * 3, 6.0), waveform * 3)


def test_an_excerpt_is_a_part_or_a_loop():
    recording = torch.arange(10)
    assert {int(excerpt(recording, 4, generator(seed))[0]) for seed in range(60)} == set(range(7))
    looped = excerpt(recording, 25, generator())
    assert torch.equal(looped, (torch.arange(25) + looped[0]) % 10)


def test_each_change_is_made_as_often_as_asked(speech):
    short = speech[:4000]
    augment = WaveformAugment(RATE, noise_probability=0.3)
    made = sum(not torch.equal(augment(short, generator(seed)), short) for seed in range(600))
    assert made / 600 == pytest.approx(0.3, abs=0.06)
    silence = torch.zeros(400)
    assert torch.equal(WaveformAugment(RATE, noise_probability=1.0)(silence), silence)


@pytest.mark.parametrize("recordings", [False, True])
def test_noise_alone_holds_none_of_the_speech(speech, recordings):
    tone = torch.sin(torch.arange(RATE, dtype=torch.float64) * 0.3).float()
    augment = WaveformAugment(
        RATE, [tone] if recordings else [], noise_only_probability=0.25, noise_only_level=(-20.0, -10.0)
    )
    found = [augment.noise_only(speech, generator(seed)) for seed in range(400)]
    noises = [noise for noise in found if noise is not None]
    assert len(noises) / 400 == pytest.approx(0.25, abs=0.06)
    levels = [decibels(power(noise) / power(speech)) for noise in noises]
    assert -20.01 < min(levels) < -18 and -12 < max(levels) < -9.99
    correlations = [abs(float(torch.corrcoef(torch.stack([noise, speech]))[0, 1])) for noise in noises]
    assert max(correlations) < 0.1
    # Of a tone every sample follows from the two before it: x[t-1] + x[t+1] = 2 cos(w) x[t].
    surprises = [float(noise[50] + noise[52] - 2 * math.cos(0.3) * noise[51]) for noise in noises]
    exact = sum(
        abs(surprise) < 1e-4 * float(noise.abs().max()) for surprise, noise in zip(surprises, noises, strict=True)
    )
    assert exact / len(noises) == pytest.approx(0.5 if recordings else 0.0, abs=0.12)
    assert WaveformAugment(RATE, noise_probability=1.0).noise_only(speech) is None
    assert augment.noise_only(torch.zeros(100)) is None


def test_an_utterance_given_up_for_noise_loses_its_text(clips):
    utterances = [Utterance(path, soundfile.info(path).duration, text, "a", "x") for path, text in clips]
    selection = Selection(utterances, [[5, 6] for _ in clips], Counter())
    dataset = SpeechDataset(
        selection, RATE, augment=make_waveform_augment(WaveformAugmentConfig(noise_only_probability=1.0), RATE)
    )
    examples = [dataset[0, index] for index in range(len(clips))]
    plain = SpeechDataset(selection, RATE)[0, 0]
    assert all(example.tokens == [] for example in examples) and plain.tokens == [5, 6]
    assert len(examples[0].waveform) == len(plain.waveform)
    batch = collate([*examples, plain])
    assert batch.token_lengths.tolist() == [0] * len(clips) + [2]


def test_recordings_are_read_and_what_is_none_is_left_out(tmp_path, caplog):
    soundfile.write(tmp_path / "b.wav", np.linspace(-0.25, 0.25, 800), RATE)
    soundfile.write(tmp_path / "a.wav", np.zeros(800), RATE)
    (tmp_path / "c.txt").write_text("not audio")
    with caplog.at_level("INFO"):
        (noise,) = load_noises(tmp_path, RATE)
    assert noise.dtype == torch.int16 and int(noise.max()) == 32767 and "c.txt" in caplog.text
    with pytest.raises(ValueError, match="no recording"):
        (tmp_path / "b.wav").unlink()
        load_noises(tmp_path, RATE)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_noises(tmp_path / "nowhere", RATE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"room_probability": 1.5}, "room_probability"),
        ({"noise_only_probability": -0.1}, "noise_only_probability"),
        ({"noise_snr": (3.0, 1.0)}, "noise_snr"),
        ({"noise_only_level": (0.0, math.nan)}, "noise_only_level"),
        ({"room_rt60": (0.0, 1.0)}, "room_rt60"),
    ],
)
def test_refuses(options, reason):
    with pytest.raises(ValueError, match=reason):
        WaveformAugment(RATE, **options)
    with pytest.raises(ValueError, match=reason):
        WaveformAugmentConfig(**options)
