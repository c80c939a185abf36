"""The teacher of a decoder: Whisper's, which reads the same transcripts in its own tokens, and hears the same states or
what its own encoder makes of the recordings."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samba_asr.training.whisper.matching import Matching
from samba_asr.training.whisper.network import Teacher
from samba_asr.training.whisper.reading import Reader
from samba_asr.training.whisper.transcribe import padded_states, teacher_features
from samba_asr.training.whisper.windows import STATE_SAMPLES, WINDOW_STATES

WINDOWS_AT_ONCE = 8
"""Of 30 s, that the teacher's encoder hears."""


class Norm(NamedTuple):
    """What makes the teacher's states of a student's."""

    layer: nn.LayerNorm
    means: Tensor
    """Added at each place of the teacher's window, (places, d_model): the mean state there, which a student lacks."""
    stride: int
    """The teacher's places for each of the student's states."""


def whisper_norm(teacher: Teacher, subsampling: str, run: str | None) -> Norm:
    """Return the norm and the means that ``distil.py`` left in the folder ``run``; without one, the teacher's own norm.

    Raises FileNotFoundError or ValueError for a folder without them, or of another teacher.
    """
    width = teacher.d_model
    if run is None:
        return Norm(teacher.encoder.ln_post, torch.zeros(1, width), 1)
    matching = Matching(run, [])
    if matching.means.shape[1] != width or matching.config["subsampling"] != subsampling:
        raise ValueError(
            f"teacher_run ({run}): its states ({matching.means.shape[1]} channels, {matching.config['subsampling']}) "
            f"must have the teacher's width ({width}) and the model's rate ({subsampling})"
        )
    return Norm(matching.norm, matching.means, matching.stride)


class Heard(NamedTuple):
    """What the teacher's decoder makes of states and a text, (batch, its tokens + 1, d_model) each."""

    expected: Tensor
    """What its output matrix is given."""
    outputs: list[Tensor]
    """What leaves its blocks."""


class DecoderTeacher(nn.Module):
    """Whisper's decoder, frozen, that hears all states.

    listener: the teacher, if it shall hear its own encoder; None: it hears the student's states.
    """

    means: Tensor

    def __init__(self, reader: Reader, norm: Norm, listener: Teacher | None = None) -> None:
        super().__init__()
        self.reader, self.stride = reader, norm.stride
        self.listener = None if listener is None else listener.requires_grad_(False)
        self.features = None if listener is None else teacher_features(listener.encoder)
        self.norm = norm.layer.requires_grad_(False)
        self.register_buffer("means", norm.means)

    def read(self, tokens: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the teacher's ids of a text, and where they and the student's tokens can be compared
        (:meth:`Interpreter.shared`): nothing where the teacher cannot read it."""
        ids = self.reader.read(tokens)
        shared = self.reader.interpreter.shared(tokens, ids) if ids else []
        return (ids, shared) if shared else ([], [])

    def listen(self, waveforms: Sequence[Tensor], bf16: bool) -> list[Tensor | None]:
        """Return what the teacher's encoder makes of the first 30 s of waveforms, (samples,) at 16 kHz, (states,
        d_model) float16, one each 20 ms; None of each where the teacher hears the student's. bf16: mixed precision."""
        if self.listener is None or self.features is None:
            return [None] * len(waveforms)
        heard: list[Tensor | None] = []
        for start in range(0, len(waveforms), WINDOWS_AT_ONCE):
            some = [
                waveform[: WINDOW_STATES * STATE_SAMPLES] for waveform in waveforms[start : start + WINDOWS_AT_ONCE]
            ]
            states = padded_states(self.listener, self.features, some, bf16).half().cpu()
            heard += [row[: -(-len(one) // STATE_SAMPLES)].clone() for row, one in zip(states, some, strict=True)]
        return heard

    def forward(self, states: Tensor, lengths: Tensor, texts: Sequence[Sequence[int]]) -> Heard:
        """states: (batch, states, d_model), the student's; lengths: (batch,) int64; texts: ids from :meth:`read`."""
        places = (self.stride * torch.arange(states.shape[1], device=states.device)).clamp_max(len(self.means) - 1)
        return self.hear(self.norm(states) + self.means[places], lengths, texts)

    def hear(self, memory: Tensor, lengths: Tensor, texts: Sequence[Sequence[int]]) -> Heard:
        """As :meth:`forward`, of the teacher's own states, (batch, states, d_model)."""
        outputs = self.reader.hear(memory, lengths, texts)
        return Heard(self.reader.decoder.ln(outputs[-1]), outputs)
