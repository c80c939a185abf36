"""The settings of a language model's training run, read from YAML and flags by jsonargparse."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from samba_asr.config import LanguageModelConfig
from samba_asr.text.normalization import TextForm
from samba_asr.training.config import OptimiserConfig, Precision, require


@dataclass(frozen=True)
class TranscriptConfig:
    """Transcripts: how people speak, and what the recogniser will be asked for."""

    dev: list[str] | str
    """Manifests of the development sets, made by librispeech/prepare.py: perplexities are told of each, and the weights
    are chosen by them. What is said in them is never learnt, wherever else it stands."""
    train: list[str] | str = field(default_factory=list)
    """Manifests whose transcripts are learnt, those that several people read once; their audio is not needed."""
    train_repeats: int = 1
    """Times that each of these transcripts comes in an epoch: more than once where the texts are many times as long and
    in another style."""
    dev_utterances: int = 400
    """At most this many of each development set, evenly spread, are scored at each validation; the final choice of
    weights and the card take them all."""
    text_form: TextForm = "spoken"
    """What is learnt of transcripts and texts: what the recogniser writes. spoken: lower-case words; written: also case
    and punctuation."""

    def __post_init__(self) -> None:
        require(bool(self.dev_manifests), "data.dev is empty: name at least one manifest")
        for name in ("train_repeats", "dev_utterances"):
            require(getattr(self, name) > 0, f"data.{name} ({getattr(self, name)}) must be positive")

    @property
    def train_manifests(self) -> list[str]:
        """Training manifests as a list."""
        return [self.train] if isinstance(self.train, str) else list(self.train)

    @property
    def dev_manifests(self) -> list[str]:
        """Development manifests as a list."""
        return [self.dev] if isinstance(self.dev, str) else list(self.dev)


@dataclass(frozen=True)
class PlainTextConfig:
    """Texts that nobody need have said."""

    files: list[str] = field(default_factory=list)
    """Text files, a sentence a line; a line that comes again in its file is learnt once. Lines of more than 200 tokens
    are left out, as are those that a development set has."""
    repeats: list[int] = field(default_factory=list)
    """Times that each of these files comes in an epoch, in their order; none: once each."""

    def __post_init__(self) -> None:
        fitting = not self.repeats or len(self.repeats) == len(self.files)
        require(
            fitting, f"text.repeats ({self.repeats}) must have a number for each of the {len(self.files)} text.files"
        )
        require(all(count > 0 for count in self.repeats), f"text.repeats ({self.repeats}) must be positive")


@dataclass(frozen=True)
class LanguageTrainingConfig:
    """A whole training run of a language model."""

    data: TranscriptConfig
    """Transcripts."""
    recogniser: str | None = None
    """Checkpoint folder, or name in pretrained/, of the recogniser that the language model is for: its tokenizer says
    what the tokens are."""
    tokenizer: str | None = None
    """Instead of recogniser: that tokenizer's file."""
    text: PlainTextConfig = field(default_factory=PlainTextConfig)
    """Texts beside the transcripts."""
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """The language model; its vocab_size is taken from the tokenizer."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=3e-3, weight_decay=0.05, warmup_steps=100, final_share=0.01, gradient_clip=1.0
        )
    )
    """AdamW and its learning rate."""
    batch_tokens: int = 4000
    """Most tokens of a step, ends and padding included."""
    max_steps: int = 20_000
    """Optimiser steps; the learning rate's cosine ends here."""
    max_minutes: float | None = None
    """Stop after this wall-clock time, if max_steps has not come first. The cosine then ends at whichever is nearer."""
    validate_every: int = 500
    """Steps between validations."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    average_last: int = 5
    """Checkpoints kept, and averaged at the end, if that is better on the development sets."""
    seed: int = 0
    """Of initial weights, batches and dropout."""
    precision: Precision = "bf16"
    """bf16: mixed precision."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What computes; auto takes a GPU if there is one."""
    num_threads: int = 0
    """Threads of the computation on a CPU; 0 leaves torch's own number."""

    def __post_init__(self) -> None:
        require(
            (self.recogniser is None) != (self.tokenizer is None),
            "give either recogniser (a checkpoint's folder or name) or tokenizer (a tokenizer.model)",
        )
        require(
            bool(self.text.files or self.data.train_manifests),
            "there is nothing to learn: name text.files, data.train or both",
        )
        for name in ("batch_tokens", "max_steps", "validate_every", "checkpoint_every", "average_last"):
            require(getattr(self, name) > 0, f"{name} ({getattr(self, name)}) must be positive")
        require(self.max_minutes is None or self.max_minutes > 0, f"max_minutes ({self.max_minutes}) must be positive")
        require(self.seed >= 0, f"seed ({self.seed}) must not be negative")
        require(self.num_threads >= 0, f"num_threads ({self.num_threads}) must be 0 (automatic) or positive")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, for YAML."""
        plain = dataclasses.asdict(self)
        plain["optimiser"]["betas"] = list(self.optimiser.betas)
        return plain
