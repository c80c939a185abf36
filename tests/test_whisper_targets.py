"""The teacher's states: computed once, kept, and cut into batches of stretches."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from distil_cases import D_MODEL, N_MELS, N_STATES, close, teacher_weights, utterances

from samba_asr.audio.features import LogMel
from samba_asr.config import FeatureConfig
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.targets import TeacherStates, Windows, collect, stretch_batches
from samba_asr.training.whisper.windows import STATE_SAMPLES, Stretch, pack_windows

LENGTHS = np.random.default_rng(0).integers(5_000, 250_000, 150).tolist()
PLACEMENTS = pack_windows(LENGTHS, 0)


@pytest.fixture
def teacher():
    return build_teacher(teacher_weights(N_LAYERS=1))


@pytest.fixture
def calls(teacher, monkeypatch):
    """How many windows the teacher was asked about, call after call."""
    counts, forward = [], teacher.encoder.forward

    def counting(features):
        counts.append(len(features))
        return forward(features)

    monkeypatch.setattr(teacher.encoder, "forward", counting)
    return counts


@pytest.fixture(scope="module")
def windows(clips):
    """Three windows, each with one or two clips."""
    return Windows(utterances(clips[:3], duration=20.0), 0)


def direct(teacher, windows, chosen):
    """The teacher's states and taps, without what is being tested."""
    waveforms = torch.stack([windows.waveform(window) for window in chosen])
    logmel = LogMel(FeatureConfig(normalisation="whisper", n_mels=N_MELS))
    with torch.no_grad():
        return teacher.encoder(logmel(waveforms, torch.full((len(chosen),), waveforms.shape[1]))[0])


def test_states_are_the_teacher_s(teacher, windows, tmp_path):
    states = TeacherStates(teacher, windows, tmp_path / "new" / "states", bf16=False)
    expected, _ = direct(teacher, windows, [2, 0])
    kept = states.states([2, 0])
    assert kept.shape == (2, N_STATES, D_MODEL) and kept.dtype == torch.float32
    close(kept, expected, 1e-3)
    assert torch.equal(kept, kept.half().float()) and not torch.equal(kept, expected)
    assert expected.std() > 0.5 and (expected[0] - expected[1]).std() > 0.1


def test_hear_tells_what_each_layer_said(teacher, windows, tmp_path):
    states = TeacherStates(teacher, windows, tmp_path, bf16=False)
    heard, taps = states.hear([1, 2])
    expected, expected_taps = direct(teacher, windows, [1, 2])
    close(heard, expected)
    for ours, theirs in zip(taps, expected_taps, strict=True):
        close(ours.given, theirs.given)
        close(ours.said, theirs.said)


def test_bf16_is_close(teacher, windows, tmp_path):
    exact, _ = TeacherStates(teacher, windows, tmp_path / "a", bf16=False).hear([0])
    rough, _ = TeacherStates(teacher, windows, tmp_path / "b", bf16=True).hear([0])
    assert rough.dtype == torch.float32
    assert 1e-4 < (rough - exact).std() / exact.std() < 0.05


def test_each_window_is_heard_once(teacher, calls, windows, tmp_path):
    states = TeacherStates(teacher, windows, tmp_path, bf16=False)
    first = states.states([1])
    assert torch.equal(states.states([1]), first) and calls == [1]
    assert torch.equal(states.states([0, 1, 2])[1], first[0]) and calls == [1, 2]
    states.hear([0])
    assert calls == [1, 2, 1]


def test_states_stay_on_disk(teacher, calls, windows, tmp_path):
    first = TeacherStates(teacher, windows, tmp_path, bf16=False).states([0, 2])
    again = TeacherStates(teacher, windows, tmp_path, bf16=False)
    assert calls == [2]
    assert torch.equal(again.states([0, 2]), first) and calls == [2]
    again.states([0, 1, 2])
    assert calls == [2, 1]


@pytest.mark.parametrize("change", ["teacher", "windows"])
def test_states_of_another_are_thrown_away(change, teacher, windows, clips, tmp_path):
    before = TeacherStates(teacher, windows, tmp_path, bf16=False).states([0, 1, 2])
    if change == "teacher":
        weights = teacher_weights(N_LAYERS=1)
        teacher = build_teacher(weights | {"encoder.ln_post.weight": weights["encoder.ln_post.weight"] * 2})
    else:
        windows = Windows(utterances(clips[3:6], duration=20.0), 0)
    after = TeacherStates(teacher, windows, tmp_path, bf16=False).states([0, 1, 2])
    close(after, direct(teacher, windows, [0, 1, 2])[0], 3e-3)
    assert (after - before).std() > 0.1


