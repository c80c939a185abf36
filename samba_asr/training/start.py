"""What a run starts from: a checkpoint, a distilled encoder."""

import dataclasses
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from samba_asr.config import ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.encoder import EncoderBlock
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.config import TrainingConfig
from samba_asr.training.resume import differences


def fitted(config: TrainingConfig, tokenizer: Tokenizer) -> TrainingConfig:
    """Return the settings with what hangs on tokens alone: the tokenizer's vocab_size, and the ctc.longest_spelling of
    init_from, if that is still there and its tokens are spelt in pieces too."""
    ctc = config.model.ctc
    if ctc.vocab_size and config.init_from is not None and Path(config.init_from).is_dir():
        its = load_checkpoint(config.init_from)[0].config.ctc
        ctc = dataclasses.replace(ctc, longest_spelling=its.longest_spelling) if its.vocab_size else ctc
    model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size, ctc=ctc)
    return dataclasses.replace(config, model=model)


def load_initial(model: SambaASR, folder: str, config: TrainingConfig, tokenizer: Tokenizer) -> None:
    """Load a checkpoint's weights; where a distilled encoder takes the place of its first blocks, those of the rest.

    Raises ValueError for another tokenizer or a model that does not fit.
    """
    initial, its_tokenizer = load_checkpoint(folder)
    if its_tokenizer.model_proto != tokenizer.model_proto:
        raise ValueError(
            f"init_from: {folder} has another tokenizer than data.tokenizer ({config.data.tokenizer}); "
            f"use {Path(folder) / 'tokenizer.model'}"
        )
    another = f"init_from: {folder} is another model than the configured one: "
    before, weights = initial.config, initial.state_dict()
    if config.encoder.weights is not None and config.encoder.weights_share == 1:
        before = _with_mixers_of(config.model, before)
        first_new = config.model.encoder.n_layers - config.encoder.new_blocks
        replaced = tuple(f"encoder.{part}." for part in ("subsampling", *(f"blocks.{i}" for i in range(first_new))))
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith(replaced)}
    changes = list(differences("model", before.to_dict(), config.model.to_dict()))
    if changes:
        raise ValueError(another + "; ".join(changes))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(another + str(error)) from error


def _with_mixers_of(config: ModelConfig, other: ModelConfig) -> ModelConfig:
    """Return another model's config with the mixers of this one's encoder."""
    encoder = dataclasses.replace(
        other.encoder, mixer=config.encoder.mixer, ungrouped_layers=config.encoder.ungrouped_layers
    )
    return dataclasses.replace(other, encoder=encoder)


def load_encoder(model: SambaASR, config: TrainingConfig) -> None:
    """Load the weights that distil.py wrote into all but the last blocks, which begin by adding nothing.

    With init_from, whose weights the model has by now, those blocks and the last norm stay as they are. Where CTC has
    blocks of its own, the encoder ends without a norm, and distil.py's is left out.
    """
    path, share = config.encoder.weights, config.encoder.weights_share
    assert path is not None
    if not Path(path).is_file():
        raise FileNotFoundError(f"encoder.weights: {path} does not exist; make it with distil.py")
    blocks = list(model.encoder.blocks)
    first_new = len(blocks) - config.encoder.new_blocks
    try:
        weights = load_file(path)
        if config.model.ctc.n_layers:
            weights = {name: value for name, value in weights.items() if not name.startswith("norm.")}
        model.encoder.blocks = nn.ModuleList(blocks[:first_new])
        if config.init_from is not None:
            before = model.encoder.state_dict()
            mixed = {
                name: share * value + (1 - share) * before[name] for name, value in weights.items() if name in before
            }
            kept = {
                name: value for name, value in before.items() if name.startswith("norm.") and first_new < len(blocks)
            }
            weights = weights | mixed | kept
        model.encoder.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"encoder.weights: {path} does not fit the configured encoder: {error}") from error
    model.encoder.blocks = nn.ModuleList(blocks)
    for block in blocks[first_new:] if config.init_from is None else ():
        assert isinstance(block, EncoderBlock)
        block.pass_on()
