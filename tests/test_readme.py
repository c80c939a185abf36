"""README's commands run, and what it names exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import soundfile

from samba_asr.audio.load import load_audio
from samba_asr.subtitles import srt
from samba_asr.transcriber import Transcriber

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)

NOT_RUN = ("make", "pip install", "python3 -m venv")
"""Commands that set up an environment: only what they name is checked."""

SMALLER = {
    "prepare.py --data data --out prepared": "--vocab-size 40",
    "--out runs/tiny": (
        "--model.vocab_size 40 --model.d_model 32 --model.encoder.n_layers 1 --model.decoder.n_layers 1 "
        "--model.encoder.d_ff 32 --model.decoder.d_ff 32 --data.batch_seconds 30 --data.num_workers 0 --max_steps 4"
    ),
}
"""Flags appended to README's commands, so that the recipe takes seconds."""


def commands(word):
    """Return README's bash blocks whose first command contains a word."""
    found = [block for kind, block in BLOCKS if kind == "bash" and word in block.splitlines()[0]]
    assert found, f"README has no block that begins with {word}"
    return found


def in_readme(block, folder, **variables):
    """Run a block as a person would, in a folder that looks like the checkout."""
    for name in ("transcribe.py", "app.py", "recipes", "samba_asr"):
        (folder / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path, clips):
    """A folder with the recordings that README speaks of."""
    soundfile.write(tmp_path / "audio.wav", load_audio(clips[0][0]), 16_000)
    for name, (path, _) in zip(("one.mp3", "two.mp3"), clips, strict=False):
        shutil.copy(path, tmp_path / name)
    (tmp_path / "talks").mkdir()
    shutil.copy(clips[2][0], tmp_path / "talks" / "three.mp3")
    return tmp_path


def test_every_block_is_run_or_checked():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    firsts = [block.splitlines()[0] for kind, block in BLOCKS if kind == "bash"]
    assert all(first.startswith((*NOT_RUN, "python transcribe.py", "python recipes/")) for first in firsts), firsts


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make ([\w-]+)", "".join(commands("make")), flags=re.MULTILINE))
    named |= set(re.findall(r"`make ([\w-]+)", README))
    assert {"transcribe", "test", "demo", "lint"} <= named <= targets
    assert BLOCKS[0] == ("bash", "make transcribe\nmake test\n")


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"`\.\[(\w+)\]`", README)) <= set(extras)
    (install,) = commands("venv")
    # Debian has no bare python, nor is samba-asr on the path, until the environment is activated
    assert install.splitlines() == ["python3 -m venv .venv", ". .venv/bin/activate", "pip install -e ."]


def test_the_recipe_s_packages_come_before_its_commands():
    bash = [block for kind, block in BLOCKS if kind == "bash"]
    (recipe,) = commands("prepare.py")
    assert bash[bash.index(recipe) - 1] == "pip install -e '.[train]'\n"


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_transcribing(folder, tiny_checkpoint, clips):
    block, *_ = commands("transcribe.py")
    out = in_readme(block, folder, SAMBA_ASR_MODEL=str(tiny_checkpoint)).splitlines()
    transcriber = Transcriber.load(tiny_checkpoint)
    one, two = (transcriber.transcribe(path).text for path, _ in clips[:2])
    assert out[0] == transcriber.transcribe(folder / "audio.wav").text
    assert (folder / "words.tsv").read_text() == f"one.mp3\t{one}\ntwo.mp3\t{two}\n"
    assert [one in out[1], two in out[2]] == [True, True]
    assert (folder / "words" / "two.txt").read_text() == f"{two}\n"
    timed = transcriber.transcribe(folder / "audio.wav")
    assert (folder / "audio.srt").read_text() == srt(timed)
    assert out[3] == timed.text
    files = sorted(path.name for path in (folder / "subtitles").iterdir())
    assert files == sorted(f"{name}.{form}" for name in ("one", "two", "three") for form in ("srt", "tsv"))
    searches = ("autoregressive", "rescoring", "joint", "ctc")
    for line, search in zip(out[4:8], searches, strict=True):
        assert line == Transcriber.load(tiny_checkpoint, search=search).transcribe(folder / "audio.wav").text
    assert out[8] == Transcriber.load("samba-base-en").transcribe(folder / "audio.wav").text
    assert [line.split("\t")[-1] for line in out[9:]] == [timed.text, *(word.text for word in timed.words)]


