"""A checkpoint is a folder: config.json, model.safetensors, tokenizer.model and README.md, the model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from samba_asr.atomic import replacing
from samba_asr.config import CONFIG_VERSION, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.ssm.mixer import RATES
from samba_asr.text.tokenizer import Tokenizer

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, CARD_FILE = (
    "config.json",
    "model.safetensors",
    "tokenizer.model",
    "README.md",
)
_FORMAT = "samba-asr"
_ADDED: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    2: {"search": {"beam_size": 8, "ctc_weight": 0.5}},
    3: {"search": {"length_bonus": 0.0}},
    4: {"encoder": {"shared_projections": False}},
    5: {"encoder.mixer": {"groups": 1}, "decoder.mixer": {"groups": 1}, "encoder": {"ungrouped_layers": 0}},
    6: {
        "": {"ctc": {"n_layers": 0, "vocab_size": 0, "longest_spelling": 1}},
        "search": {"spelling_weight": 1.0},
        "decoder": {"listening": "state", "window_before": 12, "window_after": 24, "tied_embedding": False},
    },
    7: {"encoder.mixer": {"s4d_init": "legs"}, "decoder.mixer": {"s4d_init": "legs"}},
    8: {"": {"words": {"start_shift": 0.0, "end_shift": 0.0, "confidence_scale": 1.0, "confidence_bias": 0.0}}},
    9: {"search": {"lm_weight": 0.3, "hotword_boost": 0.5}},
}
"""Fields that a version of config.json added to a part of the model, with what older checkpoints take for them."""


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used; the message says which file is wrong, and how."""


def save_checkpoint(
    folder: str | Path, model: SambaASR, tokenizer: Tokenizer, card: str, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint folder, each file in one piece.

    dtype: type for the weight matrices, such as torch.float16; None keeps theirs. Features, decay rates and vectors
    always keep theirs: they are few, and precision matters there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model's vocab_size is {model.config.vocab_size}"
        )
    tensors = {name: as_stored(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    for name in _tied(model.config):
        del tensors[name]
    with replacing(folder / WEIGHTS_FILE) as path:
        path.write_bytes(save(tensors))  # save_file's is private to its owner
    tokenizer.save(folder / TOKENIZER_FILE)
    with replacing(folder / CARD_FILE) as path:
        path.write_text(card, encoding="utf-8")
    save_config(folder, model.config)


def save_config(folder: str | Path, config: ModelConfig) -> None:
    """Write a checkpoint folder's ``config.json``, the whole file or nothing."""
    content = {"format": _FORMAT, "version": CONFIG_VERSION, "model": config.to_dict()}
    with replacing(Path(folder) / CONFIG_FILE) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> tuple[SambaASR, Tokenizer]:
    """Read a checkpoint folder: the model in float32 and evaluation mode on device, and its tokenizer.

    Raises FileNotFoundError when there is no such folder and CheckpointError when something in it is missing, of
    another version, or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"model folder {folder} lacks {name}; it is incomplete or no Samba-ASR checkpoint")
    config = _read_config(folder / CONFIG_FILE)
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE} has {tokenizer.vocab_size} pieces, but {CONFIG_FILE} says {config.vocab_size}"
        )
    model = _read_model(folder / WEIGHTS_FILE, config)
    return model.to(device).eval(), tokenizer


def as_stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a model's tensor as :func:`save_checkpoint` writes it."""
    exact = (
        dtype is None
        or not tensor.is_floating_point()
        or tensor.dim() < 2
        or name.startswith("features.")
        or name.endswith(RATES)
    )
    return tensor.detach().cpu().contiguous() if exact else tensor.detach().cpu().to(dtype).contiguous()


def _read_config(path: Path) -> ModelConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f'{path} is no Samba-ASR configuration: it lacks "format": "{_FORMAT}"')
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= CONFIG_VERSION:
        raise CheckpointError(
            f"{path} has version {version}, this program reads versions 1 to {CONFIG_VERSION}; "
            "use the version that wrote it"
        )
    try:
        return ModelConfig.from_dict(_as_of_today(content.get("model") or {}, version), complete=True)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _as_of_today(model: Any, version: int) -> Any:
    """Add to a model's config what later versions ask for; what is no config at all stays as it is."""
    for later in range(version + 1, CONFIG_VERSION + 1):
        for part, fields in _ADDED[later].items():
            model = _with_fields(model, part.split(".") if part else [], fields)
    return model


def _with_fields(config: Any, part: list[str], fields: Mapping[str, Any]) -> Any:
    """Add fields to a part of a config, named by the way to it."""
    if not isinstance(config, dict):
        return config
    if not part:
        return {**fields, **config}
    return {**config, part[0]: _with_fields(config[part[0]], part[1:], fields)} if part[0] in config else config


def _read_model(path: Path, config: ModelConfig) -> SambaASR:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or not in safetensors format: {error}") from error
    filters = tensors.get("features.mel_filters")
    if filters is None:
        raise CheckpointError(f"{path} lacks features.mel_filters")
    try:
        model = SambaASR(config, filters)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors |= {name: tensors[source] for name, source in _tied(config).items() if source in tensors}
    _check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model


def _tied(config: ModelConfig) -> Mapping[str, str]:
    """Return the tensors that are others under a second name, which a file holds once."""
    return {"decoder.out_proj.weight": "decoder.embedding.weight"} if config.decoder.tied_embedding else {}


def _check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [f"{what} {', '.join(names[:3])}" for what, names in (("lacks", missing), ("has", unknown)) if names]
        raise CheckpointError(f"{path} does not fit {CONFIG_FILE}: it {' and '.join(parts)}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, but {CONFIG_FILE} asks for {tuple(tensor.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")
        if not bool(torch.isfinite(found[name]).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite; its training went wrong")
