"""Live recognition: any blocks, the same words; segments at pauses, times in order, nothing from what is not speech."""

import dataclasses
import itertools
import math

import jiwer
import numpy as np
import pytest
import torch

from samba_asr import live as live_module
from samba_asr.audio.vad import FRAME, VoiceStream
from samba_asr.decoding.prefix_beam import ctc_prefix_beam
from samba_asr.decoding.search import search_stretches
from samba_asr.live import AHEAD_SECONDS, CHUNK_SECONDS, Live
from samba_asr.model.streaming import EncoderStream
from samba_asr.transcriber import Transcriber
from samba_asr.transcript import Transcript

RATE = 16_000
MOST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def two(waveforms):
    """A second of silence, a clip, 1.5 s of silence, another clip."""
    return np.concatenate([silence(1), waveforms[0], silence(1.5), waveforms[2]])


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def noise(seconds, level):
    return np.random.default_rng(0).normal(0, level, round(seconds * RATE)).astype(np.float32)


def in_blocks(waveform, sizes):
    end = 0
    for size in itertools.cycle(sizes):
        yield waveform[end : end + size]
        end += size
        if end >= len(waveform):
            return


def streamed(transcriber, waveform, sizes=(8_000,), **settings):
    return list(transcriber.stream(in_blocks(waveform, sizes), **settings))


def finals(results):
    return [result for result in results if result.final]


def check(results, duration):
    """What holds of any stream's results."""
    times = []
    for result in results:
        assert [word.text for word in result.words] == result.text.split()
        assert " ".join(result.text.split()) == result.text
        assert all(0 <= word.confidence <= 1 for word in result.words)
        own = [seconds for word in result.words for seconds in (word.start, word.end)]
        assert own == sorted(own) and (not own or (own[0], own[-1]) == (result.start, result.end))
        assert not times or not own or own[0] >= times[-1]  # after all finals before it
        times += own if result.final else []
    assert all(0 <= seconds <= duration for seconds in times)
    for one, other in itertools.pairwise(results):
        assert one.final or other.final or one.text != other.text
    assert not results or results[-1].final


def ahead(model, waveform, chunk, more):
    """As chunked, of an encoder that hears what follows a chunk as well, through its own stream."""
    found = EncoderStream(model, chunk, more)
    parts = zip(found.feed(torch.from_numpy(waveform)), found.finish(), strict=True)
    return [torch.cat(part)[None].clone() for part in parts]


