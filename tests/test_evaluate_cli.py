"""The recipe's evaluate.py: batches, errors, and a whole run with a small model."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from samba_asr.audio.features import librosa_mel_filters
from samba_asr.config import DecoderConfig, EncoderConfig, MixerConfig, ModelConfig
from samba_asr.evaluation.report import combine
from samba_asr.evaluation.wer import ScoredUtterance, count_errors, scoring_pair
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import save_checkpoint
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.manifest import Utterance, write_manifest
from samba_asr.transcriber import Transcriber

SCRIPT = Path(__file__).parent.parent / "recipes" / "librispeech" / "evaluate.py"


@pytest.fixture(scope="module")
def evaluate():
    spec = importlib.util.spec_from_file_location("evaluate_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counter:
    """Stands for a Transcriber: hears each waveform's length, in words ten times its seconds."""

    sample_rate = 16_000

    def __init__(self):
        self.batches = []

    def transcribe_batch(self, waveforms, n_best=1):
        assert n_best == 1
        self.batches.append([len(waveform) / self.sample_rate for waveform in waveforms])
        return [
            SimpleNamespace(
                text=self.words(seconds),
                duration=seconds,
                n_best=(),
                words=[SimpleNamespace(confidence=seconds) for _ in self.words(seconds).split()],
            )
            for seconds in self.batches[-1]
        ]

    @staticmethod
    def words(seconds):
        return " ".join(["a"] * round(10 * seconds))


@pytest.fixture
def utterances(tmp_path):
    """Nine recordings of noise of different lengths, whose words are those that the Counter hears."""
    made = []
    for tenths in (7, 2, 9, 4, 1, 8, 3, 6, 5):
        path = tmp_path / f"{tenths}.wav"
        soundfile.write(path, np.random.default_rng(tenths).normal(0, 0.1, tenths * 1600), 16_000)
        made.append(Utterance(str(path), tenths / 10, Counter.words(tenths / 10), "someone", "made up"))
    return made


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A small model with random weights."""
    texts = ["the quick brown fox jumps over a lazy dog", "she sells sea shells by the sea shore"]
    tokenizer = Tokenizer.train(texts, vocab_size=34)
    mixer = MixerConfig(d_state=8, head_dim=8)
    config = ModelConfig(
        vocab_size=34,
        d_model=16,
        encoder=EncoderConfig(n_layers=1, d_ff=16, subsampling_channels=4, mixer=mixer),
        decoder=DecoderConfig(n_layers=1, d_ff=16, mixer=mixer),
    )
    folder = tmp_path_factory.mktemp("model") / "random"
    save_checkpoint(folder, SambaASR(config, librosa_mel_filters(config.features)), tokenizer, "A test's model.")
    return folder


def test_batches_hold_each_utterance_once_within_the_cap(evaluate):
    durations = np.random.default_rng(0).uniform(0.5, 20, 200).tolist()
    batches = evaluate.make_batches(durations, 60)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) * max(durations[i] for i in batch) <= 60 for batch in batches)
    assert [durations[i] for batch in batches for i in batch] == sorted(durations, reverse=True)
    # No batch could have taken the next one's first utterance too.
    assert all((len(batch) + 1) * durations[batch[0]] > 60 for batch in batches[:-1])


def test_a_batch_of_one_may_be_longer_than_the_cap(evaluate):
    assert evaluate.make_batches([5.0, 100.0, 5.0], 10) == [[1], [0, 2]]
    assert evaluate.make_batches([], 10) == []


def test_each_hypothesis_comes_back_to_its_utterance(evaluate, utterances):
    transcriber = Counter()
    result = evaluate.transcribe_set(transcriber, "noise", utterances, batch_seconds=2)
    assert [u.audio for u in result.utterances] == [u.audio for u in utterances]
    assert [u.reference for u in result.utterances] == [u.text for u in utterances]
    assert result.wer.errors == 0
    assert result.wer.words == 45
    assert result.audio_seconds == pytest.approx(4.5)
    assert result.utterances[0].confidences == (0.7,) * 7
    assert result.judged_words[:7] == [(0.7, True)] * 7
    assert result.utterances[0].speaker == "someone"
    assert result.utterances[0].corpus == "made up"
    assert max(map(len, transcriber.batches)) > 2
    assert all(len(batch) * max(batch) <= 2 for batch in transcriber.batches)
    assert result.seconds > 0


def test_unreadable_files_count_as_deleted_and_stop_nothing(evaluate, utterances, tmp_path, capsys):
    Path(utterances[0].audio).write_text("this is no sound, whatever its name says; " * 20)
    Path(utterances[1].audio).unlink()
    result = evaluate.transcribe_set(Counter(), "noise", utterances, batch_seconds=0.1)
    assert set(result.unreadable) == {utterances[0].audio, utterances[1].audio}
    assert (result.wer.deletions, result.wer.errors, result.wer.words) == (9, 9, 45)
    assert result.audio_seconds == pytest.approx(3.6)
    errors = capsys.readouterr().err
    for utterance in utterances[:2]:
        assert errors.count(utterance.audio) == 1
        assert utterance.audio not in result.unreadable[utterance.audio]


class Small(Counter):
    """A Counter whose memory holds a second at once, and 0.8 seconds of one recording."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def transcribe_batch(self, waveforms, n_best=1):
        total = sum(map(len, waveforms)) / self.sample_rate
        if total > 1 or (len(waveforms) == 1 and total > 0.85):
            raise self.error
        return super().transcribe_batch(waveforms)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of\nmemory"), MemoryError()])
