"""Log-mel features against librosa, torchaudio and a plain numpy copy of Whisper's definition."""

import subprocess
import sys

import librosa
import numpy as np
import pytest
import torch

from samba_asr.audio.features import LogMel
from samba_asr.audio.torchaudio_import import torchaudio_transforms
from samba_asr.config import FeatureConfig

NORMALISATIONS = ("whisper", "global", "causal")


def make(normalisation, **options):
    module = LogMel(FeatureConfig(normalisation=normalisation, **options))
    if normalisation == "global":
        module.set_statistics(torch.linspace(-3, -1, 80), torch.linspace(0.5, 1.5, 80))
    return module


def alone(module, waveform):
    features, lengths = module(torch.as_tensor(waveform)[None], torch.tensor([len(waveform)]))
    assert lengths.item() == features.shape[1]
    return features[0]


def batch_of(waveforms, padding):
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.full((len(waveforms), int(lengths.max()) + 700), padding)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.as_tensor(waveform)
    return batch, lengths


def normalise(power, module):
    """The three definitions in numpy, over one utterance: (frames, 80) power to features."""
    logarithm = np.log10(np.maximum(power, 1e-10))
    if module.config.normalisation == "whisper":
        return (np.maximum(logarithm, logarithm.max() - 8) + 4) / 4
    if module.config.normalisation == "causal":
        return (np.maximum(logarithm, -7) + 4) / 4
    return (logarithm - module.mean.numpy()) / module.std.numpy()


def assert_equal_but_for_rounding(module, waveform, power, tolerance=1e-6):
    """Compare with features of power (frames, n_mels).

    float32 rounds a frame's spectrum relative to its loudest bin, so a band's logarithm is off by about the rounding
    times the ratio of their amplitudes.
    """
    features = alone(module, waveform).numpy()
    assert features.shape == power.shape
    amplitude = np.sqrt(np.maximum(power, 1e-10))
    bound = tolerance * (1 + amplitude.max(1, keepdims=True) / amplitude) / module.std.numpy().clip(max=1)
    assert (np.abs(features - normalise(power, module)) / bound).max() < 1


def then_zeros(waveform):
    return np.concatenate([waveform, np.zeros(400, np.float32)])


