"""Segments of recordings: from probabilities made by hand, and from real speech."""

import itertools

import numpy as np
import pytest

from samba_asr.audio import segments
from samba_asr.audio.load import load_audio
from samba_asr.audio.segments import PADDING, PAUSE, SILENCE, SPEECH, Span, Speaking, quiet_segments, speech_segments
from samba_asr.audio.vad import FRAME, VoiceDetector

RATE = 16_000
THIRTY = 30 * RATE


def voice_of(*runs):
    """Probabilities from (frames, probability) after each other."""
    return np.concatenate([np.full(frames, probability, np.float32) for frames, probability in runs])


def frames_of(voice, longest=THIRTY):
    """The segments in frames."""
    found = speech_segments(voice, len(voice) * FRAME, longest)
    assert all(start % FRAME == 0 and end % FRAME == 0 for start, end in found)
    return [(start // FRAME, end // FRAME) for start, end in found]


def test_speech_is_padded_within_the_recording():
    assert frames_of(voice_of((100, 0), (20, 1), (100, 0))) == [(100 - PADDING, 120 + PADDING)]
    assert frames_of(voice_of((2, 0), (20, 1), (3, 0))) == [(0, 25)]
    assert frames_of(voice_of((1, 1))) == [(0, 1)]
    assert speech_segments(voice_of((3, 1)), 3 * FRAME - 5, THIRTY) == [Span(0, 3 * FRAME - 5)]


@pytest.mark.parametrize("frames", [0, 1, 5, 1000])
def test_nothing_where_nobody_speaks(frames):
    assert frames_of(voice_of((frames, 0.0))) == frames_of(voice_of((frames, 0.49))) == []


def test_speech_goes_on_until_it_is_unlikely():
    start, end = 100 - PADDING, 150 + PADDING
    assert frames_of(voice_of((100, 0.4), (10, 0.6), (40, 0.4), (100, 0.3))) == [(start, end)]
    assert frames_of(voice_of((100, 0.4), (10, 0.6), (100, 0.3))) == [(start, 110 + PADDING)]


@pytest.mark.parametrize("pause", [0, 1, 2 * PADDING, 2 * PADDING + 1, PAUSE, PAUSE + 1, 500])
def test_short_pauses_join_and_long_ones_part(pause):
    found = frames_of(voice_of((50, 0), (20, 1), (pause, 0), (30, 1), (50, 0)))
    first, last = 50 - PADDING, 100 + pause + PADDING
    joined = [(first, last)]
    parted = [(first, 70 + PADDING), (70 + pause - PADDING, last)]
    assert found == (joined if pause <= PAUSE else parted)


def test_what_would_be_too_long_together_stays_apart():
    voice = voice_of((400, 1), (25, 0), (400, 1), (25, 0), (400, 1))
    assert frames_of(voice) == [(0, 825 + PADDING), (850 - PADDING, 1250)]
    assert [end - start <= 500 for start, end in frames_of(voice, 500 * FRAME)] == [True] * 3


def test_long_speech_is_cut_where_it_is_least_likely():
    voice = voice_of((600, 1), (7, 0.6), (100, 1), (7, 0.8), (500, 1))
    assert frames_of(voice) == [(0, 604), (604, 1214)]
    voice[500:507] = 0.5  # the other halves of what a segment may hold count too, but not the first
    voice[300:307] = 0.4
    assert frames_of(voice) == [(0, 504), (504, 1214)]


@pytest.mark.parametrize("longest", [1, 2, 3, 10, 64, 200])
def test_whatever_is_said_segments_are_in_order_and_short_and_hold_all_speech(longest):
    random = np.random.default_rng(longest)
    for frames in (1, 3, 50, 700):
        voice = np.clip(np.cumsum(random.normal(0, 0.2, frames)) % 2 - 0.5, 0, 1)
        found = frames_of(voice, longest * FRAME + random.integers(FRAME))
        assert all(0 <= start < end <= frames and end - start <= longest for start, end in found)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(found))
        inside = {frame for start, end in found for frame in range(start, end)}
        assert inside >= set(np.flatnonzero(voice >= 0.5).tolist())
        assert found == frames_of(voice, longest * FRAME)


@pytest.mark.parametrize("longest", [0, FRAME - 1])
def test_nothing_fits_into_less_than_a_frame(longest):
    with pytest.raises(ValueError, match=rf"longest \({longest}\) must be at least 512 samples"):
        speech_segments(voice_of((5, 1)), 5 * FRAME, longest)


def test_clips_lie_inside_and_silences_outside(clips):
    """Every clip's sound is in one segment with two seconds before and after it that are not."""
    detector = VoiceDetector.load()
    silence = np.zeros(2 * RATE, np.float32)
    waveforms = [load_audio(path) for path, _ in clips]
    joined = np.concatenate([silence, *(part for waveform in waveforms for part in (waveform, silence))])
    found = speech_segments(detector.voice(joined), len(joined), THIRTY)
    assert len(found) == len(waveforms)
    start = len(silence)
    for waveform, span in zip(waveforms, found, strict=True):
        levels = np.sqrt(np.convolve(waveform**2, np.ones(320) / 320, "same"))
        loud = start + np.flatnonzero(levels > 0.1 * levels.max())
        assert start - 0.3 * RATE < span.start <= loud[0]
        assert loud[-1] < span.end < start + len(waveform) + 0.5 * RATE
        start += len(waveform) + len(silence)


def slow_quietest(waveform, low, high):
    """The frame in low to high - 1 whose 0.22 s around are quietest, from the definition."""
    powers = [float((waveform[max(f - 3, 0) * FRAME : (f + 4) * FRAME] ** 2).sum()) for f in range(low, high)]
    return low + int(np.argmin(powers))


def test_without_a_detector_the_quietest_places(clips, monkeypatch):
    waveform = np.concatenate([load_audio(path) for path, _ in clips])[: 40 * RATE + 123]
    longest = 10 * RATE
    found = quiet_segments(waveform, longest)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])] and found[-1].end == len(waveform)
    assert all(0 < end - start <= longest for start, end in found)
    most = longest // FRAME
    for start, end in found[:-1]:
        low = start // FRAME + most // 2
        high = min(start // FRAME + most, -(-len(waveform) // FRAME) - most // 4)
        assert end == (slow_quietest(waveform, low, high) + 1) * FRAME
    monkeypatch.setattr(segments, "BLOCK", 3 * FRAME)
    assert quiet_segments(waveform, longest) == found


def test_without_a_detector_zeros_are_left_out():
    waveform = np.concatenate([np.zeros(20 * RATE), np.full(RATE, 0.1), np.zeros(40 * RATE)]).astype(np.float32)
    (found,) = quiet_segments(waveform, 15 * RATE)
    assert found.start <= 20 * RATE and found.end >= 21 * RATE
    assert quiet_segments(waveform[:0], RATE) == []


@pytest.mark.parametrize("samples", [FRAME, 640, 1280, 3000])
@pytest.mark.parametrize("known", [0, 3])
def test_spans_that_hold_speech_are_found_on_the_way(samples, known):
    """Against every sample's own frame; frames may be known earlier than the spans that they are in."""
    voice = np.random.default_rng(samples).random(400).astype(np.float32) ** 2
    speaks = [voice[0] >= SPEECH]
    for probability in voice[1:]:
        speaks.append(probability >= SPEECH or (speaks[-1] and probability >= SILENCE))
    of_samples = np.repeat(speaks, FRAME)
    whole = len(of_samples) // samples * samples
    expected = of_samples[:whole].reshape(-1, samples).any(1).tolist()
    assert 0 < sum(expected) < len(expected) or samples > 1000
    speaking, found, given = Speaking(samples), [], 0
    for count in itertools.cycle([1, 5, 2]):
        count = min(count, len(expected) - len(found))
        frames = -(-(len(found) + count) * samples // FRAME) + known
        speaking.add(voice[given:frames])
        given = frames
        found += speaking.take(count)
        assert len(speaking._frames) <= known + 1
        if len(found) == len(expected):
            break
    assert found == expected
