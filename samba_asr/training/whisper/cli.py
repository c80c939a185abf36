"""The command lines of distil.py, distil_decoder.py and pseudo_label.py."""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samba_asr.training.cli import parse_settings
from samba_asr.training.whisper.settings import DecoderDistilConfig, DistilConfig, LabelConfig

LABEL_DESCRIPTION = """\
Give transcripts that have neither case nor punctuation those of a Whisper teacher. It reads every utterance in a window
of its own; where transcript and teacher agree word for word, its writing is taken (MISTER QUILTER: Mr. Quilter); all
other words are the transcript's, in lower case. No word is added, lost or replaced.

  OUT/MANIFEST          utterances in which at least --min-agreement of the words agree, with case and punctuation;
                        train on these with train.py --data.text_form written
  OUT/rest/MANIFEST     the others, in lower case
  OUT/teacher/MANIFEST  what the teacher wrote; the same command goes on from there where it was stopped

Corpora at least half of whose transcripts have both capitals and lower-case letters need no teacher: all their texts
are only normalised (quotation marks, accents, dashes). Utterances over 30 s, and those whose audio cannot be read, are
left out and counted.
"""
LABEL_EPILOG = """\
example:
  python recipes/whisper_to_samba/pseudo_label.py --teacher tiny.en.pt --teacher_tokenizer tokenizer.json \\
      --manifests prepared/librispeech-train-clean-5.jsonl prepared/ljspeech-train.jsonl --out written --vocab_size 256
"""


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
        "Give a trained encoder and CTC head a decoder that learns from a Whisper decoder on the same states, with "
        "Whisper's tokens: RUN_DIR/checkpoint. train.py --init_from RUN_DIR/checkpoint goes on from there.",
        DecoderDistilConfig,
        argv,
    )


def main_label(argv: Sequence[str] | None = None) -> int:
    """Run pseudo_label.py; return the exit status: 0, 1 where something could not be read, 2 for usage, 130 after
    Ctrl-C."""
    parser = label_parser()
    options = parser.parse_args(argv)
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(LabelConfig)}
    try:
        config = LabelConfig(**settings)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    import torch  # takes a second, as the rest does: not for --help

    from samba_asr.training.whisper.label import label_manifests

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        reports = label_manifests(config, options.out)
    except (ValueError, OSError) as error:
        print(f"pseudo_label.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npseudo_label.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for report in reports:
        print(report.describe())
    return int(any(report.unreadable for report in reports))


def label_parser() -> argparse.ArgumentParser:
    """Return pseudo_label.py's parser; options that set a field of :class:`LabelConfig` have its name."""
    parser = argparse.ArgumentParser(
        "pseudo_label.py",
        description=LABEL_DESCRIPTION,
        epilog=LABEL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, LabelConfig
    add("--teacher", required=True, metavar="WHISPER", help="checkpoint: .pt, .safetensors or .npz")
    add("--teacher_tokenizer", "--teacher-tokenizer", required=True, metavar="JSON", help="its tokenizer.json")
    add("--manifests", required=True, nargs="+", metavar="MANIFEST", help="made by prepare.py")
    add("--out", required=True, help="folder of the new manifests (made if absent)")
    add(
        "--min_agreement",
        "--min-agreement",
        type=float,
        default=default.min_agreement,
        metavar="SHARE",
        help="words that must agree, as a share of the longer text's (default: %(default)s): below that, much of an "
        "utterance would stay in lower case and its sentences without an end",
    )
    add(
        "--rest",
        choices=("keep", "drop"),
        default=default.rest,
        help="the utterances below it. keep (default): into manifests of their own, because they are the ones that are "
        "hard to hear: leave them out for one clean style, or train on them too for more speech. drop: nowhere",
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        help="give the teacher at most N utterances of each manifest, evenly spread; the others are left out, but for "
        "those that need no teacher (default: all)",
    )
    add(
        "--vocab_size",
        "--vocab-size",
        type=int,
        metavar="N",
        help="train a tokenizer of N pieces on all that is labelled: OUT/tokenizer.model (default: none)",
    )
    add("--batch", type=int, default=default.batch, metavar="N", help="utterances read at once (default: %(default)s)")
    add(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=default.bf16,
        help="mixed precision, twice as fast on CPUs with AVX-512 BF16 and on GPUs (default)",
    )
    add("--threads", type=int, default=0, metavar="N", help="threads on a CPU (default: torch's choice)")
    return parser


def _main(prog: str, description: str, config_class: Any, argv: Sequence[str] | None) -> int:
    arguments = parse_settings(config_class, sys.argv[1:] if argv is None else argv, prog=prog, description=description)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see samba_asr.training.cli
    try:
        path = _run(arguments.config, arguments.out, arguments.resume)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    print(path, file=sys.stderr)
    return 0


def _run(config: DistilConfig | DecoderDistilConfig, out: Path, resume: bool) -> object:
    # these take seconds to import: not for --help
    if isinstance(config, DistilConfig):
        from samba_asr.training.whisper.distil import distil

        return distil(config, out, resume)
    from samba_asr.training.whisper.decoder import distil_decoder

    return distil_decoder(config, out, resume)
