"""Audio to words: the one class that the command line, the demo and Python users share."""

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samba_asr.audio.load import StoredAudio, Waveform, checked_waveform, open_audio
from samba_asr.audio.segments import Span
from samba_asr.batches import Batches, Outcome
from samba_asr.config import Precision, Search, SearchConfig
from samba_asr.decoding.advisers import NOBODY, Advisers, advisers_of, load_lm
from samba_asr.decoding.hotwords import read_hotwords
from samba_asr.decoding.lexicon import read_lexicon
from samba_asr.decoding.n_best import join_n_best
from samba_asr.decoding.ngram import NGram
from samba_asr.decoding.search import check_advisers, search_stretches
from samba_asr.decoding.stretches import Found
from samba_asr.decoding.words import confidence, place_pieces, place_words, word_times
from samba_asr.live import AHEAD_SECONDS, CHUNK_SECONDS, PAUSE_SECONDS, Live, LiveResult
from samba_asr.long_form import Cutter, forget_shapes, joined
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.checkpoint_files import LEXICON_FILE
from samba_asr.model.language_model import LanguageModel
from samba_asr.model.pretrained import resolve_model
from samba_asr.one_pass import Part, parts
from samba_asr.text.tokenizer import SPECIAL_IDS, Tokenizer
from samba_asr.transcript import Alternative, Transcript, Word

Audio = str | Path | np.ndarray | StoredAudio
"""A file, or a waveform: (samples,) floats in [-1, 1] at the model's sample rate (16 kHz), or what
:func:`samba_asr.audio.load.open_audio` gives."""
Hotwords = str | Path | Mapping[str, float] | Sequence[str]
"""A list such as "Nadezhda,Kubernetes:2", a file's path, or phrases, perhaps with their weights."""

BATCH_SIZE, GPU_BATCH_SIZE = 2, 16
"""Spans of recordings at once, on a CPU and elsewhere: what is held in memory does not grow with the recording. Two
take a fifth less of a core than one, four a quarter less, and hold more."""


