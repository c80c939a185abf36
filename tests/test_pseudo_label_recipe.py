"""pseudo_label.py, from manifests to manifests, with a miniature teacher and with one that says what the test wants."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from distil_cases import teacher_weights, utterances
from test_whisper_vocabulary import write_vocabulary
from whisper_cases import write_openai

from samba_asr.audio.load import load_audio
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.manifest import Utterance, read_manifest, write_manifest
from samba_asr.training.whisper import label as module
from samba_asr.training.whisper.cli import main_label
from samba_asr.training.whisper.label import Reader, Report, corpora_with_case, label_manifests
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.pseudo_labels import write_as
from samba_asr.training.whisper.settings import LabelConfig
from samba_asr.training.whisper.transcribe import padded_states, teacher_features, transcribe_states
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.training.whisper.weights import read_whisper_weights

SCRIPT = Path(__file__).parent.parent / "recipes" / "whisper_to_samba" / "pseudo_label.py"


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory):
    """A teacher, its vocabulary, a manifest of seven bare clips and one of a corpus with case and punctuation."""
    folder = tmp_path_factory.mktemp("data")
    write_openai(folder / "teacher.pt", teacher_weights())
    write_vocabulary(folder / "tokenizer.json")
    bare = utterances(clips[:7])
    write_manifest(folder / "bare.jsonl", bare)
    texts = ["\u201cPrinting,\u201d in the only sense;", "in being modern.", "So NASA said\u2014no?"]
    cased = [Utterance(bare[0].audio, bare[0].duration, text, "", "cased") for text in texts]
    write_manifest(folder / "cased.jsonl", cased)
    return folder


def settings(data, *names, **changes):
    files = [str(data / name) for name in ("teacher.pt", "tokenizer.json")]
    return LabelConfig(*files, [str(data / name) for name in names or ("bare.jsonl",)], bf16=False, batch=3, **changes)


def says(monkeypatch, words):
    """Let the teacher say words(audio), and note what it is given."""
    heard = []

    def read(self, batch, report):
        heard.extend(utterance.audio for utterance in batch)
        yield from ((utterance.audio, words(utterance)) for utterance in batch)

    monkeypatch.setattr(Reader, "_read_batch", read)
    return heard


def nearly(utterance):
    """Capitals and a full stop, and, in LibriSpeech's "... HOUSE ...", half of the words misheard."""
    words = normalize_for_training(utterance.text).split()
    if "house" in words:
        words[::2] = ["zzz"] * len(words[::2])
    return " ".join(words).capitalize() + "."


def test_the_teacher_reads_every_utterance_in_a_window_of_its_own(data, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--teacher", data / "teacher.pt", "--teacher_tokenizer", data / "tokenizer.json", "--no-bf16"]
    options += ["--manifests", data / "bare.jsonl", data / "cased.jsonl", "--out", out, "--min-agreement", "0"]
    assert main_label([str(option) for option in (*options, "--batch", 3, "--threads", 1)]) == 0
    teacher = build_teacher(read_whisper_weights(data / "teacher.pt"))
    vocabulary = WhisperVocabulary.load(data / "tokenizer.json")
    lines = [json.loads(line) for line in (out / "teacher" / "bare.jsonl").read_text().splitlines()]
    written = {line["audio"]: line["text"] for line in lines}
    bare = read_manifest(data / "bare.jsonl")
    assert len(lines) == len(written) == 7
    for utterance in bare:
        waveform = torch.from_numpy(load_audio(utterance.audio))
        (alone,) = transcribe_states(
            teacher, vocabulary, padded_states(teacher, teacher_features(teacher.encoder), [waveform]), 126
        )
        assert alone.startswith(written[utterance.audio]) and len(written[utterance.audio]) > 20
    assert read_manifest(out / "bare.jsonl") == [
        dataclasses.replace(u, text=write_as(u.text, written[u.audio]).text) for u in bare
    ]
    texts = [utterance.text for utterance in read_manifest(out / "cased.jsonl")]
    assert texts == ["Printing, in the only sense,", "in being modern.", "So NASA said no?"]
    assert not (out / "rest").exists() and not (out / "teacher" / "cased.jsonl").exists()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("bare.jsonl: 7 labelled; ") and said[0].endswith(" words agree")
    assert said[1] == "cased.jsonl: 3 have case and punctuation of their own"


def test_padding_is_silence(data):
    """A batch's longest utterance changes nothing for the others."""
    teacher = build_teacher(read_whisper_weights(data / "teacher.pt"))
    features, waveforms = teacher_features(teacher.encoder), [0.1 * torch.randn(n) for n in (50_000, 480_000)]
    together, alone = padded_states(teacher, features, waveforms), padded_states(teacher, features, waveforms[:1])
    assert together.shape == (2, 1500, teacher.d_model)
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-4)
    silence = torch.cat([waveforms[0], torch.zeros(430_000)])
    torch.testing.assert_close(padded_states(teacher, features, [silence]), alone)


