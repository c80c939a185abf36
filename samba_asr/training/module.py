"""One training step and one validation, as a Lightning module."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor, nn

from samba_asr.audio.augment import SpecAugment
from samba_asr.config import SearchConfig
from samba_asr.decoding.search import search_tokens
from samba_asr.evaluation.wer import ScoredUtterance, score
from samba_asr.model.asr import Losses, SambaASR
from samba_asr.ssm.mixer import RATES
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.config import TrainingConfig
from samba_asr.training.consistency import VIEWS, consistency_loss
from samba_asr.training.data import Batch, mix_seed
from samba_asr.training.manifest import Utterance
from samba_asr.training.minimum_wer import find_choices, minimum_wer_loss
from samba_asr.training.resume import tokenizer_hash
from samba_asr.training.schedule import learning_rate_share, run_progress
from samba_asr.training.text import TextBatches
from samba_asr.training.whisper.matching import Matching
from samba_asr.training.whisper.reading import divergence_from

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20


@dataclass
class Progress:
    """How far a run is, beyond Lightning's count of optimiser steps. Saved in every checkpoint."""

    position: int = 0
    """Batches drawn, those of skipped steps included."""
    audio_seconds: float = 0.0
    """Audio of the batches drawn, padding left out."""
    minutes: float = 0.0
    """Wall-clock time."""
    skipped: int = 0
    """Steps left out because the loss or its gradient was not finite."""


@dataclass(frozen=True)
class DevScores:
    """A validation: losses per token, and the word error rate of CTC's best path (None if no word was said)."""

    loss: float
    ctc: float
    decoder: float
    wer: float | None


