"""Fixtures that every test file may use."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from samba_asr.audio.load import load_audio
from samba_asr.model.pretrained import PRETRAINED
from samba_asr.transcriber import Transcriber

pytest_plugins = ["model_fixture"]

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def fixed_seed():
    """Start every test from the same state of torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def clips() -> list[tuple[Path, str]]:
    """Real recordings with their words, as their corpora write them; five of LibriSpeech come first."""
    with open(DATA / "transcripts.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(DATA / row["file"], row["text"]) for row in rows]


@pytest.fixture(scope="session")
def waveforms(clips) -> list[np.ndarray]:
    """These recordings' samples."""
    return [load_audio(path) for path, _ in clips]


@pytest.fixture(scope="module")
def shipped() -> Transcriber:
    """The default model, as it ships."""
    return Transcriber.load(PRETRAINED / "samba-tiny-en")


@pytest.fixture(scope="session")
def quilter() -> Path:
    """The recording that ships as the README's example: "mister quilter is the apostle ..."."""
    return DATA / "librispeech-1272-128104-0000.mp3"