class Transcriber:
    """A recogniser with its tokenizer and search.

    ``search`` is the checkpoint's own where none is given; ``name`` is what transcripts call the model. ``lm``,
    ``hotwords`` (phrases with their weights) and ``lexicon`` (words in lower case) have a say in joint search. ``vad``
    says which recordings are cut into spans (see :class:`Cutter`), ``batch_size`` how many spans are transcribed at
    once. With ``precision`` bfloat16 the encoder's and CTC's matrices are multiplied so; features, scans' states, CTC's
    probabilities and the whole search stay in float32. Then what shares a batch may change a rounding, and now and then
    a word.
    """

    def __init__(
        self,
        model: SambaASR,
        tokenizer: Tokenizer,
        search: SearchConfig | None = None,
        *,
        name: str = "samba-asr",
        vad: bool | None = None,
        batch_size: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be positive")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.search = search or model.config.search
        self.words = model.config.words
        self.name = name
        self.sample_rate = model.config.features.sample_rate
        forget_shapes()
        self.cutter = Cutter(vad, self.sample_rate)
        device = next(model.parameters()).device.type
        self.batch_size = batch_size or (BATCH_SIZE if device == "cpu" else GPU_BATCH_SIZE)
        self.precision = _usable_precision(precision, device)
        self.seconds_per_frame = model.config.features.hop_length / self.sample_rate
        self.lm: LanguageModel | NGram | None = None
        self.hotwords: Mapping[str, float] = {}
        self.lexicon: frozenset[str] | None = None
        self._advisers: tuple[Any, Advisers] = (None, NOBODY)
        texts = ["" if i in SPECIAL_IDS else text for i, text in enumerate(tokenizer.pieces())]
        self._pieces = texts[: model.config.ctc_vocab_size]

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
        lm: str | Path | None = None,
        lm_weight: float | None = None,
        lm_length_bonus: float | None = None,
        hotwords: Hotwords | None = None,
        hotword_boost: float | None = None,
        lexicon: str | Path | None = None,
        unknown_word_penalty: float | None = None,
        vad: bool | None = None,
        batch_size: int | None = None,
        precision: Precision = "float32",
    ) -> "Transcriber":
        """Load a checkpoint folder or a name in ``pretrained/`` (see :func:`resolve_model`).

        search, beam_size, ctc_weight, length_bonus, spelling_weight, lm_weight, lm_length_bonus, hotword_boost,
        unknown_word_penalty: instead of the checkpoint's (see :class:`SearchConfig`). lm: a language model, see
        :func:`samba_asr.decoding.advisers.load_lm`. hotwords: see :data:`Hotwords`. lexicon: a file with a word a line,
        instead of the ``lexicon.txt`` that a checkpoint may have, which only joint search asks. vad: True to transcribe
        only where somebody speaks, False to leave nothing out, where the encoder takes recordings of more than 30 s in
        one pass; without, they are cut. batch_size: spans at once. precision: bfloat16 for a quicker encoder where the
        processor multiplies in it (CPUs with AMX, GPUs since Ampere). Raises FileNotFoundError where there is no such
        model or file; ValueError for a broken one, a device that this machine lacks, or a setting that cannot be;
        RuntimeError where a library for the language model or voice activity is not installed.
        """
        folder = resolve_model(model)
        recogniser, tokenizer = load_checkpoint(folder, device=_usable_device(device))
        given = {
            "search": search,
            "beam_size": beam_size,
            "ctc_weight": ctc_weight,
            "length_bonus": length_bonus,
            "spelling_weight": spelling_weight,
            "lm_weight": lm_weight,
            "lm_length_bonus": lm_length_bonus,
            "hotword_boost": hotword_boost,
            "unknown_word_penalty": unknown_word_penalty,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(recogniser.config.search, **changes)
        if lexicon is not None and config.search != "joint":
            raise ValueError(f"search ({config.search!r}) must be 'joint' where a lexicon is given")
        name = folder.resolve().name
        settings: dict[str, Any] = {"vad": vad, "batch_size": batch_size, "precision": precision}
        transcriber = cls(recogniser, tokenizer, config, name=name, **settings)
        if lm is not None:
            transcriber.lm = load_lm(lm, tokenizer, transcriber._pieces, device)
        if hotwords is not None:
            transcriber.hotwords = _weights(hotwords)
        if lexicon is not None or (folder / LEXICON_FILE).is_file():
            transcriber.lexicon = read_lexicon(folder / LEXICON_FILE if lexicon is None else lexicon)
        transcriber.check()
        return transcriber

    def check(self, n_best: int = 1) -> None:
        """Raise ValueError where the search cannot do what is asked: it has no say for a language model or hotwords,
        or fewer texts than n_best."""
        check_advisers(self.search, self.advisers())
        if n_best < 1:
            raise ValueError(f"n_best ({n_best}) must be positive")
        if n_best > 1 and self.search.search != "joint":
            raise ValueError(f"search ({self.search.search!r}) must be 'joint' where n_best ({n_best}) is above 1")
        if n_best > self.search.beam_size:
            raise ValueError(f"n_best ({n_best}) must not exceed beam_size ({self.search.beam_size}): widen the beam")

    def advisers(self) -> Advisers:
        """Return who has a say in joint search, made anew where search, language model, hotwords or lexicon have
        changed."""
        key = (self.search, self.lm, tuple(self.hotwords.items()), self.lexicon)
        if key != self._advisers[0]:
            self._advisers = key, advisers_of(self.search, self.lm, self.hotwords, self.lexicon, self._pieces)
        return self._advisers[1]

    def transcribe(self, audio: Audio, *, hotwords: Hotwords | None = None, n_best: int = 1) -> Transcript:
        """Transcribe a recording.

        hotwords: instead of the transcriber's own; n_best: with 2 or more the transcript holds so many texts, or as
        many as the beam has. Raises FileNotFoundError or AudioDecodeError for a file that gives no audio, ValueError
        for an array of another shape or type, and as :meth:`check`.
        """
        waveform = open_audio(audio, self.sample_rate) if isinstance(audio, str | Path) else audio
        return self.transcribe_batch([waveform], hotwords=hotwords, n_best=n_best)[0]

    def transcribe_many(
        self, recordings: Iterable[Audio | Exception], *, hotwords: Hotwords | None = None, n_best: int = 1
    ) -> Iterator[Outcome]:
        """Transcribe any number of recordings, spans of several at once. Yield in their order, each as soon as it can
        be, the transcript that :meth:`transcribe` gives or the error that it raises, and the seconds that it took.

        recordings: taken one by one, a little ahead, and never many held; an error among them, as of one that could not
        be read, is its own result. hotwords, n_best: as of :meth:`transcribe`. Raises ValueError as :meth:`check`.
        """
        if hotwords is not None:
            return self._with_hotwords(_weights(hotwords)).transcribe_many(recordings, n_best=n_best)
        self.check(n_best)
        hear = partial(self._heard_in_batches, size=self.batch_size, n_best=n_best)
        join = partial(self._joined, n_best=n_best)
        return Batches(self._cut, hear, join, self.batch_size, self.cutter.longest).outcomes(recordings)

    def transcribe_batch(
        self, waveforms: Sequence[np.ndarray | StoredAudio], *, hotwords: Hotwords | None = None, n_best: int = 1
    ) -> list[Transcript]:
        """Transcribe waveforms at once, or as many spans of them as make a batch; each transcript is the one that
        :meth:`transcribe` gives.

        Where every sample is zero, or there is none, the text is empty: no model is asked what it makes of nothing.
        """
        if hotwords is not None:
            return self._with_hotwords(_weights(hotwords)).transcribe_batch(waveforms, n_best=n_best)
        self.check(n_best)
        arrays = [_checked(waveform) for waveform in waveforms]
        spans = [self.cutter.spans(array) for array in arrays]
        pieces = [(array, span) for array, of_one in zip(arrays, spans, strict=True) for span in of_one]
        heard = iter(self._heard_in_batches(pieces, max(self.batch_size, len(arrays)), n_best))
        return [
            self._joined(array, of_one, [next(heard) for _ in of_one], n_best)
            for array, of_one in zip(arrays, spans, strict=True)
        ]

    @torch.inference_mode()
    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel frames that the model makes of a waveform, (frames, n_mels), every ``hop_length`` samples.

        Raises ValueError as :meth:`transcribe`.
        """
        waveforms, lengths = _padded([_checked(waveform)[:]])
        device = next(self.model.parameters()).device
        features, _ = self.model.features(waveforms.to(device), lengths.to(device))
        frames: np.ndarray = features[0].cpu().numpy()
        return frames

    def live(
        self,
        *,
        chunk_seconds: float = CHUNK_SECONDS,
        ahead_seconds: float = AHEAD_SECONDS,
        pause_seconds: float | None = PAUSE_SECONDS,
        hotwords: Hotwords | None = None,
    ) -> Live:
        """Begin to transcribe what comes block by block, such as a microphone's sound; see :class:`Live`.

        Of a transcriber with vad=False, or without silero-vad, CTC alone says where there is speech.

        chunk_seconds: how much is heard at once; with less, words come earlier and more is computed. ahead_seconds: how
        much of what follows a chunk is heard with it, which waits for it; with less, more words are wrong.
        pause_seconds: a longer silence ends a segment; None: none does. hotwords: instead of the transcriber's own.
        Raises ValueError as :meth:`check`, for such a setting that cannot be, and for a model that cannot hear live.
        """
        if hotwords is not None:
            other = self._with_hotwords(_weights(hotwords))
            return other.live(chunk_seconds=chunk_seconds, ahead_seconds=ahead_seconds, pause_seconds=pause_seconds)
        self.check()
        settings = (chunk_seconds, ahead_seconds, pause_seconds)
        ways = (self._of_segment, self._of_pieces, self._encoding)
        return Live(self.model, self.cutter.detector, *ways, *settings)

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        *,
        chunk_seconds: float = CHUNK_SECONDS,
        ahead_seconds: float = AHEAD_SECONDS,
        pause_seconds: float | None = PAUSE_SECONDS,
        hotwords: Hotwords | None = None,
    ) -> Iterator[LiveResult]:
        """Transcribe audio while it comes: yield what is heard so far of each segment, and at its end what it holds.

        blocks: (samples,) floats in [-1, 1] each, of any sizes, at the model's sample rate (16 kHz); what is yielded
        does not depend on the sizes. Other arguments and what is raised: as of :meth:`live`; ValueError for blocks of
        another shape or type.
        """
        live = self.live(
            chunk_seconds=chunk_seconds, ahead_seconds=ahead_seconds, pause_seconds=pause_seconds, hotwords=hotwords
        )
        for block in blocks:
            yield from live.feed(block)
        yield from live.finish()

    def _with_hotwords(self, hotwords: Mapping[str, float]) -> "Transcriber":
        other = copy.copy(self)
        other.hotwords = hotwords
        return other

    def _takes_one_pass(self, waveform: Waveform) -> bool:
        """Tell whether a recording is long, not to be cut, and of features that can be made on the way."""
        streams = self.model.config.features.normalisation != "whisper"
        return self.cutter.whole(waveform) and streams

    def _cut(self, audio: Audio) -> tuple[Waveform, list[Span]]:
        waveform = open_audio(audio, self.sample_rate) if isinstance(audio, str | Path) else _checked(audio)
        return waveform, self.cutter.spans(waveform)

    def _joined(
        self, waveform: Waveform, spans: Sequence[Span], parts: Sequence[Transcript], n_best: int
    ) -> Transcript:
        starts = [span.start / self.sample_rate for span in spans]
        return joined(parts, starts, len(waveform) / self.sample_rate, self.name, n_best)

    def _heard_in_batches(self, pieces: Sequence[tuple[Waveform, Span]], size: int, n_best: int) -> list[Transcript]:
        """Transcribe pieces of about one length at once: little of a batch is padding. The longest come first: where
        memory is short, that shows at once."""
        uncut = [i for i, (waveform, _) in enumerate(pieces) if self._takes_one_pass(waveform)]
        heard = {i: self._in_one_pass(pieces[i][0], n_best) for i in uncut}
        order = sorted(set(range(len(pieces))) - set(uncut), key=lambda i: pieces[i][1].start - pieces[i][1].end)
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            heard.update(zip(batch, self._heard([_read(*pieces[i]) for i in batch], n_best), strict=True))
        return [heard[i] for i in range(len(pieces))]

    @torch.inference_mode()
    def _heard(self, arrays: Sequence[np.ndarray], n_best: int) -> list[Transcript]:
        device = next(self.model.parameters()).device
        waveforms, lengths = _padded(arrays)
        with self._encoding():
            encoder_out, encoder_lengths = self.model.encode(waveforms.to(device), lengths.to(device))
            log_probs = self.model.ctc_log_probs(encoder_out, encoder_lengths).cpu().numpy()
        durations = [len(array) / self.sample_rate for array in arrays]
        return self._found(encoder_out, encoder_lengths, log_probs, durations, n_best)

    def _encoding(self) -> torch.autocast:
        """Give the encoder its precision."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @torch.inference_mode()
    def _in_one_pass(self, waveform: Waveform, n_best: int) -> Transcript:
        """Transcribe a long recording whose encoder does not stop on the way, a few stretches at once."""
        duration = len(waveform) / self.sample_rate
        heard, starts = [], []
        waiting = parts(self.model, waveform)
        while batch := self._next_parts(waiting):
            states = pad_sequence([part.encoder_out for part in batch], batch_first=True)
            log_probs = pad_sequence([torch.from_numpy(part.log_probs) for part in batch], batch_first=True)
            lengths = [len(part.log_probs) for part in batch]
            begins = [part.start * self.model.seconds_per_state for part in batch]
            seconds = [length * self.model.seconds_per_state for length in lengths]
            heard += self._found(states, torch.tensor(lengths).to(states.device), log_probs.numpy(), seconds, n_best)
            starts += begins
        return joined(heard, starts, duration, self.name, n_best)

    def _next_parts(self, waiting: Iterator[Part]) -> list[Part]:
        with self._encoding():
            return list(islice(waiting, self.batch_size))

    def _found(
        self,
        encoder_out: Tensor,
        encoder_lengths: Tensor,
        log_probs: np.ndarray,
        durations: Sequence[float],
        n_best: int,
    ) -> list[Transcript]:
        """Search states (batch, states, d_model), of which CTC says log_probs (batch, states, vocab_size)."""
        encoder_out = encoder_out.to(self.model.ctc_head.weight.dtype)
        found = search_stretches(self.model, encoder_out, encoder_lengths, log_probs, self.search, self.advisers())
        return [
            self._transcript(duration, said, stretches, n_best)
            for duration, said, stretches in zip(durations, log_probs, found, strict=True)
        ]

    @torch.inference_mode()
    def _of_segment(self, states: Tensor, log_probs: np.ndarray) -> Transcript:
        """Search a part of a stream. states: (states, d_model); log_probs: (states, vocab_size) of CTC."""
        lengths = torch.tensor([len(states)], device=states.device)
        seconds = len(states) * self.model.seconds_per_state
        return self._found(states[None], lengths, log_probs[None], [seconds], 1)[0]

    def _of_pieces(self, pieces: Sequence[int], log_probs: np.ndarray) -> Transcript:
        """Return what CTC's pieces say of a part of a stream; log_probs: (states, vocab_size)."""
        found = Found(0, len(log_probs), list(pieces))
        return self._transcript(len(log_probs) * self.model.seconds_per_state, log_probs, [found], 1)

    def _transcript(
        self, duration: float, log_probs: np.ndarray, stretches: Sequence[Found], n_best: int
    ) -> Transcript:
        """log_probs: what CTC says of a recording, (states, vocab_size); stretches: what the search found in it."""
        tokens = [token for found in stretches for token in found.tokens]
        # A piece that begins a word says so itself: joined, the last and the first word of two stretches stay two.
        words = self.tokenizer.decode(tokens).split()
        placed = self._words(words, duration, log_probs, stretches)
        return Transcript(" ".join(words), duration, self.name, placed, self._n_best(stretches, n_best))

    def _n_best(self, stretches: Sequence[Found], count: int) -> tuple[Alternative, ...]:
        """Several spellings in pieces may be one text: only the best of them counts."""
        if count == 1:
            return ()
        of_stretches = []
        for found in stretches:
            texts: dict[str, float] = {}
            for hypothesis in found.n_best:
                if math.isfinite(hypothesis.log_prob) or not texts:  # or it ends within a token of the decoder's
                    texts.setdefault("".join(self._pieces[piece] for piece in hypothesis.tokens), hypothesis.log_prob)
            of_stretches.append(list(texts.items()))
        joined = join_n_best(of_stretches, count)
        return tuple(Alternative(" ".join(text.split()), score) for text, score in joined)

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


def _weights(hotwords: Hotwords) -> Mapping[str, float]:
    if isinstance(hotwords, str | Path):
        return read_hotwords(hotwords)
    return hotwords if isinstance(hotwords, Mapping) else dict.fromkeys(hotwords, 1.0)


def _padded(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return waveforms (batch, samples) float32, zeros after each one's end, and lengths (batch,) int64."""
    waveforms = np.zeros((len(arrays), max(map(len, arrays))), np.float32)
    for row, array in zip(waveforms, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(waveforms), torch.tensor([len(array) for array in arrays])


def _read(waveform: Waveform, span: Span) -> np.ndarray:
    return waveform[span.start : span.end]


def _checked(waveform: np.ndarray | StoredAudio) -> Waveform:
    if isinstance(waveform, StoredAudio):
        return waveform  # checked as it was read
    if not isinstance(waveform, np.ndarray):
        raise ValueError(
            f"audio ({type(waveform).__name__}) must be a numpy array of floats; transcribe and transcribe_many take "
            "paths, too"
        )
    return checked_waveform(waveform)


def _usable_precision(precision: Precision, device: str) -> Precision:
    if precision not in get_args(Precision):
        raise ValueError(f"precision ({precision!r}) must be one of {', '.join(map(repr, get_args(Precision)))}")
    if precision == "float32" or device == "cpu" or (device == "cuda" and torch.cuda.is_bf16_supported(False)):
        return precision
    raise ValueError(f"precision ({precision!r}): this device ({device}) does not compute in it; use float32")


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
