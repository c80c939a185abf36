"""Recordings of any length: nothing lost or doubled where they are cut, times that are theirs, memory that stays."""

import dataclasses
import os
import time
import tracemalloc

import jiwer
import numpy as np
import pytest
import soundfile

from samba_asr import long_form
from samba_asr.audio import load
from samba_asr.audio.load import load_audio, open_audio
from samba_asr.audio.segments import Span
from samba_asr.audio.vad import BLOCK
from samba_asr.long_form import Cutter, joined
from samba_asr.transcriber import Transcriber
from samba_asr.transcript import Alternative, Transcript, Word

RATE = 16_000
THIRTY = 30 * RATE


@pytest.fixture(scope="module")
def alone(shipped, waveforms):
    """Each clip's words."""
    return [transcript.text for transcript in shipped.transcribe_batch(waveforms)]


def cut_by(transcriber, detector):
    """The same transcriber with or without a detector, or with one pass."""
    vad = False if detector == "one pass" else None
    other = Transcriber(transcriber.model, transcriber.tokenizer, transcriber.search, vad=vad)
    if not detector:
        other.cutter.detector = None
    return other


def with_gaps(waveforms, seconds):
    """The waveforms forwards and backwards, silence after each."""
    gap = np.zeros(round(seconds * RATE), np.float32)
    return np.concatenate([part for waveform in [*waveforms, *waveforms[::-1]] for part in (waveform, gap)])


def check_times(transcript):
    assert [word.text for word in transcript.words] == transcript.text.split()
    times = [seconds for word in transcript.words for seconds in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= seconds <= transcript.duration for seconds in times)


def changes(compared):
    """Yield the letters of both sides where two texts differ, from one word that is in both to the next."""
    said = heard = ""
    for chunk in compared.alignments[0]:
        if chunk.type == "equal":
            yield said, heard
            said = heard = ""
        else:
            said += "".join(compared.references[0][chunk.ref_start_idx : chunk.ref_end_idx])
            heard += "".join(compared.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx])
    yield said, heard


@pytest.mark.parametrize("detector", [True, False, "one pass"])
@pytest.mark.parametrize("gap", [0.0, 0.3, 5.0])
def test_no_word_is_lost_or_doubled_at_a_seam(shipped, waveforms, alone, gap, detector):
    """Against the clips one by one. What stands next to a clip changes some of its words, as in a recording that is not
    cut at all: 18 to 21 of 184 without gaps; once its decoder stops two words early. But a second of this speech has 15
    letters: nowhere are many more or fewer."""
    transcriber = cut_by(shipped, detector)
    waveform = with_gaps(waveforms, gap)
    assert len(waveform) > 60 * RATE
    if detector != "one pass":
        spans = transcriber.cutter.spans(waveform)
        assert len(spans) >= 3 and max(end - start for start, end in spans) <= THIRTY
    transcript = transcriber.transcribe(waveform)
    check_times(transcript)
    compared = jiwer.process_words(" ".join([*alone, *alone[::-1]]), transcript.text)
    words = len(compared.references[0])
    assert compared.substitutions <= 0.14 * words
    assert compared.deletions <= 0.05 * words and compared.insertions <= 0.02 * words
    for said, heard in changes(compared):
        assert abs(len(said) - len(heard)) < 18, (said, heard)
    if detector is True and gap == 5.0:  # each clip is a segment of its own, and hears a little silence more or less
        assert compared.wer <= 0.05 and compared.deletions == compared.insertions == 0


def test_words_lie_in_their_clips(shipped, waveforms, alone):
    """Silence of 40 s between two clips: times are the recording's."""
    waveform = np.concatenate([waveforms[0], np.zeros(40 * RATE, np.float32), waveforms[2]])
    words = shipped.transcribe(waveform).words
    first, second = (len(waveforms[i]) / RATE for i in (0, 2))
    early = [word for word in words if word.end <= first + 0.1]
    late = [word for word in words if word.start >= first + 40 - 0.1]
    assert len(early) + len(late) == len(words)
    assert (len(early), len(late)) == (len(alone[0].split()), len(alone[2].split()))
    own = shipped.transcribe(waveforms[2]).words
    assert [w.start - first - 40 for w in late] == pytest.approx([w.start for w in own], abs=0.1)
    assert late[-1].end <= first + 40 + second


