"""recipes/librispeech/prepare.py, as a user runs it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.manifest import read_manifest

SCRIPT = Path(__file__).parent.parent / "recipes" / "librispeech" / "prepare.py"


def prepare(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "100"})


@pytest.fixture
def data(tmp_path, clips) -> Path:
    """A folder of corpora: LibriSpeech (train, dev), LJSpeech."""
    root = tmp_path / "data"
    for split, speaker, chosen in (("train-clean-5", "19", clips[:4]), ("dev-clean", "84", clips[4:5])):
        chapter = root / "LibriSpeech" / split / speaker / "1"
        chapter.mkdir(parents=True)
        lines = []
        for i, (clip, text) in enumerate(chosen):
            shutil.copy(clip, chapter / f"{speaker}-1-{i:04}{clip.suffix}")
            lines.append(f"{speaker}-1-{i:04} {text}\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    (root / "LJSpeech-1.1" / "wavs").mkdir(parents=True)
    names = [f"LJ001-{i:04}" for i in range(1, 5)]
    for name, (clip, _) in zip(names, clips[5:], strict=False):
        shutil.copy(clip, root / "LJSpeech-1.1" / "wavs" / f"{name}{clip.suffix}")
    lines = [f"{name}|Text No. {name}!|Text number {word}!\n" for name, word in zip(names, "wxyz", strict=True)]
    (root / "LJSpeech-1.1" / "metadata.csv").write_text("".join(lines))
    return root


def test_a_folder_of_corpora(data, tmp_path, clips):
    out = tmp_path / "out"
    run = prepare("--data", data, "--out", out, "--vocab-size", 48)
    assert run.returncode == 0, run.stderr
    names = ("librispeech-train-clean-5", "librispeech-dev-clean", "ljspeech-train")
    assert sorted(os.listdir(out)) == sorted([*(n + e for n in names for e in (".jsonl", ".tsv")), "tokenizer.model"])

    train = read_manifest(out / "librispeech-train-clean-5.jsonl")
    assert [u.text for u in train] == [text for _, text in clips[:4]]
    tsv = (out / "librispeech-train-clean-5.tsv").read_text().splitlines()
    assert [tuple(line.split("\t")) for line in tsv] == [(u.audio, u.text) for u in train]
    assert all(Path(u.audio).is_file() for u in train)

    tokenizer = Tokenizer.load(out / "tokenizer.model")
    assert tokenizer.vocab_size == 48
    texts = [normalize_for_training(u.text) for u in read_manifest(out / "ljspeech-train.jsonl") + train]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert tokenizer.model_proto == Tokenizer.train(texts, 48).model_proto  # dev texts are not in it

    rows = {tuple(line.split()[:2]): line.split()[2:] for line in run.stdout.splitlines()}
    assert rows["corpus", "split"] == ["utterances", "hours", "words", "skipped"]
    words = str(sum(len(text.split()) for _, text in clips[:4]))
    assert rows["librispeech", "train-clean-5"] == ["4", f"{sum(u.duration for u in train) / 3600:.2f}", words, "0"]
    assert rows["ljspeech", "train"][::3] == ["3", "1"]
    assert run.stdout.splitlines()[-1].split()[:2] == ["all", "8"]
    assert "LJ001-0004): audio is missing" in run.stderr
    assert "training the tokenizer on ljspeech-train, librispeech-train-clean-5\n" in run.stderr


def test_a_tokenizer_of_written_text(data, tmp_path):
    run = prepare("--data", data, "--out", tmp_path / "out", "--vocab-size", 48, "--text-form", "written")
    assert run.returncode == 0, run.stderr
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer.model")
    for text in ("Text number w!", "mister quilter is the apostle"):  # LJSpeech's; LibriSpeech's in lower case
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chosen_corpora_bpe_and_paths_below_out(data):
    run = prepare("--data", ".", "--out", ".", "--vocab-size", 38, "--kind", "bpe", "--corpora", "ljspeech", cwd=data)
    assert run.returncode == 0, run.stderr
    assert not list(data.glob("librispeech*"))
    assert '{"audio": "LJSpeech-1.1/wavs/LJ001-0001.opus"' in (data / "ljspeech-train.jsonl").read_text()
    # a path that every tool finds, wherever it runs
    assert (data / "ljspeech-train.tsv").read_text().startswith(str(data / "LJSpeech-1.1/wavs"))
    assert Tokenizer.load(data / "tokenizer.model").vocab_size == 38


def test_synthetic_speech(data, tmp_path, clips):
    voices = data / "my voices"
    voices.mkdir()
    shutil.copy(clips[5][0], voices / "0.opus")
    (voices / "manifest.tsv").write_text('0.opus\tSpoken by a machine\t{"pitch": 1.1}\n1.opus\tSpok')
    run = prepare("--data", data, "--out", tmp_path / "out", "--vocab-size", 48)
    assert run.returncode == 0, run.stderr
    (utterance,) = read_manifest(tmp_path / "out/synthetic-my voices-train.jsonl")
    assert (utterance.audio, utterance.text) == (str(voices / "0.opus"), "Spoken by a machine")
    assert utterance.corpus == "synthetic-my voices"
    assert "synthetic-my voices train: skipped 1 of 2 utterances" in run.stderr
    assert "Synthetic      manifest.tsv" in prepare("--help").stdout


def test_without_a_train_split(data, tmp_path):
    run = prepare("--data", data / "LibriSpeech/dev-clean", "--out", tmp_path / "out", "--vocab-size", 28)
    assert run.returncode == 0, run.stderr
    assert "the tokenizer is trained on all of them" in run.stderr
    assert (tmp_path / "out/librispeech-dev-clean.jsonl").is_file()


def test_dev_share(data, tmp_path):
    run = prepare("--data", data, "--out", tmp_path / "out", "--vocab-size", 40, "--dev-share", 0.4)
    assert run.returncode == 0, run.stderr
    train, dev = (read_manifest(tmp_path / f"out/ljspeech-{name}.jsonl") for name in ("train", "dev"))
    assert len(train) == 2 and len(dev) == 1
    assert len(read_manifest(tmp_path / "out/librispeech-train-clean-5.jsonl")) == 4  # it has a dev split
    run = prepare("--data", data, "--out", tmp_path / "small", "--vocab-size", 40, "--dev-share", 0.001)
    assert run.returncode == 0 and "ljspeech-train: too little for a dev share of 0.001" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "absent"], 2, "--data absent does not exist: name a corpus folder"),
        (["--data", "LJSpeech-1.1/metadata.csv"], 2, "metadata.csv is not a folder"),
        (["--data", "LibriSpeech/dev-clean/84"], 1, "holds no corpus of a known layout; see prepare.py --help"),
        (["--data", ".", "--corpora", "timit"], 1, "--corpora timit: . has ljspeech, librispeech"),
        (["--data", "."], 1, "--vocab-size: vocab_size (512) is too large for so little text: use at most"),
        (["--data", ".", "--vocab-size", "10"], 1, "--vocab-size: vocab_size (10) must be at least"),
        (["--data", ".", "--dev-share", "1"], 2, "--dev-share (1.0) must be in [0, 1)"),
        (["--data", ".", "--kind", "word"], 2, "invalid choice: 'word'"),
        ([], 2, "required: --data"),
    ],
)
def test_user_errors(data, tmp_path, arguments, code, message):
    run = prepare(*arguments, "--out", tmp_path / "out", cwd=data)
    assert run.returncode == code and message in run.stderr, run.stderr
    assert run.stdout == "" and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c(data, tmp_path):
    code = f"""
