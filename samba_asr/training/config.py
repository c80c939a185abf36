"""The settings of a training run: frozen dataclasses, read from YAML and flags by jsonargparse."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from samba_asr.config import ModelConfig
from samba_asr.text.normalization import TextForm

Precision = Literal["32", "bf16"]
Accelerator = Literal["auto", "cpu", "gpu", "mps"]


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on, and how it becomes batches."""

    train: list[str] | str
    """Training manifests (JSON lines), as made by prepare.py."""
    dev: list[str] | str
    """Manifests of the development sets, never trained on."""
    tokenizer: str
    """SentencePiece model, as made by prepare.py."""
    batch_seconds: float = 60.0
    """Most seconds of audio in a batch, padding included, before speed perturbation."""
    min_duration: float = 0.3
    """Shorter utterances are left out (seconds)."""
    max_duration: float = 20.0
    """Longer utterances are left out (seconds)."""
    speed_factors: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    """One is drawn for each utterance and epoch; [1.0] switches speed perturbation off."""
    curriculum: bool = False
    """Sort the first epoch's batches from short to long."""
    num_workers: int = 1
    """Loader processes; 0 loads in the training process."""
    cache_gigabytes: float = 4.0
    """Keep decoded audio in memory (16 bits a sample) where the whole training set fits in this; 0: never."""
    dev_utterances: int = 200
    """At most this many utterances, spread evenly over the development sets, are scored at each validation."""
    text_form: TextForm = "spoken"
    """What is learnt of transcripts and of text without recordings. spoken: lower-case words; written: also case and
    punctuation, where the manifests have them (pseudo_label.py) and the tokenizer (prepare.py --text-form)."""

    def __post_init__(self) -> None:
        require(bool(self.train_manifests), "data.train is empty: name at least one manifest")
        require(bool(self.dev_manifests), "data.dev is empty: name at least one manifest")
        require(
            0 <= self.min_duration < self.max_duration,
            f"data.min_duration ({self.min_duration}) must be below data.max_duration ({self.max_duration})",
        )
        require(
            self.batch_seconds >= self.max_duration,
            f"data.batch_seconds ({self.batch_seconds}) must be at least data.max_duration ({self.max_duration})",
        )
        require(
            bool(self.speed_factors) and min(self.speed_factors) > 0,
            f"data.speed_factors ({self.speed_factors}) must be a list of positive numbers; [1.0] switches it off",
        )
        require(self.num_workers >= 0, f"data.num_workers ({self.num_workers}) must not be negative")
        require(self.dev_utterances > 0, f"data.dev_utterances ({self.dev_utterances}) must be positive")

    @property
    def train_manifests(self) -> list[str]:
        """Training manifests as a list."""
        return [self.train] if isinstance(self.train, str) else list(self.train)

    @property
    def dev_manifests(self) -> list[str]:
        """Development manifests as a list."""
        return [self.dev] if isinstance(self.dev, str) else list(self.dev)


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its learning rate."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Not applied to biases, norms and the scan's own parameters."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the second moment's root."""
    warmup_steps: int = 500
    """The learning rate rises linearly over these."""
    final_share: float = 0.02
    """Share of the peak that the cosine ends at."""
    gradient_clip: float = 5.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "gradient_clip"):
            require(getattr(self, name) > 0, f"optimiser.{name} ({getattr(self, name)}) must be positive")
        for name in ("weight_decay", "warmup_steps"):
            require(getattr(self, name) >= 0, f"optimiser.{name} ({getattr(self, name)}) must not be negative")
        require(0 <= self.final_share <= 1, f"optimiser.final_share ({self.final_share}) must be in [0, 1]")


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks drawn over the features of training utterances."""

    n_time_masks: int = 5
    """Masks over time; 0 for none."""
    time_mask_share: float = 0.05
    """Longest time mask, as a share of the utterance."""
    n_freq_masks: int = 2
    """Masks over mel bands; 0 for none."""
    freq_mask_bands: int = 27
    """Widest frequency mask, in mel bands."""


@dataclass(frozen=True)
class WaveformAugmentConfig:
    """Rooms, noise and levels given to training utterances, in this order; ranges are drawn from uniformly."""

    room_probability: float = 0.0
    """Share of the utterances that get a room's echo; 0 for none."""
    room_rt60: tuple[float, float] = (0.15, 0.8)
    """Seconds in which the echo fades by 60 dB, lowest and highest."""
    room_direct_ratio: tuple[float, float] = (0.0, 15.0)
    """Power of the direct sound over that of the echo (dB), lowest and highest."""
    noise_probability: float = 0.0
    """Share of the utterances that get noise; 0 for none."""
    noise_folder: str | None = None
    """Recordings of noise, any format, in any subfolder, kept in memory (16 bits a sample); None: noise is made."""
    noise_snr: tuple[float, float] = (5.0, 30.0)
    """Mean power of the speech over that of the noise (dB), lowest and highest."""
    noise_slope: tuple[float, float] = (-6.0, 0.0)
    """Of made noise, dB an octave, lowest and highest: -6 is brown, -3 pink, 0 white."""
    gain_probability: float = 0.0
    """Share of the utterances whose level is changed; 0 for none."""
    gain: tuple[float, float] = (-12.0, 6.0)
    """Change of the level (dB), lowest and highest; no sample is raised beyond full scale."""
    noise_only_probability: float = 0.0
    """Share of the utterances given up for noise alone, half of it made: text that nobody said is unlearnt."""
    noise_only_level: tuple[float, float] = (-40.0, 0.0)
    """Mean power of that noise over the utterance's (dB), lowest and highest."""

    def __post_init__(self) -> None:
        for name in ("room_probability", "noise_probability", "gain_probability", "noise_only_probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"waveform_augment.{name} ({value}) must be in [0, 1]")
        for name in ("room_rt60", "room_direct_ratio", "noise_snr", "noise_slope", "gain", "noise_only_level"):
            low, high = getattr(self, name)
            ordered = math.isfinite(low) and math.isfinite(high) and low <= high
            require(ordered, f"waveform_augment.{name} ({low}, {high}) must be two numbers, the lower first")
        shortest = self.room_rt60[0]
        require(shortest > 0, f"waveform_augment.room_rt60 starts at {shortest}; it must be positive seconds")


@dataclass(frozen=True)
class EncoderTuningConfig:
    """How a run treats its encoder: as its own, or as one that already knows speech."""

    weights: str | None = None
    """encoder.safetensors to start from, made by recipes/whisper_to_samba/distil.py; None: random, or init_from's."""
    weights_share: float = 1.0
    """Share of weights in the encoder's first ones, init_from's having the rest: the mean of an encoder and of what
    fine-tuning made of it is often better than either (arXiv 2109.01903). Below 1 with init_from alone."""
    new_blocks: int = 0
    """The encoder's last blocks that weights lacks: init_from's, or, without it, such as pass states on as they are.
    They are never frozen, and learn at the full rate."""
    learning_rate_share: float = 1.0
    """The learning rate of the encoder, new blocks aside, as a share of the others'."""
    copied_share: float = 1.0
    """The learning rate of what the encoder has from its teacher, which is all but mixers and new blocks, as a share of
    that of its mixers."""
    frozen_steps: int = 0
    """Steps at the beginning in which the encoder, new blocks aside, does not learn."""
    teacher_run: str | None = None
    """Folder of the distil.py run that weights came from: what its teacher said of an utterance stays a target of the
    last block before the new ones, once that is not frozen; None: no such regulariser."""
    teacher: str | None = None
    """Whisper checkpoint (.pt, .safetensors or .npz) that teacher_run learnt from: it listens along, and what it says
    of all that is heard, sped up, noisy or synthetic, is the target instead of what teacher_run kept. A GPU does that
    in passing."""
    teacher_weight: float = 0.3
    """The error to the teacher's states times this is added to the loss."""
    teacher_tokenizer: str | None = None
    """tokenizer.json of the teacher: its decoder reads the transcripts along, and shall expect of the student's states
    what it expects of its own encoder's; None: it does not."""
    reading_weight: float = 1.0
    """The divergence between the two, nats a token, times this is added to the loss."""
    chunk_share: float = 0.0
    """Share of the batches whose backward scans are limited to chunks, so that the encoder can stream."""
    chunk_states: tuple[int, int] = (16, 100)
    """Shortest and longest chunk, in encoder states."""

    def __post_init__(self) -> None:
        for name in ("learning_rate_share", "copied_share"):
            require(0 <= getattr(self, name) <= 1, f"encoder.{name} ({getattr(self, name)}) must be in [0, 1]")
        require(
            0 < self.weights_share <= 1, f"encoder.weights_share ({self.weights_share}) must be above 0 and at most 1"
        )
        require(self.new_blocks >= 0, f"encoder.new_blocks ({self.new_blocks}) must not be negative")
        require(
            self.teacher is None or self.teacher_run is not None,
            f"encoder.teacher ({self.teacher}) needs encoder.teacher_run, the distil.py run that learnt from it",
        )
        require(
            self.teacher_tokenizer is None or self.teacher is not None,
            f"encoder.teacher_tokenizer ({self.teacher_tokenizer}) needs encoder.teacher, whose decoder shall read",
        )
        require(self.reading_weight > 0, f"encoder.reading_weight ({self.reading_weight}) must be positive")
        require(self.teacher_weight > 0, f"encoder.teacher_weight ({self.teacher_weight}) must be positive")
        require(self.frozen_steps >= 0, f"encoder.frozen_steps ({self.frozen_steps}) must not be negative")
        require(0 <= self.chunk_share <= 1, f"encoder.chunk_share ({self.chunk_share}) must be in [0, 1]")
        low, high = self.chunk_states
        require(
            0 < low <= high, f"encoder.chunk_states ({low}, {high}) must be two positive numbers, the shorter first"
        )


@dataclass(frozen=True)
class TextConfig:
    """Text without recordings, from which the decoder learns the language in every step that it learns in."""

    files: list[str] = field(default_factory=list)
    """Text files, a sentence a line; none: the decoder learns from recordings alone. Lines that are also said in a
    development set are left out."""
    tokens: int = 600
    """Most tokens of text in a step, padding included."""
    weight: float = 0.3
    """The text's cross-entropy times this is added to the loss."""

    def __post_init__(self) -> None:
        require(self.tokens > 0, f"text.tokens ({self.tokens}) must be positive")
        require(self.weight > 0, f"text.weight ({self.weight}) must be positive")


@dataclass(frozen=True)
class TrainingConfig:
    """A whole training run."""

    data: DataConfig
    """Corpora and batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The recogniser; its vocab_size is taken from the tokenizer."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """AdamW and its learning rate."""
    encoder: EncoderTuningConfig = field(default_factory=EncoderTuningConfig)
    """Where the encoder starts and how it learns."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text without recordings."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Masks over the features."""
    waveform_augment: WaveformAugmentConfig = field(default_factory=WaveformAugmentConfig)
    """Rooms, noise and levels."""
    ctc_weight: float = 0.3
    """Share of the CTC loss; the rest is the decoder's cross-entropy."""
    label_smoothing: float = 0.1
    """Of the decoder's cross-entropy."""
    expectation_weight: float = 0.0
    """The divergence of the decoder's next token from what the teacher's decoder expects of its own encoder's states,
    nats a token, times this is added to the loss; it needs encoder.teacher_tokenizer. The two are compared where both
    tokenizers have a boundary, texts' ends aside."""
    token_noise: float = 0.0
    """Share of the tokens that the decoder reads of a transcript which are others of the batch (SwitchOut, arXiv
    1808.07512), so that it listens and does not learn transcripts by heart."""
    spelt_share: float = 0.0
    """Share of a transcript's tokens that the decoder is given, and has to say, in CTC's pieces, where ctc.vocab_size
    makes them different (as in BPE dropout, arXiv 1910.13267): so it learns to spell what it has no token for."""
    consistency_weight: float = 0.0
    """Above 0, each utterance is heard in two views with masks of their own, and the divergence between what CTC says
    of them, summed over states and divided by the number of tokens, is added to the loss with this weight (CR-CTC,
    arXiv 2410.05101, which takes 0.2; it wants more masks than training without). Doubles a batch's cost."""
    minimum_wer_weight: float = 0.0
    """The word errors a word to expect of joint search, times this is added to the loss (minimum word error rate
    training, arXiv 1712.01818). For a model that recognises already: it learns which of its own texts is best."""
    minimum_wer_texts: int = 4
    """Texts that joint search finds of each recording for that, with the weights in model.search."""
    decoder_from_step: int = 0
    """Steps at the beginning in which CTC alone learns, which takes a fraction of the time."""
    max_steps: int = 20_000
    """Optimiser steps; the learning rate's cosine ends here."""
    max_minutes: float | None = None
    """Stop after this wall-clock time, if max_steps has not come first. The cosine then ends at whichever is nearer."""
    validate_every: int = 500
    """Steps between validations."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    average_last: int = 5
    """Checkpoints kept, and averaged at the end."""
    seed: int = 0
    """Of initial weights, batches, augmentation and dropout."""
    precision: Precision = "32"
    """bf16: mixed precision."""
    accelerator: Accelerator = "auto"
    """What computes; auto takes a GPU if there is one."""
    num_threads: int = 0
    """Threads of the computation on a CPU; 0 leaves torch's own number."""
    init_from: str | None = None
    """Checkpoint folder whose weights the run starts from (same shapes, same tokenizer); with encoder.weights, whose
    encoder takes the place of its own but for the new blocks, the mixers there may differ. Its lexicon, too, if it has
    one when the run ends."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "validate_every", "checkpoint_every", "average_last"):
            require(getattr(self, name) > 0, f"{name} ({getattr(self, name)}) must be positive")
        require(
            self.encoder.new_blocks < self.model.encoder.n_layers,
            f"encoder.new_blocks ({self.encoder.new_blocks}) must be below model.encoder.n_layers "
            f"({self.model.encoder.n_layers})",
        )
        require(
            self.encoder.weights_share == 1 or None not in (self.encoder.weights, self.init_from),
            f"encoder.weights_share ({self.encoder.weights_share}) needs encoder.weights and init_from: it mixes them",
        )
        require(self.max_minutes is None or self.max_minutes > 0, f"max_minutes ({self.max_minutes}) must be positive")
        require(0 <= self.ctc_weight <= 1, f"ctc_weight ({self.ctc_weight}) must be in [0, 1]")
        require(self.expectation_weight >= 0, f"expectation_weight ({self.expectation_weight}) must not be negative")
        require(
            not self.expectation_weight or self.encoder.teacher_tokenizer is not None,
            f"expectation_weight ({self.expectation_weight}) needs encoder.teacher_tokenizer, whose teacher tells",
        )
        require(0 <= self.token_noise < 1, f"token_noise ({self.token_noise}) must be at least 0 and below 1")
        require(0 <= self.spelt_share < 1, f"spelt_share ({self.spelt_share}) must be at least 0 and below 1")
        require(self.consistency_weight >= 0, f"consistency_weight ({self.consistency_weight}) must not be negative")
        require(self.minimum_wer_weight >= 0, f"minimum_wer_weight ({self.minimum_wer_weight}) must not be negative")
        require(self.minimum_wer_texts >= 2, f"minimum_wer_texts ({self.minimum_wer_texts}) must be at least 2")
        require(
            not self.minimum_wer_weight or self.model.search.ctc_weight < 1,
            f"minimum_wer_weight ({self.minimum_wer_weight}) needs model.search.ctc_weight "
            f"({self.model.search.ctc_weight}) below 1: it is the decoder that learns",
        )
        require(0 <= self.label_smoothing < 1, f"label_smoothing ({self.label_smoothing}) must be in [0, 1)")
        require(self.decoder_from_step >= 0, f"decoder_from_step ({self.decoder_from_step}) must not be negative")
        require(self.seed >= 0, f"seed ({self.seed}) must not be negative")
        require(self.num_threads >= 0, f"num_threads ({self.num_threads}) must be 0 (automatic) or positive")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, for YAML and for Lightning's hyperparameters."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
