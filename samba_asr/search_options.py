"""The settings of a search as options of a command line, which transcribe.py and the recipe's evaluate.py share."""

import argparse
from typing import Any

_SETTINGS = (
    "beam_size",
    "ctc_weight",
    "length_bonus",
    "spelling_weight",
    "hotwords",
    "hotword_boost",
    "lexicon",
    "unknown_word_penalty",
    "lm",
    "lm_weight",
    "lm_length_bonus",
)


def add_search_options(parser: argparse._ActionsContainer) -> None:
    """Add an option for each setting of a search, all but the search itself; none given leaves the model's."""
    parser.add_argument(
        "--beam-size",
        type=int,
        metavar="N",
        help="rescoring: texts that the decoder chooses from; joint: texts kept on the way (default: the model's)",
    )
    parser.add_argument(
        "--hotwords",
        metavar="WORDS",
        help='joint: names and jargon to favour, as "Nadezhda,Kubernetes:2" (a weight may follow) or a file with one a '
        "line; a wider beam (--beam-size 12) finds more of them",
    )
    parser.add_argument(
        "--lm",
        metavar="MODEL",
        help="joint: a language model that weighs words too: a folder of recipes/language_model, or an n-gram file "
        "(ARPA or KenLM's binary; pip install 'samba-asr[ngram]')",
    )
    parser.add_argument(
        "--lexicon",
        metavar="FILE",
        help="joint: the words that exist, one a line; others can still be written, but cost --unknown-word-penalty "
        "(default: the model's, if it has any)",
    )
    for name, metavar, meaning in (
        ("--ctc-weight", "W", "rescoring, joint: what the encoder's word counts, 0 to 1; the decoder has the rest"),
        ("--length-bonus", "B", "rescoring, joint: added for each piece: more of it, and fewer words go missing"),
        ("--spelling-weight", "P", "joint: power of CTC's choice among pieces, above 0 to 1"),
        ("--hotword-boost", "B", "joint: what each letter of a hotword adds, times the hotword's weight"),
        ("--unknown-word-penalty", "P", "joint: nats that each word costs which the lexicon lacks; 0: it has no say"),
        ("--lm-weight", "W", "joint: what the language model counts"),
        ("--lm-length-bonus", "B", "joint: added for each piece, times --lm-weight, where there is a language model"),
    ):
        parser.add_argument(name, type=float, metavar=metavar, help=f"{meaning} (default: the model's)")


def search_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given, None where it was not, as keywords of :meth:`samba_asr.transcriber.Transcriber.load`."""
    return {name: getattr(arguments, name) for name in _SETTINGS}
