"""The decoder: causal Mamba blocks that each reach the encoder through a Mamba-cross-connection.

A cross-connection is a causal mixer that reads the encoder's states first and the text after them. Its state after
the memory does not depend on the text: :meth:`Decoder.read_memory` computes it once for an utterance, on the
utterance's own frames only, and from there a token costs the same whatever the recording's length.
"""

from typing import NamedTuple

from torch import Tensor, nn

from samba_asr.config import ModelConfig
from samba_asr.model.feedforward import FeedForward, ResidualDrop
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.mixer import MixerState, Move, build_mixer


class BlockState(NamedTuple):
    """What one block remembers."""

    text: MixerState
    """The mixer over the text."""
    cross: MixerState
    """The cross-connection: memory, then text."""

    def reorder(self, indices: Tensor) -> "BlockState":
        """Pick sequences, (new batch,) int64."""
        return BlockState(self.text.reorder(indices), self.cross.reorder(indices))


class DecoderState(NamedTuple):
    """What the decoder remembers of the recording and of the text so far."""

    blocks: tuple[BlockState, ...]

    def reorder(self, indices: Tensor) -> "DecoderState":
        """Pick hypotheses, (new batch,) int64: for beams, and to repeat an utterance."""
        return DecoderState(tuple(block.reorder(indices) for block in self.blocks))


class DecoderBlock(nn.Module):
    """Pre-norm causal mixer over the text, cross-connection and, if d_ff, a feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.norm = nn.LayerNorm(config.d_model)
        self.mixer = build_mixer(config.d_model, decoder.mixer)
        self.cross_norm = nn.LayerNorm(config.d_model)
        self.cross = build_mixer(config.d_model, decoder.mixer)
        self.ff = FeedForward(config.d_model, decoder.d_ff, decoder.dropout) if decoder.d_ff else None
        self.drop = ResidualDrop(decoder.dropout)

    def read_memory(self, encoder_out: Tensor, encoder_lengths: Tensor) -> BlockState:
        """See :meth:`Decoder.read_memory`."""
        _, cross = self.cross(encoder_out, encoder_lengths)
        return BlockState(self.mixer.initial_state(len(encoder_out)), cross)

    def forward(self, x: Tensor, lengths: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """x: (batch, tokens, d_model); lengths: (batch,) int64. Returns x and the state after each last token."""
        branch, text = self.mixer(self.norm(x), lengths, state.text)
        x = x + self.drop(branch)
        branch, cross = self.cross(self.cross_norm(x), lengths, state.cross)
        x = x + self.drop(branch)
        return self._feed_forward(x), BlockState(text, cross)

    def step(self, x: Tensor, state: BlockState, move: Move | None) -> tuple[Tensor, BlockState]:
        """Advance one token, without dropout: x (batch, d_model); move: as in :meth:`Decoder.step`."""
        branch, text = self.mixer.step(self.norm(x), state.text, move)
        x = x + branch
        branch, cross = self.cross.step(self.cross_norm(x), state.cross, move)
        return self._feed_forward(x + branch), BlockState(text, cross)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.ff is None else x + self.drop(self.ff(x))


class Decoder(nn.Module):
    """The next token, given the encoder's states and the tokens so far."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.dropout = nn.Dropout(config.decoder.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.out_proj = Linear(config.d_model, config.vocab_size)

    def read_memory(self, encoder_out: Tensor, encoder_lengths: Tensor) -> DecoderState:
        """Return the state from which text starts: encoder_out (batch, states, d_model), encoder_lengths (batch,)."""
        return DecoderState(tuple(block.read_memory(encoder_out, encoder_lengths) for block in self._blocks()))

    def forward(self, tokens: Tensor, token_lengths: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Score the token after each of these.

        tokens: (batch, tokens) int64, the first one bos_id at the start of a text; token_lengths: (batch,) int64.
        Returns logits (batch, tokens, vocab_size) and the state after each sequence's own last token.
        """
        x = self.dropout(self.embedding(tokens))
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, new_state = block(x, token_lengths, block_state)
            states.append(new_state)
        return self.out_proj(self.norm(x)), DecoderState(tuple(states))

    def step(self, tokens: Tensor, state: DecoderState, move: Move | None = None) -> tuple[Tensor, DecoderState]:
        """Advance one token: tokens (batch,) int64. Returns logits (batch, vocab_size) and the new state; equal to
        :meth:`forward` in evaluation mode.

        move: for beams. The state is a pool of hypotheses: tokens follow the sources, and what comes of them is put
        into the targets' places, in the pool itself, which is what is returned.
        """
        x = self.embedding(tokens)
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, new_state = block.step(x, block_state, move)
            states.append(new_state)
        return self.out_proj(self.norm(x)), DecoderState(tuple(states))

    def _blocks(self) -> list[DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]
