"""The command lines of distil.py and distil_decoder.py."""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from samba_asr.training.whisper.settings import DecoderDistilConfig, DistilConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run distil.py; return the exit status: 0, 1 for data or training that failed, 2 for usage."""
    return _main(
        "distil.py",
        "Turn a Whisper encoder into a Samba encoder: RUN_DIR/encoder.safetensors. Stage (a): each mixer learns what "
        "its attention layer says; stage (b): the whole encoder learns the teacher's states.",
        DistilConfig,
        argv,
    )


def main_decoder(argv: Sequence[str] | None = None) -> int:
    """Run distil_decoder.py; as :func:`main`."""
    return _main(
        "distil_decoder.py",
        "Turn a Whisper decoder into the start of a Samba decoder: RUN_DIR/decoder.safetensors. Each mixer learns what "
        "its self-attention layer says; train.py --decoder_weights goes on from there.",
        DecoderDistilConfig,
        argv,
    )


def _main(prog: str, description: str, config_class: Any, argv: Sequence[str] | None) -> int:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below.")
    parser.add_argument("--out", type=str, required=True, metavar="RUN_DIR", help="Folder of the run.")
    parser.add_argument("--resume", type=bool, default=False, help="true: continue the run in RUN_DIR.")
    parser.add_class_arguments(config_class)
    values = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
        built = instantiate(values)
        config = config_class(**{f.name: built[f.name] for f in dataclasses.fields(config_class)})
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see samba_asr.training.cli
    try:
        path = _run(config, built["out"], built["resume"])
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    print(path, file=sys.stderr)
    return 0


def _run(config: DistilConfig | DecoderDistilConfig, out: str, resume: bool) -> object:
    # these take seconds to import: not for --help
    if isinstance(config, DistilConfig):
        from samba_asr.training.whisper.distil import distil

        return distil(config, out, resume)
    from samba_asr.training.whisper.decoder import distil_decoder

    return distil_decoder(config, out, resume)
