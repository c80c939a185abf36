"""SentencePiece tokenizer with fixed special ids."""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import sentencepiece

from samba_asr.atomic import replacing

Kind = Literal["unigram", "bpe"]

BLANK_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
"""CTC blank (also padding), unknown character, begin and end of a text: the same in every tokenizer."""

SPECIAL_IDS = (BLANK_ID, UNK_ID, BOS_ID, EOS_ID)


class Tokenizer:
    """Text to ids and back. Normalises nothing but runs of white space: callers pass normalised text."""

    def __init__(self, model_proto: bytes) -> None:
        """Read a serialised SentencePiece model; ValueError where it is none or has other special ids."""
        if not model_proto:
            raise ValueError("the tokenizer is empty")
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except (RuntimeError, TypeError) as error:
            raise ValueError("the tokenizer is not a SentencePiece model") from error
        processor = self._processor
        ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if ids != SPECIAL_IDS:
            raise ValueError(
                f"the tokenizer's blank (pad), unknown, begin and end ids {ids} must be {SPECIAL_IDS}; "
                "train it with Tokenizer.train"
            )
        self.model_proto = model_proto
        self.vocab_size: int = processor.get_piece_size()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read ``tokenizer.model``. Raises FileNotFoundError, or ValueError where the file is no such model."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer {path} does not exist; recipes/librispeech/prepare.py makes one")
        try:
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the model's bytes, the whole file or nothing."""
        with replacing(path) as partial:
            partial.write_bytes(self.model_proto)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: Kind = "unigram") -> "Tokenizer":
        """Train on normalised texts; the same texts in the same order give the same model.

        ``vocab_size`` counts the four special pieces. Raises ValueError where the texts are empty, have more different
        characters than ``vocab_size`` holds, or are too small to yield that many pieces.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind ({kind!r}) must be 'unigram' or 'bpe'")
        sentences = [sentence for text in texts if (sentence := " ".join(text.split()))]
        if not sentences:
            raise ValueError("a tokenizer needs text to train on; every text is empty")
        smallest = len(SPECIAL_IDS) + len(set("".join(sentences)) | {" "})
        if vocab_size < smallest:
            raise ValueError(f"vocab_size ({vocab_size}) must be at least {smallest}: special ids and each character")
        proto = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=proto,
                vocab_size=vocab_size,
                model_type=kind,
                character_coverage=1.0,
                normalization_rule_name="identity",
                pad_id=BLANK_ID,
                unk_id=UNK_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                pad_piece="<blank>",
                max_sentence_length=max(len(sentence.encode()) for sentence in sentences) + 1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(_too_small(vocab_size, error)) from error
        return cls(proto.getvalue())

    def pieces(self) -> list[str]:
        """Return each id's text; a piece that begins a word begins with a space."""
        return [self._processor.id_to_piece(i).replace("\u2581", " ") for i in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of normalised text, without begin and end; a character never seen in training is UNK_ID."""
        ids: list[int] = self._processor.encode(" ".join(text.split()))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, special ids left out. Raises ValueError for an id outside the vocabulary."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary (0 to {self.vocab_size - 1})")
        text: str = self._processor.decode([int(i) for i in ids if i not in SPECIAL_IDS])
        return text


def _too_small(vocab_size: int, error: RuntimeError) -> str:
    limit = re.search(r"value <= (\d+)", str(error))
    if limit is None:
        return f"SentencePiece could not train {vocab_size} pieces on this text: {error}"
    return f"vocab_size ({vocab_size}) is too large for so little text: use at most {limit.group(1)}, or more text"
