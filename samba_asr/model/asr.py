"""The whole recogniser: log-mel, encoder, CTC head, decoder, and their joint loss."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from samba_asr.audio.features import LogMel
from samba_asr.config import ModelConfig
from samba_asr.model.alignment import align, listening_places
from samba_asr.model.decoder import Decoder
from samba_asr.model.encoder import BlockState, Encoder, EncoderBlock, advance_blocks
from samba_asr.ssm.padding import valid_mask
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

IGNORED = -100
"""Target of padding in the decoder's loss."""
PLACE_JITTER = 3
"""States by which places are shifted at random in training: no search places its windows as well as a transcript."""


class Losses(NamedTuple):
    """Scalars, each a sum over the batch divided by its number of tokens."""

    total: Tensor
    """ctc_weight * ctc + (1 - ctc_weight) * decoder; in training perhaps more, such as a regulariser."""
    ctc: Tensor
    decoder: Tensor


class SambaASR(nn.Module):
    """A Mamba encoder-decoder recogniser without attention (arXiv 2501.02832).

    mel_filters: (n_mels, n_fft // 2 + 1), from a checkpoint; None asks librosa for them (extra ``train``).
    """

    def __init__(self, config: ModelConfig, mel_filters: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.features = LogMel(config.features, mel_filters)
        self.encoder = Encoder(config)
        mixer = dataclasses.replace(config.encoder.mixer, groups=1)
        self.ctc_blocks = nn.ModuleList(EncoderBlock(config, mixer, 0.0) for _ in range(config.ctc.n_layers))
        self.ctc_norm = nn.LayerNorm(config.d_model) if config.ctc.n_layers else nn.Identity()
        self.ctc_head = nn.Linear(config.d_model, config.ctc_vocab_size)
        self.decoder = Decoder(config)
        self.spellings: Tensor | None = None
        if config.ctc.vocab_size:
            spellings = torch.full((config.vocab_size, config.ctc.longest_spelling), -1, dtype=torch.int16)
            spellings[: config.ctc.vocab_size, 0] = torch.arange(config.ctc.vocab_size)
            del self.spellings
            self.register_buffer("spellings", spellings)

    @property
    def seconds_per_state(self) -> float:
        """Audio seconds between two of the encoder's states."""
        features = self.config.features
        return self.config.encoder.subsampling_factor * features.hop_length / features.sample_rate

    def encode(self, waveforms: Tensor, waveform_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveforms: (batch, samples) in [-1, 1]; waveform_lengths: (batch,) int64 samples. Returns encoder_out
        (batch, states, d_model), 0 on padding, and encoder_lengths (batch,) int64."""
        return self.encode_features(*self.features(waveforms, waveform_lengths))

    def encode_features(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        chunk: int | None = None,
        outputs: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`encode`, from features (batch, frames, n_mels) and feature_lengths (batch,) int64 frames; chunk,
        outputs: as in :meth:`Encoder.forward`."""
        encoder_out, encoder_lengths = self.encoder(features, feature_lengths, chunk, outputs=outputs)
        return encoder_out, encoder_lengths

    def ctc_log_probs(
        self, encoder_out: Tensor, encoder_lengths: Tensor | None = None, chunk: int | None = None
    ) -> Tensor:
        """(batch, states, d_model) to log-probabilities (batch, states, CTC's vocab_size), float32 at least; chunk: as
        in :meth:`Encoder.forward`, for blocks that CTC has of its own."""
        x = encoder_out
        for block in self.ctc_blocks:
            x, _ = block(x, encoder_lengths, chunk)
        logits: Tensor = self.ctc_head(self.ctc_norm(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def advance_ctc(
        self, encoder_out: Tensor, states: tuple[BlockState, ...], ahead: int = 0
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        """As :meth:`ctc_log_probs`, of the encoder's next chunk; states: of CTC's own blocks, before it and after;
        ahead: as in :meth:`Encoder.advance`."""
        x, states = advance_blocks(self.ctc_blocks, encoder_out, states, ahead)
        logits: Tensor = self.ctc_head(self.ctc_norm(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1), states

    def spell(self, tokens: Tensor, token_lengths: Tensor) -> tuple[list[list[int]], list[list[int]]]:
        """Return the pieces in which CTC says each text, and how many each of its tokens takes.

        tokens: (batch, tokens) int64 without begin and end; token_lengths: (batch,) int64.
        """
        texts = [row[:length] for row, length in zip(tokens.tolist(), token_lengths.tolist(), strict=True)]
        if self.spellings is None:
            return texts, [[1] * len(text) for text in texts]
        spellings = self.spellings.cpu().numpy()
        spelt = [spellings[np.array(text, np.int64)] for text in texts]
        return [rows[rows >= 0].tolist() for rows in spelt], [(rows >= 0).sum(1).tolist() for rows in spelt]

    def spell_text(self, tokens: Sequence[int]) -> list[int]:
        """As :meth:`spell`, the pieces of one text."""
        (pieces,), _ = self.spell(torch.tensor([tokens], dtype=torch.int64), torch.tensor([len(tokens)]))
        return pieces

    def respell(self, tokens: Tensor, token_lengths: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Give a share of the tokens of texts, drawn at random, in the pieces in which CTC says them; as in
        :meth:`spell`, tokens and token_lengths in and out."""
        texts = [row[:length] for row, length in zip(tokens.tolist(), token_lengths.tolist(), strict=True)]
        if self.spellings is not None:
            spellings = [[piece for piece in row if piece >= 0] for row in self.spellings.tolist()]
            texts = [_partly_spelt(text, spellings, share) for text in texts]
        rows = [torch.tensor(text, dtype=tokens.dtype) for text in texts]
        lengths = torch.tensor([len(text) for text in texts], dtype=token_lengths.dtype)
        padded = pad_sequence(rows, batch_first=True, padding_value=BLANK_ID)
        return padded.to(tokens.device), lengths.to(token_lengths.device)

    def loss(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        *,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
    ) -> Losses:
        """Joint CTC and decoder loss.

        features: (batch, frames, n_mels); tokens: (batch, tokens) int64 without begin and end; lengths: (batch,) int64.
        An utterance with more tokens than CTC can place on its states adds nothing to the CTC loss.
        """
        encoder_out, encoder_lengths = self.encode_features(features, feature_lengths)
        return self.loss_from_states(
            encoder_out,
            encoder_lengths,
            tokens,
            token_lengths,
            ctc_weight=ctc_weight,
            label_smoothing=label_smoothing,
        )

    def loss_from_states(
        self,
        encoder_out: Tensor,
        encoder_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        *,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        token_noise: float = 0.0,
        chunk: int | None = None,
        logits: list[Tensor] | None = None,
    ) -> Losses:
        """As :meth:`loss`, from :meth:`encode`'s states. With ctc_weight 1 the decoder does not run; its loss is 0.
        CTC's loss is divided by the number of its pieces. token_noise: share of the tokens that the decoder reads, in
        training, which are others of the batch (:func:`exchanged`). chunk: as in :meth:`ctc_log_probs`. logits: a
        list to which the decoder's are appended, (batch, tokens + 1, vocab_size), if it runs."""
        pieces, counts = self.spell(tokens, token_lengths)
        lengths = torch.tensor([len(text) for text in pieces], device=tokens.device)
        log_probs = self.ctc_log_probs(encoder_out, encoder_lengths, chunk)
        ctc = F.ctc_loss(
            log_probs.transpose(0, 1),
            torch.tensor([piece for text in pieces for piece in text], device=tokens.device, dtype=tokens.dtype),
            encoder_lengths,
            lengths,
            blank=BLANK_ID,
            reduction="sum",
            zero_infinity=True,
        ) / lengths.sum().clamp_min(1)
        if ctc_weight == 1:
            return Losses(ctc, ctc, torch.zeros_like(ctc))
        places = None
        if self.decoder.listening == "window":
            firsts = align(log_probs.detach(), encoder_lengths.tolist(), pieces)
            places = self._places(firsts, counts, encoder_lengths)
        noise = token_noise if self.training else 0.0
        decoder = self.decoder_loss(
            encoder_out, encoder_lengths, tokens, token_lengths, label_smoothing, places, noise, logits
        )
        return Losses(ctc_weight * ctc + (1 - ctc_weight) * decoder, ctc, decoder)

    def _places(
        self, firsts: list[NDArray[np.int64] | None], counts: list[list[int]], encoder_lengths: Tensor
    ) -> Tensor:
        """Return where the decoder listens, (batch, tokens + 1) int64."""
        rows = [
            torch.tensor(listening_places(first, count, length))
            for first, count, length in zip(firsts, counts, encoder_lengths.tolist(), strict=True)
        ]
        places = pad_sequence(rows, batch_first=True)
        if self.training:
            places = places + torch.randint(-PLACE_JITTER, PLACE_JITTER + 1, places.shape)
        return places.to(encoder_lengths.device)

    def decoder_loss(
        self,
        encoder_out: Tensor,
        encoder_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        label_smoothing: float = 0.1,
        places: Tensor | None = None,
        token_noise: float = 0.0,
        logits: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the decoder's cross-entropy a token, end tokens counted; places: (batch, tokens + 1), as in
        :meth:`Decoder.forward`; other arguments as in :meth:`loss_from_states`."""
        inputs, targets = decoder_pairs(tokens, token_lengths)
        if token_noise:
            inputs = exchanged(inputs, token_lengths + 1, token_noise)
        memory = self.decoder.read_memory(encoder_out, encoder_lengths)
        scores, _ = self.decoder(inputs, token_lengths + 1, memory, places)
        if logits is not None:
            logits.append(scores)
        return F.cross_entropy(
            scores.flatten(0, 1).to(torch.promote_types(scores.dtype, torch.float32)),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
        )

    def text_loss(self, tokens: Tensor, token_lengths: Tensor, label_smoothing: float = 0.1) -> Tensor:
        """As :meth:`decoder_loss`, of text without a recording: the decoder as a language model."""
        nothing = self.ctc_head.weight.new_zeros(len(tokens), 0, self.config.d_model)
        places = tokens.new_zeros(len(tokens), tokens.shape[1] + 1)
        lengths = torch.zeros_like(token_lengths)
        return self.decoder_loss(nothing, lengths, tokens, token_lengths, label_smoothing, places)


def decoder_pairs(tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the decoder reads and what it must say, each (batch, tokens + 1): begin and the text; the text and
    end, then IGNORED."""
    own = valid_mask(token_lengths, tokens.shape[1])
    inputs = F.pad(tokens.masked_fill(~own, EOS_ID), (1, 0), value=BOS_ID)
    targets = F.pad(tokens.masked_fill(~own, IGNORED), (0, 1), value=IGNORED)
    return inputs, targets.scatter(1, token_lengths.unsqueeze(1), EOS_ID)


def exchanged(inputs: Tensor, lengths: Tensor, share: float) -> Tensor:
    """Put random tokens of the batch in the places of a share of a decoder's inputs, each text's first aside.

    What has been said is then no certain guide, as in a search that went wrong, nor learnt by heart (SwitchOut, arXiv
    1808.07512).

    inputs: (batch, tokens) int64; lengths: (batch,) int64.
    """
    rows = torch.randint(len(inputs), inputs.shape, device=inputs.device)
    columns = (torch.rand(inputs.shape, device=inputs.device) * lengths[rows]).long()
    drawn = torch.rand(inputs.shape, device=inputs.device) < share
    drawn[:, :1] = False
    return torch.where(drawn, inputs[rows, columns], inputs)


def _partly_spelt(text: list[int], spellings: list[list[int]], share: float) -> list[int]:
    drawn = (torch.rand(len(text)) < share).tolist()
    return [
        piece for token, spelt in zip(text, drawn, strict=True) for piece in (spellings[token] if spelt else [token])
    ]