def test_a_batch_too_large_is_done_one_by_one(evaluate, utterances, error, capsys):
    result = evaluate.transcribe_set(Small(error), "noise", utterances, batch_seconds=60)
    (longest,) = [u for u in utterances if u.duration == 0.9]
    assert result.unreadable == {longest.audio: " ".join(str(error).split()) or "MemoryError"}
    assert (result.wer.deletions, result.wer.errors, result.wer.words) == (9, 9, 45)
    assert [u.hypothesis for u in result.utterances] == [u.text if u is not longest else "" for u in utterances]
    assert capsys.readouterr().err.count(longest.audio) == 1


def test_an_interrupt_is_no_traceback(evaluate, manifests, model_folder, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "transcribe_set", interrupted)
    assert evaluate.main(["--model", str(model_folder), "--manifests", *manifests]) == 130
    assert capsys.readouterr() == ("", "evaluate.py: interrupted\n")


def test_a_report_folder_that_cannot_be_written_shows_before_the_work(
    evaluate, manifests, model_folder, tmp_path, monkeypatch, capsys
):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(evaluate.tempfile, "TemporaryFile", refuse)
    options = ["--model", str(model_folder), "--manifests", *manifests, "--out", str(tmp_path / "locked")]
    assert evaluate.main(options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("evaluate.py: error: ") and str(tmp_path / "locked") in err


def test_names_of_sets(evaluate, tmp_path):
    assert evaluate.set_names([Path("a/dev-clean.jsonl"), Path("test.jsonl")]) == ["dev-clean", "test"]
    assert evaluate.set_names([Path("a/dev.jsonl"), Path("b/dev.jsonl")]) == ["a/dev.jsonl", "b/dev.jsonl"]
    with pytest.raises(ValueError, match="twice"):
        evaluate.set_names([tmp_path / "a.jsonl", tmp_path / "b" / ".." / "a.jsonl"])


@pytest.fixture
def manifests(utterances, clips, tmp_path):
    clip_utterances = [Utterance(str(path.resolve()), 5.0, text, "", "clips") for path, text in clips[:3]]
    write_manifest(tmp_path / "noise.jsonl", utterances)
    write_manifest(tmp_path / "clips.jsonl", clip_utterances)
    return [str(tmp_path / "noise.jsonl"), str(tmp_path / "clips.jsonl")]


SETS_AND_ALL = ["noise", "clips", "all"]
LINE = re.compile(
    r"(?P<name>\S+): (?P<utterances>\d+) utterances, (?P<words>\d+) words, WER (?P<wer>[\d.]+) % \[[\d.]+, [\d.]+\] "
    r"\(S (?P<S>\d+), D (?P<D>\d+), I (?P<I>\d+)\), CER [\d.]+ %, raw WER [\d.]+ %, RTF [\d.]+"
)


def test_a_whole_run(manifests, model_folder, tmp_path):
    out = tmp_path / "report"
    arguments = ["--model", model_folder, "--manifests", *manifests, "--out", out, "--worst", "1", "--threads", "1"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(lines), done.stdout
    assert [(line["name"], line["utterances"]) for line in lines] == list(
        zip(SETS_AND_ALL, ["9", "3", "12"], strict=True)
    )
    for line in lines:
        errors = sum(int(line[kind]) for kind in "SDI")
        assert float(line["wer"]) == pytest.approx(100 * errors / int(line["words"]), abs=0.005)
    assert int(lines[2]["words"]) == int(lines[0]["words"]) + int(lines[1]["words"])

    report = (out / "report.md").read_text(encoding="utf-8")
    assert f"evaluate.py --model {model_folder} --manifests" in report
    assert "- Threads: 1" in report
    assert len(list(out.glob("*-worst-*.png"))) == 2

    transcriber = Transcriber.load(model_folder)
    rows = [json.loads(row) for row in (out / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    assert any(row["hypothesis"] for row in rows)
    for row in rows:  # batched equals alone
        transcript = transcriber.transcribe(row["audio"])
        assert (row["hypothesis"], row["duration"]) == (transcript.text, transcript.duration)
        assert row["confidences"] == pytest.approx([word.confidence for word in transcript.words], abs=2e-4)
    assert "Confidence of " in report and len(list(out.glob("*-confidence.png"))) == 2


def test_the_report_tells_the_precision(evaluate, manifests, model_folder, tmp_path):
    arguments = ["--model", model_folder, "--manifests", manifests[0], "--limit", "1"]
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        assert evaluate.main([*map(str, arguments), "--out", str(out), "--precision", precision]) == 0
        said = "- Precision: bfloat16" in (out / "report.md").read_text(encoding="utf-8")
        assert said == (precision == "bfloat16")


def test_search_limit_and_no_report(evaluate, manifests, model_folder, tmp_path, capsys, monkeypatch):
    searches = []
    transcribe_set = evaluate.transcribe_set

    def spy(transcriber, *arguments):
        searches.append(transcriber.search.search)
        return transcribe_set(transcriber, *arguments)

    monkeypatch.setattr(evaluate, "transcribe_set", spy)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    options = ["--model", str(model_folder), "--manifests", manifests[1], "--limit", "2"]
    assert evaluate.main([*options, "--search", "autoregressive"]) == 0
    assert evaluate.main(options) == 0
    assert searches == ["autoregressive", "ctc"]
    assert capsys.readouterr().out.count("2 utterances") == 2  # one set: no line for all
    assert sorted(tmp_path.iterdir()) == before


def test_several_searches_report_side_by_side(evaluate, manifests, model_folder, tmp_path, capsys):
    options = ["--model", str(model_folder), "--manifests", *manifests, "--limit", "3", "--worst", "0"]
    settings = ["--beam-size", "4", "--ctc-weight", "0.25", "--length-bonus", "0.5", "--out", str(tmp_path / "reports")]
    assert evaluate.main([*options, "--search", "rescoring", "ctc", "rescoring", "autoregressive", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [f"{search}, {name}" for search in ("rescoring", "ctc", "autoregressive") for name in SETS_AND_ALL]
    assert [line.partition(":")[0] for line in lines] == expected
    for search in ("rescoring", "ctc", "autoregressive"):
        report = (tmp_path / "reports" / search / "report.md").read_text(encoding="utf-8")
        setting = "rescoring, 4 texts, CTC weight 0.25, length bonus 0.5" if search == "rescoring" else search
        assert f"- Search: {setting}\n" in report
        transcriber = Transcriber.load(model_folder, search=search, beam_size=4, ctc_weight=0.25, length_bonus=0.5)
        rows = (tmp_path / "reports" / search / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, rows):
            assert row["hypothesis"] == transcriber.transcribe(row["audio"]).text


def test_hotwords_count_and_are_reported(evaluate, manifests, model_folder, tmp_path):
    options = ["--model", str(model_folder), "--manifests", manifests[0], "--limit", "2", "--search", "joint"]
    texts = []
    for boost in ("0", "30"):
        settings = ["--hotwords", "the,and", "--hotword-boost", boost, "--out", str(tmp_path / boost)]
        assert evaluate.main([*options, *settings]) == 0
        report = (tmp_path / boost / "report.md").read_text(encoding="utf-8")
        assert f", hotwords the,and, boost {float(boost)}\n" in report
        rows = (tmp_path / boost / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
        texts.append([json.loads(row)["hypothesis"] for row in rows])
    assert texts[0] != texts[1]


def test_a_lexicon_counts_and_is_reported(evaluate, manifests, model_folder, tmp_path):
    options = ["--model", str(model_folder), "--manifests", manifests[0], "--limit", "2", "--search", "ctc", "joint"]
    (tmp_path / "words").write_text("a\n", encoding="utf-8")
    settings = ["--lexicon", str(tmp_path / "words"), "--unknown-word-penalty", "7.5", "--out", str(tmp_path / "out")]
    assert evaluate.main([*options, *settings]) == 0
    assert evaluate.main([*options, "--out", str(tmp_path / "none")]) == 0
    reports = [(tmp_path / name / "joint" / "report.md").read_text(encoding="utf-8") for name in ("out", "none")]
    assert [", unknown words' penalty 7.5\n" in report for report in reports] == [True, False]
    texts = [(tmp_path / name / "joint" / "utterances.jsonl").read_text(encoding="utf-8") for name in ("out", "none")]
    assert texts[0] != texts[1]


def test_the_n_best_and_times_are_kept(evaluate, manifests, model_folder, tmp_path, capsys):
    options = ["--model", str(model_folder), "--manifests", manifests[0], "--limit", "3", "--search", "joint"]
    assert evaluate.main([*options, "--nbest", "4", "--word-timestamps", "--out", str(tmp_path)]) == 0
    line = capsys.readouterr().out
    rows = [json.loads(row) for row in (tmp_path / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]
    transcriber = Transcriber.load(model_folder, search="joint")
    errors = words = 0
    for row in rows:
        transcript = transcriber.transcribe(row["audio"], n_best=4)
        assert row["n_best"] == [each.text for each in transcript.n_best] and len(row["n_best"]) > 1
        assert row["times"] == [[round(w.start, 3), round(w.end, 3)] for w in transcript.words]
        errors += min(count_errors(*scoring_pair(said(row, text))).errors for text in row["n_best"])
        words += row["words"]
    assert f"WER of the best of the n best {100 * errors / words:.2f} %" in line
    assert evaluate.main([*options, "--out", str(tmp_path)]) == 0
    assert "n best" not in capsys.readouterr().out
    row = json.loads((tmp_path / "utterances.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "n_best" not in row and "times" not in row and row["confidences"]


def said(row, text):
    return ScoredUtterance(row["audio"], 1.0, row["reference"], text)


def test_exit_code_of_an_unreadable_file(evaluate, manifests, utterances, model_folder, tmp_path, capsys):
    Path(utterances[2].audio).write_bytes(b"")
    options = ["--model", str(model_folder), "--manifests", manifests[0], "--out", str(tmp_path / "report")]
    assert evaluate.main(options) == 1
    captured = capsys.readouterr()
    assert captured.out.endswith(", 1 unreadable\n")
    assert len(captured.out.splitlines()) == 1
    assert utterances[2].audio in captured.err
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert f"- `{utterances[2].audio}`: " in report
    assert "all their words count as deleted" in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--manifests": ["gone.jsonl"]}, "gone.jsonl"),
        ({"--manifests": ["empty.jsonl"]}, "holds no utterance"),
        ({"--manifests": ["wrong.jsonl"]}, "wrong.jsonl:1"),
        ({"--manifests": ["right.jsonl", "./right.jsonl"]}, "twice"),
        ({"--model": ["gone"]}, "gone"),
        ({"--model": ["."]}, "config.json"),
        ({"--out": ["right.jsonl"]}, "right.jsonl"),
        ({"--device": ["abacus"]}, "abacus"),
        ({"--beam-size": ["0"]}, "beam_size (0)"),
        ({"--ctc-weight": ["2"]}, "ctc_weight (2.0)"),
        ({"--lm": ["gone"], "--search": ["joint"]}, "language model gone is neither"),
        ({"--hotwords": ["gospel"], "--search": ["joint", "ctc"]}, "search ('ctc') must be 'joint'"),
    ],
)
def test_wrong_arguments_are_said_clearly(
    evaluate, change, message, utterances, model_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_manifest("right.jsonl", utterances[:1])
    Path("empty.jsonl").touch()
    Path("wrong.jsonl").write_text("no json\n")
    options = {"--model": [str(model_folder)], "--manifests": ["right.jsonl"]} | change
    assert evaluate.main([word for name, values in options.items() for word in (name, *values)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("evaluate.py: error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [[], ["--limit", "0"], ["--batch-seconds", "0"], ["--threads", "-1"], ["--worst", "-1"], ["--search", "guess"]],
)
def test_usage_errors(evaluate, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--manifests", "a.jsonl", *options] if options else [])
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_without_the_extra_train_it_says_what_to_install():
    code = f"import runpy, sys; sys.modules['jiwer'] = None; runpy.run_path({str(SCRIPT)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("evaluate.py: ") and "jiwer" in done.stderr and "'.[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_all_sets_of_a_run_can_be_combined(evaluate, utterances):
    halves = [evaluate.transcribe_set(Counter(), str(i), utterances[i::2], 60) for i in range(2)]
    assert combine(halves).wer.words == 45
