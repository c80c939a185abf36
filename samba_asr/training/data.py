"""From manifests to padded batches of waveforms and tokens."""

import dataclasses
import math
import mmap
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samba_asr.audio.augment import SpeedPerturbation
from samba_asr.audio.load import AudioDecodeError, load_audio
from samba_asr.audio.noise import WaveformAugment, load_noises
from samba_asr.config import ModelConfig
from samba_asr.text.normalization import TextForm, normalize_text
from samba_asr.text.tokenizer import BLANK_ID, Tokenizer
from samba_asr.training.batching import BatchSequence
from samba_asr.training.config import WaveformAugmentConfig
from samba_asr.training.manifest import Utterance, read_manifest

_INT16_MAX = 32767


class Example(NamedTuple):
    """One utterance, ready to be trained on."""

    place: int  # in its dataset
    waveform: Tensor  # (samples,) float32
    tokens: list[int]


class Batch(NamedTuple):
    """Padded utterances."""

    waveforms: Tensor  # (batch, samples) float32, zeros after each one's end
    waveform_lengths: Tensor  # (batch,) int64, samples
    tokens: Tensor  # (batch, tokens) int64, blank after each one's end
    token_lengths: Tensor  # (batch,) int64
    places: Tensor  # (batch,) int64, in the dataset


class Selection(NamedTuple):
    """Utterances that can be trained on, their tokens, and why the others cannot."""

    utterances: list[Utterance]
    tokens: list[list[int]]
    left_out: Counter[str]

    def describe(self) -> str:
        """Return one line for the log."""
        hours = sum(utterance.duration for utterance in self.utterances) / 3600
        line = f"{len(self.utterances)} utterances, {hours:.2f} h"
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return f"{line} (left out: {reasons})" if reasons else line


def read_manifests(paths: Sequence[str]) -> list[Utterance]:
    """Return the utterances of all manifests, in order.

    Raises FileNotFoundError if one is missing, ValueError if one is damaged or all are empty.
    """
    utterances = [utterance for path in paths for utterance in read_manifest(path)]
    if not utterances:
        raise ValueError(f"no utterance in {', '.join(paths)}")
    return utterances


def select_utterances(
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    min_duration: float,
    max_duration: float,
    fastest: float = 1.0,
    text_form: TextForm = "spoken",
) -> Selection:
    """Keep the utterances that a model can be trained on.

    Args:
        utterances: any.
        tokenizer: encodes the normalised text.
        model: its subsampling says how many tokens CTC can emit a second.
        min_duration: seconds.
        max_duration: seconds.
        fastest: largest speed factor; audio may become shorter by it.
        text_form: how the text is normalised.
    """
    kept: list[Utterance] = []
    kept_tokens: list[list[int]] = []
    left_out: Counter[str] = Counter()
    for utterance in utterances:
        tokens = tokenizer.encode(normalize_text(utterance.text, text_form))
        if utterance.duration < min_duration:
            left_out["too short"] += 1
        elif utterance.duration > max_duration:
            left_out["too long"] += 1
        elif not tokens:
            left_out["without text"] += 1
        elif _ctc_states_needed(tokens) > _states(utterance.duration / fastest, model):
            left_out["with more tokens than CTC can emit"] += 1
        else:
            kept.append(utterance)
            kept_tokens.append(tokens)
    return Selection(kept, kept_tokens, left_out)


def _ctc_states_needed(tokens: Sequence[int]) -> int:
    """CTC needs a blank between two equal tokens."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _states(seconds: float, model: ModelConfig) -> int:
    """Encoder states of an utterance, at least."""
    frames = int(seconds * model.features.sample_rate) // model.features.hop_length
    return frames // model.encoder.subsampling_factor


class AudioCache:
    """Decoded utterances as 16-bit samples, filled as they are first used.

    The memory is shared with loader processes that are forked from this one; two that fill the same entry write the
    same values, so there is no lock.
    """

    def __init__(self, durations: Sequence[float], sample_rate: int) -> None:
        slots = [math.ceil(duration * sample_rate) + sample_rate // 10 for duration in durations]
        self._offsets = np.concatenate([[0], np.cumsum(slots, dtype=np.int64)])
        self._samples = np.frombuffer(mmap.mmap(-1, 2 * int(self._offsets[-1])), dtype=np.int16)
        self._lengths = np.frombuffer(mmap.mmap(-1, 8 * len(slots)), dtype=np.int64)

    @staticmethod
    def gigabytes(durations: Sequence[float], sample_rate: int) -> float:
        """Memory that a filled cache takes."""
        return 2 * sample_rate * (sum(durations) + 0.1 * len(durations)) / 1e9

    def get(self, index: int) -> np.ndarray | None:
        """Return an utterance's samples (samples,) int16, or None if they are not there."""
        length = int(self._lengths[index])
        start = int(self._offsets[index])
        return self._samples[start : start + length] if length else None

    def put(self, index: int, samples: np.ndarray) -> None:
        """Keep an utterance's samples (samples,) int16, unless its manifest said that it is much shorter."""
        start, end = self._offsets[index : index + 2]
        if len(samples) <= end - start:
            self._samples[start : start + len(samples)] = samples
            self._lengths[index] = len(samples)


