"""Whisper's network (arXiv 2212.04356) in plain torch, as a teacher: it tells what each layer saw and said."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 64
"""Of every Whisper model."""
WINDOW_SECONDS = 30
"""Length of audio that Whisper's encoder is trained on."""


class LayerTap(NamedTuple):
    """What one self-attention layer was given and what it gave, each (batch, states or tokens, d_model)."""

    given: Tensor
    said: Tensor


class KeyValues(NamedTuple):
    """Keys and values of an attention, each (batch, heads, time, 64)."""

    keys: Tensor
    values: Tensor

    def reorder(self, indices: Tensor) -> "KeyValues":
        """Those of the batch rows that indices: (rows,) int64 names."""
        return KeyValues(self.keys[indices], self.values[indices])


class Attention(nn.Module):
    """Multi-head attention; the key projection has no bias."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.heads = d_model // HEAD_DIM
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def read(self, x: Tensor) -> KeyValues:
        """x: (batch, time, d_model)."""
        return KeyValues(self._split(self.key(x)), self._split(self.value(x)))

    def forward(self, x: Tensor, memory: KeyValues, causal: bool = False, heard: Tensor | None = None) -> Tensor:
        """x: (batch, time, d_model); heard: (batch, time, memory's time) bool, all that each place may hear. Returns
        the same shape as x; of a place that may hear nothing, the projection's bias."""
        if heard is None:
            y = F.scaled_dot_product_attention(self._split(self.query(x)), *memory, is_causal=causal)
        else:
            any_heard = heard.any(-1, keepdim=True).unsqueeze(1)  # none at all would be no number
            mask = heard.unsqueeze(1) | ~any_heard
            y = F.scaled_dot_product_attention(self._split(self.query(x)), *memory, attn_mask=mask) * any_heard
        said: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return said

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, HEAD_DIM))
        return heads.transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention, cross-attention (in the decoder) and feed-forward."""

    def __init__(self, d_model: int, cross: bool) -> None:
        super().__init__()
        self.attn = Attention(d_model)
        self.attn_ln = nn.LayerNorm(d_model)
        self.cross_attn = Attention(d_model) if cross else None
        self.cross_attn_ln = nn.LayerNorm(d_model) if cross else None
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.mlp_ln = nn.LayerNorm(d_model)

    def encode(self, x: Tensor) -> tuple[Tensor, LayerTap]:
        """x: (batch, states, d_model)."""
        given = self.attn_ln(x)
        said = self.attn(given, self.attn.read(given))
        x = x + said
        return x + self.mlp(self.mlp_ln(x)), LayerTap(given, said)

    def decode(
        self, x: Tensor, past: KeyValues | None, memory: KeyValues, heard: Tensor | None = None
    ) -> tuple[Tensor, KeyValues]:
        """x: (batch, tokens, d_model), after those in past; heard: as in :meth:`Attention.forward`, of the memory.
        Returns x, and past with them."""
        assert self.cross_attn is not None and self.cross_attn_ln is not None
        given = self.attn_ln(x)
        own = self.attn.read(given)
        if past is not None:
            own = KeyValues(*(torch.cat(pair, 2) for pair in zip(past, own, strict=True)))
        x = x + self.attn(given, own, causal=past is None)
        x = x + self.cross_attn(self.cross_attn_ln(x), memory, heard=heard)
        return x + self.mlp(self.mlp_ln(x)), own


class TeacherEncoder(nn.Module):
    """Whisper's encoder."""

    positional_embedding: Tensor

    def __init__(self, n_mels: int, d_model: int, n_layers: int, n_states: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.zeros(n_states, d_model))
        self.blocks = nn.ModuleList(Block(d_model, cross=False) for _ in range(n_layers))
        self.ln_post = nn.LayerNorm(d_model)

    def forward(self, features: Tensor) -> tuple[Tensor, list[LayerTap]]:
        """features: (batch, frames, n_mels), Whisper's normalisation, at most 30 s. Returns states (batch, frames / 2
        rounded up, d_model) and a tap on each layer's attention.

        Raises ValueError where the features are longer than the positions that the model knows.
        """
        longest = 2 * len(self.positional_embedding)
        if features.shape[1] > longest:
            raise ValueError(f"{features.shape[1]} frames are more than the teacher hears at once ({longest})")
        x = F.gelu(self.conv1(features.transpose(1, 2)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        taps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            x, tap = block.encode(x)
            taps.append(tap)
        return self.ln_post(x), taps


class TeacherState(NamedTuple):
    """What the teacher's decoder remembers."""

    position: int
    memory: tuple[KeyValues, ...]
    past: tuple[KeyValues | None, ...]

    def reorder(self, indices: Tensor) -> "TeacherState":
        """The state of the batch rows that indices: (rows,) int64 names, each as often as it is named."""
        memory = tuple(each.reorder(indices) for each in self.memory)
        past = tuple(None if each is None else each.reorder(indices) for each in self.past)
        return TeacherState(self.position, memory, past)


class TeacherDecoder(nn.Module):
    """Whisper's decoder, with a cache."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, n_tokens: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.positional_embedding = nn.Parameter(torch.zeros(n_tokens, d_model))
        self.blocks = nn.ModuleList(Block(d_model, cross=True) for _ in range(n_layers))
        self.ln = nn.LayerNorm(d_model)

    def read_memory(self, encoder_out: Tensor) -> TeacherState:
        """encoder_out: (batch, states, d_model)."""
        memory = []
        for block in self.blocks:
            assert isinstance(block, Block) and block.cross_attn is not None
            memory.append(block.cross_attn.read(encoder_out))
        return TeacherState(0, tuple(memory), (None,) * len(memory))

    def forward(self, tokens: Tensor, state: TeacherState) -> tuple[Tensor, TeacherState]:
        """tokens: (batch, tokens) int64; only one at a time after the first call. Returns logits (batch, tokens,
        vocab_size) and the new state.

        Raises ValueError for several tokens after the first call, or more in all than the model has positions.
        """
        end = state.position + tokens.shape[1]
        if state.position and tokens.shape[1] != 1:
            raise ValueError(f"the teacher's decoder takes one token after the first call, not {tokens.shape[1]}")
        if end > len(self.positional_embedding):
            raise ValueError(
                f"{end} tokens are more than the teacher writes at once ({len(self.positional_embedding)})"
            )
        x = self.token_embedding(tokens) + self.positional_embedding[state.position : end]
        past = []
        for block, own, memory in zip(self.blocks, state.past, state.memory, strict=True):
            assert isinstance(block, Block)
            x, new = block.decode(x, own, memory)
            past.append(new)
        return F.linear(self.ln(x), self.token_embedding.weight), TeacherState(end, state.memory, tuple(past))

    def hear(self, x: Tensor, encoder_out: Tensor, heard: Tensor) -> list[Tensor]:
        """Return what leaves each block, (batch, tokens, d_model), where each token hears some of the states.

        x: (batch, tokens, d_model), embeddings from the first one on, without positions; encoder_out: (batch, states,
        d_model); heard: (batch, tokens, states) bool.
        """
        x = x + self.positional_embedding[: x.shape[1]]
        outputs = []
        for block, memory in zip(self.blocks, self.read_memory(encoder_out).memory, strict=True):
            assert isinstance(block, Block)
            x, _ = block.decode(x, None, memory, heard)
            outputs.append(x)
        return outputs


class Teacher(nn.Module):
    """A whole Whisper model."""

    def __init__(self, encoder: TeacherEncoder, decoder: TeacherDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def d_model(self) -> int:
        """Width of its states."""
        return self.encoder.ln_post.normalized_shape[0]


def build_teacher(weights: Mapping[str, Tensor]) -> Teacher:
    """Return the model that :func:`samba_asr.training.whisper.weights.read_whisper_weights` has read, frozen.

    Raises ValueError where weights are missing or do not fit together.
    """
    with _told("a whole Whisper model"):
        encoder = _empty_encoder(weights)
        vocab_size = len(weights["decoder.token_embedding.weight"])
        n_tokens = len(weights["decoder.positional_embedding"])
        decoder = TeacherDecoder(vocab_size, encoder.ln_post.normalized_shape[0], _layers(weights, "decoder"), n_tokens)
        teacher = Teacher(encoder, decoder)
        teacher.load_state_dict(dict(weights))
    return teacher.eval().requires_grad_(False)


def build_teacher_encoder(weights: Mapping[str, Tensor]) -> TeacherEncoder:
    """As :func:`build_teacher`, the encoder alone: no other weights are needed."""
    with _told("a Whisper encoder"):
        encoder = _empty_encoder(weights)
        prefix = "encoder."
        encoder.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    return encoder.eval().requires_grad_(False)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say of errors that weights are not those of ``what``."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"these are not the weights of {what}: {error.args[0]} is missing") from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"these are not the weights of {what}: {error}") from error


def _empty_encoder(weights: Mapping[str, Tensor]) -> TeacherEncoder:
    d_model, n_mels, _ = weights["encoder.conv1.weight"].shape
    if d_model % HEAD_DIM:
        raise ValueError(f"its width ({d_model}) must be a multiple of {HEAD_DIM}")
    n_states = len(weights["encoder.positional_embedding"])
    return TeacherEncoder(n_mels, d_model, _layers(weights, "encoder"), n_states)


def _layers(weights: Mapping[str, Tensor], part: str) -> int:
    return len({name.split(".")[2] for name in weights if name.startswith(f"{part}.blocks.")})
