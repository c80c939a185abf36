"""Long recordings in one pass: the whole recording's states and cuts, made and kept a few at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from samba_asr import one_pass
from samba_asr.audio.load import StoredAudio, load_audio
from samba_asr.decoding.stretches import cut_at_blanks
from samba_asr.model.asr import SambaASR
from samba_asr.model.streaming import EncoderStream
from samba_asr.one_pass import parts
from samba_asr.transcriber import Transcriber

RATE = 16_000


@pytest.fixture(scope="module")
def long(clips):
    """Half a minute of real speech and a little more, (samples,)."""
    waveform = np.concatenate([load_audio(path) for path, _ in clips])
    assert len(waveform) > 31 * RATE
    return waveform[: 31 * RATE + 123]


def stored(waveform):
    audio = StoredAudio()
    audio.append(waveform)
    return audio


def with_sizes(monkeypatch, chunk, ahead, longest=15.0):
    """Seconds instead of the usual ones."""
    monkeypatch.setattr(one_pass, "CHUNK_SECONDS", chunk)
    monkeypatch.setattr(one_pass, "AHEAD_SECONDS", ahead)
    monkeypatch.setattr(one_pass, "STRETCH_SECONDS", longest)


def whole(model, waveform):
    with torch.inference_mode():
        states, lengths = model.encode(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
        return states[0], model.ctc_log_probs(states, lengths)[0]


@pytest.mark.parametrize("seconds", [31.0, 20.0, 3.0, 0.01])
def test_within_a_chunk_the_states_are_the_whole_recordings(tiny_checkpoint, long, monkeypatch, seconds):
    with_sizes(monkeypatch, 40.0, 2.0, longest=2.0)
    model, waveform = Transcriber.load(tiny_checkpoint).model, long[: round(seconds * RATE)]
    found = list(parts(model, stored(waveform)))
    states, log_probs = whole(model, waveform)
    assert_close(torch.cat([part.encoder_out for part in found]), states, rtol=1e-4, atol=1e-4)
    assert_close(np.concatenate([part.log_probs for part in found]), log_probs.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("chunk", "ahead"), [(2.0, 0.4), (0.8, 0.8), (7.0, 1.0)])
@pytest.mark.parametrize("longest", [1.0, 3.0, 9.0])
def test_states_and_cuts_are_those_of_a_stream(tiny_checkpoint, long, monkeypatch, chunk, ahead, longest):
    """However short the stretches are beside the chunks, or long; each state once and in order."""
    with_sizes(monkeypatch, chunk, ahead, longest)
    model, waveform = Transcriber.load(tiny_checkpoint).model, long[: 20 * RATE + 77]
    stream = EncoderStream(model, round(chunk * 25), round(ahead * 25))
    given = torch.from_numpy(waveform)
    states, log_probs = (torch.cat(both).numpy() for both in zip(stream.feed(given), stream.finish(), strict=True))
    found = list(parts(model, waveform))
    cuts = cut_at_blanks(log_probs, len(log_probs), round(longest * 25))
    assert len(cuts) > 2
    assert [(part.start, part.start + len(part.log_probs)) for part in found] == cuts
    assert np.array_equal(torch.cat([part.encoder_out for part in found]).numpy(), states)
    assert np.array_equal(np.concatenate([part.log_probs for part in found]), log_probs)


def test_what_is_kept_does_not_grow(tiny_checkpoint, long, monkeypatch):
    """Neither samples read at once, nor states that wait, nor those of a stretch."""
    with_sizes(monkeypatch, 4.0, 0.4, longest=5.0)
    model = Transcriber.load(tiny_checkpoint).model
    seen = []

    class Counted(StoredAudio):
        def __getitem__(self, part):
            samples = super().__getitem__(part)
            seen[-1]["samples"] = max(seen[-1]["samples"], len(samples))
            return samples

    def cut(log_probs, length, longest):
        seen[-1]["waiting"] = max(seen[-1]["waiting"], length)
        return cut_at_blanks(log_probs, length, longest)

    monkeypatch.setattr(one_pass, "cut_at_blanks", cut)
    for times in (1, 6):
        seen.append({"samples": 0, "waiting": 0})
        audio = Counted()
        for _ in range(times):
            audio.append(long)
        kept = [part.encoder_out.untyped_storage().nbytes() // (4 * 32) for part in parts(model, audio)]
        seen[-1]["kept"] = max(kept)
    assert seen[1]["samples"] == seen[0]["samples"] == 4 * RATE
    assert max(seen[1]["waiting"], seen[1]["kept"]) <= 25 * (5.0 * 1.25 + 2 * 4.0)


@pytest.mark.filterwarnings("error")
def test_long_recordings_that_are_not_to_be_cut_take_one_pass(tiny_checkpoint, long, monkeypatch):
    heard = []
    monkeypatch.setattr(
        "samba_asr.transcriber.parts", lambda model, audio: heard.append(len(audio)) or parts(model, audio)
    )
    transcriber = Transcriber.load(tiny_checkpoint, vad=False)
    short = long[: 30 * RATE]
    expected = Transcriber.load(tiny_checkpoint).transcribe(short)
    assert transcriber.transcribe(short) == expected and not heard
    frozen = long.copy()
    frozen.setflags(write=False)
    alone = transcriber.transcribe(frozen)
    assert heard == [len(long)] and alone.text and alone.duration == len(long) / RATE
    for company in ([long, short], [short, stored(long), long[:0], np.zeros(33 * RATE, np.float32)]):
        found = transcriber.transcribe_batch(company)
        assert found[len(company) // 4] == alone if len(company) > 2 else found[0] == alone
        assert [transcript.text for transcript in found if transcript.duration == 30] == [expected.text]
    assert found[2].text == found[3].text == "" and found[3].duration == 33.0


@pytest.mark.parametrize("search", ["ctc", "joint"])
def test_batches_change_nothing(tiny_checkpoint, long, monkeypatch, search):
    with_sizes(monkeypatch, 4.0, 0.4, longest=5.0)
    found = []
    for size in (1, 2, 50):
        transcriber = Transcriber.load(tiny_checkpoint, vad=False, search=search, batch_size=size)
        found.append(transcriber.transcribe(long))
        assert found[-1].text == found[0].text
        assert [(w.start, w.end) for w in found[-1].words] == [(w.start, w.end) for w in found[0].words]
        times = [seconds for word in found[-1].words for seconds in (word.start, word.end)]
        assert times == sorted(times) and 25 < times[-1] <= found[-1].duration


def test_features_of_the_whole_recording_need_it_whole(tiny_checkpoint, long, monkeypatch):
    transcriber = Transcriber.load(tiny_checkpoint, vad=False)
    config = transcriber.model.config
    other = replace(config, features=replace(config.features, normalisation="whisper"))
    model = SambaASR(other, transcriber.model.features.mel_filters)
    with pytest.raises(ValueError, match="loudest frame"):
        next(parts(model.eval(), long))
    model.load_state_dict(transcriber.model.state_dict())
    assert Transcriber(model, transcriber.tokenizer, vad=False).transcribe(long).duration == len(long) / RATE
