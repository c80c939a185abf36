"""Voice activity: the network against silero-vad's own, and its blocks against each other."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from samba_asr.audio import vad
from samba_asr.audio.load import load_audio
from samba_asr.audio.vad import FRAME, VoiceDetector, VoiceStream, has_detector


@pytest.fixture(scope="module")
def detector():
    return VoiceDetector.load()


@pytest.fixture(scope="module")
def joined(clips):
    """All clips, half a second of silence after each."""
    return np.concatenate([part for path, _ in clips for part in (load_audio(path), np.zeros(8_000, np.float32))])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_says_what_silero_vad_s_own_network_says(detector, joined):
    waveform = joined[: 15 * 16_000 + 77]  # the last frame is short
    package = Path(importlib.util.find_spec("silero_vad").origin).parent
    own = torch.jit.load(str(package / "data" / "silero_vad.jit"))
    frames = torch.from_numpy(np.pad(waveform, (0, -len(waveform) % FRAME))).split(FRAME)
    with torch.no_grad():
        expected = [own(frame, 16_000).item() for frame in frames]
    found = detector.voice(waveform)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.min() < 0.05 and found.max() > 0.95


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_change_nothing(detector, joined, block, monkeypatch):
    waveform = joined[: 8 * 16_000]
    whole = detector.voice(waveform)
    monkeypatch.setattr(vad, "BLOCK", block * FRAME)
    assert detector.voice(waveform) == pytest.approx(whole, abs=1e-5)
    assert detector.voice(waveform[: 2 * block * FRAME + 1]) == pytest.approx(whole[: 2 * block + 1], abs=0.2)


@pytest.mark.parametrize("samples", [0, 1, FRAME - 1, FRAME, FRAME + 1, 10 * FRAME])
def test_every_frame_has_its_probability(detector, samples):
    noise = np.random.default_rng(0).normal(0, 0.01, samples).astype(np.float32)
    found = detector.voice(noise)
    assert found.shape == (-(-samples // FRAME),) and found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()


def test_speech_is_heard_and_silence_is_not(detector, joined, clips):
    voice = detector.voice(joined)
    end = 0
    for path, _ in clips:
        start, end = end, end + len(load_audio(path))
        assert voice[start // FRAME : end // FRAME].mean() > 0.6
        assert voice[end // FRAME + 5 : (end + 8_000) // FRAME].max() < 0.2
        end += 8_000


def test_the_package_is_not_imported_and_threads_stay(detector):
    threads = torch.get_num_threads()
    VoiceDetector.load()
    assert "silero_vad" not in sys.modules and torch.get_num_threads() == threads


def test_without_the_package(monkeypatch):
    assert has_detector()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_detector()
    with pytest.raises(RuntimeError, match="pip install silero-vad"):
        VoiceDetector.load()


@pytest.mark.parametrize("sizes", [[1, 511, 513, 3], [10_240], [700, 64]])
def test_a_stream_hears_what_the_whole_recording_holds(detector, joined, sizes):
    waveform = joined[: 4 * 16_000 + 77]
    stream, found, end = VoiceStream(detector), [], 0
    for size in itertools.cycle(sizes):
        found.append(stream.feed(waveform[end : end + size]))
        end += size
        known = sum(map(len, found))
        assert known == min(end, len(waveform)) // FRAME
        assert stream.state_bytes < 10_000
        if end >= len(waveform):
            break
    found.append(stream.finish())
    assert np.concatenate(found) == pytest.approx(detector.voice(waveform), abs=1e-5)
    assert len(stream.finish()) == 0 and len(VoiceStream(detector).finish()) == 0