import runpy, signal, samba_asr.training.corpora as corpora
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
corpora.scan_corpus = lambda *_, **__: signal.raise_signal(signal.SIGINT)
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", code, "--data", str(data), "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 130 and run.stderr.strip() == "prepare.py: interrupted"
    assert not (tmp_path / "out").exists()


def test_two_corpora_of_one_name(data, tmp_path):
    shutil.copytree(data / "LJSpeech-1.1", data / "another")
    run = prepare("--data", data, "--out", tmp_path / "out", "--vocab-size", 40)
    assert run.returncode == 1 and "has ljspeech-train twice" in run.stderr


def test_no_audio_at_all(data, tmp_path):
    shutil.rmtree(data / "LibriSpeech")
    shutil.rmtree(data / "LJSpeech-1.1/wavs")
    (data / "LJSpeech-1.1/wavs").mkdir()
    run = prepare("--data", data, "--out", tmp_path / "out")
    assert run.returncode == 1 and "holds corpora (ljspeech) but not one utterance with its audio" in run.stderr


def test_help_teaches():
    run = prepare("--help")
    assert run.returncode == 0 and run.stderr == ""
    for address in (
        "openslr.org/12",
        "openslr.org/31",
        "commonvoice.mozilla.org",
        "openslr.org/101",
        "keithito.com/LJ-Speech-Dataset",
    ):
        assert address in run.stdout
    documented = set(re.findall(r"^  (--[a-z-]+)", run.stdout, re.MULTILINE))
    assert documented == {"--data", "--out", "--vocab-size", "--kind", "--text-form", "--dev-share", "--corpora"}
    for used in re.findall(r"prepare\.py (--.*)", run.stdout):
        assert set(re.findall(r"--[a-z-]+", used)) <= documented
