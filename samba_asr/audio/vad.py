"""Voice activity: how likely somebody speaks, by silero-vad's network and weights (MIT).

Its package carries the weights; it is not imported, because that would set PyTorch to one thread, and its own network
takes a frame at a time.
"""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from samba_asr.audio.load import Waveform

FRAME = 512
"""Samples, 32 ms: the network says something of each."""
SAMPLE_RATE = 16_000
_CONTEXT = 64
"""Samples before a frame that the network hears with it."""
BLOCK = 1024 * FRAME
"""Samples at a time, 33 s: memory does not grow with the recording."""
_BINS = 129
_REFLECTED = 64
"""Samples added to a frame's end, for its last spectrum."""


class VoiceDetector(nn.Module):
    """Silero-vad's network at 16 kHz: a spectrum, four convolutions within a frame, an LSTM over the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(_BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    @classmethod
    def load(cls) -> "VoiceDetector":
        """Take the weights from the installed package; RuntimeError where there is none."""
        file = _weights()
        if file is None:
            raise RuntimeError("voice activity detection needs silero-vad 6.2 or newer: pip install silero-vad")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; only its weights are wanted
            saved = torch.jit.load(str(file), map_location="cpu").state_dict()
        weights = [weight for name, weight in saved.items() if name.startswith("_model.")]  # in the same order
        detector = cls()
        detector.load_state_dict(dict(zip(detector.state_dict(), weights, strict=True)))
        return detector.eval()

    def forward(
        self, frames: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """frames: (frames, context and frame), in order; state: the LSTM's after the frames before, None at the start.

        Returns the probability of speech, (frames,), and the state.
        """
        spectrum = self.stft_conv(F.pad(frames.unsqueeze(1), (0, _REFLECTED), "reflect"))
        x = (spectrum[:, :_BINS].square() + spectrum[:, _BINS:].square()).sqrt()  # (frames, bins, 4)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()  # (frames, 128, 1) at last
        x, state = self.lstm(x.squeeze(-1), state)
        return self.final_conv(x.relu().unsqueeze(-1)).sigmoid().flatten(), state

    @torch.inference_mode()
    def voice(self, waveform: Waveform) -> NDArray[np.float32]:
        """Return the probability of speech in each frame, (frames,); the last frame may be short.

        waveform: (samples,) float32 at 16 kHz.
        """
        state = None
        probabilities = [np.zeros(0, np.float32)]
        for start in range(0, len(waveform), BLOCK):
            found, state = self(_frames(waveform, start), state)
            probabilities.append(found.numpy())
        return np.concatenate(probabilities)


class VoiceStream:
    """A detector's word on a recording that goes on: samples come in blocks, each with what the network remembers."""

    def __init__(self, detector: VoiceDetector) -> None:
        self._detector = detector
        self._heard = np.zeros(_CONTEXT, np.float32)
        """What is not yet a frame, and the samples before it."""
        self._state: tuple[Tensor, Tensor] | None = None

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of speech in each frame that these samples, (samples,), complete: (frames,)."""
        heard = np.concatenate([self._heard, samples])
        end = (len(heard) - _CONTEXT) // FRAME * FRAME
        self._heard = heard[end:].copy()
        return self._probabilities(heard[: end + _CONTEXT])

    def finish(self) -> NDArray[np.float32]:
        """As :meth:`feed`, of the last frame, where that is short."""
        missing = -(len(self._heard) - _CONTEXT) % FRAME
        return self.feed(np.zeros(missing, np.float32))

    @torch.inference_mode()
    def _probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(samples) == _CONTEXT:
            return np.zeros(0, np.float32)
        frames = torch.from_numpy(samples).unfold(0, _CONTEXT + FRAME, FRAME)
        found, self._state = self._detector(frames, self._state)
        return np.asarray(found.numpy(), np.float32)

    @property
    def state_bytes(self) -> int:
        """What is carried from block to block."""
        return self._heard.nbytes + sum(tensor.nbytes for tensor in self._state or ())


def has_detector() -> bool:
    """Tell whether silero-vad's weights are installed."""
    return _weights() is not None


def _weights() -> Path | None:
    package = importlib.util.find_spec("silero_vad")  # does not import it
    places = (package.submodule_search_locations or []) if package else []
    files = [Path(place) / "data" / "silero_vad.jit" for place in places]
    return next((file for file in files if file.is_file()), None)


def _frames(waveform: Waveform, start: int) -> Tensor:
    """Return a block's frames, each after the samples before it, 0 outside the recording: (frames, 576)."""
    block = waveform[max(start - _CONTEXT, 0) : start + BLOCK]
    before = _CONTEXT if start == 0 else 0
    after = -(len(block) + before - _CONTEXT) % FRAME
    samples = torch.from_numpy(np.pad(block, (before, after)))
    return samples.unfold(0, _CONTEXT + FRAME, FRAME)
