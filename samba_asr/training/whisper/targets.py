"""What the teacher hears and says: windows of audio, its states of them, kept on disk."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samba_asr.audio.load import AudioDecodeError, load_audio
from samba_asr.training.manifest import Utterance
from samba_asr.training.whisper.network import LayerTap, Teacher
from samba_asr.training.whisper.transcribe import teacher_features
from samba_asr.training.whisper.windows import (
    SAMPLE_RATE,
    STATE_SAMPLES,
    WINDOW_STATES,
    Placement,
    Stretch,
    cut_stretches,
    pack_windows,
)

_INT16_MAX = 32767
STATES_FILE, DONE_FILE, MEANS_FILE, WINDOWS_FILE = "states.f16", "done.u8", "means.npy", "windows"
ENCODER_FILE = "encoder.safetensors"
"""In a run's folder: the encoder's weights."""
TRAIN_FOLDER = Path("teacher", "train")
"""In a run's folder."""


class StretchBatch(NamedTuple):
    """Padded stretches and the teacher's states of them."""

    waveforms: Tensor  # (batch, samples) float32
    waveform_lengths: Tensor  # (batch,) int64
    targets: Tensor  # (batch, states, d_model) float32, without the mean of each position
    lengths: Tensor  # (batch,) int64, states


class Windows:
    """Utterances packed into windows of 30 s; decoded audio is kept in memory (16 bits a sample)."""

    def __init__(self, utterances: Sequence[Utterance], seed: int) -> None:
        self.utterances = utterances
        self.placements = pack_windows([int(u.duration * SAMPLE_RATE) for u in utterances], seed)
        if not self.placements:
            raise ValueError("no utterance fits a window of 30 s")
        self._samples: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.placements)

    def waveform(self, window: int) -> Tensor:
        """(samples,) float32: 30 s, zeros between utterances. Raises ValueError for audio that cannot be read."""
        waveform = torch.zeros(WINDOW_STATES * STATE_SAMPLES)
        for utterance, start, end in self.placements[window]:
            samples = self._decoded(utterance)[: (end - start) * STATE_SAMPLES]
            waveform[start * STATE_SAMPLES :][: len(samples)] = torch.from_numpy(samples).float() / _INT16_MAX
        return waveform

    def end(self, window: int) -> int:
        """Return the state after the last one of speech."""
        return self.placements[window][-1].end

    def identity(self) -> str:
        """Return a hash of what lies where."""
        names = [[(self.utterances[p.utterance].audio, *p[1:]) for p in window] for window in self.placements]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    def _decoded(self, utterance: int) -> np.ndarray:
        if utterance not in self._samples:
            try:
                waveform = load_audio(self.utterances[utterance].audio, SAMPLE_RATE)
            except AudioDecodeError as error:
                raise ValueError(f"{error}; take it out of the manifest") from error
            self._samples[utterance] = np.round(np.clip(waveform, -1.0, 1.0) * _INT16_MAX).astype(np.int16)
        return self._samples[utterance]


