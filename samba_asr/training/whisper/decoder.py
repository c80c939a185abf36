"""Distilling a Whisper decoder into one that listens by windows, on the states of an encoder that stays as it is.

Self-attention becomes a Mamba-2 mixer, cross-attention a window, and some of the layers go
(:mod:`samba_asr.training.whisper.decoder_start`). The student learns the teacher's distribution of the next token (KL
divergence), what is said (cross-entropy) and what leaves the teacher's blocks (relative error). The teacher reads the
same transcripts in its own tokens and hears all of the same states, or its own encoder's; the two are compared where
both have a boundary.
"""

import dataclasses
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from samba_asr.atomic import replacing
from samba_asr.model.asr import IGNORED, PLACE_JITTER, SambaASR, decoder_pairs
from samba_asr.model.checkpoint import load_checkpoint, save_checkpoint
from samba_asr.model.checkpoint_files import copy_lexicon
from samba_asr.model.decoder import DecoderBlock
from samba_asr.model.listening import Window
from samba_asr.model.pretrained import resolve_model
from samba_asr.text.normalization import TextForm, normalize_text
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.batching import BatchSequence, dev_batches
from samba_asr.training.data import mix_seed, read_manifests
from samba_asr.training.manifest import Utterance
from samba_asr.training.module import MAX_SKIPPED_IN_A_ROW, parameter_groups
from samba_asr.training.resume import check_folder, tokenizer_hash
from samba_asr.training.schedule import learning_rate_share
from samba_asr.training.whisper.decoder_data import Said, SaidBatch, collate, listen
from samba_asr.training.whisper.decoder_start import (
    followed_layers,
    goes_on,
    head_pieces,
    read_blocks,
    start_decoder,
    widened,
)
from samba_asr.training.whisper.decoder_teacher import DecoderTeacher, Norm, whisper_norm
from samba_asr.training.whisper.network import WINDOW_SECONDS, Teacher, build_teacher
from samba_asr.training.whisper.reading import Expectation, Reader, divergence_from
from samba_asr.training.whisper.settings import DecoderDistilConfig
from samba_asr.training.whisper.student import relative_error
from samba_asr.training.whisper.tokens import build_tokenizer, token_embeddings, token_shares, word_counts
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.training.whisper.weights import read_whisper_weights
from samba_asr.training.whisper.windows import SAMPLE_RATE

log = logging.getLogger(__name__)

CHECKPOINT_FOLDER, STATE_FILE, CONFIG_FILE = "checkpoint", "state.pt", "config.json"
GRADIENT_CLIP = 1.0
WEIGHT_DECAY = 0.01
TEXT_WEIGHT = 0.5
"""Of a word in the texts, beside 1 for one in the transcripts, when tokens are chosen."""


def distil_decoder(config: DecoderDistilConfig, out: str | Path, resume: bool = False) -> Path:
    """Run the stage; return the checkpoint's folder, ``out/checkpoint``.

    Raises ValueError or FileNotFoundError for settings, files or data that cannot be used, FloatingPointError where
    gradients are not finite too often in a row.
    """
    out = Path(out)
    check_folder(out, resume)
    run = DecoderDistillation(config, out)
    if resume:
        run.load()
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
    run.train()
    return out / CHECKPOINT_FOLDER


def choose_tokens(
    config: DecoderDistilConfig, pieces: Tokenizer, whisper: WhisperVocabulary, spoken: list[Utterance]
) -> Tokenizer:
    """Return the tokenizer of a run that is given a CTC head's pieces. Raises ValueError or FileNotFoundError for texts
    that cannot be read, ValueError for a vocab_size that leaves no place."""
    words: dict[str, float] = dict(word_counts(normalize_text(one.text, config.text_form) for one in spoken))
    for word, count in _words_of(config.texts, config.text_form).items():
        words[word] = words.get(word, 0) + TEXT_WEIGHT * count
    tokenizer = build_tokenizer(pieces, whisper, token_shares(words, whisper), config.vocab_size)
    log.info("vocab_size: %d, of them %d pieces of the CTC head", tokenizer.vocab_size, pieces.vocab_size)
    return tokenizer


def _words_of(files: list[str], text_form: TextForm) -> Counter[str]:
    words: Counter[str] = Counter()
    for file in files:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"texts: {file} is not UTF-8 text ({error})") from error
        words.update(word_counts(normalize_text(line, text_form) for line in lines))
    return words


