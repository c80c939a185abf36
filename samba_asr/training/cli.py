"""The command line of train.py, and how command lines of training runs are read."""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from samba_asr.training.config import TrainingConfig

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


Config = TypeVar("Config")


@dataclass(frozen=True)
class Arguments(Generic[Config]):
    """A command line, read."""

    config: Config
    out: Path
    resume: bool


def parse_arguments(argv: Sequence[str]) -> Arguments[TrainingConfig]:
    """Read train.py's command line; as :func:`parse_settings`."""
    return parse_settings(
        TrainingConfig,
        argv,
        prog="train.py",
        description="Train a recogniser. RUN_DIR/checkpoint is the result; the rest of RUN_DIR says how it came about.",
    )


def parse_settings(config_class: type[Config], argv: Sequence[str], **about: Any) -> Arguments[Config]:
    """Read a YAML file and flags; flags after ``--config`` override the file.

    config_class: the dataclass of all settings; about: prog, description and whatever else the parser is given.
    Exits with status 2 and a line on stderr if a key is unknown or a value is rejected.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(**about)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below.")
    parser.add_argument("--out", type=str, required=True, metavar="RUN_DIR", help="Folder of the run.")
    parser.add_argument("--resume", type=bool, default=False, help="true: continue the run in RUN_DIR.")
    parser.add_class_arguments(config_class)
    values = parser.parse_args(list(argv))
    try:
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
        built = instantiate(values)
        fields: Any = dataclasses.fields(config_class)  # type: ignore[arg-type]
        config = config_class(**{field.name: built[field.name] for field in fields})
    except ValueError as error:
        parser.error(str(error))
    return Arguments(config, Path(built["out"]), built["resume"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0, 1 for data or training that failed, 2 for usage, 130 where Ctrl-C interrupts (other than training, which it ends
    after the current step; a second one there gives 1).
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    command = ["python", *sys.argv] if argv is None else ["python", "train.py", *argv]
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    # GNU OpenMP's idle threads spin for milliseconds, which slows training 3 to 5 times where another process wants a
    # core; threads that never spin cost a third on an idle machine; a short spin costs nothing there. It is read when
    # torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from samba_asr.training.run import train  # takes seconds to import: not for --help

    try:
        scores = train(arguments.config, arguments.out, arguments.resume, command)
    except (ValueError, OSError, FloatingPointError) as error:
        message = str(error)
        if message.startswith("Caught "):  # in a loader process, with its whole traceback
            message = message.strip().splitlines()[-1]
        print(f"train.py: error: {message}", file=sys.stderr)
        return 1
    wer = "-" if scores.wer is None else f"{100 * scores.wer:.2f} %"
    print(f"{arguments.out / 'checkpoint'}: dev loss {scores.loss:.3f}, WER {wer}", file=sys.stderr)
    return 0
