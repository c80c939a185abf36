"""Audio to words: the one class that the command line, the demo and Python users share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samba_asr.audio.load import load_audio
from samba_asr.config import Search, SearchConfig
from samba_asr.decoding.search import search_stretches
from samba_asr.decoding.stretches import Found
from samba_asr.decoding.words import confidence, place_pieces, place_words, word_times
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.pretrained import resolve_model
from samba_asr.text.tokenizer import SPECIAL_IDS, Tokenizer
from samba_asr.transcript import Transcript, Word


class Transcriber:
    """A recogniser with its tokenizer and search.

    ``search`` is the checkpoint's own where none is given; ``name`` is what transcripts call the model.
    """

    def __init__(
        self, model: SambaASR, tokenizer: Tokenizer, search: SearchConfig | None = None, *, name: str = "samba-asr"
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.search = search or model.config.search
        self.words = model.config.words
        self.name = name
        self.sample_rate = model.config.features.sample_rate
        self.seconds_per_frame = model.config.features.hop_length / self.sample_rate
        self._pieces = ["" if i in SPECIAL_IDS else text for i, text in enumerate(tokenizer.pieces())]

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        device: str = "cpu",
        search: Search | None = None,
        *,
        beam_size: int | None = None,
        ctc_weight: float | None = None,
        length_bonus: float | None = None,
        spelling_weight: float | None = None,
    ) -> "Transcriber":
        """Load a checkpoint folder or a name in ``pretrained/`` (see :func:`resolve_model`).

        search, beam_size, ctc_weight, length_bonus, spelling_weight: instead of the checkpoint's (see
        :class:`SearchConfig`). Raises FileNotFoundError where there is no such model, ValueError for a broken one, a
        device that this machine lacks, or a setting of the search that cannot be.
        """
        folder = resolve_model(model)
        recogniser, tokenizer = load_checkpoint(folder, device=_usable_device(device))
        given = {
            "search": search,
            "beam_size": beam_size,
            "ctc_weight": ctc_weight,
            "length_bonus": length_bonus,
            "spelling_weight": spelling_weight,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(recogniser.config.search, **changes)
        return cls(recogniser, tokenizer, config, name=folder.resolve().name)

    def transcribe(self, audio: str | Path | np.ndarray) -> Transcript:
        """Transcribe a file, or a waveform: (samples,) floats in [-1, 1] at the model's sample rate (16 kHz).

        Raises FileNotFoundError or AudioDecodeError for a file that gives no audio, ValueError for an array of another
        shape or type.
        """
        waveform = load_audio(audio, self.sample_rate) if isinstance(audio, str | Path) else audio
        return self.transcribe_batch([waveform])[0]

    def transcribe_batch(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Transcribe waveforms at once; each transcript is the one that :meth:`transcribe` gives.

        Where every sample is zero, or there is none, the text is empty: no model is asked what it makes of nothing.
        """
        arrays = [_checked(waveform) for waveform in waveforms]
        sounding = [array for array in arrays if array.any()]
        heard = iter(self._heard(sounding) if sounding else [])
        return [
            next(heard) if array.any() else Transcript("", len(array) / self.sample_rate, self.name) for array in arrays
        ]

    @torch.inference_mode()
    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel frames that the model makes of a waveform, (frames, n_mels), every ``hop_length`` samples.

        Raises ValueError as :meth:`transcribe`.
        """
        waveforms, lengths = _padded([_checked(waveform)])
        device = next(self.model.parameters()).device
        features, _ = self.model.features(waveforms.to(device), lengths.to(device))
        frames: np.ndarray = features[0].cpu().numpy()
        return frames

    @torch.inference_mode()
    def _heard(self, arrays: Sequence[np.ndarray]) -> list[Transcript]:
        device = next(self.model.parameters()).device
        waveforms, lengths = _padded(arrays)
        encoder_out, encoder_lengths = self.model.encode(waveforms.to(device), lengths.to(device))
        log_probs = self.model.ctc_log_probs(encoder_out, encoder_lengths).cpu().numpy()
        found = search_stretches(self.model, encoder_out, encoder_lengths, log_probs, self.search)
        return [
            self._transcript(len(array) / self.sample_rate, said, stretches)
            for array, said, stretches in zip(arrays, log_probs, found, strict=True)
        ]

    def _transcript(self, duration: float, log_probs: np.ndarray, stretches: Sequence[Found]) -> Transcript:
        """log_probs: what CTC says of a recording, (states, vocab_size); stretches: what the search found in it."""
        tokens = [token for found in stretches for token in found.tokens]
        # A piece that begins a word says so itself: joined, the last and the first word of two stretches stay two.
        words = self.tokenizer.decode(tokens).split()
        return Transcript(" ".join(words), duration, self.name, self._words(words, duration, log_probs, stretches))

    def _words(
        self, words: list[str], duration: float, log_probs: np.ndarray, stretches: Sequence[Found]
    ) -> tuple[Word, ...]:
        if not words:
            return ()
        spelt = [found._replace(tokens=self.model.spell_text(found.tokens)) for found in stretches]
        texts = [self._pieces[piece] for found in spelt for piece in found.tokens]
        placed = place_words(words, texts, place_pieces(log_probs, spelt))
        starts, ends = word_times(placed, self.model.seconds_per_state, duration, self.words)
        columns = (starts, ends, confidence(placed.log_probs, self.words))
        return tuple(map(Word, words, *(column.tolist() for column in columns)))


def _padded(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return waveforms (batch, samples) float32, zeros after each one's end, and lengths (batch,) int64."""
    waveforms = np.zeros((len(arrays), max(map(len, arrays))), np.float32)
    for row, array in zip(waveforms, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(waveforms), torch.tensor([len(array) for array in arrays])


def _checked(waveform: np.ndarray) -> np.ndarray:
    if not isinstance(waveform, np.ndarray):
        raise ValueError(f"audio ({type(waveform).__name__}) must be a path or a numpy array of floats")
    if waveform.ndim != 1:
        raise ValueError(f"a waveform of shape {waveform.shape} must have one dimension: (samples,), mono")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"a waveform of type {waveform.dtype} must be floats in [-1, 1]; divide int16 by 32768")
    samples = np.ascontiguousarray(waveform, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("a waveform holds NaN or infinite samples; numpy.nan_to_num(waveform) makes them finite")
    return samples


def _usable_device(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device ({device!r}) is unknown; use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device ({device!r}): this PyTorch sees no NVIDIA GPU; use cpu")
    try:
        torch.empty(1, device=device).cpu()  # a device without storage, such as meta, fails here too
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device ({device!r}) cannot be used ({reason}); use cpu or cuda") from error
    return device