class SpeechDataset(Dataset[Example]):
    """Utterances by (epoch, index).

    An item is a function of the seed, the epoch and the index alone, whatever process makes it.
    """

    def __init__(
        self,
        selection: Selection,
        sample_rate: int,
        *,
        speed_factors: Sequence[float] = (1.0,),
        augment: WaveformAugment | None = None,
        seed: int = 0,
        cache: AudioCache | None = None,
    ) -> None:
        self.utterances = selection.utterances
        self.tokens = selection.tokens
        self.durations = [utterance.duration for utterance in selection.utterances]
        self.sample_rate = sample_rate
        self.seed = seed
        self.cache = cache
        self.augment = augment
        unchanged = all(factor == 1.0 for factor in speed_factors)
        self.perturb = None if unchanged else SpeedPerturbation(sample_rate, tuple(speed_factors))

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        waveform = torch.from_numpy(self._samples(index).astype(np.float32) / _INT16_MAX)
        tokens = self.tokens[index]
        if self.perturb is not None or self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix_seed(self.seed, epoch, index))
                if self.perturb is not None:
                    waveform = self.perturb(waveform)
                if self.augment is not None:
                    noise = self.augment.noise_only(waveform)
                    waveform, tokens = (self.augment(waveform), tokens) if noise is None else (noise, [])
        return Example(index, waveform, tokens)

    def _samples(self, index: int) -> np.ndarray:
        samples = self.cache.get(index) if self.cache is not None else None
        if samples is None:
            try:
                waveform = load_audio(self.utterances[index].audio, self.sample_rate)
            except AudioDecodeError as error:  # a loader process can only hand on exceptions made of one string
                raise ValueError(f"{error}; take it out of the manifest") from error
            samples = np.round(np.clip(waveform, -1.0, 1.0) * _INT16_MAX).astype(np.int16)
            if self.cache is not None:
                self.cache.put(index, samples)
        return samples


def make_waveform_augment(config: WaveformAugmentConfig, sample_rate: int) -> WaveformAugment | None:
    """Return what the settings ask for, its noises read; None where they ask for nothing.

    Raises as load_noises does.
    """
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "noise_folder"}
    if not WaveformAugment(sample_rate, **settings).active:
        return None
    noises = load_noises(config.noise_folder, sample_rate) if config.noise_folder and config.noise_probability else []
    return WaveformAugment(sample_rate, noises, **settings)


def mix_seed(*numbers: int) -> int:
    """Return a seed for torch's generator that is different for each tuple of numbers, for all practical purposes."""
    return int(np.random.SeedSequence(numbers).generate_state(2, np.uint32).view(np.uint64)[0] >> np.uint64(1))


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples to a batch."""
    waveform_lengths = torch.tensor([len(example.waveform) for example in examples])
    token_lengths = torch.tensor([len(example.tokens) for example in examples])
    waveforms = torch.zeros(len(examples), int(waveform_lengths.max()))
    tokens = torch.full((len(examples), int(token_lengths.max())), BLANK_ID)
    for row, example in enumerate(examples):
        waveforms[row, : len(example.waveform)] = example.waveform
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
    places = torch.tensor([example.place for example in examples])
    return Batch(waveforms, waveform_lengths, tokens, token_lengths, places)


def make_loader(
    dataset: SpeechDataset, batches: BatchSequence | list[list[tuple[int, int]]], num_workers: int, pin_memory: bool
) -> DataLoader[Example]:
    """Return a loader of :class:`Batch`. Loader processes are forked where the system can, to share the cache."""
    fork = num_workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if fork else None,
        prefetch_factor=4 if num_workers else None,
    )