def test_what_agrees_too_little_is_kept_apart_or_dropped(data, tmp_path, monkeypatch):
    says(monkeypatch, nearly)
    bare = read_manifest(data / "bare.jsonl")
    misheard = [utterance for utterance in bare if "HOUSE" in utterance.text]
    assert len(misheard) == 2
    (report,) = label_manifests(settings(data), tmp_path)
    labelled, rest = (read_manifest(folder / "bare.jsonl") for folder in (tmp_path, tmp_path / "rest"))
    assert rest == [dataclasses.replace(u, text=u.text.lower()) for u in misheard]
    good = [utterance for utterance in bare if utterance not in misheard]
    assert labelled == [dataclasses.replace(u, text=nearly(u)) for u in good]
    words = sum(len(utterance.text.split()) for utterance in bare)
    wrong = sum((len(utterance.text.split()) + 1) // 2 for utterance in misheard)
    assert report == Report("bare.jsonl", labelled=5, rest=2, agreed=words - wrong, words=words)
    label_manifests(settings(data, rest="drop"), tmp_path)
    assert read_manifest(tmp_path / "bare.jsonl") == labelled and not list((tmp_path / "rest").iterdir())
    (report,) = label_manifests(settings(data, min_agreement=0.4), tmp_path)
    assert (report.labelled, report.rest) == (7, 0)


def test_a_tokenizer_of_what_is_labelled(data, tmp_path, monkeypatch):
    says(monkeypatch, nearly)
    label_manifests(settings(data, "bare.jsonl", "cased.jsonl", vocab_size=48), tmp_path)
    labelled = [u.text for name in ("bare", "cased") for u in read_manifest(tmp_path / f"{name}.jsonl")]
    assert Tokenizer.load(tmp_path / "tokenizer.model").model_proto == Tokenizer.train(labelled, 48).model_proto
    with pytest.raises(ValueError, match=r"vocab_size \(4000\) is too large"):
        label_manifests(settings(data, vocab_size=4000), tmp_path)


def test_it_goes_on_where_it_was_stopped(data, tmp_path, monkeypatch):
    def stops(utterance):
        if len(heard) > 3:
            raise KeyboardInterrupt
        return f"\u2028{nearly(utterance)}"  # a line's end to some, not to JSON

    heard = says(monkeypatch, stops)
    with pytest.raises(KeyboardInterrupt):
        label_manifests(settings(data), tmp_path)
    kept = tmp_path / "teacher" / "bare.jsonl"
    assert kept.read_text().count("\n") == 3 and not (tmp_path / "bare.jsonl").exists()
    with kept.open("a") as file:
        file.write('{"audio": "cut')
    first = heard[:3]
    heard = says(monkeypatch, nearly)
    (report,) = label_manifests(settings(data), tmp_path)
    bare = read_manifest(data / "bare.jsonl")
    assert sorted(heard) == sorted({utterance.audio for utterance in bare} - set(first))
    assert (report.labelled, report.rest) == (5, 2)
    assert len([json.loads(line) for line in kept.read_text().split("\n") if line]) == 7
    label_manifests(settings(data), tmp_path)
    assert len(heard) == 4  # nothing is read again


def test_another_teacher_reads_anew(data, tmp_path, monkeypatch):
    says(monkeypatch, nearly)
    label_manifests(settings(data), tmp_path)
    weights = teacher_weights()
    weights["encoder.ln_post.bias"] = weights["encoder.ln_post.bias"] + 1
    write_openai(tmp_path / "teacher.pt", weights)
    heard = says(monkeypatch, lambda utterance: utterance.text.lower())
    label_manifests(dataclasses.replace(settings(data), teacher=str(tmp_path / "teacher.pt")), tmp_path)
    assert len(heard) == 7
    assert read_manifest(tmp_path / "bare.jsonl")[1].text == "simmer for a minute or two and serve in a tureen"


def test_bad_files_and_long_ones_are_counted(data, tmp_path, capsys, caplog):
    bare = read_manifest(data / "bare.jsonl")[:2]
    (tmp_path / "noise.wav").write_bytes(b"no sound" * 99)
    bad = [
        dataclasses.replace(bare[0], audio=str(tmp_path / name), duration=duration)
        for name, duration in (("noise.wav", 3.0), ("missing.wav", 4.0), ("an hour.wav", 3600.0))
    ]
    soundfile.write(tmp_path / "longer than it says.wav", torch.zeros(31 * 16_000).numpy(), 16_000)
    bad.append(dataclasses.replace(bare[0], audio=str(tmp_path / "longer than it says.wav")))
    write_manifest(tmp_path / "mixed.jsonl", [*bad, *bare])
    options = ["--teacher", data / "teacher.pt", "--teacher-tokenizer", data / "tokenizer.json", "--no-bf16"]
    options += ["--manifests", tmp_path / "mixed.jsonl", "--out", tmp_path / "out", "--min_agreement", "0"]
    assert main_label([str(option) for option in options]) == 1
    assert "mixed.jsonl: 2 labelled, 2 longer than 30 s, left out, 2 unreadable, left out; " in capsys.readouterr().out
    assert "noise.wav" in caplog.text and "missing.wav" in caplog.text
    assert [u.audio for u in read_manifest(tmp_path / "out" / "mixed.jsonl")] == [u.audio for u in bare]


def test_a_limit_takes_some_from_all_over(data, tmp_path, monkeypatch):
    heard = says(monkeypatch, nearly)
    bare = read_manifest(data / "bare.jsonl")
    reports = label_manifests(settings(data, "bare.jsonl", "cased.jsonl", limit=3), tmp_path)
    assert sorted(heard) == sorted(bare[i].audio for i in (0, 2, 4))
    assert [report.labelled + report.rest for report in reports] == [3, 0] and reports[1].as_they_were == 3
    label_manifests(settings(data), tmp_path)
    assert sorted(heard) == sorted(utterance.audio for utterance in bare)


def test_paths_are_those_of_the_audio_from_anywhere(data, tmp_path, monkeypatch):
    """Manifests and audio named relative to the working folder, the new manifest in another one."""
    says(monkeypatch, nearly)
    audio = Path(read_manifest(data / "bare.jsonl")[0].audio)
    (tmp_path / "in").mkdir()
    shutil.copy(audio, tmp_path / "in" / audio.name)
    line = {"audio": audio.name, "duration": 5.0, "text": "A B C", "speaker": "", "corpus": ""}
    (tmp_path / "in" / "m.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.chdir(tmp_path)
    label_manifests(dataclasses.replace(settings(data), manifests=["in/m.jsonl"]), "out")
    (utterance,) = read_manifest("out/m.jsonl")
    assert utterance.audio == str(tmp_path / "in" / audio.name) and utterance.text == "A b c."


def test_case_is_a_matter_of_corpora():
    def corpus(name, *texts):
        return [Utterance("a", 1.0, text, "", name) for text in texts]

    mixed = corpus("cased", "The end.", "and so on,") + corpus("capitals", "THE END", "AND", "I am.")
    assert corpora_with_case(mixed + corpus("", "the end", "i am")) == {"cased"}
    assert corpora_with_case(mixed[1:3]) == set()


def test_what_cannot_be_used_is_told(data, tmp_path, capsys):
    for change, message in (
        ({"min_agreement": 90}, r"min_agreement \(90\) must be in \[0, 1\]"),
        ({"limit": 0}, r"limit \(0\) must be positive"),
        ({"manifests": []}, "at least one manifest"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(settings(data), **change)
    with pytest.raises(ValueError, match=r"bare\.jsonl is there twice"):
        label_manifests(settings(data, "bare.jsonl", "bare.jsonl"), tmp_path)
    with pytest.raises(ValueError, match=r"holds the manifest bare\.jsonl itself: choose another folder"):
        label_manifests(settings(data), data)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "bare.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"bare\.jsonl is damaged .*: delete it, and the teacher reads anew"):
        label_manifests(settings(data), tmp_path)
    arguments = ["--teacher", "none.pt", "--teacher_tokenizer", "none.json", "--manifests", str(data / "bare.jsonl")]
    assert main_label([*arguments, "--out", str(tmp_path)]) == 1
    assert "pseudo_label.py: error: teacher none.pt does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main_label([*arguments, "--out", str(tmp_path), "--limit", "-1"])
    assert "limit (-1) must be positive" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(data, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "label_manifests", interrupt)
    arguments = ["--teacher", "t.pt", "--teacher_tokenizer", "t.json", "--manifests", "m.jsonl", "--out", "out"]
    assert main_label(arguments) == 130
    assert capsys.readouterr().err == "\npseudo_label.py: interrupted; the same command goes on from here\n"


def test_help_explains_what_becomes_of_utterances():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    for words in ("OUT/rest/MANIFEST", "--min_agreement SHARE, --min-agreement SHARE", "--rest {keep,drop}"):
        assert words in done.stdout
    assert done.stderr == ""
