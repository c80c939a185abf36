"""A language model's checkpoint folder: the files of :mod:`samba_asr.model.checkpoint_files`."""

from pathlib import Path

import torch

from samba_asr.config import LanguageModelConfig
from samba_asr.model.checkpoint_files import (
    CONFIG_FILE,
    LANGUAGE_MODEL,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    check_files,
    load_weights,
    read_config,
    read_tokenizer,
    read_weights,
    write_checkpoint,
)
from samba_asr.model.language_model import LanguageModel
from samba_asr.text.tokenizer import Tokenizer

_TIED = {"out_proj.weight": "embedding.weight"}


def save_language_model(
    folder: str | Path, model: LanguageModel, tokenizer: Tokenizer, card: str, dtype: torch.dtype | None = None
) -> None:
    """Write a language model's folder, each file in one piece; the embeddings, which are also the last projection,
    once.

    dtype: as in :func:`samba_asr.model.checkpoint.save_checkpoint`.
    """
    config = model.config.to_dict()
    write_checkpoint(Path(folder), LANGUAGE_MODEL, config, model, _TIED, tokenizer, card, dtype)


def load_language_model(folder: str | Path, device: str | torch.device = "cpu") -> tuple[LanguageModel, Tokenizer]:
    """Read a language model's folder: the model in float32 and evaluation mode on device, and its tokenizer.

    Raises as :func:`samba_asr.model.checkpoint.load_checkpoint`.
    """
    folder = Path(folder)
    check_files(folder)
    path = folder / CONFIG_FILE
    values, _ = read_config(path, LANGUAGE_MODEL)
    try:
        config = LanguageModelConfig.from_dict(values, complete=True)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tokenizer = read_tokenizer(folder / TOKENIZER_FILE, config.vocab_size)
    model = LanguageModel(config)
    load_weights(folder / WEIGHTS_FILE, model, read_weights(folder / WEIGHTS_FILE), _TIED)
    return model.to(device).eval(), tokenizer
