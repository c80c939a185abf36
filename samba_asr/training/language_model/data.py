"""What a language model learns and what it is measured on: texts as tokens, and their batches."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from samba_asr.evaluation.perplexity import pad_texts
from samba_asr.model.pretrained import resolve_model
from samba_asr.text.normalization import TextForm, normalize_for_training, normalize_text
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.batching import BatchSequence
from samba_asr.training.data import read_manifests
from samba_asr.training.language_model.settings import LanguageTrainingConfig
from samba_asr.training.manifest import read_manifest
from samba_asr.training.text import LONGEST, read_sentences

log = logging.getLogger(__name__)


def read_tokenizer(config: LanguageTrainingConfig) -> Tokenizer:
    """Return the recogniser's tokenizer. Raises FileNotFoundError, or ValueError where it is none or its pieces do not
    fit data.text_form."""
    if config.recogniser is not None:
        path = resolve_model(config.recogniser) / "tokenizer.model"
    else:
        assert config.tokenizer is not None
        path = Path(config.tokenizer)
    tokenizer = Tokenizer.load(path)
    if config.data.text_form == "written" and not any(char.isupper() for piece in tokenizer.pieces() for char in piece):
        raise ValueError(
            f"data.text_form (written) needs a tokenizer that knows capitals; {path} does not: its recogniser writes "
            "the spoken form"
        )
    return tokenizer


def read_sets(manifests: Sequence[str], texts: Sequence[str], form: TextForm) -> dict[str, list[str]]:
    """Return the normalised texts of manifests' transcripts and of text files' lines, by the files' names without
    folder and ending, or whole where two are the same. Lines without words are left out.

    Raises FileNotFoundError or ValueError for a file that is missing, wrong, without words or named twice, and where
    there is none.
    """
    paths = [*manifests, *texts]
    if not paths:
        raise ValueError("there is nothing to score: name manifests or text files")
    if len(set(paths)) < len(paths):
        raise ValueError(f"a file is named twice ({' '.join(paths)}); give each set once")
    stems = [Path(path).stem for path in paths]
    sets = {}
    for path, stem in zip(paths, stems, strict=True):
        lines = [u.text for u in read_manifest(path)] if path in manifests else _read_lines(path)
        normalised = [text for line in lines if (text := normalize_text(line, form))]
        if not normalised:
            raise ValueError(f"{path} has no words; name a file with at least one line of text")
        sets[stem if stems.count(stem) == 1 else path] = normalised
    return sets


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` texts, evenly spread."""
    count = min(len(texts), count)
    return [texts[i * len(texts) // count] for i in range(count)]


def read_training_texts(config: LanguageTrainingConfig, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of all that comes in an epoch, texts that come several times as often.

    What a development set has is left out. Raises FileNotFoundError or ValueError for a file that is missing or wrong,
    and where nothing is left of the transcripts or of a file.
    """
    data, text = config.data, config.text
    unwanted = {normalize_for_training(utterance.text) for utterance in read_manifests(data.dev_manifests)}
    found: list[list[int]] = []
    if data.train_manifests:
        texts = dict.fromkeys(
            normalize_text(utterance.text, data.text_form)
            for utterance in read_manifests(data.train_manifests)
            if normalize_for_training(utterance.text) not in unwanted
        )
        transcripts = [tokens for text in texts if 0 < len(tokens := tokenizer.encode(text)) <= LONGEST]
        if not transcripts:
            raise ValueError(f"data.train: {', '.join(data.train_manifests)} have no transcript that can be learnt")
        _log("data.train", transcripts, data.train_repeats)
        found += transcripts * data.train_repeats
    for file, repeats in zip(text.files, text.repeats or [1] * len(text.files), strict=True):
        sentences = read_sentences([file], tokenizer, unwanted, data.text_form)
        _log(file, sentences, repeats)
        found += sentences * repeats
    return found


def _log(name: str, texts: Sequence[Sequence[int]], repeats: int) -> None:
    tokens = sum(map(len, texts))
    log.info(
        "%s: %d texts, %d tokens, %s an epoch", name, len(texts), tokens, f"{repeats} times" if repeats > 1 else "once"
    )


def training_batches(
    texts: Sequence[Sequence[int]], batch_tokens: int, seed: int, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, endlessly, the tokens and lengths of each batch from number ``start`` on, as :func:`pad_texts`.

    Every text comes once an epoch, among others of its length, whatever they are from; the batches follow from the seed
    alone.
    """
    lengths = [float(len(text) + 1) for text in texts]
    for batch in BatchSequence(lengths, batch_tokens, seed, start_step=start):
        yield pad_texts([texts[index] for _, index in batch])
