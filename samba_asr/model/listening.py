"""How a decoder without attention hears the recording: a window of states around the place where it is.

CTC knows where the next token is expected; a token hears the states around that place, each head with weights that it
asks for by their distance, and that the states themselves raise or lower. No token is compared with any state: it is a
dynamic convolution (arXiv 1901.10430) with a frame's own salience, as in an attention-free transformer
(arXiv 2105.14103), along the alignment. A token costs the same whatever the recording's length.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from samba_asr.config import ModelConfig
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.mixer import Move


class Heard(NamedTuple):
    """What a block may hear of recordings, and which of them each text belongs to."""

    values: Tensor
    """(recordings, states, d_model + heads): values and saliences."""
    lengths: Tensor
    """(recordings,) int64"""
    rows: Tensor
    """(texts,) int64: each text's recording."""

    def reorder(self, indices: Tensor) -> "Heard":
        """Pick texts, (new texts,) int64."""
        return self._replace(rows=self.rows.index_select(0, indices))

    def move(self, move: Move | None) -> tuple["Heard", "Heard"]:
        """Return what a step's texts hear, and the pool after it."""
        if move is None:
            return self, self
        here = self.reorder(move.sources)
        self.rows[move.targets] = here.rows
        return here, self


class Window(nn.Module):
    """Weighted sum of the states around a place, by head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.head_dim = decoder.mixer.head_dim
        self.heads = config.d_model // self.head_dim
        self.before, self.size = decoder.window_before, decoder.window_before + decoder.window_after
        self.value = Linear(config.d_model, config.d_model)
        self.salience = Linear(config.d_model, self.heads)
        self.kernel = Linear(config.d_model, self.size * self.heads)
        self.out_proj = Linear(config.d_model, config.d_model)
        for layer in (self.salience, self.kernel):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def read(self, memory: Tensor, lengths: Tensor) -> Heard:
        """memory: (batch, states, d_model); lengths: (batch,) int64."""
        values = torch.cat([self.value(memory), self.salience(memory)], -1)
        return Heard(values, lengths, torch.arange(len(memory), device=memory.device))

    def forward(self, x: Tensor, heard: Heard, places: Tensor) -> Tensor:
        """x: (texts, tokens, d_model); places: (texts, tokens) int64. Returns the same shape as x, as if nothing were
        said where no state is in the window."""
        states = places.unsqueeze(-1) + torch.arange(-self.before, self.size - self.before, device=x.device)
        inside = (states >= 0) & (states < heard.lengths[heard.rows, None, None])
        if not heard.values.shape[1]:
            nothing: Tensor = self.out_proj(torch.zeros_like(x))
            return nothing
        around = heard.values[heard.rows[:, None, None], states.clamp(0, heard.values.shape[1] - 1)]
        values, salience = around.split([self.heads * self.head_dim, self.heads], -1)
        # of two dimensions, as Linear's kernel for few rows wants them
        kernel = self.kernel(x.flatten(0, 1)).view(*x.shape[:2], self.size, self.heads)
        scores = kernel + salience
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        outside = ~inside.unsqueeze(-1)
        weights = scores.masked_fill(outside, -1e9).softmax(-2).masked_fill(outside, 0.0).to(values.dtype)
        mixed = torch.einsum("btkh,btkhd->bthd", weights, values.unflatten(-1, (self.heads, self.head_dim)))
        said: Tensor = self.out_proj(mixed.flatten(0, 1).flatten(-2)).view_as(x)
        return said
