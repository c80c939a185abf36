"""Whisper checkpoints of three kinds give the same weights; damaged ones say so."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from whisper_cases import WRITERS, random_weights

from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.weights import read_whisper_weights


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_weights(suffix, tmp_path):
    weights = random_weights()
    WRITERS[suffix](tmp_path / f"tiny{suffix}", weights)
    found = read_whisper_weights(tmp_path / f"tiny{suffix}")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name
    build_teacher(found)


@pytest.mark.parametrize("suffix", WRITERS)
def test_half_precision_becomes_float32(suffix, tmp_path):
    weights = {name: value.half() for name, value in random_weights().items()}
    WRITERS[suffix](tmp_path / f"tiny{suffix}", weights)
    for name, value in read_whisper_weights(tmp_path / f"tiny{suffix}").items():
        assert value.dtype == torch.float32 and torch.equal(value, weights[name].float())


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_damaged_files_are_named(suffix, damage, tmp_path):
    path = tmp_path / f"tiny{suffix}"
    WRITERS[suffix](path, random_weights())
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "text": b"version https://git-lfs\n" * 9}[damage])
    with pytest.raises(ValueError, match=rf"teacher .*tiny{suffix} is damaged"):
        read_whisper_weights(path)


def test_files_of_something_else(tmp_path):
    torch.save({"state": 3}, tmp_path / "a.pt")
    torch.save({"model_state_dict": 3}, tmp_path / "b.pt")
    with open(tmp_path / "c.npz", "wb") as file:
        np.save(file, np.zeros(3))
    for name in ("a.pt", "b.pt", "c.npz"):
        with pytest.raises(ValueError, match=f"{name} is damaged, or"):
            read_whisper_weights(tmp_path / name)
    save_file({"bert.weight": torch.zeros(3)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"d\.safetensors holds no Whisper model: encoder\.conv1\.weight"):
        read_whisper_weights(tmp_path / "d.safetensors")


def test_missing_file_and_wrong_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist; name a Whisper checkpoint"):
        read_whisper_weights(tmp_path / "absent.pt")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.bin must end in \.pt, \.safetensors, \.npz"):
        read_whisper_weights(tmp_path / "model.bin")


def test_a_file_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"model_state_dict": {"encoder.conv1.weight": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="is damaged"):
        read_whisper_weights(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_quantised_weights_are_refused(tmp_path):
    weights = random_weights()
    weights["encoder.blocks.0.mlp.0.weight"] = weights["encoder.blocks.0.mlp.0.weight"].to(torch.int8)
    for suffix, write in WRITERS.items():
        write(tmp_path / f"q{suffix}", weights)
        with pytest.raises(ValueError, match=r"is quantised \(encoder\.blocks\.0\.mlp\.0\.weight: torch\.int8\)"):
            read_whisper_weights(tmp_path / f"q{suffix}")