def test_hints(folder):
    _, block, _ = commands("transcribe.py")
    out = in_readme(block, folder, SAMBA_ASR_MODEL=str(ROOT / "pretrained" / "samba-tiny-en")).splitlines()
    transcriber = Transcriber.load("samba-tiny-en")
    best = transcriber.transcribe(folder / "audio.wav", n_best=4)
    assert "gospel" in out[0] and "gospel" in out[1] and out[2] == best.text
    assert [line.split("\t")[1] for line in out[3:]] == [each.text for each in best.n_best]


def test_python(folder, tiny_checkpoint):
    block, _ = (block for kind, block in BLOCKS if kind == "python")
    out = in_readme(f"python -c {shlex.quote(block)}", folder, SAMBA_ASR_MODEL=str(tiny_checkpoint))
    expected = Transcriber.load(tiny_checkpoint).transcribe(folder / "audio.wav")
    text, *words = out.splitlines()
    assert text == expected.text
    assert [line.split(" ")[-1] for line in words] == [word.text for word in expected.words]


def test_live(folder, tiny_checkpoint):
    block = commands("transcribe.py")[-1]
    out = in_readme(block, folder, SAMBA_ASR_MODEL=str(tiny_checkpoint)).splitlines()
    transcriber = Transcriber.load(tiny_checkpoint)
    waveform = load_audio(folder / "audio.wav")
    (last,) = (result for result in transcriber.stream([waveform]) if result.final)
    (timed,) = (result for result in transcriber.stream([waveform], chunk_seconds=0.64) if result.final)
    assert out[:2] == [last.text, timed.text]
    assert [line.split("\t")[-1] for line in out[2:]] == [word.text for word in timed.words]


def test_live_from_python(folder, tiny_checkpoint):
    _, block = (block for kind, block in BLOCKS if kind == "python")
    out = in_readme(f"python -c {shlex.quote(block)}", folder, SAMBA_ASR_MODEL=str(tiny_checkpoint))
    results = list(Transcriber.load(tiny_checkpoint).stream([load_audio(folder / "audio.wav")]))
    assert [line.split(": ", 1)[1] for line in out.splitlines()] == [result.text for result in results]
    assert out.splitlines()[-1].split(" ")[2].startswith("final") and " so far: " in out


def make_mini_librispeech(folder, clips):
    """Write 20 utterances in LibriSpeech's layout: 14 to train on, 6 for development."""
    for split, count, speaker in (("train-clean-5", 14, 84), ("dev-clean-2", 6, 174)):
        chapter = folder / split / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for i in range(count):
            path, text = clips[i % len(clips)]
            name = f"{speaker}-1-{i:04}"
            shutil.copy(path, chapter / f"{name}{path.suffix}")
            lines.append(f"{name} {text.upper().rstrip(';')}\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))


@pytest.mark.timeout(180)
def test_prepare_train_evaluate(tmp_path, clips):
    make_mini_librispeech(tmp_path / "data" / "LibriSpeech", clips)
    (block,) = commands("prepare.py")
    for command, flags in SMALLER.items():
        assert command in block
        block = block.replace(command, f"{command} {flags}")
    out = in_readme(block, tmp_path)
    report = (tmp_path / "reports" / "tiny" / "report.md").read_text()
    (rate,) = re.findall(r"^librispeech-dev-clean-2: 6 utterances, \d+ words, WER ([\d.]+) % ", out, re.MULTILINE)
    (row,) = re.findall(r"^\| librispeech-dev-clean-2 \| 6 \|.*", report, re.MULTILINE)
    assert f"**{rate}**" in row
    words = Transcriber.load(tmp_path / "runs" / "tiny" / "checkpoint").transcribe(clips[0][0])
    assert words.duration == pytest.approx(5.855)
