"""A long recording in pieces gives what it gives at once."""

from dataclasses import replace

import pytest
import torch
from model_fixture import CONFIG

from samba_asr.audio import features as features_module
from samba_asr.audio.features import LogMel
from samba_asr.model.asr import SambaASR
from samba_asr.ssm import pieces
from samba_asr.ssm.pieces import joined, spans

LENGTHS = torch.tensor([331, 90, 0, 1, 57, 330])


def test_spans():
    with torch.no_grad():
        assert spans(0) == [(0, 0)]
        assert spans(pieces.PIECE) == [(0, pieces.PIECE)]
        assert spans(2 * pieces.PIECE + 1) == [(0, 1024), (1024, 2048), (2048, 2049)]
    assert spans(5000) == [(0, 5000)]  # where a gradient is wanted
    one = torch.zeros(1, 3, 2)
    assert joined([one]) is one
    assert joined([one, one]).shape == (1, 6, 2)


@torch.no_grad()
@pytest.mark.parametrize("subsampling", ["whisper", "whisper4x", "whisper8x", "conv4x"])
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hydra", "s4d"])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_an_encoder(subsampling, kind, size, monkeypatch):
    mixer = replace(CONFIG.encoder.mixer, kind=kind, chunk_size=8)
    encoder = replace(CONFIG.encoder, subsampling=subsampling, mixer=mixer)
    model = SambaASR(replace(CONFIG, encoder=encoder)).double().eval()
    for name, parameter in model.encoder.subsampling.named_parameters():
        if "join" in name:
            parameter.normal_(std=0.1)  # it begins as the choice of every second state, and hears no neighbours
    frames = torch.randn(len(LENGTHS), int(LENGTHS.max()), 80, dtype=torch.float64)
    expected, lengths = model.encode_features(frames, LENGTHS)
    monkeypatch.setattr(pieces, "PIECE", size)
    found, same = model.encode_features(frames, LENGTHS)
    assert torch.equal(same, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [1, 16])
def test_features(size, monkeypatch):
    log_mel = LogMel(replace(CONFIG.features, normalisation="whisper"))
    waveforms, lengths = 0.1 * torch.randn(3, 16_123), torch.tensor([16_123, 4_000, 0])
    expected, frames = log_mel(waveforms, lengths)
    monkeypatch.setattr(features_module, "FRAMES_AT_ONCE", size)
    found, same = log_mel(waveforms, lengths)
    assert torch.equal(same, frames)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
