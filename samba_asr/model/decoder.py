"""The decoder: causal Mamba blocks, each with a way to hear the encoder.

With ``listening: state`` that is a Mamba-cross-connection (Samba-ASR paper, section 3), a causal mixer that reads the
encoder's states first and the text after them. With ``window`` each token hears the states around its place
(:mod:`samba_asr.model.listening`). What there is to hear does not depend on the text: :meth:`Decoder.read_memory`
computes it once for an utterance, and from there a token costs the same whatever the recording's length.
"""

from typing import NamedTuple

from torch import Tensor, nn

from samba_asr.config import ModelConfig
from samba_asr.model.feedforward import FeedForward, ResidualDrop
from samba_asr.model.listening import Heard, Window
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.mixer import MixerState, Move, build_mixer


class BlockState(NamedTuple):
    """What one block remembers."""

    text: MixerState
    """The mixer over the text."""
    cross: MixerState | Heard
    """The cross-connection: memory, then text; or what a window may hear."""

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
    """Pre-norm causal mixer over the text, cross-connection or window, and, if d_ff, a feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.norm = nn.LayerNorm(config.d_model)
        self.mixer = build_mixer(config.d_model, decoder.mixer)
        self.cross_norm = nn.LayerNorm(config.d_model)
        window = decoder.listening == "window"
        self.cross = Window(config) if window else build_mixer(config.d_model, decoder.mixer)
        self.ff = FeedForward(config.d_model, decoder.d_ff, decoder.dropout) if decoder.d_ff else None
        self.drop = ResidualDrop(decoder.dropout)

    def read_memory(self, encoder_out: Tensor, encoder_lengths: Tensor) -> BlockState:
        """See :meth:`Decoder.read_memory`."""
        if isinstance(self.cross, Window):
            heard: MixerState | Heard = self.cross.read(encoder_out, encoder_lengths)
        else:
            _, heard = self.cross(encoder_out, encoder_lengths)
        return BlockState(self.mixer.initial_state(len(encoder_out)), heard)

    def forward(self, x: Tensor, lengths: Tensor, state: BlockState, places: Tensor) -> tuple[Tensor, BlockState]:
        """x: (batch, tokens, d_model); lengths: (batch,) int64; places: (batch, tokens) int64, where a window listens.
        Returns x and the state after each last token."""
        branch, text = self.mixer(self.norm(x), lengths, state.text)
        x = x + self.drop(branch)
        given, cross = self.cross_norm(x), state.cross
        if isinstance(self.cross, Window):
            assert isinstance(cross, Heard)
            branch = self.cross(given, cross, places)
        else:
            assert isinstance(cross, MixerState)
            branch, cross = self.cross(given, lengths, cross)
        x = x + self.drop(branch)
        return self._feed_forward(x), BlockState(text, cross)

    def step(self, x: Tensor, state: BlockState, move: Move | None, places: Tensor) -> tuple[Tensor, BlockState]:
        """Advance one token, without dropout: x (batch, d_model); move, places: as in :meth:`Decoder.step`."""
        branch, text = self.mixer.step(self.norm(x), state.text, move)
        x = x + branch
        given, cross = self.cross_norm(x), state.cross
        if isinstance(self.cross, Window):
            assert isinstance(cross, Heard)
            here, cross = cross.move(move)
            branch = self.cross(given.unsqueeze(1), here, places.unsqueeze(1)).squeeze(1)
        else:
            assert isinstance(cross, MixerState)
            branch, cross = self.cross.step(given, cross, move)
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
        self.memory_norm = nn.LayerNorm(config.d_model) if config.ctc.n_layers else nn.Identity()
        self.norm = nn.LayerNorm(config.d_model)
        self.out_proj = Linear(config.d_model, config.vocab_size, bias=not config.decoder.tied_embedding)
        if config.decoder.tied_embedding:
            self.out_proj.weight = self.embedding.weight
        self.listening = config.decoder.listening

    def read_memory(self, encoder_out: Tensor, encoder_lengths: Tensor) -> DecoderState:
        """Return the state from which text starts: encoder_out (batch, states, d_model), encoder_lengths (batch,)."""
        memory = self.memory_norm(encoder_out)
        return DecoderState(tuple(block.read_memory(memory, encoder_lengths) for block in self._blocks()))

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, state: DecoderState, places: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """Score the token after each of these.

        tokens: (batch, tokens) int64, the first one bos_id at the start of a text; token_lengths: (batch,) int64;
        places: (batch, tokens) int64, the state where the token after each is expected, which a decoder that listens by
        windows needs (ValueError). Returns logits (batch, tokens, vocab_size) and the state after each sequence's own
        last token.
        """
        places = self._checked(places, tokens)
        x = self.dropout(self.embedding(tokens))
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, new_state = block(x, token_lengths, block_state, places)
            states.append(new_state)
        return self.out_proj(self.norm(x)), DecoderState(tuple(states))

    def step(
        self, tokens: Tensor, state: DecoderState, move: Move | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """Advance one token: tokens (batch,) int64; places: (batch,) int64, as in :meth:`forward`. Returns logits
        (batch, vocab_size) and the new state; equal to :meth:`forward` in evaluation mode.

        move: for beams. The state is a pool of hypotheses: tokens follow the sources, and what comes of them is put
        into the targets' places, in the pool itself, which is what is returned.
        """
        places = self._checked(places, tokens)
        x = self.embedding(tokens)
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, new_state = block.step(x, block_state, move, places)
            states.append(new_state)
        return self.out_proj(self.norm(x)), DecoderState(tuple(states))

    def _checked(self, places: Tensor | None, tokens: Tensor) -> Tensor:
        if places is None and self.listening == "window":
            raise ValueError("a decoder that listens by windows needs places: where each next token is expected")
        return tokens if places is None else places

    def _blocks(self) -> list[DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]