def plain_mel_power(waveform):
    """Whisper's definition in float64 numpy, one frame after the other: (frames, 80)."""
    padded = np.pad(then_zeros(waveform).astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = -(-len(waveform) // 160)
    spectrum = np.stack([np.fft.rfft(padded[i * 160 : i * 160 + 400] * window) for i in range(frames)])
    return np.abs(spectrum) ** 2 @ librosa.filters.mel(sr=16000, n_fft=400, n_mels=80).T


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_equals_librosa(waveforms, normalisation):
    for waveform in waveforms:
        power = librosa.feature.melspectrogram(
            y=then_zeros(waveform), sr=16000, n_fft=400, hop_length=160, n_mels=80, center=True, pad_mode="reflect"
        )
        assert_equal_but_for_rounding(make(normalisation), waveform, power[:, : -(-len(waveform) // 160)].T)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_equals_torchaudio(waveforms, normalisation):
    transforms = torchaudio_transforms()
    if transforms is None:
        pytest.skip("torchaudio is not installed")
    oracle = transforms.MelSpectrogram(16000, 400, hop_length=160, n_mels=80, norm="slaney", mel_scale="slaney")
    for waveform in waveforms:
        power = oracle(torch.from_numpy(then_zeros(waveform))).numpy()[:, : -(-len(waveform) // 160)].T
        # torchaudio makes its filters in float32
        assert_equal_but_for_rounding(make(normalisation), waveform, power, tolerance=6e-6)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_equals_plain_numpy(waveforms, normalisation):
    for waveform in waveforms:
        assert_equal_but_for_rounding(make(normalisation), waveform, plain_mel_power(waveform))


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 200, 201, 399, 400, 401, 1600])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_frames_of_short_waveforms(samples, normalisation):
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1
    module = make(normalisation)
    features = alone(module, waveform)
    assert features.shape == (-(-samples // 160), 80)
    assert module.num_frames(torch.tensor([samples])).tolist() == [-(-samples // 160)]
    assert torch.isfinite(features).all()
    assert_equal_but_for_rounding(module, waveform.numpy(), plain_mel_power(waveform.numpy()))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("padding", [0.0, 0.7, float("nan"), float("inf")])
def test_batched_equals_alone(waveforms, normalisation, padding):
    module = make(normalisation)
    features, lengths = module(*batch_of(waveforms, padding))
    for row, length, waveform in zip(features, lengths, waveforms, strict=True):
        torch.testing.assert_close(row[:length], alone(module, waveform), rtol=0, atol=1e-5)
        assert (row[length:] == 0).all()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_gradients_do_not_depend_on_padding(waveforms, normalisation):
    module = make(normalisation)
    short = [waveform[8000 : 8000 + length] for waveform, length in zip(waveforms, (3000, 1501, 170), strict=False)]
    weights = torch.randn(19, 80)

    def gradient(batch, lengths):
        batch.requires_grad_()
        features, frames = module(batch, lengths)
        loss = sum((row[:n] * weights[:n]).sum() for row, n in zip(features, frames, strict=True))
        loss = loss + features.sum() * 0.1  # frames that are padding pass nothing on
        return torch.autograd.grad(loss, batch)[0]

    batched = gradient(*batch_of(short, float("nan")))
    for row, waveform in zip(batched, short, strict=True):
        expected = gradient(*batch_of([waveform], 0.0))[0]
        length = len(waveform)
        torch.testing.assert_close(row[:length], expected[:length], rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        assert (row[length:] == 0).all()


def test_causal_frames_know_nothing_of_the_future(waveforms):
    waveform = torch.from_numpy(waveforms[0])[:32000]
    module = make("causal")
    features = alone(module, waveform)
    for changed in (200, 5000, 20000, 31999):
        other = waveform.clone()
        other[changed:] = torch.randn(32000 - changed)
        before = (changed - 200) // 160 + 1  # frame i reaches to sample i * 160 + 199
        assert torch.equal(alone(module, other)[:before], features[:before])
        assert not torch.equal(alone(module, other)[before + 1 :], features[before + 1 :]) or changed == 31999


def test_whisper_floor_is_the_utterances_own(waveforms):
    quiet, loud = torch.zeros(16000), torch.from_numpy(waveforms[0])[:16000]
    module = make("whisper")
    features, _ = module(torch.stack([quiet, loud]), torch.tensor([16000, 16000]))
    assert torch.allclose(features[0], torch.tensor((-10 + 4) / 4))
    assert torch.allclose(features[1].max() - features[1].min(), torch.tensor(2.0))


def test_a_click_at_the_end_counts_as_the_utterances_own_frames_hear_it():
    waveform = torch.randn(1600) * 1e-6
    waveform[-1] = 0.9  # loudest in the frame after the last one
    module = make("whisper")
    features, _ = module(*batch_of([waveform, torch.zeros(4000)], 0.0))
    torch.testing.assert_close(features[0, :10], alone(module, waveform), rtol=0, atol=1e-6)


def test_always_float32(waveforms):
    module = make("causal")
    waveform = torch.from_numpy(waveforms[0])[None]
    lengths = torch.tensor([waveform.shape[1]])
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = module(waveform, lengths)
    assert features.dtype == torch.float32
    assert torch.equal(features, module(waveform, lengths)[0])
    assert module(waveform.double(), lengths)[0].dtype == torch.float32


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_empty_utterances(normalisation):
    module = make(normalisation)
    waveforms = torch.full((2, 1000), float("nan"), requires_grad=True)
    features, lengths = module(waveforms, torch.tensor([0, 0]))
    assert lengths.tolist() == [0, 0]
    assert (features == 0).all()
    assert (torch.autograd.grad(features.sum(), waveforms)[0] == 0).all()
    assert module(torch.zeros(2, 0), torch.tensor([0, 0]))[0].shape == (2, 0, 80)
    assert module(torch.zeros(0, 500), torch.zeros(0, dtype=torch.int64))[0].shape == (0, 4, 80)


def test_silence_is_finite():
    for normalisation in NORMALISATIONS:
        assert torch.isfinite(alone(make(normalisation), torch.zeros(800))).all()


def test_state_dict_carries_filters_and_statistics():
    module = make("global")
    state = module.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "mel_filters": (80, 201),
        "mean": (80,),
        "std": (80,),
    }
    state["mel_filters"] = state["mel_filters"] * 2
    other = LogMel(module.config, torch.zeros(80, 201))
    other.load_state_dict(state)
    noise = torch.randn(16000)
    expected = alone(module, noise) + np.log10(2) / module.std
    torch.testing.assert_close(alone(other, noise), expected, rtol=0, atol=1e-5)


def test_given_filters_need_no_librosa():
    code = (
        "import sys, torch\n"
        "from samba_asr.audio.features import LogMel\n"
        "from samba_asr.config import FeatureConfig\n"
        "LogMel(FeatureConfig(), torch.ones(80, 201))(torch.zeros(1, 800), torch.tensor([800]))\n"
        "assert not {'librosa', 'torchaudio', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_arguments_are_named():
    module = make("causal")
    with pytest.raises(ValueError, match=r"\(80, 200\).*\(80, 201\)"):
        LogMel(FeatureConfig(), torch.zeros(80, 200))
    with pytest.raises(ValueError, match=r"\(800,\)"):
        module(torch.zeros(800), torch.tensor([800]))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        module(torch.zeros(1, 800), torch.tensor([800, 800]))
    with pytest.raises(ValueError, match=r"int16"):
        module(torch.zeros(1, 800, dtype=torch.int16), torch.tensor([800]))
    for mean, std, reason in (
        (torch.zeros(79), torch.ones(80), r"mean.*\(79,\)"),
        (torch.zeros(80), torch.zeros(80), "std.*positive"),
        (torch.full((80,), float("nan")), torch.ones(80), "mean.*not finite"),
    ):
        with pytest.raises(ValueError, match=reason):
            module.set_statistics(mean, std)


def test_other_sizes_equal_librosa(waveforms):
    module = make("causal", n_fft=512, win_length=320, hop_length=100, n_mels=40)
    power = librosa.feature.melspectrogram(
        y=np.concatenate([waveforms[0], np.zeros(512, np.float32)]),
        sr=16000,
        n_fft=512,
        win_length=320,
        hop_length=100,
        n_mels=40,
        pad_mode="reflect",
    )
    assert_equal_but_for_rounding(module, waveforms[0], power[:, : -(-len(waveforms[0]) // 100)].T)
