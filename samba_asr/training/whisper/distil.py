"""Turn a Whisper encoder into a Samba encoder: stage (a), each mixer by itself, and stage (b), the whole encoder.

(a) Every mixer learns to say what its attention layer said, given what that layer was given, in the teacher.
(b) All of them chained, with the teacher's stem and feed-forward layers, learn the teacher's last states from audio
without padding; the teacher's positional embedding fades out, its means by position are not asked for, the log-mel is
partly causal, and the backward scans are partly limited to chunks. Issue 3.
"""

import csv
import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from samba_asr.atomic import replacing
from samba_asr.audio.features import LogMel
from samba_asr.config import FeatureConfig, ModelConfig
from samba_asr.model.checkpoint_files import as_stored
from samba_asr.model.encoder import Encoder, EncoderBlock
from samba_asr.training.data import read_manifests
from samba_asr.training.module import MAX_SKIPPED_IN_A_ROW, parameter_groups
from samba_asr.training.resume import check_folder
from samba_asr.training.schedule import learning_rate_share
from samba_asr.training.whisper.measure import TeacherWer
from samba_asr.training.whisper.network import LayerTap, build_teacher
from samba_asr.training.whisper.settings import DistilConfig
from samba_asr.training.whisper.student import STRIDES, copy_teacher, relative_error, student_config
from samba_asr.training.whisper.targets import (
    ENCODER_FILE,
    TRAIN_FOLDER,
    StretchBatch,
    TeacherStates,
    Windows,
    collect,
    stretch_batches,
)
from samba_asr.training.whisper.weights import read_whisper_weights
from samba_asr.training.whisper.windows import STATE_SAMPLES

log = logging.getLogger(__name__)

GRADIENT_CLIP = 1.0
STATE_FILE, METRICS_FILE = "state.pt", "metrics.csv"
STAGES = ("layers", "encoder")
COLUMNS = (
    "stage",
    "step",
    "minutes",
    "audio_hours",
    "lr",
    "error",
    "layer_errors",
    "dev_error",
    "dev_wer",
    "teacher_wer",
)
MEAN_WINDOWS = 200
"""Windows that the means by position are taken over."""
DEV_WINDOWS = 8


@dataclass
class Progress:
    """How far a run is; saved with its weights."""

    stage: str = "layers"
    step: int = 0
    """Optimiser steps of this stage."""
    minutes: float = 0.0
    """Of this stage."""
    audio_seconds: float = 0.0
    """Of all stages."""


def distil(config: DistilConfig, out: str | Path, resume: bool = False) -> Path:
    """Run both stages; return the file of the encoder's weights, ``out/encoder.safetensors``.

    Raises ValueError or FileNotFoundError for settings, files or data that cannot be used, FloatingPointError where
    gradients are not finite too often in a row.
    """
    out = Path(out)
    check_folder(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    run = Distillation(config, out)
    if resume:
        run.load()
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if run.progress.stage == "layers":
        run.train("layers", config.layer_minutes, config.layer_learning_rate)
        run.enter_encoder_stage()
    run.train("encoder", config.encoder_minutes, config.encoder_learning_rate)
    return out / ENCODER_FILE


def save_encoder(path: Path, encoder: Encoder, config: ModelConfig) -> None:
    """Write an encoder's weights (matrices in float16), and the config that they fit as metadata."""
    tensors = {name: as_stored(name, value, torch.float16) for name, value in encoder.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"config": json.dumps(config.to_dict())})


def load_start(encoder: Encoder, path: str) -> None:
    """Load an encoder's weights; the convolutions that join pairs of states keep their own if the file has none.

    Raises ValueError for a file that does not fit.
    """
    try:
        missing, unexpected = encoder.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"init_from: {path} does not fit the student: {error}") from error
    wrong = unexpected + [name for name in missing if not name.startswith("subsampling.join")]
    if wrong:
        raise ValueError(f"init_from: {path} does not fit the student: {', '.join(wrong)} missing or not asked for")


