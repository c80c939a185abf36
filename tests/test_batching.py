"""Batches: every utterance once an epoch, the cap, determinism, resuming; items that no worker count changes."""

import itertools
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from samba_asr.config import EncoderConfig, ModelConfig
from samba_asr.text.tokenizer import BLANK_ID
from samba_asr.training.batching import BatchSequence, dev_batches, epoch_batches
from samba_asr.training.data import (
    AudioCache,
    Example,
    Selection,
    SpeechDataset,
    collate,
    make_loader,
    mix_seed,
    select_utterances,
)
from samba_asr.training.manifest import Utterance


@pytest.fixture
def durations() -> list[float]:
    return np.random.default_rng(0).gamma(3.0, 2.0, size=400).clip(0.3, 20.0).tolist()


def padded(batch, durations):
    return max(durations[i] for i in batch) * len(batch)


@pytest.mark.parametrize("short_first", [False, True])
def test_an_epoch_has_every_utterance_once_under_the_cap(durations, short_first):
    batches = epoch_batches(durations, 60.0, seed=3, epoch=1, short_first=short_first)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(durations)))
    assert all(batches) and max(padded(batch, durations) for batch in batches) <= 60.0


def test_batches_are_well_filled_and_of_similar_length(durations):
    batches = epoch_batches(durations, 60.0, seed=0, epoch=0)
    assert len(batches) < 1.25 * sum(durations) / 60
    waste = sum(padded(batch, durations) for batch in batches) / sum(durations)
    assert waste < 1.15


def test_an_utterance_over_the_cap_is_a_batch_by_itself():
    batches = epoch_batches([1.0, 100.0, 1.0, 50.0], 10.0, seed=0, epoch=0)
    assert sorted(sorted(batch) for batch in batches) == [[0, 2], [1], [3]]


def test_epochs_and_seeds_differ_and_repeat(durations):
    def batches(seed, epoch):
        return epoch_batches(durations, 60.0, seed, epoch)

    assert batches(0, 0) == batches(0, 0)
    assert batches(0, 0) != batches(0, 1) and batches(0, 0) != batches(1, 0)
    members = {frozenset(batch) for batch in batches(0, 0)}
    assert len(members & {frozenset(batch) for batch in batches(0, 1)}) < len(members) / 4


def test_order_is_shuffled_unless_short_first(durations):
    lengths = [max(durations[i] for i in batch) for batch in epoch_batches(durations, 60.0, 0, 0)]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.5
    lengths = [max(durations[i] for i in batch) for batch in epoch_batches(durations, 60.0, 0, 0, short_first=True)]
    assert np.corrcoef(lengths, range(len(lengths)))[0, 1] > 0.9


def test_the_sequence_runs_through_whole_epochs_without_end(durations):
    per_epoch = [len(epoch_batches(durations, 60.0, 0, epoch)) for epoch in range(3)]
    drawn = list(itertools.islice(BatchSequence(durations, 60.0, 0), sum(per_epoch)))
    counts = Counter(itertools.chain.from_iterable(drawn))
    assert counts == Counter((epoch, i) for epoch in range(3) for i in range(len(durations)))


@pytest.mark.parametrize("start", [0, 1, 37, 90, 200])
def test_a_sequence_starts_anywhere(durations, start):
    whole = list(itertools.islice(BatchSequence(durations, 60.0, 5, curriculum=True), start + 60))
    late = BatchSequence(durations, 60.0, 5, start_step=start, curriculum=True)
    assert list(itertools.islice(late, 60)) == whole[start:]
    assert list(itertools.islice(late, 60)) == whole[start:]


def test_curriculum_sorts_the_first_epoch_alone(durations):
    count = len(epoch_batches(durations, 60.0, 0, 0))
    drawn = list(itertools.islice(BatchSequence(durations, 60.0, 0, curriculum=True), 2 * count))
    lengths = [max(durations[i] for _, i in batch) for batch in drawn]
    assert np.corrcoef(lengths[:count], range(count))[0, 1] > 0.9
    assert abs(np.corrcoef(lengths[count:], range(count))[0, 1]) < 0.5


def test_no_utterance_is_an_error():
    with pytest.raises(ValueError, match="no utterance"):
        BatchSequence([], 60.0, 0)


def test_dev_batches_hold_every_utterance_under_the_cap(durations):
    batches = dev_batches(durations, 60.0)
    assert sorted(itertools.chain.from_iterable(batches)) == [(0, i) for i in range(len(durations))]
    assert max(padded([i for _, i in batch], durations) for batch in batches) <= 60.0


def test_collate_pads_with_silence_and_blanks():
    batch = collate([Example(7, torch.ones(3), [5]), Example(2, torch.full((5,), 2.0), [6, 8, 9])])
    assert batch.waveforms.tolist() == [[1, 1, 1, 0, 0], [2, 2, 2, 2, 2]]
    assert batch.waveform_lengths.tolist() == [3, 5]
    assert batch.tokens.tolist() == [[5, BLANK_ID, BLANK_ID], [6, 8, 9]]
    assert batch.token_lengths.tolist() == [1, 3]
    assert batch.places.tolist() == [7, 2]


