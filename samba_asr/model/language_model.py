"""A language model of causal Mamba blocks over a recogniser's own tokens, for joint search to weigh texts with.

As the decoder it has a forward pass over whole texts and a step for one token after the other; but there is nothing
that it hears.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.config import LanguageModelConfig
from samba_asr.model.asr import IGNORED, decoder_pairs
from samba_asr.model.feedforward import FeedForward, ResidualDrop
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.mixer import MixerState, Move, build_mixer


class LanguageModelState(NamedTuple):
    """What a language model remembers of the text so far."""

    blocks: tuple[MixerState, ...]

    def reorder(self, indices: Tensor) -> "LanguageModelState":
        """Pick texts, (new batch,) int64: for beams."""
        return LanguageModelState(tuple(block.reorder(indices) for block in self.blocks))


class LanguageModelBlock(nn.Module):
    """Pre-norm causal mixer and, if d_ff, a feed-forward."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.mixer = build_mixer(config.d_model, config.mixer)
        self.ff = FeedForward(config.d_model, config.d_ff, config.dropout) if config.d_ff else None
        self.drop = ResidualDrop(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """x: (batch, tokens, d_model); lengths: (batch,) int64. Returns x and the state after each last token."""
        branch, state = self.mixer(self.norm(x), lengths, state)
        return self._feed_forward(x + self.drop(branch)), state

    def step(self, x: Tensor, state: MixerState, move: Move | None) -> tuple[Tensor, MixerState]:
        """Advance one token, without dropout: x (batch, d_model); move: as in :meth:`LanguageModel.step`."""
        branch, state = self.mixer.step(self.norm(x), state, move)
        return self._feed_forward(x + branch), state

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.ff is None else x + self.drop(self.ff(x))


class LanguageModel(nn.Module):
    """The next token, given the tokens so far. What it says is told by the tokens' own embeddings."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(LanguageModelBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.out_proj = Linear(config.d_model, config.vocab_size, bias=False)
        self.out_proj.weight = self.embedding.weight

    def initial_state(self, batch: int) -> LanguageModelState:
        """Return what is remembered before a text."""
        return LanguageModelState(tuple(block.mixer.initial_state(batch) for block in self._blocks()))

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, state: LanguageModelState
    ) -> tuple[Tensor, LanguageModelState]:
        """Score the token after each of these.

        tokens: (batch, tokens) int64, the first one bos_id at the start of a text; token_lengths: (batch,) int64.
        Returns logits (batch, tokens, vocab_size) and the state after each text's own last token.
        """
        x = self.dropout(self.embedding(tokens))
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, new_state = block(x, token_lengths, block_state)
            states.append(new_state)
        return self.out_proj(self.norm(x)), LanguageModelState(tuple(states))

    def step(
        self, tokens: Tensor, state: LanguageModelState, move: Move | None = None
    ) -> tuple[Tensor, LanguageModelState]:
        """Advance one token: tokens (batch,) int64. Returns logits (batch, vocab_size) and the new state; equal to
        :meth:`forward` in evaluation mode. move: as in :meth:`samba_asr.model.decoder.Decoder.step`."""
        x = self.embedding(tokens)
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, new_state = block.step(x, block_state, move)
            states.append(new_state)
        return self.out_proj(self.norm(x)), LanguageModelState(tuple(states))

    def losses(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Return what each token takes by surprise, in nats: (batch, tokens + 1), an end token after each text's last
        token, 0 after that.

        tokens: (batch, tokens) int64 without begin and end; token_lengths: (batch,) int64.
        """
        inputs, targets = decoder_pairs(tokens, token_lengths)
        logits, _ = self(inputs, token_lengths + 1, self.initial_state(len(tokens)))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # a row for each token: with the classes in the middle, PyTorch copies all logits to and fro
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view_as(targets)

    def _blocks(self) -> list[LanguageModelBlock]:
        return [block for block in self.blocks if isinstance(block, LanguageModelBlock)]
