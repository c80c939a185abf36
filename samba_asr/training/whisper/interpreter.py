"""What a Whisper decoder expects, in a student's tokens.

Teacher and student split one text each in its own way. Where both have a boundary, both say what comes next; Whisper's
tokens then count for the student's token with which they begin. So the teacher reads what it is used to: made to read a
student's few thousand tokens it has twice the nats a character (recipes/whisper_to_samba).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from samba_asr.text.normalization import TextForm
from samba_asr.text.tokenizer import EOS_ID, SPECIAL_IDS, UNK_ID, Tokenizer

if TYPE_CHECKING:  # it needs the extra distil, which other training does not
    from samba_asr.training.whisper.vocabulary import WhisperVocabulary

_SPLIT = "\ufffd"
"""Stands in a token's text for a part of a character."""


class Interpreter(nn.Module):
    """Puts what Whisper's ids say into a student's tokens.

    n_ids: number of the teacher's ids; text_form: ``spoken`` where the student writes neither capitals nor
    punctuation: ids that differ in these alone are then one.
    """

    table: Tensor

    def __init__(
        self, whisper: "WhisperVocabulary", n_ids: int, tokenizer: Tokenizer, text_form: TextForm = "spoken"
    ) -> None:
        super().__init__()
        self.spoken = text_form == "spoken"
        self.vocab_size = tokenizer.vocab_size
        self._pieces = tokenizer.pieces()
        self._texts = [whisper.decode([i]) if i < whisper.end_id else "" for i in range(n_ids)]
        known = {text: i for i, text in enumerate(self._pieces) if i not in SPECIAL_IDS}
        table = torch.tensor([self._token(text, known) for text in self._texts])
        table[whisper.end_id] = EOS_ID
        self.register_buffer("table", table)

    def _token(self, text: str, known: dict[str, int]) -> int:
        """Return the longest of the student's tokens with which a text begins, -1 for none: of marks, of punctuation
        that the student does not write, of what is part of a character."""
        if self.spoken:
            text = text.lower()
        for end in range(len(text), 0, -1):
            if text[:end] in known and (text[:end].strip() or not text.strip()):
                return known[text[:end]]
        return -1

    def shared(self, tokens: Sequence[int], ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return where both have a boundary in a text: how many of the student's tokens and of the teacher's ids lie
        before it.

        The text's end is left out where the student writes no punctuation, for there the teacher expects a full stop.
        Empty where the two are not of the same text, or cannot be compared.
        """
        ours = [self._pieces[token] for token in tokens]
        theirs = [self._texts[i] for i in ids]
        said = "".join(theirs)
        if UNK_ID in tokens or _SPLIT in said or "".join(ours) != said:
            return []
        ends = {end: i for i, end in enumerate(accumulate(map(len, theirs), initial=0))}
        places = enumerate(accumulate(map(len, ours), initial=0))
        found = [(place, ends[end]) for place, end in places if end in ends]
        return found[:-1] if self.spoken else found

    def forward(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the student's tokens, (positions, vocab_size) float32, from the logits of the
        teacher's ids, (positions, ids). What has no token of the student's is left out; where nothing else is
        expected, all are 0."""
        can = self.table >= 0
        shares = logits.float().softmax(-1)[:, can]
        found = shares.new_zeros(len(logits), self.vocab_size).index_add_(1, self.table[can], shares)
        return found / found.sum(-1, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)
