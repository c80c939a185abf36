"""Augmentation: torchaudio's against the torch code that stands in for it, and both against what they promise."""

import math
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from samba_asr.audio import augment
from samba_asr.audio.augment import SpecAugment, SpeedPerturbation, change_speed
from samba_asr.audio.load import load_audio
from samba_asr.audio.torchaudio_import import torchaudio_transforms

LENGTHS = torch.tensor([400, 399, 123, 20, 19, 1, 0, 250])


@pytest.fixture(params=["torchaudio", "torch"])
def backend(request, monkeypatch):
    """Run a test with torchaudio and without it."""
    if request.param == "torch":
        monkeypatch.setattr(augment, "torchaudio_transforms", lambda: None)
    elif torchaudio_transforms() is None:
        pytest.skip("torchaudio is not installed")
    augment._torchaudio_perturbation.cache_clear()
    yield request.param
    augment._torchaudio_perturbation.cache_clear()


def random_features(lengths, n_mels=80):
    features = torch.randn(len(lengths), int(lengths.max()), n_mels) + 3
    for row, length in zip(features, lengths, strict=True):
        row[length:] = 0
    return features


def without_torchaudio(monkeypatch, function):
    with monkeypatch.context() as patch:
        patch.setattr(augment, "torchaudio_transforms", lambda: None)
        augment._torchaudio_perturbation.cache_clear()
        result = function()
    augment._torchaudio_perturbation.cache_clear()
    return result


@pytest.mark.parametrize("options", [{}, {"n_time_masks": 0}, {"n_freq_masks": 0}, {"time_mask_share": 0.5}])
@pytest.mark.parametrize("n_mels", [80, 20])
def test_masks_equal_torchaudios_for_the_same_generator(monkeypatch, options, n_mels):
    if torchaudio_transforms() is None:
        pytest.skip("torchaudio is not installed")
    spec_augment = SpecAugment(**options)
    for seed in range(20):
        torch.manual_seed(seed)
        features = random_features(LENGTHS, n_mels)
        state = torch.get_rng_state()
        expected = spec_augment(features, LENGTHS)
        state_after = torch.get_rng_state()
        torch.set_rng_state(state)
        masked = without_torchaudio(monkeypatch, lambda f=features: spec_augment(f, LENGTHS))
        assert torch.equal(masked == features, expected == features)
        torch.testing.assert_close(masked, expected, rtol=0, atol=2e-6)  # the mean's rounding
        assert torch.equal(torch.get_rng_state(), state_after)


def test_masks_stay_within_each_utterance(backend):
    features = random_features(LENGTHS)
    before = features.clone()
    for _ in range(20):
        masked = SpecAugment()(features, LENGTHS)
        assert torch.equal(features, before)
        assert masked.shape == features.shape and masked.dtype == features.dtype
        for row, original, length in zip(masked, features, LENGTHS.tolist(), strict=True):
            assert (row[length:] == 0).all()
            changed = row[:length] != original[:length]
            if changed.any():
                mean = original[:length].mean()
                torch.testing.assert_close(row[:length][changed], mean.expand(int(changed.sum())), rtol=0, atol=1e-5)
            frames = changed.all(1)
            bands = changed.all(0)
            assert torch.equal(changed, frames[:, None] | bands[None, :])  # whole stripes and nothing else
            assert frames.sum() <= 5 * int(0.05 * length) or bands.all()
            assert bands.sum() <= 2 * 26 or frames.all()


def test_masks_do_not_depend_on_the_batchs_padding(backend):
    features = random_features(LENGTHS)
    torch.manual_seed(5)
    expected = SpecAugment()(features, LENGTHS)
    torch.manual_seed(5)
    padded = torch.cat([features, torch.zeros(len(LENGTHS), 77, 80)], dim=1)
    masked = SpecAugment()(padded, LENGTHS)
    torch.testing.assert_close(masked[:, : features.shape[1]], expected, rtol=0, atol=2e-6)
    assert (masked[:, features.shape[1] :] == 0).all()


def test_widths_and_places_are_uniform(backend):
    """Width uniform on 0 ... widest - 1, place uniform for each width: counts within five standard deviations."""
    draws, frames, widest = 4000, 40, 8
    features = torch.randn(draws, frames, 4)
    lengths = torch.full((draws,), frames)
    masked = SpecAugment(n_time_masks=1, time_mask_share=0.2, n_freq_masks=0)(features, lengths)
    changed = (masked != features).all(2)
    widths = changed.sum(1)
    counts = torch.bincount(widths, minlength=widest).double()
    assert len(counts) == widest
    expected = draws / widest
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    starts = changed.double().argmax(1)[widths == 3]
    assert starts.min() == 0 and starts.max() == frames - 4
    centre, spread = starts.double().mean(), (frames - 3) / math.sqrt(12 * len(starts))
    assert abs(centre - (frames - 4) / 2) < 5 * spread


def test_masked_share(backend):
    """Mean share of masked cells of independent stripes, against a simulation in numpy."""
    lengths = torch.full((600,), 200)
    features = torch.randn(600, 200, 80)
    share = (SpecAugment()(features, lengths) != features).float().mean().item()
    generator = np.random.default_rng(0)

    def stripes(count, widest, size):
        covered = np.zeros((5000, size), bool)
        for row in covered:
            for _ in range(count):
                width = generator.integers(0, widest)
                start = int(generator.uniform(0, size - width))
                row[start : start + width] = True
        return covered.mean()

    expected = 1 - (1 - stripes(5, 10, 200)) * (1 - stripes(2, 27, 80))
    assert share == pytest.approx(expected, abs=0.025)  # five standard deviations of 600 draws