def test_another_number_of_windows(teacher, windows, clips, tmp_path):
    TeacherStates(teacher, windows, tmp_path, bf16=False).states([0, 1, 2])
    fewer = Windows(utterances(clips[:1]), 0)
    states = TeacherStates(teacher, fewer, tmp_path, bf16=False)
    close(states.states([0]), direct(teacher, fewer, [0])[0], 1e-3)
    assert (tmp_path / "states.f16").stat().st_size == 2 * N_STATES * D_MODEL


@pytest.mark.parametrize("count", [1, 5, 100])
def test_position_means(count, teacher, clips, tmp_path):
    """Six windows, more than are read at once."""
    windows = Windows(utterances(clips[:6], duration=20.0), 0)
    states = TeacherStates(teacher, windows, tmp_path, bf16=False)
    means = states.position_means(count)
    mean = states.states(range(6))[:count].double().mean(0)
    around = [[min(max(place + shift, 0), N_STATES - 1) for shift in range(-25, 26)] for place in range(N_STATES)]
    expected = torch.stack([mean[places].mean(0) for places in around])
    assert means.shape == (N_STATES, D_MODEL) and means.is_contiguous()
    close(means, expected, 1e-5)


@pytest.mark.parametrize("batch_states", [1, 1500, 4000])
def test_batches_hold_no_more_than_they_may(batch_states):
    batches = stretch_batches(PLACEMENTS, batch_states, 0.35, seed=0, epoch=0)
    for batch in batches:
        longest = max(stretch.end - stretch.start for stretch in batch)
        assert batch and (len(batch) == 1 or longest * len(batch) <= batch_states)
    mean_size = sum(map(len, batches)) / len(batches)
    assert mean_size == 1 if batch_states == 1 else mean_size > batch_states / 1000


def test_every_utterance_is_heard_once_an_epoch():
    for epoch in range(3):
        stretches = [s for batch in stretch_batches(PLACEMENTS, 4000, 0.35, 0, epoch) for s in batch]
        assert len(set(stretches)) == len(stretches)
        heard = [
            placement.utterance
            for window, start, end in stretches
            for placement in PLACEMENTS[window]
            if start <= placement.start and placement.end <= end
        ]
        assert sorted(heard) == list(range(len(LENGTHS)))
        assert sum(end - start for _, start, end in stretches) < 1500 * len(PLACEMENTS)


def test_batches_follow_seed_and_epoch():
    def batches(seed, epoch):
        return stretch_batches(PLACEMENTS, 4000, 0.35, seed, epoch)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3) and batches(1, 2) != batches(2, 2)
    first = [batch[0].window for batch in batches(1, 2)]
    assert first != sorted(first)


def test_windows_are_cut_a_pool_at_a_time():
    batches = stretch_batches(PLACEMENTS, 4000, 0.35, 0, 0, pool=5)
    pools = []
    for batch in batches:
        windows = {stretch.window for stretch in batch}
        if pools and len(pools[-1] | windows) <= 5:
            pools[-1] |= windows
        else:
            pools.append(windows)
    assert sum(map(len, pools)) == len(PLACEMENTS) and all(len(pool) == 5 for pool in pools[:-1])


def test_stretches_of_a_batch_are_of_similar_length():
    batches = stretch_batches(PLACEMENTS, 4000, 0.35, 0, 0, pool=1000)
    spans = sorted((min(lengths), max(lengths)) for lengths in ([s.end - s.start for s in b] for b in batches))
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert [lengths[0] for lengths in spans] != [min(s.end - s.start for s in b) for b in batches]


def test_collect(teacher, windows, tmp_path):
    states = TeacherStates(teacher, windows, tmp_path, bf16=False)
    means = torch.randn(N_STATES, D_MODEL)
    stretches = [Stretch(1, 40, 100), Stretch(0, 300, 1500), Stretch(1, 0, 7)]
    batch = collect(states, stretches, means)
    assert batch.lengths.tolist() == [60, 1200, 7]
    assert batch.waveform_lengths.tolist() == [60 * 320, 1200 * 320, 7 * 320]
    assert batch.lengths.dtype == batch.waveform_lengths.dtype == torch.int64
    waveforms, targets = torch.zeros(3, 1200 * STATE_SAMPLES), torch.zeros(3, 1200, D_MODEL)
    for row, (window, start, end) in enumerate(stretches):
        waveforms[row, : (end - start) * 320] = windows.waveform(window)[start * 320 : end * 320]
        targets[row, : end - start] = direct(teacher, windows, [window])[0][0, start:end] - means[start:end]
    assert torch.equal(batch.waveforms, waveforms) and waveforms[0].abs().max() > 0.01
    close(batch.targets, targets, 3e-3)
    assert not batch.targets[0, 60:].any()
