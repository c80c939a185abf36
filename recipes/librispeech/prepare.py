"""Prepare corpora: manifests of their splits, and a tokenizer trained on the training texts."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from samba_asr.text.normalization import TextForm, normalize_for_training, normalize_text
from samba_asr.text.tokenizer import Kind, Tokenizer
from samba_asr.training.corpora import Split, corpus_name, find_corpora, hold_out, scan_corpus
from samba_asr.training.manifest import export_tsv, write_manifest

DESCRIPTION = """\
Find every corpus below a folder and write, for each split of each,

  OUT/<corpus>-<split>.jsonl    the manifest: audio, duration, text, speaker, corpus
  OUT/<corpus>-<split>.tsv      the same as path<tab>text, for other tools

and OUT/tokenizer.model, trained on the splits whose names begin with "train". Audio stays where it is: a manifest names
files by absolute path, or relative to itself if they lie below it. Texts stay as the corpus has them.
"""

EPILOG = """\
layouts (recognised by themselves; audio may have any ending: flac, wav, mp3, opus, ...):
  LibriSpeech    SPLIT/SPEAKER/CHAPTER/*.trans.txt, audio beside them
                 960 hours: https://www.openslr.org/12   mini LibriSpeech, 5 hours: https://www.openslr.org/31
  Common Voice   train.tsv, dev.tsv, test.tsv, clips/ (validated.tsv is used only where these are absent, other.tsv
                 and invalidated.tsv never)   https://commonvoice.mozilla.org
  Kaldi          wav.scp, text and perhaps utt2spk, in the folder or in train*/, dev*/, test*/ below it, for instance
                 speechocean762: https://www.openslr.org/101
  LJSpeech       metadata.csv, wavs/   https://keithito.com/LJ-Speech-Dataset
  Synthetic      manifest.tsv (or manifest-0.tsv, manifest-1.tsv, ...) without a header: path<tab>text<tab>voice, a JSON
                 object; audio beside it. The corpus is called synthetic-FOLDER, its split train, and each voice is a
                 speaker. The tables may still be growing: lines that are cut are skipped

examples:
  # mini LibriSpeech: data/LibriSpeech/train-clean-5 and data/LibriSpeech/dev-clean-2
  python recipes/librispeech/prepare.py --data data/LibriSpeech --out prepared
  # everything in data/, with a small vocabulary
  python recipes/librispeech/prepare.py --data data --out prepared --vocab-size 256
  # two corpora of several; the one that has no dev split gives 5 % of its hours to one
  python recipes/librispeech/prepare.py --data data --out prepared --corpora librispeech ljspeech --dev-share 0.05
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for data that cannot be used, 2 for usage, 130 after Ctrl-C."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not 0 <= options.dev_share < 1:
        parser.error(f"--dev-share ({options.dev_share}) must be in [0, 1)")
    if not options.data.is_dir():
        what = "is not a folder" if options.data.exists() else "does not exist"
        parser.error(f"--data {options.data} {what}: name a corpus folder, or a folder of corpora")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        splits = scan(options.data, options.corpora)
        if options.dev_share:
            splits = [part for split in splits for part in with_dev(split, splits, options.dev_share)]
        tokenizer = train_tokenizer(splits, options.vocab_size, options.kind, options.text_form)
        write(options.out, splits, tokenizer)
    except (ValueError, OSError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        return 130
    print_table(splits)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "prepare.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a corpus folder, or a folder of corpora")
    parser.add_argument("--out", type=Path, required=True, help="folder for manifests and tokenizer (made if absent)")
    parser.add_argument(
        "--vocab-size", type=int, default=512, help="pieces of the tokenizer, four special ones included (default: 512)"
    )
    parser.add_argument(
        "--kind", choices=get_args(Kind), default="unigram", help="SentencePiece model (default: unigram)"
    )
    parser.add_argument(
        "--text-form",
        choices=get_args(TextForm),
        default="spoken",
        help="what the tokenizer learns to write, as train.py's data.text_form: lower-case words, or also case and "
        "punctuation where the corpora have them (default: spoken)",
    )
    parser.add_argument(
        "--dev-share",
        type=float,
        default=0.0,
        help="share of the training hours to make a dev split of, in corpora without one; with other speakers where "
        "there are enough, otherwise with other texts (default: 0, none)",
    )
    parser.add_argument("--corpora", nargs="+", metavar="NAME", help="only these corpora (default: all that are found)")
    return parser


