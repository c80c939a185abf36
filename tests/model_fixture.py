"""A checkpoint with random weights: small, quick to make, and real in every other respect."""

from dataclasses import replace

import pytest
import torch

from samba_asr.config import DecoderConfig, EncoderConfig, MixerConfig, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import save_checkpoint
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import BLANK_ID, Tokenizer

MIXER = MixerConfig(d_state=16, head_dim=16)
CONFIG = ModelConfig(
    vocab_size=40,
    d_model=32,
    encoder=EncoderConfig(n_layers=2, subsampling_channels=8, d_ff=32, mixer=MIXER),
    decoder=DecoderConfig(n_layers=1, d_ff=32, mixer=MIXER),
)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, clips):
    """A folder that transcribers load. Its words mean nothing, but depend on what it hears."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("models") / "tiny-random"
    tokenizer = Tokenizer.train([normalize_for_training(text) for _, text in clips], CONFIG.vocab_size)
    model = SambaASR(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():  # a random head says one thing all the time, or blank: spread its answers
        model.ctc_head.weight *= 4
        model.ctc_head.bias[BLANK_ID] = -1
    save_checkpoint(folder, model, tokenizer, "# tiny-random\n\nRandom weights, for tests.\n")
    return folder