def test_batches_of_nothing(backend):
    assert SpecAugment()(torch.zeros(0, 5, 80), torch.zeros(0, dtype=torch.int64)).shape == (0, 5, 80)
    assert SpecAugment()(torch.zeros(2, 0, 80), torch.tensor([0, 0])).shape == (2, 0, 80)
    features = random_features(LENGTHS)
    assert torch.equal(SpecAugment(n_time_masks=0, n_freq_masks=0)(features, LENGTHS), features)


@pytest.mark.parametrize(
    "options, reason",
    [({"n_time_masks": -1}, "n_time_masks"), ({"time_mask_share": 1.0}, "1.0"), ({"freq_mask_bands": -2}, "-2")],
)
def test_spec_augment_refuses(options, reason):
    with pytest.raises(ValueError, match=reason):
        SpecAugment(**options)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 0.95, 1.25, 0.5, 2.0])
def test_speed_equals_torchaudio(clips, factor):
    transforms = torchaudio_transforms()
    if transforms is None:
        pytest.skip("torchaudio is not installed")
    speed = transforms.Speed(16000, factor)
    for path, _ in clips[:3]:
        waveform = torch.from_numpy(load_audio(path))
        expected = speed(waveform)[0]
        torch.testing.assert_close(change_speed(waveform, 16000, factor), expected, rtol=0, atol=1e-6)
    for samples in (1, 7, 160):
        waveform = torch.randn(samples)
        torch.testing.assert_close(change_speed(waveform, 16000, factor), speed(waveform)[0], rtol=0, atol=1e-5)


def test_speed_perturbation_draws_as_torchaudio_does(monkeypatch):
    if torchaudio_transforms() is None:
        pytest.skip("torchaudio is not installed")
    waveform = torch.randn(3000)
    perturb = SpeedPerturbation()

    def play():
        torch.manual_seed(1)
        return [perturb(waveform) for _ in range(20)]

    augment._torchaudio_perturbation.cache_clear()
    for own, theirs in zip(without_torchaudio(monkeypatch, play), play(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)


def test_speed_perturbation_changes_length_and_pitch(backend):
    times = torch.arange(16000) / 16000
    waveform = torch.sin(2 * math.pi * 500 * times)
    perturb = SpeedPerturbation()
    counts = dict.fromkeys((0.9, 1.0, 1.1), 0)
    for _ in range(300):
        faster = perturb(waveform)
        factor = next(factor for factor in counts if len(faster) == math.ceil(16000 / factor))
        counts[factor] += 1
        middle = slice(1000, 13000)
        expected = torch.sin(2 * math.pi * 500 * factor * torch.arange(len(faster)) / 16000)
        torch.testing.assert_close(faster[middle], expected[middle], rtol=0, atol=2e-3)
    assert all(abs(count - 100) < 5 * math.sqrt(300 * 2 / 9) for count in counts.values())


@pytest.mark.parametrize("factors", [(), (0.9, 0.0), (-1.0,)])
def test_speed_perturbation_refuses(factors):
    with pytest.raises(ValueError, match="factors"):
        SpeedPerturbation(16000, factors)


def test_both_travel_to_a_worker_process(backend):
    waveform, features = torch.randn(800), random_features(LENGTHS)
    for transform, arguments in ((SpeedPerturbation(), (waveform,)), (SpecAugment(), (features, LENGTHS))):
        torch.manual_seed(2)
        expected = transform(*arguments)
        copy = pickle.loads(pickle.dumps(transform))
        torch.manual_seed(2)
        assert torch.equal(copy(*arguments), expected)


def import_torchaudio(tmp_path, code):
    """Run code in a process whose torchaudio is the package in tmp_path; returns what it prints."""
    script = "import warnings; warnings.simplefilter('error')\nfrom samba_asr.audio.torchaudio_import import *\n"
    script += "transforms = torchaudio_transforms()\n" + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"],
        capture_output=True,
        text=True,
    )
    return result.stdout + result.stderr


def write_package(folder, extension, transforms):
    for name, text in {
        "__init__": "from . import _extension, transforms",
        "_extension/__init__": extension,
        "transforms/__init__": transforms,
    }.items():
        path = folder / "torchaudio" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


USES = "from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align"


@pytest.mark.parametrize(
    "failure", ["OSError('libc10_cuda.so')", "ImportError('libtorchaudio')", "RuntimeError('ABI')"]
)
def test_torchaudio_without_its_native_library(tmp_path, failure):
    write_package(tmp_path, f"raise {failure}", USES)
    code = "import torchaudio; print(transforms is torchaudio.transforms, transforms._IS_TORCHAUDIO_EXT_AVAILABLE)"
    assert import_torchaudio(tmp_path, code) == "True False\n"


def test_torchaudio_that_works_is_left_alone(tmp_path):
    write_package(tmp_path, "_IS_TORCHAUDIO_EXT_AVAILABLE = True; fail_if_no_align = 1", USES)
    assert import_torchaudio(tmp_path, "print(transforms._IS_TORCHAUDIO_EXT_AVAILABLE)") == "True\n"


def test_torchaudio_that_does_not_fit(tmp_path):
    write_package(tmp_path, "raise OSError", "raise AttributeError('too new')")
    assert "cannot be imported (too new)" in import_torchaudio(tmp_path, "")


def test_no_torchaudio(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.delitem(sys.modules, "torchaudio.transforms", raising=False)
    assert torchaudio_transforms.__wrapped__() is None