@torch.no_grad()
def chunked(model, waveform, chunk):
    """All states at once, of an encoder that hears in chunks."""
    features = model.features(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
    encoder_out, lengths = model.encode_features(*features, chunk)
    return encoder_out, model.ctc_log_probs(encoder_out, lengths, chunk)


@pytest.mark.parametrize(("chunk", "more"), [(16, 0), (8, 0), (8, 8)])
def test_finals_are_what_joint_search_finds_in_the_same_states(shipped, two, chunk, more, monkeypatch):
    spans, final = [], Live._final

    def noted(self, start, end):
        spans.append((start, end))
        return final(self, start, end)

    monkeypatch.setattr(Live, "_final", noted)
    results = streamed(shipped, two, chunk_seconds=chunk * 0.04, ahead_seconds=more * 0.04)
    check(results, len(two) / RATE)
    states = ahead(shipped.model, two, chunk, more) if more else chunked(shipped.model, two, chunk)
    encoder_out, log_probs = states
    assert len(spans) == len(finals(results)) == 2
    for (start, end), result in zip(spans, finals(results), strict=True):
        part = (encoder_out[:, start:end], torch.tensor([end - start]), log_probs[:, start:end].numpy())
        ((found,),) = search_stretches(shipped.model, *part, shipped.search, shipped.advisers())
        assert result.text == " ".join(shipped.tokenizer.decode(found.tokens).split())
        assert start * 0.04 <= result.start and result.end <= end * 0.04 + 1e-9
        alone = shipped._of_segment(part[0][0], part[2][0]).words
        assert [w.start for w in result.words] == pytest.approx([w.start + start * 0.04 for w in alone], abs=0.041)


@pytest.mark.parametrize("search", ["joint", "ctc"])
def test_partials_are_what_ctc_has_heard(shipped, two, search, monkeypatch):
    """Of each chunk, the best text of the prefix search over the open segment's states."""
    transcriber = Transcriber(shipped.model, shipped.tokenizer, dataclasses.replace(shipped.search, search=search))
    pieces = shipped.tokenizer.pieces()
    _, log_probs = chunked(shipped.model, two, 16)
    live, seen = transcriber.live(chunk_seconds=0.64, ahead_seconds=0), set()
    for block in in_blocks(two, [2_000]):
        for result in live.feed(block):
            if not result.final:
                begin, end = live._endpointer.begin, live._first + len(live._log_probs)
                best = ctc_prefix_beam(log_probs[0, begin:end].numpy(), live_module.PARTIAL_BEAM)[0].tokens
                assert result.text == " ".join("".join(pieces[piece] for piece in best).split())
                seen.add(begin)
    assert len(seen) == 2


@pytest.mark.parametrize("sizes", [[1_000_000], [10_440, 10_240], [333, 1, 70_000, 0]])
@pytest.mark.parametrize("detector", [True, False])
def test_blocks_change_nothing(tiny_checkpoint, two, sizes, detector):
    """To the last bit, of blocks that are used again for what follows, too."""
    transcriber = Transcriber.load(tiny_checkpoint, search="joint", beam_size=2, vad=None if detector else False)
    two = two[: 6 * RATE + 77]
    expected = streamed(transcriber, two, [160])
    check(expected, len(two) / RATE)
    assert finals(expected) and len(expected) > 5
    assert streamed(transcriber, two, sizes) == expected
    assert streamed(transcriber, two.astype(np.float64), sizes) == expected
    live, block, found = transcriber.live(), np.empty(700, np.float32), []
    for part in in_blocks(two, [700]):
        block[: len(part)] = part
        found += live.feed(block[: len(part)])
        block[:] = 1.0
    assert found + live.finish() == expected


def test_two_utterances_are_two_segments_with_the_words_of_each(shipped, two, waveforms, clips):
    results = streamed(shipped, two)
    check(results, len(two) / RATE)
    seconds = len(waveforms[0]) / RATE
    for result, clip, start in zip(finals(results), (0, 2), (1.0, 2.5 + seconds), strict=True):
        said = clips[clip][1].lower().split()
        assert jiwer.wer(" ".join(said), result.text) < 0.45
        assert abs(len(result.words) - len(said)) <= 2
        assert start - 0.1 < result.start and result.end < start + len(waveforms[clip]) / RATE + 0.1
        assert result.words[0].start - start < 0.8  # from the first word on
    assert results[-1].final and finals(results)[0] != results[-1]


def test_only_a_pause_that_is_long_enough_ends_a_segment(shipped, two):
    for pause_seconds, segments in ((0.3, 2), (1.2, 2), (3.0, 1), (None, 1)):
        assert len(finals(streamed(shipped, two, pause_seconds=pause_seconds))) == segments


@pytest.mark.parametrize(
    ("sound", "detector"),  # in loud noise CTC alone may hear words
    [("silence", True), ("silence", False), ("hiss", True), ("hiss", False), ("noise", True)],
)
def test_what_is_not_speech_gives_nothing(shipped, sound, detector):
    waveform = {"silence": silence(15), "hiss": noise(15, 1e-3), "noise": noise(15, 0.05)}[sound]
    live = Transcriber(shipped.model, shipped.tokenizer, vad=None if detector else False).live()
    sizes = []
    for block in in_blocks(waveform, [RATE]):
        assert live.feed(block) == []
        sizes.append(live.state_bytes)
    assert live.finish() == []
    assert len(set(sizes[5:])) == 1 and sizes[-1] < 1_000_000


def test_where_no_voice_is_heard_nothing_is_said(shipped, waveforms, monkeypatch):
    monkeypatch.setattr(VoiceStream, "_probabilities", lambda stream, samples: np.zeros(len(samples) // FRAME))
    assert streamed(shipped, waveforms[0]) == []
    without = Transcriber(shipped.model, shipped.tokenizer, vad=False)
    assert len(finals(streamed(without, waveforms[0]))) == 1


def test_voice_without_words_is_not_searched(shipped, monkeypatch):
    monkeypatch.setattr(VoiceStream, "_probabilities", lambda stream, samples: np.ones(len(samples) // FRAME))
    monkeypatch.setattr(Transcriber, "_of_segment", None)
    assert streamed(shipped, noise(5, 1e-3)) == []


def test_speech_without_a_pause_is_cut_and_nothing_grows(shipped, waveforms, monkeypatch):
    monkeypatch.setattr(live_module, "LONGEST_SECONDS", 8.0)
    waveform = np.concatenate(waveforms)
    live, results, sizes = shipped.live(pause_seconds=None), [], []
    for block in in_blocks(waveform, [RATE]):
        results += live.feed(block)
        sizes.append(live.state_bytes)
    results += live.finish()
    check(results, len(waveform) / RATE)
    ends = [0.0, *(result.end for result in finals(results))]
    assert len(ends) > 3 and max(np.diff(ends)) < 8.5
    assert max(sizes[15:]) < 1.1 * max(sizes[:15]) < MOST_BYTES / 2
    offline = shipped.transcribe(waveform).text
    text = " ".join(result.text for result in finals(results))
    assert abs(len(text) - len(offline)) < 0.1 * len(offline)


def test_words_come_while_they_are_said(shipped, two):
    _, log_probs = chunked(shipped.model, two, round(CHUNK_SECONDS / 0.04))
    said = 0.04 * (log_probs[0].argmax(1) != 0).nonzero()[0].item()
    assert shipped.live().lookahead == pytest.approx(CHUNK_SECONDS + AHEAD_SECONDS, abs=0.1)
    assert shipped.live(chunk_seconds=0.6, ahead_seconds=0.2).lookahead == pytest.approx(0.8, abs=0.1)
    live = shipped.live(ahead_seconds=0)
    assert live.lookahead == pytest.approx(CHUNK_SECONDS, abs=0.1)
    for block in in_blocks(two, [160]):
        if live.feed(block):
            break
    assert said <= live.seconds <= said + live.lookahead + 0.01  # a block


def test_hotwords_reach_the_finals(shipped, waveforms):
    """Favoured so much that they are heard where something alike is said."""
    odd = streamed(shipped, waveforms[0], hotwords={"middle glasses": 2.0})
    assert "middle glasses" in odd[-1].text
    assert "middle classes" in streamed(shipped, waveforms[0])[-1].text and not shipped.hotwords


def test_a_final_takes_back_what_was_shown(shipped, waveforms, monkeypatch):
    """Where the decoder hears nothing in what CTC spelt, the segment ends with an empty text."""
    monkeypatch.setattr(Transcriber, "_of_segment", lambda *arguments: Transcript("", 1.0, ""))
    results = streamed(shipped, np.concatenate([waveforms[0], silence(2)]))
    assert [(result.text, result.words, result.final) for result in results[-1:]] == [("", (), True)]
    assert all(result.text and not result.final for result in results[:-1]) and len(results) > 3
    assert results[-1].start == results[-1].end < results[0].start


def test_a_stream_says_what_it_cannot_take(tiny_checkpoint):
    transcriber = Transcriber.load(tiny_checkpoint)
    live = transcriber.live()
    for block, says in (
        ([0.0, 0.1], r"a block \(list\) must be a numpy array of floats"),
        (np.zeros(3, np.int16), "int16 must be floats in .* divide int16 by 32768"),
        (np.zeros((2, 3)), r"shape \(2, 3\) must have one dimension"),
        (np.array([0.0, math.nan]), "NaN"),
    ):
        with pytest.raises(ValueError, match=says):
            live.feed(block)
    assert live.seconds == 0.0 and live.feed(np.zeros(0)) == []
    assert live.finish() == live.finish() == []
    with pytest.raises(ValueError, match=r"finished; transcriber.live\(\) begins another"):
        live.feed(np.zeros(3))
    with pytest.raises(ValueError, match=r"a block \(float64\) must be .* \[waveform\] is one block"):
        list(transcriber.stream(np.zeros(3)))
    for settings, says in (
        ({"chunk_seconds": 0.03}, r"chunk_seconds \(0.03\) must be at least 0.04"),
        ({"chunk_seconds": math.nan}, "chunk_seconds"),
        ({"ahead_seconds": -0.1}, r"ahead_seconds \(-0.1\) must not be negative"),
        ({"pause_seconds": 0.05}, r"pause_seconds \(0.05\) must be at least 0.08"),
        ({"hotwords": ["a"]}, "must be 'joint'"),
    ):
        with pytest.raises(ValueError, match=says):
            transcriber.live(**settings)


def test_a_model_that_needs_the_whole_recording_cannot_hear_live(tiny_checkpoint):
    transcriber = Transcriber.load(tiny_checkpoint)
    features = dataclasses.replace(transcriber.model.features.config, normalisation="whisper")
    transcriber.model.features.config = features
    with pytest.raises(ValueError, match="whisper"):
        transcriber.live()


@pytest.mark.parametrize("samples", [0, 1, 200, 639, 641, 10_240, 10_440, 10_441])
def test_streams_of_any_length_end(tiny_checkpoint, waveforms, samples):
    transcriber = Transcriber.load(tiny_checkpoint, vad=False)
    waveform = waveforms[0][RATE : RATE + samples]
    results = streamed(transcriber, waveform, [100])
    check(results, samples / RATE)
    assert streamed(transcriber, waveform, [20_000]) == results
    assert bool(results) == (samples > 0)  # this model hears words in anything


def test_a_precision_changes_roundings_alone(shipped, two):
    quick = Transcriber(shipped.model, shipped.tokenizer, precision="bfloat16")
    states = []
    for transcriber in (shipped, quick):
        live = transcriber.live(pause_seconds=None)
        live.feed(two[: 4 * RATE])
        states.append(live._log_probs.copy())
    different = np.abs(np.exp(states[0]) - np.exp(states[1]))
    assert states[0].dtype == states[1].dtype == np.float32
    assert 0 < different.max() < 0.2 and different.mean() < 1e-3
    said = [" ".join(result.text for result in finals(streamed(one, two))).split() for one in (shipped, quick)]
    assert sum(a != b for a, b in zip(*said, strict=True)) <= 1
