"""The commands of recipes/whisper_to_samba/README.md, one after the other, on recordings of tests/data."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distil_cases import teacher_weights, utterances
from safetensors.torch import load_file
from test_readme import make_mini_librispeech
from test_whisper_tokens import MERGES, PIECES
from test_whisper_vocabulary import write_vocabulary
from whisper_cases import write_openai

from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.cli import parse_arguments
from samba_asr.training.resume import differences
from samba_asr.training.whisper.decoder import choose_tokens
from samba_asr.training.whisper.decoder_start import widened
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.settings import DecoderDistilConfig, DistilConfig
from samba_asr.training.whisper.student import student_config
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.transcriber import Transcriber

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "whisper_to_samba"
README = (RECIPE / "README.md").read_text(encoding="utf-8")
TINY_EN = {"D_MODEL": 384, "N_MELS": 80, "N_LAYERS": 4, "N_TOKENS": 448}
PLACES = {
    "DATA_DIR": "data",
    "OUT": "prepared",
    "WHISPER": "teacher.pt",
    "TOKENIZER_JSON": "tokenizer.json",
    "RUN_A": "runs/a",
    "RUN_B": "runs/b",
    "RUN_C": "runs/c",
    "RUN_D": "runs/d",
}
SHORT = "--data.batch_seconds 30 --data.num_workers 0 --max_steps 3"
FLAGS = (
    ("prepare.py", "--vocab-size 40"),
    ("distil.py", "--layer_minutes 0.05 --encoder_minutes 0.05 --layer_windows 1 --dev_utterances 1"),
    ("train.py", f"{SHORT} --encoder.frozen_steps 3"),
    ("distil_decoder.py", "--minutes 0.05 --dev_utterances 1"),
    ("train.py", f"{SHORT} --precision 32 --model.ctc.vocab_size 40"),
)
"""Appended, so that a stage takes seconds: the teacher's weights are random and there are 20 utterances."""


def recipe():
    """Return README's commands, made short."""
    (block,) = (b for b in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if "distil.py" in b)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("pip install")]
    scripts = [re.match(r"python recipes/\w+/(\w+\.py) ", line)[1] for line in lines]
    assert scripts == [script for script, _ in FLAGS]
    lines = [re.sub(r"\b[A-Z_]{3,}\b", lambda found: PLACES.get(found[0], found[0]), line) for line in lines]
    return [f"{line} {flags}" for line, flags in zip(lines, (flags for _, flags in FLAGS), strict=True)]


def settings(name):
    """Read a file of conf/ as train.py does."""
    data = ["--data.train", "train.jsonl", "--data.dev", "dev.jsonl", "--data.tokenizer", "tokenizer.model"]
    return parse_arguments(["--config", str(RECIPE / "conf" / f"{name}.yaml"), *data, "--out", "run"]).config


def test_each_stage_takes_the_model_of_the_one_before(tmp_path, clips):
    """For a teacher of tiny.en's sizes; vocabulary and spellings, which hang on data, aside."""
    teacher = build_teacher(teacher_weights(**TINY_EN))
    mixer = DistilConfig(teacher="", train=["train.jsonl"], dev=["dev.jsonl"]).mixer
    ctc, window = settings("ctc"), settings("window")
    assert ctc.decoder_from_step > ctc.max_steps and ctc.model.search.search == "ctc"
    distilled = student_config(teacher, mixer, "whisper4x")
    for config in (ctc, window):
        assert (config.model.d_model, config.model.features) == (distilled.d_model, distilled.features)
        assert dataclasses.replace(config.model.encoder, dropout=0.0) == distilled.encoder

    write_vocabulary(tmp_path / "tokenizer.json", merges=MERGES)
    pieces = Tokenizer.train([normalize_for_training(text) for _, text in clips], PIECES)
    options = DecoderDistilConfig(model="", teacher="", teacher_tokenizer="", train=["a"], dev=["b"])
    spoken = utterances(clips)
    tokens = choose_tokens(options, pieces, WhisperVocabulary.load(tmp_path / "tokenizer.json"), spoken)
    old = SambaASR(dataclasses.replace(ctc.model, vocab_size=PIECES))
    made = widened(old, pieces, tokens, options).config
    own = dataclasses.replace(made.ctc, vocab_size=256, longest_spelling=window.model.ctc.longest_spelling)
    made = dataclasses.replace(made, vocab_size=window.model.vocab_size, ctc=own)
    assert not list(differences("model", made.to_dict(), window.model.to_dict()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_whisper_to_text(tmp_path, clips):
    make_mini_librispeech(tmp_path / "data" / "LibriSpeech", clips)
    (tmp_path / "data" / "LibriSpeech" / "dev-clean-2").rename(tmp_path / "data" / "LibriSpeech" / "dev-clean")
    write_openai(tmp_path / "teacher.pt", teacher_weights(**TINY_EN))
    write_vocabulary(tmp_path / "tokenizer.json", merges=MERGES)
    for name in ("transcribe.py", "recipes", "samba_asr"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def shell(command):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    prepare, distil, ctc, distil_decoder, window = recipe()
    shell(prepare)
    for command in (distil, ctc, distil_decoder):
        assert shell(command) == ""
    encoder = load_checkpoint(tmp_path / "runs" / "b" / "checkpoint")[0].encoder.state_dict()
    distilled = load_file(tmp_path / "runs" / "a" / "encoder.safetensors")
    assert encoder.keys() == distilled.keys() - {"norm.weight", "norm.bias"}
    for name, value in encoder.items():
        assert torch.equal(value, distilled[name].float()), name
    before, _ = load_checkpoint(tmp_path / "runs" / "c" / "checkpoint")
    assert before.config.ctc.longest_spelling not in (1, settings("window").model.ctc.longest_spelling)
    assert shell(window) == ""
    after, _ = load_checkpoint(tmp_path / "runs" / "d" / "checkpoint")
    moved = {name for name, value in before.named_parameters() if not value.equal(after.get_parameter(name))}
    learnt = {name.split(".")[0] for name in moved}
    assert learnt == {"encoder", "ctc_blocks", "ctc_norm", "ctc_head", "decoder"}
    text = shell(f"python transcribe.py --model runs/d/checkpoint '{clips[0][0]}'")
    transcriber = Transcriber.load(tmp_path / "runs" / "d" / "checkpoint")
    assert text == transcriber.transcribe(clips[0][0]).text + "\n"