class TeacherStates:
    """The teacher's states of windows, computed once, kept in float16 on disk (1.1 MB a window of tiny).

    folder: made if absent; what was kept for other windows or another teacher is thrown away.
    """

    def __init__(self, teacher: Teacher, windows: Windows, folder: Path, bf16: bool) -> None:
        self.teacher = teacher
        self.windows = windows
        self.bf16 = bf16
        self.features = teacher_features(teacher.encoder)
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(teacher, windows, bf16)
        mark = folder / "identity"
        same = mark.is_file() and mark.read_text() == identity
        shape = (len(windows), WINDOW_STATES, teacher.d_model)
        mode: Literal["r+", "w+"] = "r+" if same else "w+"
        self._states = np.memmap(folder / STATES_FILE, np.float16, mode, shape=shape)
        self._done = np.memmap(folder / DONE_FILE, np.uint8, mode, shape=shape[:1])
        mark.write_text(identity)
        (folder / WINDOWS_FILE).write_text(windows.identity())
        self.folder = folder

    def hear(self, chosen: Sequence[int]) -> tuple[Tensor, list[LayerTap]]:
        """Run the teacher on windows, and keep its states: (batch, 1500, d_model) float32, and its layers' taps."""
        waveforms = torch.stack([self.windows.waveform(window) for window in chosen])
        device = self.teacher.encoder.ln_post.weight.device
        features, _ = self.features(waveforms, torch.full((len(chosen),), waveforms.shape[1]))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            states, taps = self.teacher.encoder(features.to(device))
        states = states.float()
        self._states[list(chosen)] = states.cpu().numpy()
        self._done[list(chosen)] = 1
        return states, taps

    def states(self, chosen: Sequence[int]) -> Tensor:
        """(batch, 1500, d_model) float32 on the CPU, computed where they are not there."""
        missing = [window for window in chosen if not self._done[window]]
        if missing:
            self.hear(missing)
        return torch.from_numpy(self._states[list(chosen)]).float()

    def position_means(self, count: int) -> Tensor:
        """Return the mean state at each place of a window, (1500, d_model), over up to ``count`` windows, smoothed
        over a second; they are kept beside the states.

        Whisper writes into its states where in the window they stand; a student that must not know is spared it.
        """
        some = list(range(min(count, len(self.windows))))
        mean = torch.zeros(WINDOW_STATES, self.teacher.d_model)
        for start in range(0, len(some), 4):
            mean += self.states(some[start : start + 4]).sum(0)
        mean = mean / len(some)
        kernel = 51
        padded = torch.nn.functional.pad(mean.T[None], (kernel // 2, kernel // 2), mode="replicate")
        means = torch.nn.functional.avg_pool1d(padded, kernel, 1)[0].T.contiguous()
        np.save(self.folder / MEANS_FILE, means.numpy())
        return means


def _identity(teacher: Teacher, windows: Windows, bf16: bool) -> str:
    """Return a hash of all that states hang on."""
    digest = hashlib.sha256(f"{windows.identity()} {bf16}".encode())
    for name, value in teacher.encoder.state_dict().items():
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def stretch_batches(
    placements: Sequence[Sequence[Placement]],
    batch_states: int,
    whole_share: float,
    seed: int,
    epoch: int,
    pool: int = 24,
) -> list[list[Stretch]]:
    """Cut every window into stretches, and batch stretches of similar length; all as the seed and the epoch say.

    batch_states: most states of a batch, padding included. pool: windows cut together: the stretches of a batch come
    from one pool, so that a window's audio and states are needed once.
    """
    rng = random.Random(f"stretches {seed} {epoch}")
    order = list(range(len(placements)))
    rng.shuffle(order)
    batches: list[list[Stretch]] = []
    for start in range(0, len(order), pool):
        stretches = [s for w in order[start : start + pool] for s in cut_stretches(w, placements[w], rng, whole_share)]
        stretches.sort(key=lambda stretch: stretch.end - stretch.start)
        cut: list[list[Stretch]] = [[]]
        for stretch in stretches:
            if cut[-1] and (len(cut[-1]) + 1) * (stretch.end - stretch.start) > batch_states:
                cut.append([])
            cut[-1].append(stretch)
        rng.shuffle(cut)
        batches += cut
    return batches


def collect(states: TeacherStates, stretches: Sequence[Stretch], means: Tensor) -> StretchBatch:
    """Read stretches' audio and targets; means: (1500, d_model), taken off the targets."""
    lengths = torch.tensor([stretch.end - stretch.start for stretch in stretches])
    longest = int(lengths.max())
    waveforms = torch.zeros(len(stretches), longest * STATE_SAMPLES)
    targets = torch.zeros(len(stretches), longest, means.shape[1])
    for row, (window, start, end) in enumerate(stretches):
        samples = states.windows.waveform(window)[start * STATE_SAMPLES : end * STATE_SAMPLES]
        waveforms[row, : len(samples)] = samples
        targets[row, : end - start] = states.states([window])[0, start:end] - means[start:end]
    return StretchBatch(waveforms, lengths * STATE_SAMPLES, targets, lengths)
