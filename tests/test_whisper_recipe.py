"""The commands of recipes/whisper_to_samba/README.md, one after the other, on recordings of tests/data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distil_cases import teacher_weights
from safetensors.torch import load_file
from test_readme import make_mini_librispeech
from test_whisper_vocabulary import write_vocabulary
from whisper_cases import write_openai

from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.transcriber import Transcriber

ROOT = Path(__file__).parent.parent
README = (ROOT / "recipes" / "whisper_to_samba" / "README.md").read_text(encoding="utf-8")
TINY_EN = {"D_MODEL": 384, "N_MELS": 80, "N_LAYERS": 4, "N_TOKENS": 448}
PLACES = {
    "DATA_DIR": "data",
    "OUT": "prepared",
    "WHISPER": "teacher.pt",
    "TOKENIZER_JSON": "tokenizer.json",
    "RUN_A": "runs/a",
    "RUN_B": "runs/b",
}
FLAGS = {
    "prepare.py": "--vocab-size 40",
    "distil.py": "--layer_minutes 0.05 --encoder_minutes 0.05 --layer_windows 1 --dev_utterances 1",
    "train.py": "--data.batch_seconds 30 --data.num_workers 0 --max_steps 3 --encoder.frozen_steps 3",
}
"""Appended, so that a stage takes seconds: the teacher's weights are random and there are 20 utterances."""


def recipe():
    """Return README's commands: prepare, distil, train."""
    (block,) = (b for b in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if "distil.py" in b)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("pip install")]
    scripts = [re.match(r"python recipes/\w+/(\w+\.py) ", line)[1] for line in lines]
    assert scripts == list(FLAGS)
    lines = [re.sub(r"\b[A-Z_]{3,}\b", lambda found: PLACES.get(found[0], found[0]), line) for line in lines]
    return [f"{line} {flags}" for line, flags in zip(lines, FLAGS.values(), strict=True)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_whisper_to_text(tmp_path, clips):
    make_mini_librispeech(tmp_path / "data" / "LibriSpeech", clips)
    (tmp_path / "data" / "LibriSpeech" / "dev-clean-2").rename(tmp_path / "data" / "LibriSpeech" / "dev-clean")
    write_openai(tmp_path / "teacher.pt", teacher_weights(**TINY_EN))
    write_vocabulary(tmp_path / "tokenizer.json")
    for name in ("transcribe.py", "recipes", "samba_asr"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def shell(command):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    prepare, distil, train = recipe()
    shell(prepare)
    assert shell(distil) == ""
    assert shell(train) == ""
    encoder = load_checkpoint(tmp_path / "runs" / "b" / "checkpoint")[0].encoder.state_dict()
    for name, value in load_file(tmp_path / "runs" / "a" / "encoder.safetensors").items():
        assert torch.equal(encoder[name], value.float()), name
    text = shell(f"python transcribe.py --model runs/b/checkpoint '{clips[0][0]}'")
    transcriber = Transcriber.load(tmp_path / "runs" / "b" / "checkpoint")
    assert text == transcriber.transcribe(clips[0][0]).text + "\n"
