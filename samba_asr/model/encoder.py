"""The encoder: convolutional subsampling and bidirectional Mamba blocks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from samba_asr.config import MixerConfig, ModelConfig
from samba_asr.model.feedforward import FeedForward, ResidualDrop
from samba_asr.model.subsampling import build_subsampling
from samba_asr.ssm.hydra import Hydra, HydraState
from samba_asr.ssm.mixer import BidirectionalMixer, MixerState
from samba_asr.ssm.padding import mask_padding
from samba_asr.ssm.pieces import joined, spans

BlockState = MixerState | HydraState
"""What a block remembers of the chunks so far: its mixer's state."""


class EncoderBlock(nn.Module):
    """Pre-norm bidirectional mixer and, if d_ff, a feed-forward, each on a residual branch."""

    def __init__(self, config: ModelConfig, mixer: MixerConfig, drop_path: float) -> None:
        super().__init__()
        encoder = config.encoder
        self.norm = nn.LayerNorm(config.d_model)
        if mixer.kind == "hydra":
            self.mixer: Hydra | BidirectionalMixer = Hydra(config.d_model, mixer)
        else:
            self.mixer = BidirectionalMixer(config.d_model, mixer, encoder.shared_projections)
        self.ff = FeedForward(config.d_model, encoder.d_ff, encoder.dropout) if encoder.d_ff else None
        self.drop = ResidualDrop(encoder.dropout, drop_path)

    @torch.no_grad()
    def pass_on(self) -> None:
        """Set the last projection of each branch to zero: the block gives what it is given, until it learns more."""
        projections = self.mixer.out_projections()
        if self.ff is not None:
            projections.append(self.ff[-1])
        for parameter in nn.ModuleList(projections).parameters():
            parameter.zero_()

    def forward(self, x: Tensor, lengths: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """x: (batch, time, d_model); lengths: (batch,) int64; chunk: as in :meth:`BidirectionalMixer.forward`. Returns
        x and lengths; x's padding is not masked."""
        x = x + self.drop(self.mixer(self.norm(x), lengths, chunk)[0])
        if self.ff is not None:
            pieces = [x[:, start:end] for start, end in spans(x.shape[1])]
            x = joined([piece + self.drop(self.ff(piece)) for piece in pieces])
        return x, lengths

    def initial_state(self, batch: int) -> BlockState:
        """Return the state before any frame."""
        return self.mixer.initial_state(batch)

    def advance(self, x: Tensor, state: BlockState, ahead: int = 0) -> tuple[Tensor, BlockState]:
        """Go on by a chunk, in evaluation mode: as :meth:`BidirectionalMixer.advance`."""
        y, after = self.mixer.advance(self.norm(x), state, ahead)  # type: ignore[arg-type]  # of the mixer's own kind
        x = x + y
        return x if self.ff is None else x + self.ff(x), after


class Encoder(nn.Module):
    """Log-mel features to states (Samba-ASR paper, section 3: convolutions, then Mamba blocks)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n_layers = config.encoder.n_layers
        self.subsampling = build_subsampling(config)
        self.blocks = nn.ModuleList(
            EncoderBlock(config, config.encoder.mixer_of(i), config.encoder.drop_path * i / max(n_layers - 1, 1))
            for i in range(n_layers)
        )
        self.norm = nn.Identity() if config.ctc.n_layers else nn.LayerNorm(config.d_model)

    def forward(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        chunk: int | None = None,
        offset: Tensor | None = None,
        outputs: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """features: (batch, frames, n_mels); feature_lengths: (batch,) int64 frames. Returns encoder_out (batch,
        states, d_model), 0 on padding, and encoder_lengths (batch,) int64.

        chunk: states; no state hears more of the future than its own chunk (but for the stem's few frames), as in
        streaming; None: every state hears all. offset: (states, d_model), added to what the stem gives: for a student
        that still leans on its teacher's positions. outputs: takes each block's output, (batch, states, d_model),
        padding not masked.
        """
        x, lengths = self.subsampling(features, feature_lengths)
        if offset is not None:
            x = x + offset[: x.shape[1]]
        for block in self.blocks:
            x, _ = block(x, lengths, chunk)
            if outputs is not None:
                outputs.append(x)
        return mask_padding(self.norm(x), lengths), lengths

    def advance(
        self, x: Tensor, states: tuple[BlockState, ...], ahead: int = 0
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        """Go on by a chunk of what the stem gives, in evaluation mode: x (batch, states, d_model), to encoder_out,
        shaped like it, and the blocks' states; ahead: as in :meth:`BidirectionalMixer.advance`. Chunk after chunk, what
        :meth:`forward` gives with such chunks."""
        x, states = advance_blocks(self.blocks, x, states, ahead)
        return self.norm(x), states


def initial_states(blocks: Iterable[nn.Module], batch: int) -> tuple[BlockState, ...]:
    """Return the state of each block before any frame."""
    return tuple(block.initial_state(batch) for block in blocks if isinstance(block, EncoderBlock))


def advance_blocks(
    blocks: Iterable[nn.Module], x: Tensor, states: tuple[BlockState, ...], ahead: int = 0
) -> tuple[Tensor, tuple[BlockState, ...]]:
    """Go on by a chunk through some blocks, as :meth:`EncoderBlock.advance` through one."""
    after = []
    for block, state in zip(blocks, states, strict=True):
        assert isinstance(block, EncoderBlock)
        x, of_block = block.advance(x, state, ahead)
        after.append(of_block)
    return x, tuple(after)
