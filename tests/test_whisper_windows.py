"""Utterances packed into windows of 30 s, and windows cut into stretches."""

import dataclasses
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from distil_cases import utterances

from samba_asr.audio.load import load_audio
from samba_asr.training.whisper.targets import Windows
from samba_asr.training.whisper.windows import (
    GAP_STATES,
    STATE_SAMPLES,
    WINDOW_STATES,
    Placement,
    Stretch,
    cut_stretches,
    pack_in_order,
    pack_windows,
)

WINDOW_SAMPLES = WINDOW_STATES * STATE_SAMPLES
LENGTHS = [
    *np.random.default_rng(0).integers(1, 250_000, 300).tolist(),
    *(0, 1, 319, 320, 321, WINDOW_SAMPLES - 1, WINDOW_SAMPLES, WINDOW_SAMPLES + 1, 10 * WINDOW_SAMPLES),
]
"""Samples: of usual utterances, and at the edges."""


def test_a_window_is_30_seconds():
    assert WINDOW_SAMPLES == 480_000 and WINDOW_STATES == 1500


@pytest.mark.parametrize("seed", [0, 1])
def test_every_utterance_that_fits_has_one_place(seed):
    windows = pack_windows(LENGTHS, seed)
    placed = [placement for window in windows for placement in window]
    expected = [i for i, samples in enumerate(LENGTHS) if 0 < samples <= WINDOW_SAMPLES]
    assert sorted(placement.utterance for placement in placed) == expected
    for utterance, start, end in placed:
        assert (end - start - 1) * STATE_SAMPLES < LENGTHS[utterance] <= (end - start) * STATE_SAMPLES


@pytest.mark.parametrize("seed", [0, 1])
def test_gaps_are_within_bounds(seed):
    windows = pack_windows(LENGTHS, seed)
    gaps = [b.start - a.end for window in windows for a, b in pairwise(window)]
    assert (min(gaps), max(gaps)) == GAP_STATES and len(set(gaps)) > 40
    starts = [window[0].start for window in windows]
    assert 0 <= min(starts) < 10 and 40 < max(starts) <= GAP_STATES[1]
    assert all(window[-1].end <= WINDOW_STATES for window in windows)


def test_a_window_is_filled_before_the_next_begins():
    for window, following in pairwise(pack_windows(LENGTHS, 0)):
        needed = following[0].end - following[0].start
        assert window[-1].end + GAP_STATES[1] + needed > WINDOW_STATES


def test_packing_follows_the_seed():
    assert pack_windows(LENGTHS, 3) == pack_windows(LENGTHS, 3) != pack_windows(LENGTHS, 4)
    order = [placement.utterance for window in pack_windows(LENGTHS, 3) for placement in window]
    assert order != sorted(order)


def test_nothing_to_pack():
    assert pack_windows([], 0) == pack_windows([0, WINDOW_SAMPLES + 1], 0) == []
    assert pack_windows([WINDOW_SAMPLES], 0) == [[Placement(0, 0, WINDOW_STATES)]]


@pytest.mark.parametrize("whole_share", [0.0, 0.35, 1.0])
def test_stretches_hold_whole_utterances(whole_share):
    rng = random.Random(0)
    for number, window in enumerate(pack_windows(LENGTHS, 0)):
        stretches = cut_stretches(number, window, rng, whole_share)
        assert {stretch.window for stretch in stretches} == {number}
        assert stretches[0].start >= 0 and stretches[-1].end <= WINDOW_STATES
        assert all(a.end <= b.start for a, b in pairwise(stretches))
        for placement in window:
            around = [s for s in stretches if s.start < placement.end and placement.start < s.end]
            assert len(around) == 1 and around[0].start <= placement.start and placement.end <= around[0].end
        for stretch in stretches:
            last = max(placement.end for placement in window if placement.end <= stretch.end)
            assert stretch.start < last and stretch.end - last <= GAP_STATES[1]


def test_a_share_of_neighbours_stays_together():
    windows = pack_windows(LENGTHS, 0)
    boundaries = sum(len(window) - 1 for window in windows)
    for whole_share in (0.0, 0.3, 1.0):
        rng = random.Random(0)
        cuts = [len(cut_stretches(0, window, rng, whole_share)) - 1 for window in windows for _ in range(20)]
        assert sum(cuts) == pytest.approx(20 * boundaries * (1 - whole_share), rel=0.03)


