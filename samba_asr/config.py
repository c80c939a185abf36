"""The model's configuration: frozen dataclasses, presets, and their way to and from JSON.

A checkpoint folder's ``config.json`` holds one :class:`ModelConfig`; nothing else is needed to build the model.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

CONFIG_VERSION = 10
"""Of ``config.json``: increase it with every field that is added, removed or redefined (and see checkpoint.py)."""

Normalisation = Literal["whisper", "global", "causal"]
MixerKind = Literal["mamba", "mamba2", "hydra", "s4d"]
S4DInit = Literal["legs", "lin"]
Subsampling = Literal["conv4x", "whisper", "whisper4x", "whisper8x"]
Listening = Literal["state", "window"]
Search = Literal["ctc", "autoregressive", "rescoring", "joint"]
Precision = Literal["float32", "bfloat16"]
"""In which type encoders multiply, to transcribe."""


def _check_choice(name: str, value: str, choices: object) -> None:
    options = get_args(choices)
    if value not in options:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(map(repr, options))}")


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"{name} ({value}) must be positive")


def _check_probability(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name} ({value}) must be in [0, 1)")


@dataclass(frozen=True)
class FeatureConfig:
    """Log-mel features."""

    sample_rate: int = 16_000
    """Samples a second of the waveform."""
    n_fft: int = 400
    """Length of the Fourier transform, in samples."""
    win_length: int = 400
    """Length of the Hann window, in samples (25 ms)."""
    hop_length: int = 160
    """Samples between two frames (10 ms)."""
    n_mels: int = 80
    """Mel bands."""
    normalisation: Normalisation = "causal"
    """whisper: floor 8 below the utterance's own maximum; global: mean and variance of the training data; causal: a
    fixed floor, so that no frame depends on a later one."""
    log_floor: float = -7.0
    """Smallest log10 mel power kept by the causal normalisation."""

    def __post_init__(self) -> None:
        _check_positive(self, "sample_rate", "n_fft", "win_length", "hop_length", "n_mels")
        _check_choice("normalisation", self.normalisation, Normalisation)
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length ({self.win_length}) must not exceed n_fft ({self.n_fft})")


@dataclass(frozen=True)
class MixerConfig:
    """The state-space layer inside a block."""

    kind: MixerKind = "mamba2"
    """mamba: selective scan with a full diagonal A; mamba2: one A a head, computed as chunked matrix products (SSD);
    hydra: as mamba2, but one mixer hears both directions (encoder only); s4d: convolution with a long kernel that no
    input changes."""
    d_state: int = 0
    """Numbers of state a channel; 0 means 16 (mamba) or 64. s4d: an even number, two for each complex one."""
    d_conv: int = 4
    """Width of the depthwise causal convolution, in frames; hydra's sees d_conv - 1 to either side. s4d has none."""
    expand: int = 2
    """d_inner = expand * d_model."""
    head_dim: int = 64
    """mamba2, hydra: channels of one head; must divide d_inner."""
    groups: int = 1
    """mamba2, hydra: sets of B and C, each for as many neighbouring heads; must divide the number of heads. 0 means a
    set for each head."""
    dt_rank: int = 0
    """mamba: rank of the step size's projection; 0 means ceil(d_model / 16)."""
    chunk_size: int = 64
    """mamba2, hydra: frames of one chunk of the SSD algorithm. Changes speed, never values."""
    s4d_init: S4DInit = "legs"
    """s4d: what its states' frequencies start as; legs: those of HiPPO-LegS; lin: multiples of pi."""

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, MixerKind)
        _check_choice("s4d_init", self.s4d_init, S4DInit)
        _check_positive(self, "d_conv", "expand", "head_dim", "chunk_size")
        if self.d_conv < 2:
            raise ValueError(f"d_conv ({self.d_conv}) must be at least 2")
        for name in ("d_state", "groups", "dt_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be 0 (automatic) or positive")
        if self.kind == "s4d" and self.d_state % 2:
            raise ValueError(f"d_state ({self.d_state}) must be even where kind is 's4d': its states are complex")

    @property
    def state_size(self) -> int:
        """d_state, or what 0 means."""
        return self.d_state or (16 if self.kind == "mamba" else 64)


