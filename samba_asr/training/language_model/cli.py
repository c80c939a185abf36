"""The command lines of a language model's train.py and evaluate.py."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import DefaultHelpFormatter

from samba_asr.evaluation.arguments import positive_int
from samba_asr.training.cli import INTERRUPTED, Arguments, parse_settings
from samba_asr.training.language_model.settings import LanguageTrainingConfig

TRAIN_DESCRIPTION = """\
Train a language model for joint search to weigh texts with: a few causal Mamba blocks that foretell the next token of
one recogniser, and therefore use its tokenizer.

  RUN_DIR/checkpoint      the result, with a card that holds its perplexities and this command
  RUN_DIR/curves.png      losses, perplexities, learning rate and speed; the numbers are in metrics.csv
  RUN_DIR/config.yaml     all settings; versions.json: versions, commit, command line and machine
  RUN_DIR/checkpoints     the last ones, to resume from and to average

What to learn: --text.files, any plain text with a sentence a line, teaches words and grammar; --data.train, transcripts
of training speech, teach how people speak. The latter are mostly far fewer, and --data.train_repeats lets them come
several times an epoch. --data.dev says what is never learnt, and what perplexities are told of.

How long: --max_minutes (or --max_steps). The learning rate falls to the end of that time, so that a run that was
stopped early is worse than one that was planned to be as short. Ctrl-C ends a run after the current step and exports
what was learnt; --resume true goes on from there.

If the dev loss rises while the training loss falls, the model learns its texts by heart: raise --model.dropout or
--optimiser.weight_decay, or give more text. If both still fall at the end, give more time.
"""
TRAIN_EPILOG = """\
example:
  python recipes/language_model/train.py --recogniser samba-tiny-en --text.files "[books.txt, news.txt]" \\
      --data.train "[OUT/librispeech-train-clean-5.jsonl]" --data.train_repeats 4 \\
      --data.dev "[OUT/librispeech-dev-clean.jsonl]" --max_minutes 30 --out RUN_DIR
"""
EVALUATE_DESCRIPTION = """\
Print the perplexity of a language model on sets of texts: transcripts of manifests, or text files with a text a line.
Every text is scored by itself, normalised as the model's training texts were. A text's end counts as a token, a word
and a character of its own. Perplexities per token compare models with one tokenizer, those per word and nats a
character all models. Unknown: characters that the tokenizer never saw, of which the model need only say that there is
one. Exit status: 0, 2 for wrong arguments or files that cannot be used, 130 if interrupted.
"""


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help of settings, with descriptions as they are written."""


def parse_arguments(argv: Sequence[str]) -> Arguments[LanguageTrainingConfig]:
    """Read train.py's command line; as :func:`samba_asr.training.cli.parse_settings`."""
    return parse_settings(
        LanguageTrainingConfig,
        argv,
        prog="train.py",
        description=TRAIN_DESCRIPTION,
        epilog=TRAIN_EPILOG,
        formatter_class=_Formatter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py; return the exit status, as :func:`samba_asr.training.cli.main`."""
    try:
        return _train(argv)
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted", file=sys.stderr)
        return INTERRUPTED


def _train(argv: Sequence[str] | None) -> int:
    command = ["python", *sys.argv] if argv is None else ["python", "train.py", *argv]
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see samba_asr.training.cli
    from samba_asr.training.language_model.run import train_language_model  # takes seconds to import: not for --help

    try:
        scores = train_language_model(arguments.config, arguments.out, arguments.resume, command)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 1
    words = ", ".join(f"{name} {found.word_perplexity:.1f}" for name, found in scores.items())
    print(f"{arguments.out / 'checkpoint'}: perplexity per word: {words}", file=sys.stderr)
    return 0


def main_evaluate(argv: Sequence[str] | None = None) -> int:
    """Run evaluate.py; return the exit status: 0, 2 for wrong arguments or files, 130 after Ctrl-C."""
    options = _evaluate_parser().parse_args(argv)
    try:
        return _evaluate(options)
    except KeyboardInterrupt:
        print("\nevaluate.py: interrupted", file=sys.stderr)
        return INTERRUPTED


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "evaluate.py", description=EVALUATE_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--lm", required=True, type=Path, metavar="FOLDER", help="a language model's checkpoint folder")
    add("--manifests", nargs="+", default=[], metavar="JSONL", help="manifests made by prepare.py, one set each")
    add("--text", nargs="+", default=[], metavar="FILE", help="text files, one set each, a text a line")
    add(
        "--text-form",
        default="spoken",
        choices=("spoken", "written"),
        help="the form that the model was trained on: lower-case words, or case and punctuation too (spoken)",
    )
    add("--batch-tokens", type=positive_int, default=4000, metavar="N", help="tokens scored at once (4000)")
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    import torch  # takes a second, as the rest does: not for --help

    from samba_asr.evaluation.perplexity import score_texts
    from samba_asr.model.language_model_checkpoint import load_language_model
    from samba_asr.training.language_model.card import score_table
    from samba_asr.training.language_model.data import read_sets

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        sets = read_sets(options.manifests, options.text, options.text_form)
        model, tokenizer = load_language_model(options.lm, options.device)
    except (ValueError, OSError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    scores = {name: score_texts(model, tokenizer, texts, options.batch_tokens) for name, texts in sets.items()}
    print("\n".join(score_table(scores)))
    return 0
