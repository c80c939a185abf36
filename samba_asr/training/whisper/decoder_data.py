"""What a decoder learns from: the encoder's states of each utterance, and where in them it listens for each token."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from samba_asr.audio.load import AudioDecodeError, load_audio
from samba_asr.model.alignment import align, listening_places
from samba_asr.model.asr import SambaASR
from samba_asr.text.normalization import TextForm
from samba_asr.text.tokenizer import UNK_ID, Tokenizer
from samba_asr.training.batching import dev_batches
from samba_asr.training.data import Selection, select_utterances
from samba_asr.training.manifest import Utterance
from samba_asr.training.whisper.decoder_teacher import DecoderTeacher

log = logging.getLogger(__name__)

SHORTEST_SECONDS = 0.2
BATCH_SECONDS = 60.0


class Said(NamedTuple):
    """One utterance."""

    states: Tensor
    """(states, d_model) float16, as the encoder gives them."""
    tokens: list[int]
    places: list[int]
    """Where to listen for each token and for the end."""
    characters: int
    ids: list[int]
    """The text as the teacher reads it; nothing where it cannot."""
    shared: list[tuple[int, int]]
    """Where tokens and ids have a boundary (:meth:`Interpreter.shared`)."""
    own: Tensor | None
    """(states, d_model) float16 of the teacher's own encoder, None where it hears the student's."""


class SaidBatch(NamedTuple):
    """Padded utterances."""

    states: Tensor
    """(batch, states, d_model) float32"""
    lengths: Tensor
    """(batch,) int64, states"""
    tokens: Tensor
    """(batch, tokens) int64"""
    token_lengths: Tensor
    """(batch,) int64"""
    places: Tensor
    """(batch, tokens + 1) int64"""
    ids: list[list[int]]
    """Of each text that the teacher reads."""
    read: Tensor
    """Which those are, (texts read,) int64"""
    shared: Tensor
    """Where its expectation is known, (positions, 4) int64: the utterance, a place among its tokens, which of the texts
    read it is, a place among its ids."""
    own: Tensor | None
    """What the teacher's own encoder makes of those that it reads, (texts read, states, d_model) float32; None where it
    hears the student's states."""
    own_lengths: Tensor
    """(texts read,) int64, its states"""


def collate(said: Sequence[Said], device: torch.device) -> SaidBatch:
    """Pad utterances to a batch."""
    read = [row for row, one in enumerate(said) if one.ids]
    own = [one.own for one in said if one.ids and one.own is not None]
    shared = [(row, ours, text, theirs) for text, row in enumerate(read) for ours, theirs in said[row].shared]
    return SaidBatch(
        pad_sequence([one.states for one in said], batch_first=True).float().to(device),
        torch.tensor([len(one.states) for one in said], device=device),
        pad_sequence([torch.tensor(one.tokens) for one in said], batch_first=True).to(device),
        torch.tensor([len(one.tokens) for one in said], device=device),
        pad_sequence([torch.tensor(one.places) for one in said], batch_first=True).to(device),
        [said[row].ids for row in read],
        torch.tensor(read, device=device, dtype=torch.int64),
        torch.tensor(shared, device=device, dtype=torch.int64).view(-1, 4),
        pad_sequence(own, batch_first=True).float().to(device) if own else None,
        torch.tensor([len(states) for states in own], device=device, dtype=torch.int64),
    )


def listen(
    model: SambaASR,
    tokenizer: Tokenizer,
    utterances: Sequence[Utterance],
    teacher: DecoderTeacher,
    *,
    max_duration: float,
    text_form: TextForm,
    bf16: bool = False,
) -> list[Said]:
    """Return utterances as a model hears them, from short to long, those left out that the decoder cannot learn from:
    longer than max_duration (seconds), with characters that no piece writes, or that CTC cannot place. bf16: mixed
    precision of the teacher's encoder, if that listens.

    Raises ValueError for audio that cannot be read.
    """
    chosen = select_utterances(
        utterances,
        tokenizer,
        model.config,
        min_duration=SHORTEST_SECONDS,
        max_duration=max_duration,
        text_form=text_form,
    )
    said: list[Said] = []
    batches = dev_batches([utterance.duration for utterance in chosen.utterances], BATCH_SECONDS)
    for batch in tqdm(batches, desc="states", unit="batch", mininterval=5, leave=False):
        kept = [i for _, i in batch if UNK_ID not in chosen.tokens[i]]
        if kept:
            said += _listen(model, tokenizer, teacher, chosen, kept, bf16)
    size = sum(states.numel() for one in said for states in (one.states, one.own) if states is not None) * 2 / 1e9
    hours = sum(len(one.states) for one in said) * model.seconds_per_state / 3600
    log.info("%d of %d utterances, %.2f h, states: %.2f GB", len(said), len(utterances), hours, size)
    return said


@torch.no_grad()
def _listen(
    model: SambaASR, tokenizer: Tokenizer, teacher: DecoderTeacher, chosen: Selection, batch: list[int], bf16: bool
) -> list[Said]:
    device = model.ctc_head.weight.device
    waveforms = [_waveform(chosen.utterances[i], model.config.features.sample_rate) for i in batch]
    lengths = torch.tensor([len(waveform) for waveform in waveforms], device=device)
    tokens = [torch.tensor(chosen.tokens[i]) for i in batch]
    states, state_lengths = model.encode(pad_sequence(waveforms, batch_first=True).to(device), lengths)
    log_probs = model.ctc_log_probs(states, state_lengths)
    token_lengths = torch.tensor([len(row) for row in tokens])
    pieces, counts = model.spell(pad_sequence(tokens, batch_first=True), token_lengths)
    firsts = align(log_probs, state_lengths.tolist(), pieces)
    halves = states.half().cpu()
    own = teacher.listen(waveforms, bf16)
    return [
        Said(
            halves[row, :length].clone(),
            tokens[row].tolist(),
            listening_places(first, counts[row], length),
            len(tokenizer.decode(tokens[row].tolist())),
            *teacher.read(tokens[row].tolist()),
            own[row],
        )
        for row, (first, length) in enumerate(zip(firsts, state_lengths.tolist(), strict=True))
        if first is not None
    ]


def _waveform(utterance: Utterance, sample_rate: int) -> Tensor:
    try:
        return torch.from_numpy(load_audio(utterance.audio, sample_rate))
    except AudioDecodeError as error:
        raise ValueError(f"{error}; take it out of the manifest") from error