def _check_heads(part: str, mixer: MixerConfig, d_model: int) -> None:
    if mixer.kind not in ("mamba2", "hydra"):
        return
    d_inner = mixer.expand * d_model
    if d_inner % mixer.head_dim:
        raise ValueError(f"{part}mixer.head_dim ({mixer.head_dim}) must divide expand * d_model ({d_inner})")
    heads = d_inner // mixer.head_dim
    if mixer.groups and heads % mixer.groups:
        raise ValueError(f"{part}mixer.groups ({mixer.groups}) must divide the number of heads ({heads})")


@dataclass(frozen=True)
class EncoderConfig:
    """Convolutional subsampling and a stack of bidirectional blocks."""

    n_layers: int = 8
    """Bidirectional blocks."""
    subsampling: Subsampling = "conv4x"
    """conv4x: two strided Conv2d, 40 ms a state; whisper: Whisper's two Conv1d, 20 ms a state; whisper4x: a third
    Conv1d joins pairs of those, 40 ms a state; whisper8x: a fourth joins pairs of these, 80 ms a state."""
    subsampling_channels: int = 32
    """conv4x: channels of its convolutions."""
    d_ff: int = 640
    """Width of the feed-forward after each mixer; 0 leaves it out."""
    dropout: float = 0.1
    """Dropout on each residual branch."""
    drop_path: float = 0.0
    """Probability of skipping the last block's branches for an utterance; falls linearly to 0 at the first block."""
    mixer: MixerConfig = field(default_factory=MixerConfig)
    """The mixer, once for each direction; hydra, once for both."""
    shared_projections: bool = False
    """The two directions share their first and last projection, which halves their cost. Not for hydra, which has one
    set anyway."""
    ungrouped_layers: int = 0
    """The last blocks, whose mixers have one group of B and C whatever mixer.groups says."""

    def __post_init__(self) -> None:
        _check_positive(self, "n_layers", "subsampling_channels")
        if not 0 <= self.ungrouped_layers <= self.n_layers:
            raise ValueError(
                f"ungrouped_layers ({self.ungrouped_layers}) must be between 0 and n_layers ({self.n_layers})"
            )
        _check_choice("subsampling", self.subsampling, Subsampling)
        _check_probability(self, "dropout", "drop_path")
        if self.d_ff < 0:
            raise ValueError(f"d_ff ({self.d_ff}) must be 0 (none) or positive")
        if self.shared_projections and self.mixer.kind == "hydra":
            raise ValueError(
                "shared_projections (True) must be False where mixer.kind is 'hydra': it has one set of projections"
            )

    def mixer_of(self, layer: int) -> MixerConfig:
        """Return the mixer of a block, counted from 0."""
        grouped = layer < self.n_layers - self.ungrouped_layers
        return self.mixer if grouped else dataclasses.replace(self.mixer, groups=1)

    @property
    def subsampling_factor(self) -> int:
        """Frames a state."""
        return {"conv4x": 4, "whisper": 2, "whisper4x": 4, "whisper8x": 8}[self.subsampling]


@dataclass(frozen=True)
class DecoderConfig:
    """A stack of causal blocks, each with a way to hear the encoder."""

    n_layers: int = 2
    """Causal blocks."""
    d_ff: int = 640
    """Width of the feed-forward that ends each block; 0 leaves it out."""
    dropout: float = 0.1
    """Dropout on the embeddings and on each residual branch."""
    mixer: MixerConfig = field(default_factory=MixerConfig)
    """The mixer over the text, and the one of the cross-connection."""
    listening: Listening = "state"
    """state: a Mamba-cross-connection has read the whole recording before the text; window: each token hears the
    states around the place where CTC expects the next one, weighted by what it asks for."""
    window_before: int = 12
    """window: states heard before that place."""
    window_after: int = 24
    """window: states heard from that place on."""
    tied_embedding: bool = False
    """What comes next is told by the tokens' own embeddings, not by a projection of its own."""

    def __post_init__(self) -> None:
        _check_positive(self, "n_layers", "window_after")
        _check_choice("listening", self.listening, Listening)
        if self.mixer.kind == "hydra":
            raise ValueError(
                "mixer.kind ('hydra') hears what comes later, which a decoder must not: use 'mamba', 'mamba2' or 's4d'"
            )
        if self.window_before < 0:
            raise ValueError(f"window_before ({self.window_before}) must not be negative")
        _check_probability(self, "dropout")
        if self.d_ff < 0:
            raise ValueError(f"d_ff ({self.d_ff}) must be 0 (none) or positive")


