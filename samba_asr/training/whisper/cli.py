"""The command line of distil.py."""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser, set_parsing_settings

from samba_asr.training.whisper.settings import DistilConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for data or training that failed, 2 for usage."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="distil.py",
        description="Turn a Whisper encoder into a Samba encoder: RUN_DIR/encoder.safetensors. Stage (a): each mixer "
        "learns what its attention layer says; stage (b): the whole encoder learns the teacher's states.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below.")
    parser.add_argument("--out", type=str, required=True, metavar="RUN_DIR", help="Folder of the run.")
    parser.add_argument("--resume", type=bool, default=False, help="true: continue the run in RUN_DIR.")
    parser.add_class_arguments(DistilConfig)
    values = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
        built = instantiate(values)
        config = DistilConfig(**{f.name: built[f.name] for f in dataclasses.fields(DistilConfig)})
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see samba_asr.training.cli
    from samba_asr.training.whisper.distil import distil  # takes seconds to import: not for --help

    try:
        path = distil(config, built["out"], built["resume"])
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"distil.py: error: {error}", file=sys.stderr)
        return 1
    print(path, file=sys.stderr)
    return 0