class StepLosses(NamedTuple):
    """What a training step has to lower."""

    recordings: Losses
    """Of the transcripts."""
    teacher: Tensor | None
    """Distance from the teacher's states, None without a teacher or while its blocks are frozen."""
    reading: Tensor | None
    """Divergence of what the teacher's decoder expects of the student's states, None where it does not read along."""
    expectation: Tensor | None
    """Divergence of what the decoder expects from what the teacher's does, None where that is not asked for."""
    text: Tensor | None
    """The decoder's loss on text without recordings, None without any."""
    consistency: Tensor | None
    """Divergence a token between what CTC says of two views, None where there is one."""
    minimum_wer: Tensor | None
    """Word errors a word to expect of joint search, None where that is not asked for."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weight decay on matrices only.

    Vectors (biases, norms, D, dt_bias ...) and decay rates have none.
    """
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.endswith(RATES)
            (others if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class TrainingModule(lightning.LightningModule):
    """Trains a model on batches of waveforms.

    Everything random in a step follows from the seed and the batch's position in the run, so that a resumed run
    repeats what the interrupted one would have done.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: SambaASR,
        tokenizer: Tokenizer,
        dev_utterances: Sequence[Utterance],
        text: TextBatches | None = None,
        matching: Matching | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters({"training": config.to_dict(), "tokenizer_sha256": tokenizer_hash(tokenizer)})
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.dev_utterances = dev_utterances
        self.text = text
        self._matching = (matching,)  # in a tuple, it is no part of the module's state
        self.progress = Progress()
        self.dev_scores: DevScores | None = None
        masks = config.spec_augment
        self.spec_augment = SpecAugment(
            masks.n_time_masks, masks.time_mask_share, masks.n_freq_masks, masks.freq_mask_bands
        )
        self._loss_settings: dict[str, Any] = {
            "ctc_weight": config.ctc_weight,
            "label_smoothing": config.label_smoothing,
            "token_noise": config.token_noise,
        }
        self._skipped_in_a_row = 0
        self._fit_started = time.monotonic()
        self._minutes_before = 0.0
        self._dev_sums = torch.zeros(4, dtype=torch.float64)
        self._dev_scored: list[ScoredUtterance] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.config.optimiser
        parts = self._parts()
        groups = [
            {**group, "params": [p for p in group["params"] if parts.get(p, "others") == part], "part": part}
            for group in parameter_groups(self.model, settings.weight_decay)
            for part in ("encoder", "decoder", "others", *{"copied"}.intersection(parts.values()))
        ]
        return torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )

    def _parts(self) -> dict[nn.Parameter, str]:
        """Return which part of the model a parameter is of, for its learning rate; those left out are "others"."""
        carried = self.carried_parameters()
        parts = {parameter: "encoder" for parameter in carried}
        if self.config.encoder.copied_share < 1:
            mixers = {p for name, p in self.model.encoder.named_parameters() if ".mixer." in name}
            parts |= {parameter: "copied" for parameter in carried if parameter not in mixers}
        return parts | {parameter: "decoder" for parameter in self.model.decoder.parameters()}

    def carried_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters but for those of its new blocks."""
        encoder = self.model.encoder
        first_new = len(encoder.blocks) - self.config.encoder.new_blocks
        new = {parameter for block in encoder.blocks[first_new:] for parameter in block.parameters()}
        return [parameter for parameter in encoder.parameters() if parameter not in new]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = dataclasses.asdict(self.progress)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress = Progress(**checkpoint["progress"])

    def on_train_start(self) -> None:
        self._fit_started = time.monotonic()
        self._minutes_before = self.progress.minutes
        (matching,) = self._matching
        if matching is not None:
            matching.to(self.device)

    def losses(self, batch: Batch) -> StepLosses:
        """Return the losses of a training batch, its features masked, its backward scans limited or not, by chance."""
        encoder = self.config.encoder
        views = VIEWS if self.config.consistency_weight else 1
        tokens, token_lengths = batch.tokens, batch.token_lengths
        if self.config.spelt_share:
            tokens, token_lengths = self.model.respell(tokens, token_lengths, self.config.spelt_share)
        tokens, token_lengths = tokens.repeat(views, 1), token_lengths.repeat(views)
        with torch.no_grad():
            features, lengths = self.model.features(batch.waveforms, batch.waveform_lengths)
            features = torch.cat([self.spec_augment(features, lengths) for _ in range(views)])
            lengths = lengths.repeat(views)
        chunk = None
        if encoder.chunk_share and float(torch.rand(())) < encoder.chunk_share:
            low, high = encoder.chunk_states
            chunk = int(torch.randint(low, high + 1, ()))
        outputs: list[Tensor] = []
        states, lengths = self.model.encode_features(features, lengths, chunk, outputs)
        settings = self._loss_settings if self._decoder_learns() else {**self._loss_settings, "ctc_weight": 1.0}
        logits: list[Tensor] = []
        recordings = self.model.loss_from_states(
            states, lengths, tokens, token_lengths, chunk=chunk, logits=logits, **settings
        )
        consistency = None
        if views > 1:
            divergence = consistency_loss(self.model.ctc_log_probs(states, lengths, chunk), lengths)
            consistency = divergence / batch.token_lengths.sum().clamp_min(1)
        distances = None
        (matching,) = self._matching
        if matching is not None and self.global_step >= encoder.frozen_steps:
            count = len(batch.places)
            read = batch._replace(tokens=tokens[:count], token_lengths=token_lengths[:count])
            distances = matching(outputs[-1 - encoder.new_blocks], lengths, read)
        teacher, reading, expectation = (None, None, None) if distances is None else distances
        expected = None
        if expectation is not None and logits:
            expected = divergence_from(expectation, logits[0].unflatten(0, (views, -1)))
        minimum_wer = self._minimum_wer(batch, states, lengths, chunk)
        return StepLosses(recordings, teacher, reading, expected, self._text_loss(), consistency, minimum_wer)

    def _decoder_learns(self) -> bool:
        return bool(self.global_step >= self.config.decoder_from_step)

    def _minimum_wer(self, batch: Batch, states: Tensor, lengths: Tensor, chunk: int | None) -> Tensor | None:
        """Return the errors to expect, of each recording's first view."""
        if not self.config.minimum_wer_weight or not self._decoder_learns():
            return None
        count = len(batch.places)
        rows = zip(batch.tokens.tolist(), batch.token_lengths.tolist(), strict=True)
        references = [self.tokenizer.decode(row[:length]) for row, length in rows]
        words = sum(len(reference.split()) for reference in references)
        states, lengths, texts = states[:count], lengths[:count], self.config.minimum_wer_texts
        choices = find_choices(self.model, self.tokenizer, states.detach(), lengths, references, texts, chunk)
        return minimum_wer_loss(self.model, states, lengths, choices, words)

    def _text_loss(self) -> Tensor | None:
        if self.text is None or not self._decoder_learns():
            return None
        tokens, lengths = (tensor.to(self.device) for tensor in self.text.batch(self.progress.position))
        return self.model.text_loss(tokens, lengths, self.config.label_smoothing)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, float]:
        """Make one optimiser step, or none if the loss or its gradient is not finite; return what is logged."""
        torch.manual_seed(mix_seed(self.config.seed, self.progress.position))
        optimizer = self.optimizers()
        assert isinstance(optimizer, lightning.pytorch.core.optimizer.LightningOptimizer)
        learning_rate = self._set_learning_rate(optimizer)
        for parameter in self.carried_parameters():
            parameter.requires_grad_(self.global_step >= self.config.encoder.frozen_steps)
        losses = self.losses(batch)
        weights = {
            "teacher": self.config.encoder.teacher_weight,
            "reading": self.config.encoder.reading_weight,
            "expectation": self.config.expectation_weight,
            "text": self.config.text.weight,
            "consistency": self.config.consistency_weight,
            "minimum_wer": self.config.minimum_wer_weight,
        }
        others = {name: loss for name in weights if (loss := getattr(losses, name)) is not None}
        total = losses.recordings.total + sum(weights[name] * loss for name, loss in others.items())
        self.manual_backward(total)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimiser.gradient_clip)
        if bool(torch.isfinite(total) & torch.isfinite(norm)):
            optimizer.step()
            self._skipped_in_a_row = 0
        else:
            self._skip(total)
        optimizer.zero_grad()
        audio_seconds = float(batch.waveform_lengths.sum()) / self.model.config.features.sample_rate
        self.progress.position += 1
        self.progress.audio_seconds += audio_seconds
        self.progress.minutes = self._minutes_before + (time.monotonic() - self._fit_started) / 60
        return {
            "lr": learning_rate,
            "total": total.item(),
            "ctc": losses.recordings.ctc.item(),
            "decoder": losses.recordings.decoder.item(),
            **{name: loss.item() for name, loss in others.items()},
            "grad_norm": float(norm),
            "audio_seconds": audio_seconds,
        }

    def _set_learning_rate(self, optimizer: Any) -> float:
        settings = self.config.optimiser
        progress = run_progress(self.global_step, self.config.max_steps, self.progress.minutes, self.config.max_minutes)
        learning_rate = settings.learning_rate * learning_rate_share(
            self.global_step, progress, warmup_steps=settings.warmup_steps, final_share=settings.final_share
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * self._share(group["part"])
        return learning_rate

    def _share(self, part: str) -> float:
        """Return a part's share of the learning rate. What begins to learn later warms up then: AdamW's first steps
        are its largest."""
        encoder = self.config.encoder
        starts = {"decoder": self.config.decoder_from_step} | dict.fromkeys(("encoder", "copied"), encoder.frozen_steps)
        share = encoder.learning_rate_share if part in ("encoder", "copied") else 1.0
        share *= encoder.copied_share if part == "copied" else 1.0
        start, warmup = starts.get(part, 0), self.config.optimiser.warmup_steps
        return share * min(1.0, max(0, self.global_step - start + 1) / warmup) if start and warmup else share

    def _skip(self, loss: Tensor) -> None:
        self.progress.skipped += 1
        self._skipped_in_a_row += 1
        what = "the gradient" if bool(torch.isfinite(loss)) else f"the loss ({loss.item()})"
        log.warning("step %d skipped: %s is not finite", self.global_step, what)
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{what} was not finite {MAX_SKIPPED_IN_A_ROW} times in a row, at step {self.global_step}: "
                f"lower optimiser.learning_rate ({self.config.optimiser.learning_rate}) or "
                f"optimiser.gradient_clip ({self.config.optimiser.gradient_clip}), then --resume"
            )

    def on_validation_epoch_start(self) -> None:
        self._dev_sums = torch.zeros(4, dtype=torch.float64)
        self._dev_scored = []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the sums."""
        encoder_out, encoder_lengths = self.model.encode(batch.waveforms, batch.waveform_lengths)
        losses = self.model.loss_from_states(
            encoder_out, encoder_lengths, batch.tokens, batch.token_lengths, **self._loss_settings
        )
        count = float(batch.token_lengths.sum())
        values = [losses.total.item() * count, losses.ctc.item() * count, losses.decoder.item() * count, count]
        self._dev_sums += torch.tensor(values, dtype=torch.float64)
        found = search_tokens(self.model, encoder_out, encoder_lengths, SearchConfig(search="ctc"))
        for place, tokens in zip(batch.places.tolist(), found, strict=True):
            said = self.dev_utterances[place]
            words = self.tokenizer.decode(tokens)
            self._dev_scored.append(
                ScoredUtterance(said.audio, said.duration, said.text, words, said.speaker, said.corpus)
            )

    def on_validation_epoch_end(self) -> None:
        total, ctc, decoder, count = self._dev_sums.tolist()
        wer = score(self._dev_scored)
        rate = wer.rate if wer.words else None
        self.dev_scores = DevScores(total / count, ctc / count, decoder / count, rate)