@dataclass(frozen=True)
class CTCConfig:
    """The CTC head: blocks that it alone has on top of the encoder, and its pieces."""

    n_layers: int = 0
    """Bidirectional blocks, as the encoder's but with one group; above 0, the encoder ends without a norm, and CTC and
    decoder each have one of their own."""
    vocab_size: int = 0
    """The first ids of the vocabulary, in which CTC spells all tokens; 0: it says whole tokens, as the decoder does."""
    longest_spelling: int = 1
    """Pieces of the token that takes most."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "vocab_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        _check_positive(self, "longest_spelling")


@dataclass(frozen=True)
class SearchConfig:
    """How a checkpoint turns states into tokens when the caller does not say."""

    search: Search = "ctc"
    """ctc: best path of the CTC head; autoregressive: the decoder, one token after the other; rescoring: the decoder
    chooses among the CTC head's best texts; joint: both weigh every text on the way."""
    max_tokens_per_second: float = 12.0
    """The decoder emits no more, by itself or in joint search, so that no input can make it loop. Read speech stays
    below 12 with 256 pieces or more; 64 pieces need 20."""
    beam_size: int = 8
    """rescoring: texts that the decoder chooses from; joint: texts kept from one token to the next."""
    ctc_weight: float = 0.5
    """rescoring, joint: the CTC head's share of a text's score, from 0 to 1; the decoder has the rest."""
    length_bonus: float = 0.0
    """rescoring, joint: added to a text's score for each piece, or the decoder would leave words out."""
    spelling_weight: float = 1.0
    """joint: the power to which CTC's choice among pieces is raised, above 0 to 1; whether any piece is said keeps its
    whole weight, so that no word is left out where the decoder knows better which it is."""
    lm_weight: float = 0.1
    """joint: what a language model's logarithm counts, where there is one (shallow fusion)."""
    lm_length_bonus: float = 2.5
    """joint: added for each piece, times lm_weight, where there is a language model: about what it takes a piece by
    surprise, or words would go missing."""
    hotword_boost: float = 0.6
    """joint: added to a text's score for each letter of a hotword, where there are any."""
    unknown_word_penalty: float = 2.0
    """joint: nats taken off a text's score for each word that the lexicon lacks, where there is one."""

    def __post_init__(self) -> None:
        _check_choice("search", self.search, Search)
        _check_positive(self, "max_tokens_per_second", "beam_size")
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"ctc_weight ({self.ctc_weight}) must be in [0, 1]")
        if not 0 < self.spelling_weight <= 1:
            raise ValueError(f"spelling_weight ({self.spelling_weight}) must be above 0 and at most 1")
        for name in ("length_bonus", "lm_length_bonus"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} ({getattr(self, name)}) must be a number")
        for name in ("lm_weight", "hotword_boost", "unknown_word_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} ({getattr(self, name)}) must be 0 or a positive number")


@dataclass(frozen=True)
class WordConfig:
    """How a checkpoint tells when words are said, and how surely. The defaults are those of a model of which neither
    has been measured: CTC's own states and its own probability."""

    start_shift: float = 0.0
    """Seconds from the state in which CTC first says a word's first piece to the word's start; below 0 where CTC is
    late. benchmarks/word_times.py measures it."""
    end_shift: float = 0.0
    """Seconds from the end of the state in which CTC last says a word's last piece to the word's end."""
    confidence_scale: float = 1.0
    """A word's confidence is the logistic function of this times its raw log-odds, plus ..."""
    confidence_bias: float = 0.0
    """... this. recipes/librispeech/calibrate.py finds both."""

    def __post_init__(self) -> None:
        for name in ("start_shift", "end_shift", "confidence_scale", "confidence_bias"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} ({getattr(self, name)}) must be a number")
        if self.confidence_scale < 0:
            raise ValueError(f"confidence_scale ({self.confidence_scale}) must not be negative")


