"""The whole recogniser: log-mel, encoder, CTC head, decoder, and their joint loss."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.audio.features import LogMel
from samba_asr.config import ModelConfig
from samba_asr.model.decoder import Decoder
from samba_asr.model.encoder import Encoder
from samba_asr.ssm.padding import valid_mask
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

IGNORED = -100
"""Target of padding in the decoder's loss."""


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
        self.ctc_head = nn.Linear(config.d_model, config.vocab_size)
        self.decoder = Decoder(config)

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

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        """(batch, states, d_model) to log-probabilities (batch, states, vocab_size), float32 at least."""
        logits: Tensor = self.ctc_head(encoder_out)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

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
    ) -> Losses:
        """As :meth:`loss`, from :meth:`encode`'s states. With ctc_weight 1 the decoder does not run; its loss is 0."""
        ctc = F.ctc_loss(
            self.ctc_log_probs(encoder_out).transpose(0, 1),
            tokens,
            encoder_lengths,
            token_lengths,
            blank=BLANK_ID,
            reduction="sum",
            zero_infinity=True,
        ) / token_lengths.sum().clamp_min(1)
        if ctc_weight == 1:
            return Losses(ctc, ctc, torch.zeros_like(ctc))
        decoder = self.decoder_loss(encoder_out, encoder_lengths, tokens, token_lengths, label_smoothing)
        return Losses(ctc_weight * ctc + (1 - ctc_weight) * decoder, ctc, decoder)

    def decoder_loss(
        self,
        encoder_out: Tensor,
        encoder_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        label_smoothing: float = 0.1,
    ) -> Tensor:
        """Return the decoder's cross-entropy a token, end tokens counted; arguments as in :meth:`loss_from_states`."""
        inputs, targets = decoder_pairs(tokens, token_lengths)
        logits, _ = self.decoder(inputs, token_lengths + 1, self.decoder.read_memory(encoder_out, encoder_lengths))
        return F.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
        )

    def text_loss(self, tokens: Tensor, token_lengths: Tensor, label_smoothing: float = 0.1) -> Tensor:
        """As :meth:`decoder_loss`, of text without a recording: the decoder as a language model."""
        nothing = self.ctc_head.weight.new_zeros(len(tokens), 0, self.config.d_model)
        return self.decoder_loss(nothing, torch.zeros_like(token_lengths), tokens, token_lengths, label_smoothing)


def decoder_pairs(tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the decoder reads and what it must say, each (batch, tokens + 1): begin and the text; the text and
    end, then IGNORED."""
    own = valid_mask(token_lengths, tokens.shape[1])
    inputs = F.pad(tokens.masked_fill(~own, EOS_ID), (1, 0), value=BOS_ID)
    targets = F.pad(tokens.masked_fill(~own, IGNORED), (0, 1), value=IGNORED)
    return inputs, targets.scatter(1, token_lengths.unsqueeze(1), EOS_ID)
