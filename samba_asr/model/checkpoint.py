"""A recogniser's checkpoint folder: the files of :mod:`samba_asr.model.checkpoint_files`, and what versions added."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from samba_asr.config import CONFIG_VERSION, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint_files import (
    CONFIG_FILE,
    RECOGNISER,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    check_files,
    load_weights,
    read_config,
    read_tokenizer,
    read_weights,
    write_checkpoint,
    write_config,
)
from samba_asr.text.tokenizer import Tokenizer

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
    9: {"search": {"lm_weight": 0.1, "lm_length_bonus": 2.5, "hotword_boost": 0.6}},
    10: {"search": {"unknown_word_penalty": 2.0}},
}
"""Fields that a version of config.json added to a part of the model, with what older checkpoints take for them."""


def save_checkpoint(
    folder: str | Path, model: SambaASR, tokenizer: Tokenizer, card: str, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint folder, each file in one piece.

    dtype: type for the weight matrices, such as torch.float16; None keeps theirs. Features, decay rates and vectors
    always keep theirs: they are few, and precision matters there.
    """
    config = model.config
    write_checkpoint(Path(folder), RECOGNISER, config.to_dict(), model, _tied(config), tokenizer, card, dtype)


def save_config(folder: str | Path, config: ModelConfig) -> None:
    """Write a checkpoint folder's ``config.json``, the whole file or nothing."""
    write_config(Path(folder), RECOGNISER, config.to_dict())


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> tuple[SambaASR, Tokenizer]:
    """Read a checkpoint folder: the model in float32 and evaluation mode on device, and its tokenizer.

    Raises FileNotFoundError when there is no such folder and CheckpointError when something in it is missing, of
    another kind or version, or does not fit.
    """
    folder = Path(folder)
    check_files(folder)
    config = _read_config(folder / CONFIG_FILE)
    tokenizer = read_tokenizer(folder / TOKENIZER_FILE, config.vocab_size)
    model = _read_model(folder / WEIGHTS_FILE, config)
    return model.to(device).eval(), tokenizer


def _read_config(path: Path) -> ModelConfig:
    model, version = read_config(path, RECOGNISER)
    try:
        return ModelConfig.from_dict(_as_of_today(model, version), complete=True)
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
    tensors = read_weights(path)
    filters = tensors.get("features.mel_filters")
    if filters is None:
        raise CheckpointError(f"{path} lacks features.mel_filters")
    try:
        model = SambaASR(config, filters)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(path, model, tensors, _tied(config))
    return model


def _tied(config: ModelConfig) -> Mapping[str, str]:
    """Return the tensors that are others under a second name, which a file holds once."""
    return {"decoder.out_proj.weight": "decoder.embedding.weight"} if config.decoder.tied_embedding else {}