@dataclass(frozen=True)
class ModelConfig:
    """A whole recogniser. The defaults are the preset ``tiny``."""

    vocab_size: int = 512
    """SentencePiece pieces, the four special ones (blank 0, unknown 1, begin 2, end 3) included."""
    d_model: int = 160
    """Width of every residual stream."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """The log-mel frontend."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Speech to states."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """States and text so far to the next token."""
    ctc: CTCConfig = field(default_factory=CTCConfig)
    """States to pieces."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Default search."""
    words: WordConfig = field(default_factory=WordConfig)
    """Times and confidence of words."""

    def __post_init__(self) -> None:
        _check_positive(self, "d_model")
        if self.vocab_size < 5:
            raise ValueError(f"vocab_size ({self.vocab_size}) must be at least 5: four special ids and one piece")
        if self.ctc.vocab_size > self.vocab_size:
            raise ValueError(f"ctc.vocab_size ({self.ctc.vocab_size}) must not exceed vocab_size ({self.vocab_size})")
        if self.decoder.listening == "window" and self.d_model % self.decoder.mixer.head_dim:
            raise ValueError(
                f"decoder.mixer.head_dim ({self.decoder.mixer.head_dim}) must divide d_model ({self.d_model})"
            )
        for part, mixer in (("encoder", self.encoder.mixer), ("decoder", self.decoder.mixer)):
            _check_heads(f"{part}.", mixer, self.d_model)

    @property
    def ctc_vocab_size(self) -> int:
        """Ids that the CTC head tells apart."""
        return self.ctc.vocab_size or self.vocab_size

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], complete: bool = False) -> "ModelConfig":
        """Build a config from :meth:`to_dict`'s output; a missing key takes its default, unless ``complete``.

        Raises ValueError for an unknown key, a value of the wrong type, or one that a check rejects.
        """
        config: ModelConfig = _from_dict(cls, values, "model", complete)
        return config


@dataclass(frozen=True)
class LanguageModelConfig:
    """A language model over a recogniser's tokens. The defaults have about 4 M parameters at 5,830 tokens."""

    vocab_size: int = 512
    """Pieces of the recogniser's tokenizer, the four special ones included."""
    d_model: int = 256
    """Width of the residual stream, and of the tokens' embeddings."""
    n_layers: int = 3
    """Causal blocks."""
    d_ff: int = 1024
    """Width of the feed-forward that ends each block; 0 leaves it out."""
    dropout: float = 0.1
    """Dropout on the embeddings and on each residual branch."""
    mixer: MixerConfig = field(default_factory=lambda: MixerConfig(expand=1))
    """The mixer over the text."""

    def __post_init__(self) -> None:
        _check_positive(self, "d_model", "n_layers")
        _check_probability(self, "dropout")
        if self.vocab_size < 5:
            raise ValueError(f"vocab_size ({self.vocab_size}) must be at least 5: four special ids and one piece")
        if self.d_ff < 0:
            raise ValueError(f"d_ff ({self.d_ff}) must be 0 (none) or positive")
        if self.mixer.kind == "hydra":
            raise ValueError(
                "mixer.kind ('hydra') hears what comes later, which a language model must not: use 'mamba', 'mamba2' "
                "or 's4d'"
            )
        _check_heads("", self.mixer, self.d_model)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], complete: bool = False) -> "LanguageModelConfig":
        """As :meth:`ModelConfig.from_dict`."""
        config: LanguageModelConfig = _from_dict(cls, values, "language model", complete)
        return config


def _from_dict(cls: Any, values: Any, where: str, complete: bool) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} ({values!r}) must be an object with the fields of {cls.__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(f"{where}.{key} is unknown; {cls.__name__} has {', '.join(fields)}")
    missing = [name for name in fields if name not in values]
    if complete and missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    arguments = {}
    for name, value in values.items():
        kind: Any = fields[name].type
        if dataclasses.is_dataclass(kind):
            value = _from_dict(kind, value, f"{where}.{name}", complete)
        else:
            expected: Any = {bool: bool, int: int, float: (int, float)}.get(kind, str)
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, expected):
                names = {bool: "bool", int: "int", float: "float"}
                raise ValueError(f"{where}.{name} ({value!r}) must be of type {names.get(kind, 'str')}")
        arguments[name] = value
    return cls(**arguments)


def _preset(vocab_size: int, d_model: int, encoder_layers: int, decoder_layers: int, d_ff: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        encoder=EncoderConfig(n_layers=encoder_layers, d_ff=d_ff),
        decoder=DecoderConfig(n_layers=decoder_layers, d_ff=d_ff),
    )


PRESETS: Mapping[str, ModelConfig] = {
    "tiny": ModelConfig(),
    "small": _preset(1000, 256, encoder_layers=8, decoder_layers=2, d_ff=1024),
    "base": _preset(1000, 384, encoder_layers=9, decoder_layers=2, d_ff=1536),
    "large": _preset(5000, 512, encoder_layers=17, decoder_layers=4, d_ff=2048),
}
"""About 6, 15, 35 and 120 M parameters."""