def scan(data: Path, names: Sequence[str] | None) -> list[Split]:
    """Read the corpora below a folder, or those with the given names."""
    folders = {folder: corpus_name(folder) for folder in find_corpora(data)}
    if not folders:
        raise ValueError(f"{data} holds no corpus of a known layout; see prepare.py --help for the layouts")
    for name in names or ():
        if name not in folders.values():
            raise ValueError(f"--corpora {name}: {data} has {', '.join(folders.values())}")
    splits = []
    for folder, name in folders.items():
        if not names or name in names:
            splits += scan_corpus(folder, progress=True)
    if not splits:
        raise ValueError(f"{data} holds corpora ({', '.join(folders.values())}) but not one utterance with its audio")
    outputs = [output_name(split) for split in splits]
    for name in outputs:
        if outputs.count(name) > 1:
            raise ValueError(f"{data} has {name} twice; prepare the folders one by one, with an --out for each")
    return splits


def output_name(split: Split) -> str:
    return f"{split.corpus}-{split.name}"


def with_dev(split: Split, splits: Iterable[Split], share: float) -> list[Split]:
    """Return a training split as two, train and dev; any other, or one whose corpus has a dev split, as it is."""
    names = [other.name for other in splits if other.corpus == split.corpus]
    if not is_training(split) or any(name.startswith(("dev", "val")) for name in names):
        return [split]
    train, dev = hold_out(split.utterances, share)
    if not train or not dev:
        logging.warning("%s: too little for a dev share of %g; all of it stays together", output_name(split), share)
        return [split]
    return [
        dataclasses.replace(split, utterances=train),
        Split(split.corpus, "dev" + split.name.removeprefix("train"), dev, skipped=0),
    ]


def is_training(split: Split) -> bool:
    return split.name.startswith("train")


def train_tokenizer(splits: Iterable[Split], vocab_size: int, kind: Kind, text_form: TextForm) -> Tokenizer:
    """Train on the normalised texts of the training splits, or of all where none is called train."""
    training = [split for split in splits if is_training(split)]
    if not training:
        logging.warning("no split's name begins with train: the tokenizer is trained on all of them")
        training = list(splits)
    texts = [normalize_text(utterance.text, text_form) for split in training for utterance in split.utterances]
    logging.info("training the tokenizer on %s", ", ".join(map(output_name, training)))
    try:
        return Tokenizer.train(texts, vocab_size, kind)
    except ValueError as error:
        raise ValueError(f"--vocab-size: {error}") from error


def write(out: Path, splits: Iterable[Split], tokenizer: Tokenizer) -> None:
    """Write manifests, their .tsv forms and the tokenizer; each file whole or not at all."""
    for split in splits:
        write_manifest(out / f"{output_name(split)}.jsonl", split.utterances)
        export_tsv(out / f"{output_name(split)}.tsv", split.utterances)
    tokenizer.save(out / "tokenizer.model")
    logging.info("wrote %s", out)


def print_table(splits: Sequence[Split]) -> None:
    """Print each split's utterances, hours, words and skipped utterances, and their sums."""
    names = [(split.corpus, split.name) for split in splits]
    rows = [
        (
            len(split.utterances),
            sum(utterance.duration for utterance in split.utterances) / 3600,
            sum(len(normalize_for_training(utterance.text).split()) for utterance in split.utterances),
            split.skipped,
        )
        for split in splits
    ]
    names.append(("all", ""))
    rows.append((sum(r[0] for r in rows), sum(r[1] for r in rows), sum(r[2] for r in rows), sum(r[3] for r in rows)))
    corpus_width, split_width = (max(len(name[column]) for name in (*names, ("corpus", "split"))) for column in (0, 1))
    print(f"{'corpus':{corpus_width}}  {'split':{split_width}}  utterances    hours      words  skipped")
    for (corpus, split), (count, hours, words, skipped) in zip(names, rows, strict=True):
        print(f"{corpus:{corpus_width}}  {split:{split_width}}  {count:10,}  {hours:7.2f}  {words:9,}  {skipped:7,}")


if __name__ == "__main__":
    sys.exit(main())
