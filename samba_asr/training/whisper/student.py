"""The student: Samba's encoder with its teacher's stem, norms and feed-forward layers, and mixers for attention."""

import torch
from torch import Tensor

from samba_asr.config import EncoderConfig, FeatureConfig, MixerConfig, ModelConfig, Subsampling
from samba_asr.model.encoder import Encoder, EncoderBlock
from samba_asr.training.whisper.network import Block, Teacher

STRIDES = {"whisper": 1, "whisper4x": 2, "whisper8x": 4}
"""Teacher's states for one of the student's, by the student's subsampling."""


def student_config(
    teacher: Teacher, mixer: MixerConfig, subsampling: Subsampling, shared_projections: bool = False
) -> ModelConfig:
    """Return a config whose encoder has the teacher's sizes and whose log-mel is causal."""
    encoder = teacher.encoder
    return ModelConfig(
        d_model=teacher.d_model,
        features=FeatureConfig(normalisation="causal", n_mels=encoder.conv1.in_channels),
        encoder=EncoderConfig(
            n_layers=len(encoder.blocks),
            subsampling=subsampling,
            d_ff=4 * teacher.d_model,
            dropout=0.0,
            mixer=mixer,
            shared_projections=shared_projections,
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

    said, target: (batch, states, d_model); lengths: (batch,) int64. Ten of a Whisper encoder's channels hold a third
    of the variance; so this is the mean of two errors: of all channels together, and of each by itself.
    """
    own = (torch.arange(target.shape[1], device=target.device) < lengths[:, None].to(target.device)).unsqueeze(-1)
    target = target.float()
    mean = (target * own).sum((0, 1)) / own.sum()
    variance = ((target - mean) * own).square().sum((0, 1))  # (d_model,)
    squared = ((said.float() - target) * own).square().sum((0, 1))
    each = squared / variance.clamp_min(1e-4 * float(variance.mean()) + 1e-8)
    return (squared.sum() / variance.sum().clamp_min(1e-8) + each.mean()) / 2
