"""The settings of turning a Whisper model into a Samba encoder and the start of a decoder, and of its labels."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from samba_asr.config import DecoderConfig, MixerConfig
from samba_asr.text.normalization import TextForm


@dataclass(frozen=True)
class DistilConfig:
    """Stages (a), each mixer by itself, and (b), the whole encoder."""

    teacher: str
    """Whisper checkpoint: .pt (openai), .safetensors (Hugging Face) or .npz (CTranslate2's names)."""
    train: list[str]
    """Training manifests (JSON lines), as made by prepare.py; only their audio is used."""
    dev: list[str]
    """Manifests of the development sets."""
    teacher_tokenizer: str | None = None
    """The teacher's tokenizer.json: validations then print word error rates through the teacher's own decoder."""
    mixer: MixerConfig = field(default_factory=lambda: MixerConfig(expand=1, groups=0))
    """What takes the attention's place, once for each direction (hydra: once); a mamba2 or hydra with a head of 64
    channels and 64 states and a group for each of the teacher's heads starts from its keys, queries and values."""
    subsampling: Literal["whisper", "whisper4x", "whisper8x"] = "whisper4x"
    """whisper: a state each 20 ms, as the teacher; whisper4x: each 40 ms, the teacher's every second one, at half the
    cost; whisper8x: each 80 ms, every fourth one."""
    shared_projections: bool = False
    """One set of projections for the two directions of a layer, instead of one each."""
    layer_minutes: float = 12.0
    """Wall-clock time of stage (a)."""
    encoder_minutes: float = 40.0
    """Wall-clock time of stage (b)."""
    layer_windows: int = 2
    """Windows of 30 s in a batch of stage (a)."""
    batch_seconds: float = 80.0
    """Most seconds of audio in a batch of stage (b), padding included."""
    layer_learning_rate: float = 2e-3
    """Peak of stage (a)."""
    encoder_learning_rate: float = 1e-3
    """Peak of stage (b), for mixers."""
    copied_share: float = 0.2
    """Stage (b)'s learning rate of what was copied from the teacher, as a share of the mixers'."""
    warmup_steps: int = 50
    """Of each stage."""
    final_share: float = 0.05
    """Share of the peak that the cosine ends at."""
    whole_share: float = 0.35
    """Stage (b): probability that two neighbouring utterances of a window stay in one stretch."""
    chunk_share: float = 0.3
    """Stage (b): share of batches whose backward scans are limited to chunks, so that the encoder can stream."""
    chunk_states: tuple[int, int] = (12, 50)
    """Shortest and longest chunk, in the student's states."""
    causal_share: float = 0.6
    """Stage (b): share of batches with the causal log-mel normalisation; the others have Whisper's."""
    position_share: float = 0.3
    """The teacher's positional embedding has faded from the student after this share of stage (b)."""
    validate_minutes: float = 5.0
    """Between validations and checkpoints."""
    dev_utterances: int = 60
    """Utterances of each validation through the teacher's decoder."""
    init_from: str | None = None
    """encoder.safetensors to start from: of the same subsampling or of a finer one; stage (a) is left out if
    layer_minutes is 0."""
    seed: int = 0
    """Of weights, windows and draws."""
    bf16: bool = True
    """Mixed precision; it doubles the speed of CPUs with AVX-512 BF16 and of GPUs."""

    def __post_init__(self) -> None:
        positive = ("batch_seconds", "layer_learning_rate", "encoder_learning_rate", "validate_minutes")
        for name in (*positive, "layer_windows", "dev_utterances"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be positive")
        for name in ("layer_minutes", "encoder_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        if not self.layer_minutes + self.encoder_minutes:
            raise ValueError("layer_minutes (0) and encoder_minutes (0) leave nothing to do: one must be positive")
        for name in ("whole_share", "chunk_share", "causal_share", "position_share", "copied_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be in [0, 1]")
        if self.batch_seconds < 30:
            raise ValueError(f"batch_seconds ({self.batch_seconds}) must be at least 30, a window's length")
        low, high = self.chunk_states
        if not 0 < low <= high:
            raise ValueError(f"chunk_states ({self.chunk_states}) must be two positive numbers, the shorter first")
        if not self.train or not self.dev:
            raise ValueError("train and dev must each name at least one manifest")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class DecoderDistilConfig:
    """A decoder that listens by windows, from a teacher's decoder, on top of a trained encoder and CTC head."""

    model: str
    """Checkpoint whose encoder and CTC head stay as they are. Its decoder is dropped; one that listens by windows and
    has tokens of its own is what the run goes on from, with the settings that its config has of vocab_size, mixer and
    window."""
    teacher: str
    """Whisper checkpoint: .pt (openai), .safetensors (Hugging Face) or .npz (CTranslate2's names)."""
    teacher_tokenizer: str
    """The teacher's tokenizer.json."""
    train: list[str]
    """Training manifests (JSON lines), as made by prepare.py: audio and text."""
    dev: list[str]
    """Manifests of the development sets."""
    texts: list[str] = field(default_factory=list)
    """Text files whose words, at half the weight of the transcripts', help to choose the tokens."""
    pieces: str | None = None
    """Tokenizer of the CTC head's pieces, as prepare.py makes it. Given, a decoder that listens by windows is dropped,
    too, for a new one of these settings."""
    vocab_size: int = 5950
    """Tokens: the pieces of the CTC head first, then the commonest of the teacher's, with those that these are made
    of; fewer where there are no more."""
    layers: list[int] = field(default_factory=lambda: [0, 3])
    """The teacher's decoder layers that are kept, counted from 0."""
    text_form: TextForm = "spoken"
    """Form of the transcripts, as train.py's data.text_form."""
    mixer: MixerConfig = field(default_factory=lambda: MixerConfig(expand=1, groups=0))
    """What takes self-attention's place; it starts from that as distil.py's mixers do. Not hydra, which hears what
    comes later."""
    teacher_run: str | None = None
    """Folder of distil.py from which the encoder came: its norm, and the means that it took off the teacher's states,
    make the teacher's of the encoder's states. None: the teacher's last norm does."""
    teacher_hears: Literal["student", "own"] = "student"
    """student: all of the student's states. own: what the teacher's own encoder makes of the recordings, kept at 0.14
    GB an hour (384 channels); for a student that is no longer near the teacher's."""
    window_before: int = 12
    """States heard before the place where the next token is expected. The teacher hears all."""
    window_after: int = 24
    """States heard from that place on."""
    minutes: float = 20.0
    """Wall-clock time, without that of the encoder's states."""
    batch_states: int = 4000
    """Most states in a batch, padding included."""
    max_duration: float = 30.0
    """Seconds; longer utterances are left out."""
    learning_rate: float = 1e-3
    """Peak, of what is new: mixers, windows' weights."""
    copied_share: float = 0.25
    """Learning rate of what was copied from the teacher, as a share of that."""
    embedding_share: float = 0.02
    """Learning rate of the tokens' embeddings, which were copied, too, as a share of that: most are seen seldom."""
    warmup_steps: int = 100
    """The learning rate rises over these."""
    cross_entropy_weight: float = 0.3
    """Of the transcripts' cross-entropy, beside 1 for the divergence from the teacher's decoder."""
    hidden_weight: float = 0.3
    """Of the relative error of what leaves each block."""
    state_dropout: float = 0.05
    """Probability that the student misses a state."""
    dev_utterances: int = 200
    """Most of each development set, evenly spread."""
    validate_minutes: float = 5.0
    """Between validations and checkpoints."""
    seed: int = 0
    """Of weights, batches and draws."""
    bf16: bool = True
    """Mixed precision."""

    def __post_init__(self) -> None:
        positive = ("vocab_size", "minutes", "batch_states", "max_duration", "learning_rate", "dev_utterances")
        for name in (*positive, "validate_minutes", "window_after"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be positive")
        for name in ("window_before", "cross_entropy_weight", "hidden_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        for name, most in (("copied_share", 1.0), ("embedding_share", 1.0), ("state_dropout", 0.99)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} ({getattr(self, name)}) must be in [0, {most:g}]")
        DecoderConfig(mixer=self.mixer)  # before the encoder's states are computed, tell a mixer that it cannot have
        if not self.layers or sorted(set(self.layers)) != self.layers or self.layers[0] < 0:
            raise ValueError(f"layers ({self.layers}) must be numbers from 0 on, each once, in order")
        if not self.train or not self.dev:
            raise ValueError("train and dev must each name at least one manifest")


@dataclass(frozen=True)
class LabelConfig:
    """Case and punctuation for manifests, from what a teacher writes."""

    teacher: str
    """Whisper checkpoint: .pt (openai), .safetensors (Hugging Face) or .npz (CTranslate2's names)."""
    teacher_tokenizer: str
    """The teacher's tokenizer.json."""
    manifests: list[str]
    """Manifests (JSON lines), as made by prepare.py."""
    min_agreement: float = 0.9
    """Utterances in which fewer words agree, as a share, are not labelled."""
    rest: Literal["keep", "drop"] = "keep"
    """What becomes of those: keep writes them, in lower case, into manifests of their own."""
    limit: int | None = None
    """At most this many utterances of each manifest are given to the teacher, evenly spread; None: all."""
    vocab_size: int | None = None
    """Pieces of a tokenizer trained on all that is labelled; None: no tokenizer."""
    batch: int = 8
    """Utterances that the teacher reads at once."""
    bf16: bool = True
    """Mixed precision of the teacher's encoder."""

    def __post_init__(self) -> None:
        if not self.manifests:
            raise ValueError("manifests must name at least one manifest")
        if not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement ({self.min_agreement}) must be in [0, 1]")
        for name in ("limit", "vocab_size", "batch"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} ({value}) must be positive")
