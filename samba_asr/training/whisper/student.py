"""The student: Samba's encoder with its teacher's stem, norms and feed-forward layers, and mixers for attention."""

import dataclasses

import torch
from torch import Tensor

from samba_asr.config import EncoderConfig, FeatureConfig, MixerConfig, ModelConfig
from samba_asr.model.encoder import Encoder, EncoderBlock
from samba_asr.training.whisper.network import Block, Teacher


def student_config(teacher: Teacher, mixer: MixerConfig, base: ModelConfig | None = None) -> ModelConfig:
    """Return a config whose encoder has the teacher's sizes and whose log-mel is causal.

    base: where everything else comes from.
    """
    encoder = teacher.encoder
    return dataclasses.replace(
        base or ModelConfig(),
        d_model=teacher.d_model,
        features=FeatureConfig(normalisation="causal", n_mels=encoder.conv1.in_channels),
        encoder=EncoderConfig(
            n_layers=len(encoder.blocks), subsampling="whisper", d_ff=4 * teacher.d_model, dropout=0.0, mixer=mixer
        ),
    )


@torch.no_grad()
def copy_teacher(encoder: Encoder, teacher: Teacher) -> None:
    """Copy the teacher's stem, norms and feed-forward layers into a student of the same sizes."""
    source = teacher.encoder
    for name in ("conv1", "conv2"):
        encoder.subsampling.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
    for block, taught in zip(encoder.blocks, source.blocks, strict=True):
        assert isinstance(block, EncoderBlock) and isinstance(taught, Block) and block.ff is not None
        block.norm.load_state_dict(taught.attn_ln.state_dict())
        norm, wide, _, _, narrow = block.ff
        norm.load_state_dict(taught.mlp_ln.state_dict())
        wide.load_state_dict(taught.mlp[0].state_dict())
        narrow.load_state_dict(taught.mlp[2].state_dict())
    encoder.norm.load_state_dict(source.ln_post.state_dict())


def relative_error(said: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Return the squared error over the target's variance, a scalar: 0 is a perfect copy, 1 knows only the mean.

    said, target: (batch, states, d_model); lengths: (batch,) int64.
    """
    own = (torch.arange(target.shape[1], device=target.device) < lengths[:, None].to(target.device)).unsqueeze(-1)
    target = target.float()
    mean = (target * own).sum((0, 1)) / own.sum()
    variance = ((target - mean) * own).square().sum()
    return ((said.float() - target) * own).square().sum() / variance.clamp_min(1e-8)
