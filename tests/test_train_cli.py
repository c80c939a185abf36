"""train.py through its command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from samba_asr.config import PRESETS
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.cli import main, parse_arguments
from samba_asr.training.config import DataConfig, TrainingConfig
from samba_asr.training.corpora import scan_corpus
from samba_asr.training.manifest import Utterance, write_manifest

RECIPE = Path(__file__).parents[1] / "recipes" / "librispeech"

SMALL_MODEL = """
model:
  d_model: 32
  encoder: {n_layers: 1, d_ff: 32, subsampling_channels: 4, mixer: {d_state: 8, head_dim: 16}}
  decoder: {n_layers: 1, d_ff: 32, mixer: {d_state: 8, head_dim: 16}}
"""


def run(*arguments, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, RECIPE / "train.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.fixture
def corpus(clips, tmp_path):
    """Manifests of a small LibriSpeech folder, a tokenizer and a config file."""
    chapter = tmp_path / "LibriSpeech" / "train-mini" / "1" / "2"
    chapter.mkdir(parents=True)
    lines = []
    for number, (path, text) in enumerate(clips[:4]):
        name = f"1-2-{number:04}"
        (chapter / f"{name}{path.suffix}").symlink_to(path)
        lines.append(f"{name} {normalize_for_training(text).upper()}\n")
    (chapter / "1-2.trans.txt").write_text("".join(lines))
    utterances = scan_corpus(tmp_path / "LibriSpeech" / "train-mini")[0].utterances
    assert len(utterances) == 4
    write_manifest(tmp_path / "all.jsonl", utterances)
    Tokenizer.train([normalize_for_training(u.text) for u in utterances], 60).save(tmp_path / "tokenizer.model")
    (tmp_path / "mini.yaml").write_text(SMALL_MODEL)
    return tmp_path


DATA_FLAGS = (
    "--data.train",
    "[all.jsonl, all.jsonl]",
    "--data.dev",
    "all.jsonl",
    "--data.tokenizer",
    "tokenizer.model",
)


def test_train_from_a_folder_to_a_checkpoint_then_resume(corpus, capsys, monkeypatch):
    flags = ("--config", "mini.yaml", *DATA_FLAGS, "--out", "run", "--checkpoint_every", "2", "--accelerator", "cpu")
    done = run(*flags, "--max_steps", "3", cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "training: 8 utterances" in done.stderr and "run/checkpoint: dev loss" in done.stderr
    assert "Warning" not in done.stderr and "warn" not in done.stderr
    model, tokenizer = load_checkpoint(corpus / "run" / "checkpoint")
    assert model.config.d_model == 32 and model.config.vocab_size == tokenizer.vocab_size == 60
    versions = yaml.safe_load((corpus / "run" / "versions.json").read_text())
    assert "train.py --config mini.yaml --data.train '[all.jsonl, all.jsonl]'" in versions["command"]

    monkeypatch.chdir(corpus)
    assert main([*flags, "--max_steps", "3"]) == 1
    assert capsys.readouterr().err.strip() == (
        "train.py: error: run is not empty: continue its run with --resume true, or choose another --out"
    )
    more = run(*flags, "--max_steps", "5", "--resume", "true", cwd=corpus)
    assert more.returncode == 0, more.stderr
    assert "resuming from run/checkpoints/step=3.ckpt" in more.stderr
    assert (corpus / "run" / "checkpoints" / "step=5.ckpt").exists()


def test_ctrl_c_while_the_run_is_set_up(corpus, capsys, monkeypatch):
    monkeypatch.chdir(corpus)

    def interrupt(path):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("samba_asr.training.run.read_manifests", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        assert main(["--config", "mini.yaml", *DATA_FLAGS, "--out", "run", "--accelerator", "cpu"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "train.py: interrupted"
    assert not Path("run").exists()


def test_help_explains_every_setting():
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    text = " ".join(done.stdout.split())
    for setting, words in (
        ("--data.batch_seconds", "Most seconds of audio in a batch"),
        ("--optimiser.learning_rate", "Peak learning rate."),
        ("--model.encoder.mixer.kind", "chunked matrix products"),
        ("--max_minutes", "Stop after this wall-clock time"),
        ("--resume", "continue the run"),
    ):
        assert setting in text and words in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--config", "bad.yaml"], "learning_rat"),
        (["--optimiser.nonsense", "1"], "optimiser.nonsense"),
        (["--data.batch_seconds", "many"], "batch_seconds"),
        (["--data.batch_seconds", "5"], "data.batch_seconds (5.0) must be at least data.max_duration (20.0)"),
        (["--model.encoder.mixer.kind", "attention"], "attention"),
        (["--model.encoder.mixer.d_conv", "1"], "d_conv (1) must be at least 2"),
        (["--max_steps", "0"], "max_steps (0) must be positive"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_settings_that_cannot_be_are_usage_errors(change, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("optimiser:\n  learning_rat: 0.1\n")
    with pytest.raises(SystemExit) as stop:
        parse_arguments([*DATA_FLAGS, "--out", "run", *change])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


def test_out_and_data_are_needed(capsys):
    with pytest.raises(SystemExit):
        parse_arguments([*DATA_FLAGS])
    assert "out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(["--out", "run"])
    assert "data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data.tokenizer", "nowhere.model"], "tokenizer nowhere.model does not exist"),
        (["--data.train", "nowhere.jsonl"], "manifest nowhere.jsonl does not exist"),
        (["--data.dev", "empty.jsonl"], "no utterance in empty.jsonl"),
        (
            ["--data.min_duration", "19"],
            "no utterance of data.train can be used: 0 utterances, 0.00 h (left out: 4",
        ),
        (["--init_from", "nowhere"], "nowhere does not exist"),
        *([] if torch.cuda.is_available() else [(["--accelerator", "gpu"], "accelerator (gpu) cannot be used here")]),
        (["--data.train", "lost.jsonl"], "1 audio files of data.train do not exist, the first: lost.wav"),
        (["--data.train", "damaged.jsonl"], "damaged.wav: "),
        (["--data.train", "damaged.jsonl", "--data.num_workers", "1"], "damaged.wav: "),
    ],
)
def test_files_that_cannot_be_used_are_one_line(change, message, corpus, capsys, monkeypatch):
    monkeypatch.chdir(corpus)
    Path("empty.jsonl").touch()
    write_manifest("lost.jsonl", [Utterance("lost.wav", 2.0, "words", "", "")])
    Path("damaged.wav").write_text("words")
    write_manifest("damaged.jsonl", [Utterance("damaged.wav", 2.0, "words", "", "")])
    flags = ["--config", "mini.yaml", *DATA_FLAGS, "--data.train", "all.jsonl", "--data.num_workers", "0"]
    assert main([*flags, "--out", "run", "--accelerator", "cpu", *change]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: error: ") and message in error


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_recipes_configs_are_the_presets(name):
    flags = ["--config", str(RECIPE / "conf" / f"{name}.yaml"), *DATA_FLAGS, "--out", "run"]
    arguments = parse_arguments(flags)
    assert arguments.config.model == PRESETS[name]
    assert arguments.out == Path("run") and arguments.resume is False
    assert arguments.config.data.train_manifests == ["all.jsonl", "all.jsonl"]
    assert arguments.config.data.dev_manifests == ["all.jsonl"]


def test_flags_override_the_file(tmp_path):
    config = RECIPE / "conf" / "tiny.yaml"
    changes = ["--optimiser.learning_rate", "0.5", "--resume", "true"]
    arguments = parse_arguments(["--config", str(config), *DATA_FLAGS, "--out", "run", *changes])
    assert arguments.config.optimiser.learning_rate == 0.5 and arguments.resume is True
    written = tmp_path / "config.yaml"
    written.write_text(yaml.safe_dump(arguments.config.to_dict()))
    assert parse_arguments(["--config", str(written), "--out", "run"]).config.to_dict() == arguments.config.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "data.train is empty"),
        ({"dev": []}, "data.dev is empty"),
        ({"min_duration": 30.0}, "min_duration"),
        ({"speed_factors": [0.0]}, "speed_factors"),
        ({"num_workers": -1}, "num_workers"),
        ({"dev_utterances": 0}, "dev_utterances"),
    ],
)
def test_data_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"train": "a", "dev": "b", "tokenizer": "c", **changes})


@pytest.mark.parametrize("changes", [{"ctc_weight": 1.5}, {"label_smoothing": 1.0}, {"max_minutes": 0.0}, {"seed": -1}])
def test_training_settings_are_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainingConfig(data=DataConfig(train="a", dev="b", tokenizer="c"), **changes)


def test_without_the_extra_train_it_says_what_to_install():
    script = str(RECIPE / "train.py")
    code = f"import runpy, sys; sys.modules['jsonargparse'] = None; runpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("train.py: ") and "jsonargparse" in done.stderr and "'.[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