def test_silence_goes_to_either_side():
    rng = random.Random(0)
    window = [Placement(0, 3, 10), Placement(1, 14, 20)]
    cut = [cut_stretches(5, window, rng, 0.0) for _ in range(3000)]
    assert {first.start for first, _ in cut} == set(range(4))
    between = {(first.end, second.start) for first, second in cut}
    assert between == {(end, start) for end in range(10, 15) for start in range(end, 15)}
    assert {second.end for _, second in cut} == set(range(20, 71))


def test_cuts_follow_the_generator():
    window = pack_windows(LENGTHS, 0)[0]
    once, again, other = (cut_stretches(0, window, random.Random(seed), 0.3) for seed in (1, 1, 2))
    assert once == again != other and all(isinstance(stretch, Stretch) for stretch in once)


def test_waveforms_are_the_audio_at_its_place(clips):
    lines = utterances(clips)
    windows = Windows(lines, 1)
    assert len(windows) == 2 and sum(map(len, windows.placements)) == len(lines)
    for number, placements in enumerate(windows.placements):
        expected = np.zeros(WINDOW_SAMPLES)
        for utterance, start, _ in placements:
            audio = load_audio(lines[utterance].audio)
            expected[start * STATE_SAMPLES :][: len(audio)] = audio
        waveform = windows.waveform(number).numpy()
        assert waveform.dtype == np.float32 and np.abs(expected).max() > 0.1
        np.testing.assert_allclose(waveform, expected, rtol=0, atol=0.51 / 32767)
        assert np.array_equal(windows.waveform(number).numpy(), waveform)
        assert windows.end(number) == max(placement.end for placement in placements)


def test_audio_longer_than_its_manifest_says_is_cut(clips):
    windows = Windows(utterances(clips[:4], duration=1.0), 0)
    (placements,) = windows.placements
    waveform = windows.waveform(0)
    heard = np.zeros(WINDOW_STATES, bool)
    for utterance, start, end in placements:
        assert end - start == 50
        heard[start:end] = True
        audio = load_audio(windows.utterances[utterance].audio)[:16_000]
        place = waveform[start * STATE_SAMPLES : end * STATE_SAMPLES]
        np.testing.assert_allclose(place.numpy(), audio, rtol=0, atol=0.51 / 32767)
    assert not waveform.reshape(WINDOW_STATES, STATE_SAMPLES)[~heard].any()


def test_identity_is_that_of_files_and_places(clips):
    lines = utterances(clips)
    renamed = [dataclasses.replace(lines[0], audio="other.wav"), *lines[1:]]
    longer = [dataclasses.replace(lines[0], duration=lines[0].duration + 1), *lines[1:]]
    others = [Windows(renamed, 1), Windows(longer, 1), Windows(lines, 2), Windows(lines[1:], 1)]
    assert len({windows.identity() for windows in [Windows(lines, 1), *others]}) == 5
    reworded = [dataclasses.replace(line, text="") for line in lines]
    assert Windows(reworded, 1).identity() == Windows(lines, 1).identity()


def test_audio_that_cannot_be_used(clips, tmp_path):
    with pytest.raises(ValueError, match="no utterance fits a window of 30 s"):
        Windows(utterances(clips, duration=30.1), 0)
    (tmp_path / "noise.mp3").write_bytes(b"no audio")
    windows = Windows(utterances([*clips[:1]]), 0)
    damaged = Windows([dataclasses.replace(windows.utterances[0], audio=str(tmp_path / "noise.mp3"))], 0)
    with pytest.raises(ValueError, match=r"noise\.mp3.*; take it out of the manifest"):
        damaged.waveform(0)


def test_a_batch_is_packed_in_order():
    torch.manual_seed(6)
    counts = [*torch.randint(1, 1501, (60,)).tolist(), 1500, 1500, 1]
    places = pack_in_order(counts)
    assert places[0] == (0, 0)
    fresh = 0
    for (window, start), count, (after, begin) in zip(places, counts, places[1:], strict=False):
        assert start + count <= 1500
        if after == window:
            assert GAP_STATES[0] <= begin - start - count <= GAP_STATES[1]
        else:
            fresh += 1
            assert (after, begin) == (window + 1, 0)
    assert fresh < len(counts) - 1  # some share a window
    assert [pack_in_order([100, 100])[1][1] for _ in range(20)] != [pack_in_order([100, 100])[1][1]] * 20
