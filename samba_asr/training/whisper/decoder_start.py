"""Where a decoder that learns from a Whisper decoder starts.

Norms, feed-forward layers, and the value and output projections of cross-attention are copied; a mamba2 mixer that
resembles self-attention starts from it, as in the encoder. Windows begin by hearing all their states alike.
"""

import dataclasses

import torch
from torch import Tensor, nn

from samba_asr.config import CTCConfig, DecoderConfig, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.decoder import Decoder, DecoderBlock
from samba_asr.model.listening import Window
from samba_asr.ssm.mixer import Mamba2
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.whisper.decoder_teacher import Norm
from samba_asr.training.whisper.network import Block, Teacher
from samba_asr.training.whisper.settings import DecoderDistilConfig
from samba_asr.training.whisper.student import copy_attention, resembles
from samba_asr.training.whisper.tokens import spellings

USUAL_TOKENS = 40
"""Of a text. The teacher's layers know their positions; the student, which has none, gets their mean."""


def read_blocks(
    decoder: Decoder, tokens: Tensor, token_lengths: Tensor, memory: Tensor, lengths: Tensor, places: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return what :meth:`Decoder.forward` does, logits (batch, tokens, vocab_size), and what leaves each block.

    memory: (batch, states, d_model), after the decoder's norm; lengths: (batch,) int64 states.
    """
    x, outputs = decoder.dropout(decoder.embedding(tokens)), []
    for block in decoder.blocks:
        assert isinstance(block, DecoderBlock)
        x, _ = block(x, token_lengths, block.read_memory(memory, lengths), places)
        outputs.append(x)
    return decoder.out_proj(decoder.norm(x)), outputs


def followed_layers(count: int, copied: list[int]) -> list[int]:
    """Return which of a teacher's ``count`` layers each block of a student follows: evenly spread ones, but none before
    the layer that the block was copied from; counted from 0."""
    kept = len(copied)
    return [max(layer, (i + 1) * count // kept - 1) for i, layer in enumerate(copied)]


def goes_on(config: ModelConfig) -> bool:
    """Return whether a checkpoint has such a decoder already. Raises ValueError for one whose tokens are no use."""
    if not config.ctc.vocab_size:
        return False
    if config.decoder.listening != "window":
        raise ValueError(
            f"model: its tokens are spelt in {config.ctc.vocab_size} pieces, but its decoder does not listen by "
            "windows; name its pieces for a new decoder, or a checkpoint whose CTC head says whole tokens, or one of "
            "distil_decoder.py"
        )
    return True


def head_pieces(file: str, config: ModelConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer of a CTC head's pieces that a file holds. Raises ValueError where the checkpoint, of which
    config and tokenizer are, has others, FileNotFoundError where the file is missing."""
    pieces = Tokenizer.load(file)
    count = config.ctc.vocab_size or config.vocab_size
    if pieces.pieces() != tokenizer.pieces()[:count]:
        raise ValueError(f"pieces ({file}) must hold the {count} pieces of the model's CTC head, in their order")
    return pieces


def widened(old: SambaASR, pieces: Tokenizer, tokenizer: Tokenizer, config: DecoderDistilConfig) -> SambaASR:
    """Return a model with an old one's encoder and CTC head, and a random decoder that writes longer tokens, of whose
    confidence nothing is known."""
    table = spellings(pieces, tokenizer)
    decoder = DecoderConfig(
        n_layers=len(config.layers),
        d_ff=4 * old.config.d_model,
        dropout=0.0,
        mixer=config.mixer,
        listening="window",
        window_before=config.window_before,
        window_after=config.window_after,
        tied_embedding=True,
    )
    ctc = CTCConfig(old.config.ctc.n_layers, pieces.vocab_size, table.shape[1])
    words = dataclasses.replace(old.config.words, confidence_scale=1.0, confidence_bias=0.0)
    new = dataclasses.replace(old.config, vocab_size=tokenizer.vocab_size, decoder=decoder, ctc=ctc, words=words)
    model = SambaASR(new, old.features.mel_filters)
    own = {name: value for name, value in model.state_dict().items() if name.startswith("decoder.")}
    kept = {name: value for name, value in old.state_dict().items() if not name.startswith("decoder.")}
    model.load_state_dict({**own, **kept, "spellings": table})
    return model


@torch.no_grad()
def start_decoder(decoder: Decoder, teacher: Teacher, layers: list[int], embeddings: Tensor, norm: Norm) -> None:
    """Copy some of the teacher's layers, counted from 0, into a decoder of as many, and set its embeddings and the norm
    of what it hears.

    embeddings: (vocab_size, d_model), without positions. Raises ValueError for layers that the teacher lacks.
    """
    taught_layers = list(teacher.decoder.blocks)
    if layers[-1] >= len(taught_layers):
        raise ValueError(
            f"layers ({layers}) must be below the number of the teacher's decoder layers ({len(taught_layers)})"
        )
    for block, layer in zip(decoder.blocks, layers, strict=True):
        taught = taught_layers[layer]
        assert isinstance(block, DecoderBlock) and isinstance(taught, Block)
        _copy_block(block, taught)
    if isinstance(decoder.memory_norm, nn.LayerNorm):
        decoder.memory_norm.load_state_dict(norm.layer.state_dict())
        decoder.memory_norm.bias.add_(norm.means.mean(0))
    decoder.norm.load_state_dict(teacher.decoder.ln.state_dict())
    # The output is tied to it, as Whisper's, and there what all tokens have in common counts nothing.
    decoder.embedding.weight.copy_(embeddings + teacher.decoder.positional_embedding[:USUAL_TOKENS].mean(0))


def _copy_block(block: DecoderBlock, taught: Block) -> None:
    cross, ff = block.cross, block.ff
    assert isinstance(cross, Window) and ff is not None
    assert taught.cross_attn is not None and taught.cross_attn_ln is not None
    block.norm.load_state_dict(taught.attn_ln.state_dict())
    block.cross_norm.load_state_dict(taught.cross_attn_ln.state_dict())
    cross.value.load_state_dict(taught.cross_attn.value.state_dict())
    cross.out_proj.load_state_dict(taught.cross_attn.out.state_dict())
    norm, wide, _, _, narrow = ff
    norm.load_state_dict(taught.mlp_ln.state_dict())
    wide.load_state_dict(taught.mlp[0].state_dict())
    narrow.load_state_dict(taught.mlp[2].state_dict())
    if isinstance(block.mixer, Mamba2) and resembles(block.mixer, taught.attn):
        copy_attention(block.mixer, taught.attn, directions=1)
    else:
        block.mixer.out_proj.weight.mul_(0.1)  # attention's outputs are small
