"""What a Whisper teacher's decoder writes of encoder states: its own, or those of a student."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samba_asr.audio.features import LogMel
from samba_asr.config import FeatureConfig
from samba_asr.training.whisper.network import Teacher, TeacherEncoder
from samba_asr.training.whisper.windows import STATE_SAMPLES, WINDOW_STATES

if TYPE_CHECKING:  # it needs the extra distil, which train.py does not
    from samba_asr.training.whisper.vocabulary import WhisperVocabulary


def teacher_features(encoder: TeacherEncoder) -> LogMel:
    """Return what turns waveforms into the features that the teacher hears."""
    return LogMel(FeatureConfig(normalisation="whisper", n_mels=encoder.conv1.in_channels))


@torch.no_grad()
def padded_states(teacher: Teacher, features: LogMel, waveforms: Sequence[Tensor], bf16: bool = False) -> Tensor:
    """Return the teacher's states (batch, 1500, d_model) float32 of waveforms, (samples,) at 16 kHz and at most 30 s
    each, every one in a window of its own; features: :func:`teacher_features`."""
    padded = torch.zeros(len(waveforms), WINDOW_STATES * STATE_SAMPLES, device=features.mel_filters.device)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform
    mels, _ = features(padded, torch.full((len(waveforms),), padded.shape[1], device=padded.device))
    device = teacher.encoder.ln_post.weight.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        states: Tensor = teacher.encoder(mels.to(device))[0]
    return states.float()


@torch.inference_mode()
def transcribe_states(
    teacher: Teacher, vocabulary: "WhisperVocabulary", states: Tensor, max_tokens: int = 224
) -> list[str]:
    """Take the decoder's best token, step after step, up to its end or ``max_tokens``.

    states: (batch, states, d_model) of the encoder, of any length. Returns a text an utterance. As in Whisper, no times
    and no signs but punctuation are written and no text begins with a blank. There is no way back from a loop:
    this measures states. An utterance that has ended leaves the batch.

    Raises ValueError where the vocabulary is another model's, or ``max_tokens`` is not between 1 and what the decoder
    has positions for.
    """
    decoder = teacher.decoder
    forbidden = _forbidden(vocabulary, decoder.token_embedding.num_embeddings).to(states.device)
    longest = len(decoder.positional_embedding) - len(vocabulary.prompt)
    if not 1 <= max_tokens <= longest:
        raise ValueError(f"max_tokens ({max_tokens}) must be between 1 and {longest}")
    results: list[list[int]] = [[] for _ in states]
    rows = torch.arange(len(states), device=states.device)
    tokens = torch.tensor(vocabulary.prompt, device=states.device).expand(len(states), -1)
    state = decoder.read_memory(states)
    for step in range(max_tokens):
        if not len(rows):
            break
        logits, state = decoder(tokens, state)
        scores = logits[:, -1].masked_fill(forbidden, -torch.inf)
        if step == 0:
            scores[:, vocabulary.blank_ids] = -torch.inf
        best = scores.argmax(-1)
        going = torch.nonzero(best != vocabulary.end_id).squeeze(1)
        if len(going) < len(rows):
            rows, best, state = rows[going], best[going], state.reorder(going)
        for row, token in zip(rows.tolist(), best.tolist(), strict=True):
            results[row].append(token)
        tokens = best[:, None]
    return [vocabulary.decode(ids).strip() for ids in results]


def _forbidden(vocabulary: "WhisperVocabulary", vocab_size: int) -> Tensor:
    """True for each id (vocab_size,) that is never written: marks other than the end, times, signs."""
    vocabulary.check_size(vocab_size)
    forbidden = torch.arange(vocab_size) > vocabulary.end_id
    forbidden[vocabulary.symbol_ids] = True
    return forbidden
