"""The student: Samba's encoder with its teacher's stem, norms and feed-forward layers, and mixers for attention."""

import torch
from torch import Tensor

from samba_asr.config import EncoderConfig, FeatureConfig, MixerConfig, ModelConfig, Subsampling
from samba_asr.model.encoder import Encoder, EncoderBlock
from samba_asr.ssm.hydra import Hydra
from samba_asr.ssm.mixer import Mamba2
from samba_asr.training.whisper.network import HEAD_DIM, Attention, Block, Teacher

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
    """Copy the teacher's stem, norms and feed-forward layers into a student of the same sizes, and its attention into
    mixers that have a head and a group for each of its heads; other mixers start at random."""
    source = teacher.encoder
    for name in ("conv1", "conv2"):
        encoder.subsampling.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
    for block, taught in zip(encoder.blocks, source.blocks, strict=True):
        assert isinstance(block, EncoderBlock) and isinstance(taught, Block) and block.ff is not None
        block.norm.load_state_dict(taught.attn_ln.state_dict())
        mixers = [block.mixer] if isinstance(block.mixer, Hydra) else [block.mixer.forwards, block.mixer.backwards]
        for mixer in mixers:
            if isinstance(mixer, Mamba2 | Hydra) and resembles(mixer, taught.attn):
                copy_attention(mixer, taught.attn, directions=len(mixers))
        norm, wide, _, _, narrow = block.ff
        norm.load_state_dict(taught.mlp_ln.state_dict())
        wide.load_state_dict(taught.mlp[0].state_dict())
        narrow.load_state_dict(taught.mlp[2].state_dict())
    encoder.norm.load_state_dict(source.ln_post.state_dict())


def resembles(mixer: Mamba2 | Hydra, attention: Attention) -> bool:
    """Return whether a mixer has one head or more, and a group of B and C, for each head of an attention."""
    one_for_each = mixer.groups % attention.heads == 0  # groups divide heads
    return one_for_each and mixer.head_dim == mixer.d_state == HEAD_DIM


@torch.no_grad()
def copy_attention(mixer: Mamba2 | Hydra, attention: Attention, directions: int = 2) -> None:
    """Start a mixer from an attention layer: x, B and C are its values, keys and queries, and the convolution passes
    them on (MOHAWK, arXiv 2408.10189; Mamba in the Llama, arXiv 2408.15237). What it says is shared out to the mixers
    of a layer, one or two, and to the heads that stand for one of its own. Steps, decays and gates stay as they are.

    Raises ValueError for a mixer that does not resemble the attention.
    """
    if not resembles(mixer, attention):
        raise ValueError(
            f"a mixer of {mixer.groups} groups with {mixer.head_dim} channels and {mixer.d_state} states a head does "
            f"not resemble an attention of {attention.heads} heads of {HEAD_DIM}"
        )

    def rows(tensor: Tensor, count: int) -> Tensor:
        """Those of each head, once for each of the heads or groups that stand for it."""
        heads: Tensor = tensor.unflatten(0, (attention.heads, HEAD_DIM))
        return heads.repeat_interleave(count // attention.heads, 0).flatten(0, 1)

    inner, states = mixer.d_inner, mixer.groups * mixer.d_state
    scale = HEAD_DIM**-0.5  # of the attention's scores
    values = (attention.value.weight, attention.value.bias, mixer.heads, 1.0)
    keys = (attention.key.weight, torch.zeros_like(attention.query.bias), mixer.groups, 1.0)
    queries = (attention.query.weight, attention.query.bias, mixer.groups, scale)
    parts = [values, *[keys, queries] * (2 if isinstance(mixer, Hydra) else 1)]
    weight = torch.cat([rows(weight * factor, count) for weight, _, count, factor in parts])
    bias = torch.cat([rows(bias * factor, count) for _, bias, count, factor in parts])
    if hasattr(mixer, "in_proj"):
        mixer.in_proj.weight[inner : inner + len(weight)] = weight
        copies = directions * mixer.heads // attention.heads
        mixer.out_proj.weight.copy_(rows(attention.out.weight.mT, mixer.heads).mT / copies)
    taps = mixer.conv1d.weight.zero_()[:, 0]
    if isinstance(mixer, Hydra):  # its scans come a frame late: queries go a frame ahead, each in its direction
        own = taps.shape[1] // 2
        for part, tap in zip(taps.split([inner, *[states] * 4]), (own, own, own + 1, own, own - 1), strict=True):
            part[:, tap] = 1.0
    else:
        taps[:, -1] = 1.0
    assert mixer.conv1d.bias is not None
    mixer.conv1d.bias.copy_(bias)


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