def test_seeds_differ_by_every_number():
    seeds = {mix_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000 and mix_seed(1, 2) == mix_seed(1, 2) != mix_seed(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


class Letters:
    """Stands for a tokenizer: a token for each letter."""

    def encode(self, text):
        return [4 + ord(letter) for letter in text]


def utterance(duration, text, audio="a.wav"):
    return Utterance(audio, duration, text, "speaker", "corpus")


def test_unusable_utterances_are_left_out_and_counted():
    utterances = [
        utterance(1.0, "Good."),
        utterance(0.1, "short"),
        utterance(30.0, "long"),
        utterance(1.0, "?!"),
        utterance(1.0, "abcdefghijklmnopqrstuvwxyz"),
    ]
    selection = select_utterances(utterances, Letters(), ModelConfig(), min_duration=0.3, max_duration=20.0)
    assert selection.utterances == utterances[:1]
    assert selection.tokens == [Letters().encode("good")]
    assert selection.left_out == {
        "too short": 1,
        "too long": 1,
        "without text": 1,
        "with more tokens than CTC can emit": 1,
    }
    assert selection.describe() == (
        "1 utterances, 0.00 h (left out: 1 too long, 1 too short, 1 with more tokens than CTC can emit, 1 without text)"
    )


@pytest.mark.parametrize(
    ("text", "subsampling", "fastest", "fits"),
    [
        ("abcdefghijklmnopqrstuvwxy", "conv4x", 1.0, True),  # 25 states in a second
        ("abcdefghijklmnopqrstuvwxyz", "conv4x", 1.0, False),
        ("abcdefghijklmnopqrstuvwxyz", "whisper", 1.0, True),
        ("abcdefghijklmnopqrstuvwxy", "conv4x", 1.1, False),
        ("aabcdefghijklmnopqrstuvwx", "conv4x", 1.0, False),  # a blank between the equal letters
    ],
)
def test_ctc_needs_a_state_for_each_token_and_each_blank_between(text, subsampling, fastest, fits):
    model = ModelConfig(encoder=EncoderConfig(subsampling=subsampling))
    selection = select_utterances(
        [utterance(1.0, text)], Letters(), model, min_duration=0.3, max_duration=20.0, fastest=fastest
    )
    assert bool(selection.utterances) is fits


@pytest.fixture
def tones(tmp_path) -> Selection:
    utterances = []
    for i in range(6):
        samples = 0.3 * np.sin(np.arange(8000 + 800 * i) * (0.05 + 0.01 * i))
        soundfile.write(tmp_path / f"{i}.wav", samples, 16_000)
        utterances.append(utterance(len(samples) / 16_000, "x", str(tmp_path / f"{i}.wav")))
    return Selection(utterances, [[4 + i] for i in range(6)], Counter())


def first_batches(selection, workers, cached, count=12):
    cache = AudioCache([u.duration for u in selection.utterances], 16_000) if cached else None
    dataset = SpeechDataset(selection, 16_000, speed_factors=(0.9, 1.0, 1.1), seed=4, cache=cache)
    batches = BatchSequence(dataset.durations, 2.0, 4)
    loader = iter(make_loader(dataset, batches, workers, pin_memory=False))
    return [next(loader) for _ in range(count)], cache


def test_batches_depend_neither_on_workers_nor_on_the_cache_nor_on_the_global_generator(tones):
    reference, _ = first_batches(tones, 0, cached=False)
    assert len({len(row) for batch in reference for row in batch.waveforms}) > 6  # speeds do vary
    for workers, cached in ((0, True), (2, False), (2, True)):
        torch.manual_seed(99 + workers)
        found, cache = first_batches(tones, workers, cached)
        if cache is not None:
            assert all(cache.get(i) is not None for i in range(6))  # also what worker processes decoded
        for batch, other in zip(reference, found, strict=True):
            for a, b in zip(batch, other, strict=True):  # workers have one thread: sums may round otherwise
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_an_item_leaves_the_global_generator_alone(tones):
    dataset = SpeechDataset(tones, 16_000, speed_factors=(0.9, 1.1))
    state = torch.get_rng_state()
    assert len(dataset[3, 1].waveform) != 8800
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cache_returns_what_was_put_and_refuses_what_does_not_fit():
    cache = AudioCache([1.0, 0.5], 100)
    assert cache.get(0) is None
    first, second = np.arange(105, dtype=np.int16), np.arange(50, dtype=np.int16)
    cache.put(0, first)
    cache.put(1, second)
    assert cache.get(0).tolist() == first.tolist() and cache.get(1).tolist() == second.tolist()
    fresh = AudioCache([1.0, 0.5], 100)
    fresh.put(0, np.ones(200, dtype=np.int16))
    assert fresh.get(0) is None and fresh.get(1) is None


def test_audio_is_read_at_full_precision_of_16_bits(tones):
    example = SpeechDataset(tones, 16_000)[0, 2]
    expected, _ = soundfile.read(tones.utterances[2].audio, dtype="float32")
    assert example.place == 2 and example.tokens == [6]
    assert np.abs(example.waveform.numpy() - expected).max() < 1 / 30_000
