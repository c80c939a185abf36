"""Whisper's vocabulary: byte-level BPE, and the marks that tell its decoder what to do."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

_GPT2_END = 50256
"""``<|endoftext|>`` of GPT-2, whose vocabulary the English-only models kept; the multilingual ones moved it."""

_ENGLISH_IDS = 51864
"""Of every English-only model; the multilingual ones have more."""

_SIGNS = '"#()*+/:;<=>@[\\]^_`{|}~\u300c\u300d\u300e\u300f'
_SIGN_RUNS = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} \u266a\u266a \u266a\u266a\u266a"
_MUSIC = "\u2669\u266a\u266b\u266c\u266d\u266e\u266f"
"""What subtitles hold besides words: openai's lists of what Whisper shall not write."""


class WhisperVocabulary:
    """Text to ids and back, and the ids of the marks. Words, and all their parts, lie below ``end_id``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError where the tokenizer lacks a mark that Whisper's decoder needs."""
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # a mark spelled out in a text is text
        self.end_id = self._mark("<|endoftext|>")
        """Ends a transcript."""
        self.start_id = self._mark("<|startoftranscript|>")
        """Begins every prompt."""
        task = [] if self.end_id == _GPT2_END else [self._mark("<|en|>"), self._mark("<|transcribe|>")]
        self.prompt = (self.start_id, *task, self._mark("<|notimestamps|>"))
        """Asks for an English transcript without times."""

    @classmethod
    def load(cls, path: str | Path) -> "WhisperVocabulary":
        """Read Hugging Face's ``tokenizer.json``. Raises FileNotFoundError, or ValueError where it is not Whisper's."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"vocabulary {path} does not exist; name the tokenizer.json of a Whisper model")
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except OSError:
            raise
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"vocabulary {path} is damaged, or not Whisper's tokenizer.json: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without marks. Words begin with their space: " so" and "so" differ."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, marks and times left out; bytes that are no UTF-8 become U+FFFD."""
        words = [int(i) for i in ids if i < self.end_id]
        text: str = self._tokenizer.decode(words, skip_special_tokens=False)
        return text

    @cached_property
    def merges(self) -> dict[int, tuple[int, int]]:
        """The two tokens that byte-pair encoding makes each token of, bytes aside, in the order in which it does."""
        model = json.loads(self._tokenizer.to_str())["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        ids: dict[str, int] = model["vocab"]
        found: dict[int, tuple[int, int]] = {}
        for left, right in pairs:
            found.setdefault(ids[left + right], (ids[left], ids[right]))
        return found

    @cached_property
    def blank_ids(self) -> list[int]:
        """What no transcript begins with: a space alone, or its end."""
        return [*self.encode(" "), self.end_id]

    @cached_property
    def symbol_ids(self) -> list[int]:
        """Brackets, notes and other signs that no transcript of speech holds, as openai lists them."""
        ids = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*_SIGNS, *_SIGN_RUNS.split(), *_MUSIC):
            for tokens in (self.encode(symbol), self.encode(f" {symbol}")):
                if len(tokens) == 1 or symbol in _MUSIC:
                    ids.add(tokens[0])
        return sorted(ids)

    def check_size(self, vocab_size: int) -> None:
        """Raise ValueError where a model of so many ids has not these marks, or has them elsewhere, as the English-only
        models and the multilingual ones: it is another one's vocabulary."""
        english = self.end_id == _GPT2_END
        elsewhere = vocab_size >= _ENGLISH_IDS and english != (vocab_size == _ENGLISH_IDS)
        if elsewhere or max(self.prompt) >= vocab_size:
            raise ValueError(
                f"the vocabulary (ids up to {max(self.prompt)}) is not the teacher's, which has {vocab_size} ids"
            )

    def _mark(self, name: str) -> int:
        found: int | None = self._tokenizer.token_to_id(name)
        if found is None:
            raise ValueError(f"it has no {name}")
        return found