class Taught(NamedTuple):
    """What the teacher says where it can be compared."""

    expectation: Expectation
    outputs: list[Tensor]
    """Of its blocks there, (positions, d_model) each."""


class Measure(NamedTuple):
    """How a development set is read."""

    nats: float
    """A character of the transcripts, end tokens counted."""
    right: float
    """Share of the places where the teacher can be compared at which the likeliest token is the right one."""
    teacher_right: float
    """The same of the teacher."""


class DecoderDistillation:
    """Teacher, student, data and progress of a run."""

    def __init__(self, config: DecoderDistilConfig, out: Path) -> None:
        self.config, self.out = config, out
        if config.teacher_hears == "own" and config.max_duration > WINDOW_SECONDS:
            raise ValueError(
                f"max_duration ({config.max_duration:g}) must be at most {WINDOW_SECONDS} with teacher_hears own: "
                "Whisper's encoder hears no more at once"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher = build_teacher(read_whisper_weights(config.teacher))
        whisper = WhisperVocabulary.load(config.teacher_tokenizer)
        spoken = read_manifests(config.train)
        old, pieces = load_checkpoint(resolve_model(config.model))
        if config.teacher_hears == "own" and old.config.features.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"model: its sample_rate ({old.config.features.sample_rate}) must be {SAMPLE_RATE} where the teacher "
                "hears its own encoder"
            )
        norm = whisper_norm(teacher, old.config.encoder.subsampling, config.teacher_run)
        torch.manual_seed(config.seed)
        self.model, self.tokenizer = self._start(old, pieces, teacher, whisper, spoken, norm)
        self.model.to(self.device).eval()
        self.decoder = self.model.decoder
        reader = Reader(teacher.decoder, whisper, self.tokenizer, config.text_form)
        listener = teacher if config.teacher_hears == "own" else None
        self.teacher = DecoderTeacher(reader, norm, listener).to(self.device)
        copied = config.layers if self.model is not old else [0] * len(self.decoder.blocks)
        self.followed = followed_layers(len(teacher.decoder.blocks), copied)
        """The teacher's layer whose output each of the student's has to give."""
        self.train_set = self._listen(spoken)
        if not self.train_set:
            raise ValueError(f"no utterance to learn from in {', '.join(config.train)}")
        self.dev_sets = {Path(name).stem: self._listen(self._some(read_manifests([name]))) for name in config.dev}
        self.optimiser = torch.optim.AdamW(self._groups(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.step, self.minutes, self._skipped = 0, 0.0, 0

    def _start(
        self,
        old: SambaASR,
        pieces: Tokenizer,
        teacher: Teacher,
        whisper: WhisperVocabulary,
        spoken: list[Utterance],
        norm: Norm,
    ) -> tuple[SambaASR, Tokenizer]:
        if old.config.d_model != teacher.d_model:
            raise ValueError(
                f"model: its d_model ({old.config.d_model}) must be the width of the teacher ({teacher.d_model})"
            )
        if self.config.pieces is not None:
            pieces = head_pieces(self.config.pieces, old.config, pieces)
        elif goes_on(old.config):
            return old, pieces
        tokenizer = choose_tokens(self.config, pieces, whisper, spoken)
        model = widened(old, pieces, tokenizer, self.config)
        embeddings = token_embeddings(tokenizer, whisper, teacher.decoder.token_embedding.weight)
        start_decoder(model.decoder, teacher, self.config.layers, embeddings, norm)
        return model, tokenizer

    def _listen(self, utterances: list[Utterance]) -> list[Said]:
        return listen(
            self.model,
            self.tokenizer,
            utterances,
            self.teacher,
            max_duration=self.config.max_duration,
            text_form=self.config.text_form,
            bf16=self.config.bf16,
        )

    def _some(self, utterances: list[Utterance]) -> list[Utterance]:
        """Return those of a development set that validations take."""
        count = min(len(utterances), self.config.dev_utterances)
        return [utterances[i * len(utterances) // count] for i in range(count)]

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups, each with its share of the learning rate; encoder, CTC and the norm of what is
        heard stay as they are."""
        self.model.requires_grad_(False)
        self.decoder.requires_grad_(True)
        self.decoder.memory_norm.requires_grad_(False)
        fresh: set[int] = set()
        for block in self.decoder.blocks:
            assert isinstance(block, DecoderBlock) and isinstance(block.cross, Window)
            new = (block.mixer, block.cross.kernel, block.cross.salience)
            fresh |= {id(parameter) for parameter in chain.from_iterable(part.parameters() for part in new)}
        embedding = self.decoder.embedding.weight
        shares = {"fresh": 1.0, "copied": self.config.copied_share, "embedding": self.config.embedding_share}

        def kind(parameter: Tensor) -> str:
            return "embedding" if parameter is embedding else "fresh" if id(parameter) in fresh else "copied"

        return [
            {**group, "params": [p for p in group["params"] if kind(p) == each], "share": share}
            for group in parameter_groups(self.decoder, WEIGHT_DECAY)
            for each, share in shares.items()
        ]

    def load(self) -> None:
        """Take up the run where its last checkpoint left it. Raises ValueError where that has other tokens or sizes."""
        path = self.out / STATE_FILE
        if not path.is_file():
            log.info("%s has no checkpoint: starting anew", self.out)
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["tokenizer_sha256"] != tokenizer_hash(self.tokenizer):
            raise ValueError(
                f"{path} was made for other tokens: model, pieces, train, texts and vocab_size must stay the same"
            )
        try:
            self.decoder.load_state_dict(state["decoder"])
        except RuntimeError as error:
            raise ValueError(f"{path} is of another student than the settings': {error}") from error
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.minutes = state["step"], state["minutes"]

    def save(self, found: str) -> None:
        """Write the whole model, and a checkpoint to resume from; found: what a validation says."""
        self.out.mkdir(parents=True, exist_ok=True)
        decoder = {name: value.detach().clone() for name, value in self.decoder.state_dict().items()}
        state = {"decoder": decoder, "optimiser": self.optimiser.state_dict()}
        own = {"step": self.step, "minutes": self.minutes, "tokenizer_sha256": tokenizer_hash(self.tokenizer)}
        with replacing(self.out / STATE_FILE) as partial:
            torch.save({**state, **own}, partial)
        save_checkpoint(self.out / CHECKPOINT_FOLDER, self.model, self.tokenizer, self._card(found))
        copy_lexicon(resolve_model(self.config.model), self.out / CHECKPOINT_FOLDER)

    def train(self) -> None:
        """Train the decoder for the run's time; validate and save now and then, and at the end."""
        config, before, validated = self.config, self.minutes, self.minutes
        batches, started = self._batches(), time.monotonic()
        total = round(config.minutes, 2)
        tqdm.write(f"start: {self.validate()}", file=sys.stderr)
        bar = tqdm(desc="stage decoder", unit="min", total=total, initial=round(before, 2), mininterval=5)
        while self.minutes < config.minutes:
            progress = self.minutes / config.minutes
            share = learning_rate_share(self.step, progress, warmup_steps=config.warmup_steps, final_share=0.0)
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * share * group["share"]
            losses = self.losses(next(batches))
            self._learn(losses)
            self.step += 1
            self.minutes = before + (time.monotonic() - started) / 60
            bar.n = min(round(self.minutes, 2), total)
            if self.step % 20 == 0:
                bar.set_postfix_str(" ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
            if self.minutes - validated >= config.validate_minutes or self.minutes >= config.minutes:
                validated = self.minutes
                found = self.validate()
                tqdm.write(f"{self.minutes:.1f} min: {found}", file=sys.stderr)
                self.save(found)
        bar.close()

    def _learn(self, losses: dict[str, Tensor]) -> None:
        """Make a step, unless its gradient is not finite."""
        config = self.config
        weights = {"kl": 1.0, "ce": config.cross_entropy_weight, "hidden": config.hidden_weight}
        loss = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), GRADIENT_CLIP)
        self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
        if self._skipped >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the gradient was not finite {self._skipped} times in a row, at step {self.step}: lower "
                f"learning_rate ({config.learning_rate}), then --resume true"
            )
        if not self._skipped:
            self.optimiser.step()

    def losses(self, batch: SaidBatch) -> dict[str, Tensor]:
        """Return what a training step's loss is made of: nats a token of ``kl`` and ``ce``, and ``hidden``, the
        relative error of the blocks' outputs. Draws follow from the seed and the step."""
        self.decoder.train()
        draws = torch.Generator().manual_seed(mix_seed(self.config.seed, self.step))
        jitter = torch.randint(-PLACE_JITTER, PLACE_JITTER + 1, batch.places.shape, generator=draws)
        heard = torch.rand(batch.states.shape[:2], generator=draws) >= self.config.state_dropout
        inputs, targets = decoder_pairs(batch.tokens, batch.token_lengths)
        own, lengths = targets != IGNORED, batch.token_lengths + 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            taught = self._taught(batch)
            missed = self.decoder.memory_norm(batch.states) * heard.unsqueeze(-1).to(batch.states)
            places = batch.places + jitter.to(self.device)
            logits, outputs = read_blocks(self.decoder, inputs, lengths, missed, batch.lengths, places)
        losses = {"ce": F.cross_entropy(logits[own].float(), targets[own])}
        if taught is not None:
            row, place, _ = taught.expectation
            losses["kl"] = divergence_from(taught.expectation, logits.unsqueeze(0))
            count = torch.tensor([len(row)])
            errors = [
                relative_error(output[row, place].unsqueeze(0), taught.outputs[layer].unsqueeze(0), count)
                for output, layer in zip(outputs, self.followed, strict=True)
            ]
            losses["hidden"] = torch.stack(errors).mean()
        return losses

    @torch.no_grad()
    def _taught(self, batch: SaidBatch) -> Taught | None:
        if not len(batch.shared):
            return None
        if batch.own is None:
            heard = self.teacher(batch.states[batch.read], batch.lengths[batch.read], batch.ids)
        else:
            heard = self.teacher.hear(batch.own, batch.own_lengths, batch.ids)
        row, place, text, its_place = batch.shared.unbind(1)
        probabilities = self.teacher.reader.probabilities(heard.expected[text, its_place])
        outputs = [output[text, its_place] for output in heard.outputs]
        return Taught(Expectation(row, place, probabilities), outputs)

    def validate(self) -> str:
        """Return, in words, how each development set is read: nats a character, and how often the likeliest token is
        the right one where the teacher's can be compared, the student's and the teacher's."""
        parts = []
        for name, said in self.dev_sets.items():
            found = self.measure(said)
            parts.append(f"{name} {found.nats:.4f}, {found.right:.1%} ({found.teacher_right:.1%})")
        return f"dev nats a character, next tokens right (teacher's): {'; '.join(parts)}"

    @torch.no_grad()
    def measure(self, said: list[Said]) -> Measure:
        """Return how utterances are read, transcripts given."""
        self.decoder.eval()
        nats = torch.zeros((), dtype=torch.float64)
        right, teacher_right, shared = 0, 0, 0
        for chosen in dev_batches([len(one.states) for one in said], self.config.batch_states):
            batch = collate([said[i] for _, i in chosen], self.device)
            inputs, targets = decoder_pairs(batch.tokens, batch.token_lengths)
            memory = self.decoder.memory_norm(batch.states)
            logits, _ = read_blocks(self.decoder, inputs, batch.token_lengths + 1, memory, batch.lengths, batch.places)
            own = targets != IGNORED
            nats += float(F.cross_entropy(logits[own].float(), targets[own], reduction="sum"))
            taught = self._taught(batch)
            if taught is not None:
                row, place, probabilities = taught.expectation
                right += int((logits[row, place].argmax(-1) == targets[row, place]).sum())
                teacher_right += int((probabilities.argmax(-1) == targets[row, place]).sum())
                shared += len(row)
        characters = max(1, sum(one.characters for one in said))
        return Measure(float(nats) / characters, right / max(1, shared), teacher_right / max(1, shared))

    def _batches(self) -> Iterator[SaidBatch]:
        lengths = [float(len(one.states)) for one in self.train_set]
        sequence = BatchSequence(lengths, self.config.batch_states, self.config.seed, start_step=self.step)
        for batch in sequence:
            yield collate([self.train_set[i] for _, i in batch], self.device)

    def _card(self, found: str) -> str:
        config = self.config
        recordings, texts = (", ".join(f"`{name}`" for name in names) for names in (config.train, config.texts))
        return (
            "# A recogniser with a distilled decoder\n\n"
            f"Encoder and CTC head are those of `{config.model}`. The decoder learnt from that of the Whisper model "
            f"`{config.teacher}`, {self.minutes:.1f} min, with recipes/whisper_to_samba/distil_decoder.py.\n\n"
            f"- Recordings: {recordings}.\n"
            f"- Texts that helped to choose the tokens: {texts or 'none'}.\n"
            f"- Validation: {found}.\n"
        )
