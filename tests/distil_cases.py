"""A random Whisper that hears 30 s, its files, and manifests of the recordings in tests/data, to distil from."""

import pytest
import torch
import whisper_cases

from samba_asr.audio.load import load_audio
from samba_asr.training.manifest import Utterance

D_MODEL, N_MELS, N_LAYERS, N_STATES, N_TOKENS = 64, 16, 2, 1500, 130
SIZES = {"D_MODEL": D_MODEL, "N_MELS": N_MELS, "N_LAYERS": N_LAYERS, "N_STATES": N_STATES, "N_TOKENS": N_TOKENS}

STEP_SECONDS = 3.75
"""A sixteenth of a minute: sums are exact."""


class Clock:
    """Advances by a step's time whenever it is read: at a stage's start and after each of its steps."""

    def __init__(self, interrupt_at=None):
        self.readings, self.interrupt_at = 0, interrupt_at

    def monotonic(self):
        self.readings += 1
        if self.readings == self.interrupt_at:
            raise KeyboardInterrupt
        return self.readings * STEP_SECONDS


def teacher_weights(**sizes):
    """Return random weights of these sizes under openai's names; norms scale by about 1, so that layers are heard."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SIZES | sizes).items():
            patch.setattr(whisper_cases, name, value)
        weights = whisper_cases.random_weights()
    norms = [name for name in weights if name.endswith(("ln.weight", "ln_post.weight"))]
    return weights | {name: 1 + weights[name] for name in norms}


def utterances(clips, duration=None):
    """Return the clips as a manifest's lines; duration: what it says of each, instead of the truth."""
    return [Utterance(str(path), duration or len(load_audio(path)) / 16_000, text, "", "clips") for path, text in clips]


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)