@pytest.mark.parametrize("detector", [True, False])
@pytest.mark.parametrize("search", ["ctc", "joint"])
def test_batches_change_nothing(tiny_checkpoint, waveforms, detector, search):
    """Several long recordings and short ones, in batches of any size, in any company."""
    long = with_gaps(waveforms[:4], 1.5)
    batch = [long, waveforms[0], np.zeros(50 * RATE, np.float32), long[: 33 * RATE], long[:0]]
    found = {}
    for size in (1, 3):
        transcriber = cut_by(Transcriber.load(tiny_checkpoint, search=search, batch_size=size), detector)
        found[size] = [transcriber.transcribe(waveform) for waveform in batch]
    found[0] = transcriber.transcribe_batch(batch)
    for transcripts in found.values():
        for one, other in zip(transcripts, found[1], strict=True):
            assert (one.text, one.duration) == (other.text, other.duration)
            assert [(w.start, w.end) for w in one.words] == [(w.start, w.end) for w in other.words]
            assert [w.confidence for w in one.words] == pytest.approx([w.confidence for w in other.words], abs=1e-4)
            check_times(one)
    assert [bool(one.text) for one in found[1]] == [True, True, False, True, False]


def test_batches_are_as_large_as_asked(tiny_checkpoint, waveforms, monkeypatch):
    transcriber = Transcriber.load(tiny_checkpoint, batch_size=2)
    sizes, heard = [], transcriber._heard
    monkeypatch.setattr(transcriber, "_heard", lambda arrays, n: sizes.append([*map(len, arrays)]) or heard(arrays, n))
    transcriber.transcribe(with_gaps(waveforms, 5.0))
    assert [len(lengths) for lengths in sizes] == [2] * 8
    lengths = [length for batch in sizes for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    sizes.clear()
    transcriber.transcribe_batch(waveforms[:5])  # who gives five at once has room for them
    assert [len(lengths) for lengths in sizes] == [5]
    with pytest.raises(ValueError, match=r"batch_size \(0\) must be positive"):
        Transcriber.load(tiny_checkpoint, batch_size=0)


def test_which_recordings_are_cut(waveforms, monkeypatch):
    speech = np.concatenate([np.zeros(RATE, np.float32), waveforms[0], np.zeros(40 * RATE, np.float32)])
    short, length = speech[: 10 * RATE], len(waveforms[0])
    whole = [Span(0, len(short))]
    assert Cutter(None, RATE).spans(short) == Cutter(False, RATE).spans(short) == whole
    for found in (Cutter(True, RATE).spans(short), Cutter(True, RATE).spans(speech), Cutter(None, RATE).spans(speech)):
        ((start, end),) = found
        assert 0.7 * RATE < start < 1.5 * RATE and length < end < length + 1.3 * RATE
    assert Cutter(False, RATE).spans(speech) == [Span(0, len(speech))]
    assert "silero-vad" in Cutter(None, RATE).way and Cutter(False, RATE).way == "in one pass"
    monkeypatch.setattr(long_form, "has_detector", lambda: False)
    assert Cutter(None, RATE).spans(short) == whole
    assert max(end - start for start, end in Cutter(None, RATE).spans(speech)) <= THIRTY
    assert "quietest places" in Cutter(None, RATE).way


def test_a_model_at_another_rate_does_without_a_detector():
    assert Cutter(None, 8_000).detector is None
    with pytest.raises(ValueError, match="16000 Hz, and this model 8000"):
        Cutter(True, 8_000)


def test_noise_without_speech_and_silence_have_no_words(shipped):
    noise = np.random.default_rng(0).normal(0, 1e-3, 61 * RATE).astype(np.float32)
    for waveform in (noise, np.zeros(61 * RATE, np.float32)):
        transcript = shipped.transcribe(waveform)
        assert (transcript.text, transcript.words, transcript.duration) == ("", (), 61.0)


def test_an_hour_of_silence_takes_seconds(shipped):
    """But for one sample, so that it is looked at."""
    waveform = np.zeros(3600 * RATE, np.float32)
    waveform[-RATE] = 1e-4
    begin = time.process_time()
    assert shipped.transcribe(waveform).text == ""
    assert time.process_time() - begin < 30


def test_several_texts_of_a_long_recording(tiny_checkpoint, waveforms):
    transcriber = Transcriber.load(tiny_checkpoint, search="joint", beam_size=4)
    waveform = with_gaps(waveforms[:4], 5.0)
    found = transcriber.transcribe(waveform, n_best=3)
    parts = [transcriber.transcribe(waveform[start:end], n_best=3) for start, end in transcriber.cutter.spans(waveform)]
    assert found.n_best[0].text == found.text == " ".join(part.text for part in parts)
    assert found.n_best[0].score == pytest.approx(sum(part.n_best[0].score for part in parts), abs=1e-3)
    assert len({each.text for each in found.n_best}) == 3
    scores = [each.score for each in found.n_best]
    assert scores == sorted(scores, reverse=True)


def test_transcripts_are_joined():
    def part(text, *words, n_best=()):
        return Transcript(text, 9.0, "m", tuple(Word(*word) for word in words), tuple(Alternative(*a) for a in n_best))

    parts = [
        part("a b", ("a", 0.5, 1.0, 0.9), ("b", 1.0, 2.0, 0.8), n_best=[("a b", -1.0), ("a", -3.0)]),
        part("", n_best=[("", -0.5), ("x", -4.5)]),
        part("c", ("c", 0.25, 9.0, 0.7), n_best=[("c", -1.0), ("d", -2.0)]),
    ]
    found = joined(parts, [10.0, 20.0, 30.0], 35.0, "mine", 3)
    assert (found.text, found.duration, found.model) == ("a b c", 35.0, "mine")
    assert found.words == (Word("a", 10.5, 11.0, 0.9), Word("b", 11.0, 12.0, 0.8), Word("c", 30.25, 35.0, 0.7))
    assert [(a.text, a.score) for a in found.n_best] == [("a b c", -2.5), ("a b d", -3.5), ("a c", -4.5)]
    assert joined(parts, [10.0, 20.0, 30.0], 35.0, "mine", 1) == dataclasses.replace(found, n_best=())
    third = Transcript("d", 1.0, "m", (Word("d", 0.1, 0.1 + 0.2, 1.0),))
    assert [word.end for word in joined([third, third], [0.0, 0.3], 0.6, "m", 1).words] == [0.3, 0.6]
    assert joined([], [], 3.0, "mine", 2) == Transcript("", 3.0, "mine")


def test_a_file_s_transcript_is_its_waveform_s_wherever_it_waits(tiny_checkpoint, waveforms, tmp_path, monkeypatch):
    transcriber = Transcriber.load(tiny_checkpoint)
    soundfile.write(tmp_path / "long.wav", with_gaps(waveforms, 0.3), RATE)
    waveform = load_audio(tmp_path / "long.wav")
    expected = transcriber.transcribe(waveform)
    assert expected.text
    for room in (1, load.IN_MEMORY):
        monkeypatch.setattr(load, "IN_MEMORY", room)
        stored = open_audio(tmp_path / "long.wav")
        assert len(stored) == len(waveform) and np.array_equal(stored[5:99], waveform[5:99])
        assert np.array_equal(stored[-7:], waveform[-7:]) and not len(stored[9:3])
        assert transcriber.transcribe(stored) == transcriber.transcribe(tmp_path / "long.wav") == expected


def test_memory_does_not_grow_with_the_recording(tmp_path, monkeypatch):
    """Of what NumPy and Python hold, decoding and looking for speech included; PyTorch sees one block at a time."""
    monkeypatch.setattr(load, "IN_MEMORY", 1 << 20)
    random = np.random.default_rng(0)
    peaks = []
    for minutes in (2, 20):
        with soundfile.SoundFile(tmp_path / "noise.wav", "w", RATE, 1) as file:
            for _ in range(2 * minutes):
                file.write(random.normal(0, 1e-3, THIRTY).astype(np.float32))
        tracemalloc.start()
        try:
            for cutter in (Cutter(None, RATE), Cutter(None, 8_000)):
                cutter.spans(open_audio(tmp_path / "noise.wav"))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 4 * BLOCK  # a block's samples; 18 minutes of them are 70 MB


def test_no_room_for_a_recording_says_where(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.full(RATE, 0.1), RATE)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "IN_MEMORY", 1)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(MemoryError, match=r"no room.*No space left.*TMPDIR"):
        load_audio(tmp_path / "a.wav")


def test_onednn_holds_little_memory_for_lengths_unless_told_to(tiny_checkpoint, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    Transcriber.load(tiny_checkpoint)
    assert os.environ[name] == "16"
    monkeypatch.setenv(name, "7")
    Transcriber.load(tiny_checkpoint)
    assert os.environ[name] == "7"