class Distillation:
    """Teacher, student, data and progress of a run."""

    def __init__(self, config: DistilConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher = build_teacher(read_whisper_weights(config.teacher)).to(self.device)
        self.train_states = TeacherStates(
            teacher, Windows(read_manifests(config.train), config.seed), out / TRAIN_FOLDER, config.bf16
        )
        dev = read_manifests(config.dev)
        self.dev_states = TeacherStates(teacher, Windows(dev, 0), out / "teacher" / "dev", config.bf16)
        log.info(
            "%d windows to train on, %d of the development sets",
            len(self.train_states.windows),
            len(self.dev_states.windows),
        )
        torch.manual_seed(config.seed)
        self.model_config = student_config(teacher, config.mixer, config.subsampling, config.shared_projections)
        self.stride = STRIDES[config.subsampling]
        self.encoder = Encoder(self.model_config).to(self.device)
        copy_teacher(self.encoder, teacher)
        if config.init_from is not None:
            load_start(self.encoder, config.init_from)
        n_mels = self.model_config.features.n_mels
        self.features = {
            kind: LogMel(FeatureConfig(normalisation=kind, n_mels=n_mels)).to(self.device)
            for kind in ("causal", "whisper")
        }
        self.positions = teacher.encoder.positional_embedding.float()
        self.means = torch.zeros_like(self.positions, device="cpu")
        self.measure = None
        if config.teacher_tokenizer is not None:
            self.measure = TeacherWer(teacher, config.teacher_tokenizer, dev, config.dev_utterances)
        self.progress = Progress()
        self._skipped = 0
        self._optimiser_state: dict[str, Any] | None = None

    def load(self) -> None:
        """Take up the run where its last checkpoint left it. Raises ValueError where that has other sizes."""
        path = self.out / STATE_FILE
        if not path.is_file():
            log.info("%s has no checkpoint: starting anew", self.out)
            self._forget_lost_steps()
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        try:
            self.encoder.load_state_dict(state["encoder"])
        except RuntimeError as error:
            raise ValueError(f"{path} is of another student than the settings': {error}") from error
        self.progress = Progress(**state["progress"])
        self._optimiser_state = state["optimiser"]
        self._forget_lost_steps()
        log.info("resuming stage %s at step %d", self.progress.stage, self.progress.step)

    def enter_encoder_stage(self) -> None:
        """Leave stage (a); its optimiser has other parameters than stage (b)'s."""
        self.progress = Progress("encoder", audio_seconds=self.progress.audio_seconds)
        self._optimiser_state = None

    def save(self, optimiser: torch.optim.Optimizer) -> None:
        """Write a checkpoint to resume from, and the encoder's weights."""
        state = {
            "encoder": self.encoder.state_dict(),
            "progress": asdict(self.progress),
            "optimiser": optimiser.state_dict(),
        }
        with replacing(self.out / STATE_FILE) as partial:
            torch.save(state, partial)
        save_encoder(self.out / ENCODER_FILE, self.encoder, self.model_config)

    def train(self, stage: str, minutes: float, learning_rate: float) -> None:
        """Train one stage for its share of time."""
        if minutes <= self.progress.minutes:
            return
        config, progress = self.config, self.progress
        if stage == "encoder":
            self.means = self.train_states.position_means(MEAN_WINDOWS)
        optimiser = self._optimiser(stage)
        steps = self._layer_steps() if stage == "layers" else self._encoder_steps()
        started, before, validated = time.monotonic(), progress.minutes, progress.minutes
        total = round(minutes, 2)
        bar = tqdm(desc=f"stage {stage}", unit="min", total=total, initial=round(before, 2), mininterval=5)
        sums: list[Tensor] = []
        while progress.minutes < minutes:
            share = learning_rate_share(
                progress.step,
                progress.minutes / minutes,
                warmup_steps=config.warmup_steps,
                final_share=config.final_share,
            )
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * share * group["share"]
            errors, seconds = next(steps)
            optimiser.zero_grad()
            errors.sum().backward()
            norm = nn.utils.clip_grad_norm_(
                self._trained(stage), GRADIENT_CLIP * (len(errors) if stage == "layers" else 1)
            )
            self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
            if self._skipped >= MAX_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"the gradient was not finite {self._skipped} times in a row, at step {progress.step} of stage "
                    f"{stage}: lower the stage's learning rate ({learning_rate}), then --resume true"
                )
            if not self._skipped:
                optimiser.step()
            progress.step += 1
            progress.audio_seconds += seconds
            progress.minutes = before + (time.monotonic() - started) / 60
            sums.append(errors.detach().cpu())
            bar.n = min(round(progress.minutes, 2), total)
            if progress.step % 20 == 0:
                mean = torch.stack(sums).mean(0)
                sums = []
                self._write(
                    {
                        "lr": learning_rate * share,
                        "error": mean.mean().item(),
                        "layer_errors": " ".join(f"{e:.3f}" for e in mean),
                    }
                )
                bar.set_postfix_str(f"error {mean.mean():.3f}, {progress.audio_seconds / 3600:.2f} h")
            if progress.minutes - validated >= config.validate_minutes:
                validated = progress.minutes
                self._validate(stage)
                self.save(optimiser)
        bar.close()
        if validated < progress.minutes:
            self._validate(stage)
            self.save(optimiser)

    def _trained(self, stage: str) -> list[nn.Parameter]:
        if stage == "encoder":
            return list(self.encoder.parameters())
        return [p for block in self._blocks() for p in block.mixer.parameters()]

    def _blocks(self) -> list[EncoderBlock]:
        return [block for block in self.encoder.blocks if isinstance(block, EncoderBlock)]

    def _optimiser(self, stage: str) -> torch.optim.Optimizer:
        mixers = nn.ModuleList(block.mixer for block in self._blocks())
        groups = [{**group, "share": 1.0} for group in parameter_groups(mixers, 0.01)]
        if stage == "encoder":
            own = {id(parameter) for parameter in mixers.parameters()}
            copied = [parameter for parameter in self.encoder.parameters() if id(parameter) not in own]
            groups.append({"params": copied, "weight_decay": 0.0, "share": self.config.copied_share})
        optimiser = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), fused=True)
        if self._optimiser_state is not None:
            optimiser.load_state_dict(self._optimiser_state)
            self._optimiser_state = None
        return optimiser

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _layer_steps(self) -> Iterator[tuple[Tensor, float]]:
        """Yield each layer's error (n_layers,) and the audio seconds of a batch, endlessly."""
        windows, size, step = self.train_states.windows, self.config.layer_windows, self.progress.step
        per_epoch = len(windows) // size
        if not per_epoch:
            raise ValueError(f"{len(windows)} windows of audio are fewer than layer_windows ({size})")
        while True:
            order = list(range(len(windows)))
            random.Random(f"layers {self.config.seed} {step // per_epoch}").shuffle(order)
            chosen = order[step % per_epoch * size :][:size]
            ends = torch.tensor([windows.end(window) for window in chosen])
            _, taps = self.train_states.hear(chosen)
            with self._autocast():
                errors = [
                    self._layer_error(block, tap, self._fewer(ends))
                    for block, tap in zip(self._blocks(), taps, strict=True)
                ]
            yield torch.stack(errors), float(ends.sum()) * STATE_SAMPLES / 16_000
            step += 1

    def _layer_error(self, block: EncoderBlock, tap: LayerTap, lengths: Tensor) -> Tensor:
        given, said = (states[:, :: self.stride].float() for states in tap)
        return relative_error(block.mixer(given, lengths.to(self.device))[0], said, lengths)

    def _fewer(self, states: Tensor) -> Tensor:
        """Turn counts of the teacher's states into counts of the student's."""
        return (states + self.stride - 1) // self.stride

    def _encoder_steps(self) -> Iterator[tuple[Tensor, float]]:
        """Yield the last states' error (1,) and the audio seconds of a batch, endlessly."""
        config, windows = self.config, self.train_states.windows
        batch_states = int(config.batch_seconds * 16_000) // STATE_SAMPLES
        epoch, skip = 0, self.progress.step
        while True:
            batches = stretch_batches(windows.placements, batch_states, config.whole_share, config.seed, epoch)
            for number, stretches in enumerate(batches):
                if skip:
                    skip -= 1
                    continue
                rng = random.Random(f"draws {config.seed} {epoch} {number}")
                kind = "causal" if rng.random() < config.causal_share else "whisper"
                chunk = rng.randint(*config.chunk_states) if rng.random() < config.chunk_share else None
                batch = collect(self.train_states, stretches, self.means)
                said = self._states(batch, kind, chunk, self._positions("encoder"))
                yield self._error(said, batch)[None], float(batch.lengths.sum()) * STATE_SAMPLES / 16_000
            epoch += 1

    def _error(self, said: Tensor, batch: StretchBatch) -> Tensor:
        return relative_error(said, batch.targets[:, :: self.stride].to(self.device), self._fewer(batch.lengths))

    def _positions(self, stage: str) -> float:
        """Return how much of the teacher's positional embedding the student still gets: 1 to 0."""
        if stage == "layers":
            return 1.0
        fading = self.config.encoder_minutes * self.config.position_share
        return max(0.0, 1.0 - self.progress.minutes / fading) if fading else 0.0

    def _states(self, batch: StretchBatch, kind: str, chunk: int | None, positions: float) -> Tensor:
        features, lengths = self.features[kind](batch.waveforms.to(self.device), batch.waveform_lengths.to(self.device))
        with self._autocast():
            offset = positions * self.positions[:: self.stride] if positions else None
            said: Tensor = self.encoder(features, lengths, chunk, offset)[0]
        return said

    @torch.no_grad()
    def _validate(self, stage: str) -> None:
        """Print how far the student is from its teacher, with what it still gets of the teacher's positions."""
        self.encoder.eval()
        positions = self._positions(stage)
        means = self.means if stage == "encoder" else torch.zeros_like(self.means)
        errors = []
        batches = stretch_batches(self.dev_states.windows.placements[:DEV_WINDOWS], 3000, 0.3, 0, 0)
        for stretches in batches:
            batch = collect(self.dev_states, stretches, means)
            said = self._states(batch, "causal", None, positions)
            errors.append(self._error(said, batch).item())
        row: dict[str, Any] = {"dev_error": sum(errors) / len(errors)}
        line = f"stage {stage}, {self.progress.minutes:.1f} min: dev error {row['dev_error']:.3f}"
        if self.measure is not None:
            offset = positions * self.positions
            student, teacher = self.measure(self.encoder, self.features["causal"], means, offset, self.stride)
            row |= {"dev_wer": student, "teacher_wer": teacher}
            line += f", WER through the teacher's decoder {100 * student:.1f} % (teacher {100 * teacher:.1f} %)"
        tqdm.write(line, file=sys.stderr)
        self._write(row)
        self.encoder.train()

    def _forget_lost_steps(self) -> None:
        """Take the rows of steps after the checkpoint out of metrics.csv."""
        path = self.out / METRICS_FILE
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        reached = STAGES.index(self.progress.stage), self.progress.step
        kept = [row for row in rows if (STAGES.index(row["stage"]), int(row["step"])) <= reached]
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def _write(self, values: dict[str, Any]) -> None:
        path = self.out / METRICS_FILE
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            progress = self.progress
            place = {"stage": progress.stage, "step": progress.step, "minutes": round(progress.minutes, 2)}
            numbers = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in values.items()}
            writer.writerow({**place, "audio_hours": round(progress.audio_seconds / 3600, 3), **numbers})
