#!/usr/bin/env python3
"""Write the mean of some checkpoints' weights as a new checkpoint.

python recipes/librispeech/average.py pretrained/samba-base-en runs/more/checkpoint --out runs/mean

The mean of a model and of what training made of it, or of two runs from one start, often hears better than either of
them. A folder that is named twice counts twice. Search and word settings and lexicon are those of the first; all else
(the model's other settings, the tokenizer) must be the same.
Exit code: 0, 2 where folders do not fit or cannot be read.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

try:
    from samba_asr.config import ModelConfig
    from samba_asr.model.asr import SambaASR
    from samba_asr.model.checkpoint import load_checkpoint, save_checkpoint
    from samba_asr.model.checkpoint_files import copy_lexicon
    from samba_asr.model.pretrained import resolve_model
    from samba_asr.text.tokenizer import Tokenizer
    from samba_asr.training.averaging import average_states
except ModuleNotFoundError as error:
    sys.exit(f"average.py: averages need more packages ({error}); install them with: pip install -e '.[train]'")

DONE, USAGE = 0, 2


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint folders, or names in pretrained/")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not exist yet")
    parser.add_argument("--half", action="store_true", help="store matrices in float16, half of the size")
    return parser.parse_args(arguments)


def average(folders: Sequence[Path]) -> tuple[SambaASR, Tokenizer]:
    """Return the mean of checkpoints, and their tokenizer.

    Raises OSError or ValueError where a folder cannot be read, or is of another model than the first.
    """
    model, tokenizer = load_checkpoint(folders[0])
    others = []
    for folder in folders[1:]:
        other, its_tokenizer = load_checkpoint(folder)
        if _what_must_agree(other.config, model.config) != model.config:
            raise ValueError(f"{folder} and {folders[0]} have different model settings: see their config.json")
        if its_tokenizer.pieces() != tokenizer.pieces():
            raise ValueError(f"{folder} and {folders[0]} have different tokenizers")
        others.append(other.state_dict())
    # both names of tied embeddings, or the last ones' would come over their average
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    model.load_state_dict(average_states([model.state_dict(), *others], names))
    return model, tokenizer


def _what_must_agree(config: ModelConfig, first: ModelConfig) -> ModelConfig:
    return replace(config, search=first.search, words=first.words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(arguments)
    try:
        if options.out.exists():
            raise ValueError(f"--out {options.out} exists: name a new folder")
        model, tokenizer = average([resolve_model(name) for name in options.models])
        card = f"# Mean of weights\n\nOf {', '.join(options.models)}, by `recipes/librispeech/average.py`.\n"
        save_checkpoint(options.out, model, tokenizer, card, torch.float16 if options.half else None)
        copy_lexicon(resolve_model(options.models[0]), options.out)
    except (OSError, ValueError) as error:
        print(f"average.py: error: {error}", file=sys.stderr)
        return USAGE
    print(f"wrote {options.out}, the mean of {len(options.models)}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
