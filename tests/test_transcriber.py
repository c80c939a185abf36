"""From audio to a transcript."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import soundfile
import torch

from samba_asr import transcriber as transcriber_module
from samba_asr.audio.load import AudioDecodeError, load_audio
from samba_asr.config import SearchConfig, WordConfig
from samba_asr.decoding import search
from samba_asr.decoding.search import search_tokens
from samba_asr.decoding.stretches import Found
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.pretrained import PRETRAINED
from samba_asr.transcriber import Transcriber


@pytest.fixture(scope="module", params=["ctc", "autoregressive", "rescoring", "joint"])
def transcriber(request, tiny_checkpoint):
    return Transcriber.load(tiny_checkpoint, search=request.param)


def assert_same(found, expected):
    """Transcripts are equal; confidences to what a batch's arithmetic may change."""
    assert [dataclasses.replace(each, words=()) for each in found] == [
        dataclasses.replace(each, words=()) for each in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert [(w.text, w.start, w.end) for w in one.words] == [(w.text, w.start, w.end) for w in other.words]
        assert [w.confidence for w in one.words] == pytest.approx([w.confidence for w in other.words], abs=1e-4)


def test_a_transcript_is_model_search_and_tokenizer_in_a_row(transcriber, tiny_checkpoint, clips, waveforms):
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    for (path, _), waveform in zip(clips[:3], waveforms, strict=False):
        with torch.no_grad():
            states = model.encode(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
            tokens = search_tokens(model, *states, SearchConfig(search=transcriber.search.search))
        transcript = transcriber.transcribe(path)
        assert transcript.text.split() == tokenizer.decode(tokens[0]).split()
        assert transcript.duration == pytest.approx(len(waveform) / 16_000)
        assert transcript.model == "tiny-random"


def test_the_text_depends_on_the_audio(transcriber, clips):
    texts = [transcriber.transcribe(path).text for path, _ in clips]
    assert len(set(texts)) > len(texts) / 2
    assert all(texts)


def check_words(transcript):
    words = transcript.words
    assert [word.text for word in words] == transcript.text.split()
    times = [seconds for word in words for seconds in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= seconds <= transcript.duration for seconds in times)
    assert all(0 <= word.confidence <= 1 for word in words)
    assert 0 <= transcript.confidence <= 1


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_every_word_has_its_time(tiny_checkpoint, transcriber, waveforms, shift):
    shifted = Transcriber(transcriber.model, transcriber.tokenizer, transcriber.search)
    shifted.words = WordConfig(start_shift=shift, end_shift=-shift)
    for transcript in shifted.transcribe_batch([*waveforms, waveforms[0][:900], waveforms[0][:80]]):
        check_words(transcript)


def test_words_lie_where_their_pieces_are_said(tiny_checkpoint, waveforms):
    """CTC's best path says them there; the words' pieces share no state."""
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    transcriber = Transcriber(model, tokenizer)
    assert transcriber.search.search == "ctc"
    transcript = transcriber.transcribe(waveforms[0])
    with torch.no_grad():
        states = model.encode(torch.from_numpy(waveforms[0])[None], torch.tensor([len(waveforms[0])]))
        best = model.ctc_log_probs(*states)[0].argmax(-1)
    assert len(transcript.words) > 3
    for word in transcript.words:
        first, last = (round(seconds / model.seconds_per_state) for seconds in (word.start, word.end))
        heard = [int(i) for i in torch.unique_consecutive(best[first:last])]
        assert tokenizer.decode(heard) == word.text


def test_a_long_recording_s_words_have_their_times(transcriber, waveforms, monkeypatch):
    waveform = np.concatenate(waveforms[:3])
    monkeypatch.setattr(search, "LONGEST_SECONDS", 2.0)
    transcript = transcriber.transcribe(waveform)
    check_words(transcript)
    assert transcript.words[-1].start > 0.8 * transcript.duration


def test_a_text_that_ctc_cannot_say_is_spread_over_the_recording(transcriber, waveforms, monkeypatch):
    short = waveforms[0][:8_000]
    tokens = [token for token in range(4, 30)] * 3
    monkeypatch.setattr(
        transcriber_module,
        "search_stretches",
        lambda model, out, lengths, said, config, advisers: [[Found(0, 12, tokens)]],
    )
    transcript = transcriber.transcribe(short)
    check_words(transcript)
    assert len(transcript.words) > 3
    assert transcript.words[0].start < 0.1 and transcript.words[-1].end > 0.4
    assert transcript.confidence < 0.5


def test_confidence_is_the_setting_s(tiny_checkpoint, waveforms):
    transcriber = Transcriber.load(tiny_checkpoint)
    raw = [word.confidence for word in transcriber.transcribe(waveforms[0]).words]
    assert len(set(raw)) == len(raw) > 3
    transcriber.words = WordConfig(confidence_scale=2.0, confidence_bias=1.0)
    found = [word.confidence for word in transcriber.transcribe(waveforms[0]).words]
    assert found == pytest.approx([1 / (1 + math.exp(-2 * math.log(p / (1 - p)) - 1)) for p in raw])
    nothing = transcriber.transcribe(np.zeros(8_000, np.float32))
    assert (nothing.words, nothing.confidence) == ((), 0.0)


def test_features_are_what_the_model_sees(tiny_checkpoint, waveforms):
    transcriber = Transcriber.load(tiny_checkpoint)
    features = transcriber.features(waveforms[0])
    expected, _ = transcriber.model.features(torch.from_numpy(waveforms[0])[None], torch.tensor([len(waveforms[0])]))
    assert np.array_equal(features, expected[0].numpy())
    assert len(features) * transcriber.seconds_per_frame == pytest.approx(5.855, abs=0.02)
    with pytest.raises(ValueError, match="mono"):
        transcriber.features(np.zeros((2, 5), np.float32))


def test_words_are_separated_by_single_spaces(transcriber, clips, monkeypatch):
    monkeypatch.setattr(transcriber.tokenizer, "decode", lambda ids: " two  words ")
    assert transcriber.transcribe(clips[0][0]).text == "two words"


def test_a_batch_equals_one_by_one(transcriber, waveforms):
    batch = [*waveforms, waveforms[0][:900], np.zeros(0, np.float32), np.zeros(8_000, np.float32)]
    assert_same(transcriber.transcribe_batch(batch), [transcriber.transcribe(waveform) for waveform in batch])


def test_many_are_each_as_alone(transcriber, clips, waveforms, tmp_path):
    """Files and waveforms, more than a batch and of all lengths; what cannot be read is in its place."""
    given = [path for path, _ in clips] + [waveforms[1][:900], waveforms[2], np.zeros(8_000, np.float32)]
    bad = [tmp_path / "missing.wav", np.zeros((2, 5), np.float32), AudioDecodeError("x.wav", "is odd")]
    outcomes = list(transcriber.transcribe_many([bad[0], *given, *bad[1:]]))
    results = [outcome.result for outcome in outcomes]
    assert_same(results[1:-2], [transcriber.transcribe(each) for each in given])
    assert [type(result) for result in (results[0], *results[-2:])] == [FileNotFoundError, ValueError, AudioDecodeError]
    assert "mono" in str(results[-2]) and results[-1] is bad[-1]
    assert all(outcome.seconds > 0 for outcome in outcomes[1:-3])


def test_many_share_batches_and_are_not_read_before_their_time(tiny_checkpoint, waveforms, monkeypatch):
    transcriber = Transcriber.load(tiny_checkpoint, batch_size=3)
    sizes, heard = [], transcriber._heard
    monkeypatch.setattr(transcriber, "_heard", lambda arrays, n: sizes.append(len(arrays)) or heard(arrays, n))
    assert len(list(transcriber.transcribe_many(waveforms[i % 4] for i in range(12)))) == 12
    assert sizes == [3] * 4
    endless = transcriber.transcribe_many(itertools.repeat(waveforms[0]))
    assert next(endless).result.text == next(endless).result.text == transcriber.transcribe(waveforms[0]).text
    with pytest.raises(ValueError, match="must be 'joint'"):
        transcriber.transcribe_many(waveforms, n_best=2)


def test_many_with_hotwords_and_several_texts(tiny_checkpoint, waveforms):
    transcriber = Transcriber.load(tiny_checkpoint, search="joint", beam_size=4, hotword_boost=5.0)
    settings = {"hotwords": ["cat"], "n_best": 3}
    outcomes = list(transcriber.transcribe_many(waveforms[:3], **settings))
    expected = [transcriber.transcribe(waveform, **settings) for waveform in waveforms[:3]]
    assert [o.result.text for o in outcomes] == [transcript.text for transcript in expected]
    assert [[each.text for each in o.result.n_best] for o in outcomes] == [[e.text for e in t.n_best] for t in expected]
    assert [t.text for t in expected] != [transcriber.transcribe(waveform).text for waveform in waveforms[:3]]


def test_bfloat16_changes_roundings_alone(waveforms, monkeypatch):
    """The encoder's and CTC's layers alone see it, and probabilities move by what rounding explains."""
    texts, types, said = zip(
        *(heard_in(precision, waveforms[:5], monkeypatch) for precision in ("float32", "bfloat16")), strict=True
    )
    assert texts[0] == texts[1]
    assert types[0] == dict.fromkeys(("features", "linear", "search"), torch.float32)
    assert types[1] == types[0] | {"linear": torch.bfloat16}
    for one, other in zip(*said, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert 0 < float((one.exp() - other.exp()).abs().max()) < 0.1
        assert float((one.argmax(-1) == other.argmax(-1)).float().mean()) > 0.98


def heard_in(precision, waveforms, monkeypatch):
    """Return texts, the types of what parts of the model gave and the search was given, and what CTC said."""
    transcriber = Transcriber.load(PRETRAINED / "samba-tiny-en", search="joint", precision=precision)
    model, types, said = transcriber.model, {}, []
    read, ctc = model.decoder.read_memory, model.ctc_log_probs
    model.features.register_forward_hook(lambda module, given, out: types.update(features=out[0].dtype))
    model.encoder.blocks[0].ff[1].register_forward_hook(lambda module, given, out: types.update(linear=out.dtype))
    monkeypatch.setattr(model.decoder, "read_memory", lambda x, n: types.update(search=x.dtype) or read(x, n))
    monkeypatch.setattr(model, "ctc_log_probs", lambda *given: said.append(ctc(*given)) or said[-1])
    return [transcriber.transcribe(waveform).text for waveform in waveforms], types, said


@pytest.mark.parametrize(
    ("precision", "device", "says"),
    [
        ("float16", "cpu", r"'float16'\) must be one of 'float32', 'bfloat16'"),
        ("bfloat16", "cuda", r"device \(cuda\) does not compute in it; use float32"),
        ("bfloat16", "mps", r"device \(mps\) does not compute in it; use float32"),
    ],
)
def test_a_precision_that_cannot_be_says_what_can(tiny_checkpoint, precision, device, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(ValueError, match=says):
        transcriber_module._usable_precision(precision, device)
    if device == "cpu":
        with pytest.raises(ValueError, match=says):
            Transcriber.load(tiny_checkpoint, precision=precision)
    else:
        assert transcriber_module._usable_precision("float32", device) == "float32"


def test_no_batch_at_all(transcriber):
    assert transcriber.transcribe_batch([]) == []


def test_path_str_and_array_say_the_same(transcriber, clips):
    path = clips[0][0]
    expected = transcriber.transcribe(path)
    assert transcriber.transcribe(str(path)) == expected
    waveform = load_audio(path)
    assert transcriber.transcribe(waveform) == expected
    assert transcriber.transcribe(waveform.astype(np.float64)) == expected
    assert transcriber.transcribe(np.repeat(waveform, 2)[::2]) == expected  # not contiguous


def test_the_caller_s_array_is_left_alone(transcriber, waveforms):
    waveform = waveforms[0].copy()
    waveform.flags.writeable = False
    transcriber.transcribe(waveform)
    assert np.array_equal(waveform, waveforms[0])


@pytest.mark.parametrize("samples", [0, 1, 2, 159, 160, 400, 800, 16_000])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_short_and_silent_clips_give_little(transcriber, samples, level):
    noise = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    transcript = transcriber.transcribe(level * noise)
    assert transcript.duration == samples / 16_000
    assert len(transcript.text) <= 200 * max(transcript.duration, 0.1)
    if samples == 0 or level == 0:
        assert transcript.text == ""


def test_8_khz_stereo(transcriber, waveforms, tmp_path):
    half = np.stack([waveforms[0][::2], waveforms[0][::2]], axis=1)
    soundfile.write(tmp_path / "telephone.wav", half, 8_000)
    transcript = transcriber.transcribe(tmp_path / "telephone.wav")
    assert transcript.text
    assert transcript.duration == pytest.approx(len(waveforms[0]) / 16_000, abs=0.001)


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (np.zeros((2, 100), np.float32), r"\(2, 100\).*mono"),
        (np.zeros(100, np.int16), "int16.*32768"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([1e300]), "NaN or infinite"),
        (np.array([0.0, -1e19]), r"samples up to 1e\+19; it must be floats in \[-1, 1\]"),
        ([0.0, 0.1], "list"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_other_arrays_are_refused(transcriber, audio, says):
    with pytest.raises(ValueError, match=says):
        transcriber.transcribe(audio)


def test_files_without_audio_are_refused(transcriber, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("Not audio, whatever its name says.\n" * 20)
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        transcriber.transcribe(tmp_path / "missing.wav")
    for name in ("", "empty.wav", "text.wav"):
        with pytest.raises(AudioDecodeError):
            transcriber.transcribe(tmp_path / name)


def test_search_is_the_checkpoint_s_unless_given(tiny_checkpoint):
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    assert Transcriber.load(tiny_checkpoint).search == model.config.search == SearchConfig(search="ctc")
    assert Transcriber.load(tiny_checkpoint, search="autoregressive").search.search == "autoregressive"
    mine = SearchConfig(max_tokens_per_second=1.0)
    assert Transcriber(model, tokenizer, mine).search is mine
    with pytest.raises(ValueError, match=r"beam.*autoregressive"):
        Transcriber.load(tiny_checkpoint, search="beam")
    changed = Transcriber.load(tiny_checkpoint, search="rescoring", beam_size=3, ctc_weight=0.0, length_bonus=2).search
    assert changed == SearchConfig("rescoring", beam_size=3, ctc_weight=0.0, length_bonus=2)
    with pytest.raises(ValueError, match=r"beam_size \(0\) must be positive"):
        Transcriber.load(tiny_checkpoint, beam_size=0)


def test_the_searches_differ(tiny_checkpoint, clips):
    searches = ("ctc", "autoregressive", "rescoring", "joint")
    texts = {Transcriber.load(tiny_checkpoint, search=s).transcribe(clips[0][0]).text for s in searches}
    assert len(texts) == 4


def test_a_model_in_training_mode_is_switched_to_evaluation(tiny_checkpoint, waveforms):
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    transcriber = Transcriber(model.train(), tokenizer)
    assert not any(module.training for module in model.modules())
    assert transcriber.transcribe(waveforms[0]) == transcriber.transcribe(waveforms[0])


def test_no_gradient_is_recorded(tiny_checkpoint, waveforms, monkeypatch):
    transcriber = Transcriber.load(tiny_checkpoint)
    modes = []
    encode = transcriber.model.encode
    monkeypatch.setattr(
        transcriber.model, "encode", lambda *args: modes.append(torch.is_inference_mode_enabled()) or encode(*args)
    )
    transcriber.transcribe(waveforms[0])
    assert modes == [True]


@pytest.mark.parametrize("device", ["tpu9", "", "cuda"])
def test_a_device_that_is_not_there_says_so(tiny_checkpoint, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cpu"):
        Transcriber.load(tiny_checkpoint, device=device)


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:77"])
def test_a_device_that_cannot_hold_anything_says_so(tiny_checkpoint, device, monkeypatch):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=rf"{device}.*use cpu"):
        Transcriber.load(tiny_checkpoint, device=device)


def test_a_transcript_is_plain_values(tiny_checkpoint, clips):
    transcript = Transcriber.load(tiny_checkpoint).transcribe(clips[0][0])
    values = transcript.to_dict()
    assert list(values) == ["text", "duration", "confidence", "segments", "words", "model"]
    assert (values["text"], values["duration"], values["model"]) == (transcript.text, 5.855, "tiny-random")
    assert values["confidence"] == round(transcript.confidence, 3)
    assert values["words"][0] == {
        "text": transcript.words[0].text,
        "start": round(transcript.words[0].start, 3),
        "end": round(transcript.words[0].end, 3),
        "confidence": round(transcript.words[0].confidence, 3),
    }
    assert json.loads(json.dumps(values)) == values
    with pytest.raises(dataclasses.FrozenInstanceError):
        transcript.text = ""


@pytest.mark.parametrize("search", ["ctc", "joint", "autoregressive"])
def test_the_shipped_model_s_words_lie_between_the_silences(search, waveforms):
    """Of LibriSpeech's clips: the first word starts where sound does, the last one ends where it does."""
    transcriber = Transcriber.load(PRETRAINED / "samba-tiny-en", search=search)
    for waveform in waveforms[:5]:
        words = transcriber.transcribe(waveform).words
        frames = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)  # 10 ms
        levels = np.sqrt((frames.astype(np.float64) ** 2).mean(1))
        loud = np.flatnonzero(levels > 0.05 * levels.max()) / 100
        assert words[0].start == pytest.approx(loud[0], abs=0.15)
        assert words[-1].end == pytest.approx(loud[-1], abs=0.2)
