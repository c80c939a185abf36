"""The teacher's decoder reads transcripts and hears the student's states: what it expects next shall be what it expects
when it hears its own encoder.

The error of the states counts everything that the teacher's encoder says, a good part of which is where in its window
it stands: of one recording at two places its states differ nearly as much as those of a good student do from it. A
decoder knows what matters, and through it the gradient comes to the student's encoder.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samba_asr.ssm.padding import valid_mask
from samba_asr.text.normalization import TextForm
from samba_asr.text.tokenizer import UNK_ID, Tokenizer
from samba_asr.training.whisper.interpreter import Interpreter
from samba_asr.training.whisper.network import TeacherDecoder

if TYPE_CHECKING:  # it needs the extra distil, which other training does not
    from samba_asr.training.whisper.vocabulary import WhisperVocabulary

_TOKENS_AT_ONCE = 2048
"""Whose scores of all of Whisper's ids are in memory together: 0.4 GB in float32."""


class Expectation(NamedTuple):
    """What the teacher's decoder expects next, where the student's tokens have a boundary too."""

    rows: Tensor
    """Which text it is, (positions,) int64."""
    places: Tensor
    """How many of its tokens lie before, (positions,) int64."""
    probabilities: Tensor
    """Of the student's tokens, (positions, vocab_size)."""


def divergence_from(expectation: Expectation, logits: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a decoder's next tokens from what the teacher expects, nats a position,
    a scalar; a position at which the teacher expects none of the student's tokens counts 0.

    logits: (views, texts, places, vocab_size).
    """
    said = logits[:, expectation.rows, expectation.places].float().log_softmax(-1)
    wanted = expectation.probabilities.expand_as(said)
    return F.kl_div(said, wanted, reduction="sum") / (len(said) * said.shape[1])


class Reading(NamedTuple):
    """What the teacher's decoder makes of both encoders' states."""

    divergence: Tensor
    """Kullback-Leibler, of what it expects of the student's from what it expects of the teacher's, nats a token."""
    wanted: Tensor
    """What its output matrix is given at each token and end of the texts read, of the teacher's, (tokens, d_model)."""
    rows: list[int]
    """Which texts those are."""


class Reader(nn.Module):
    """A Whisper decoder, frozen, that reads a student's transcripts in its own tokens.

    text_form: the student's. Raises ValueError where the vocabulary is another model's.
    """

    def __init__(
        self,
        decoder: TeacherDecoder,
        vocabulary: "WhisperVocabulary",
        tokenizer: Tokenizer,
        text_form: TextForm = "spoken",
    ) -> None:
        super().__init__()
        ids = decoder.token_embedding.num_embeddings
        vocabulary.check_size(ids)
        self.decoder = decoder.requires_grad_(False)
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self.interpreter = Interpreter(vocabulary, ids, tokenizer, text_form)

    def read(self, tokens: Sequence[int]) -> list[int]:
        """Return the teacher's ids of a text, prompt and end left out; none where nobody speaks, where the student's
        tokens have lost a character, or where the text is longer than what the teacher has positions for."""
        if UNK_ID in tokens:
            return []
        text = self.tokenizer.decode(tokens)
        ids = self.vocabulary.encode(f" {text}") if text else []
        room = len(self.decoder.positional_embedding) - len(self.vocabulary.prompt)
        return ids if len(ids) <= room else []

    def forward(self, said: Tensor, taught: Tensor, lengths: Tensor, texts: Sequence[Sequence[int]]) -> Reading | None:
        """Return what is expected of said and of taught; None where there is no text.

        said: (views * batch, states, d_model) of the student, one view of the batch after the other; taught: (batch,
        states, d_model) of the teacher; both as the decoder wants them, with the means of their places; lengths:
        (batch,) int64; texts: from :meth:`read`, a batch.
        """
        rows = [row for row, (text, states) in enumerate(zip(texts, lengths.tolist(), strict=True)) if text and states]
        if not rows:
            return None
        texts, lengths = [texts[row] for row in rows], lengths[rows]
        with torch.no_grad():
            wanted = self._expected(taught[rows], lengths, texts)
        views = said.unflatten(0, (-1, len(taught)))[:, rows]
        each = [self._divergence(self._expected(view, lengths, texts), wanted) for view in views]
        return Reading(torch.stack(each).mean(), wanted, rows)

    def expectation(
        self, reading: Reading, texts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> Expectation | None:
        """Return what the teacher expects, in the student's tokens; None where no boundary is shared.

        texts: as :meth:`forward` was given them; tokens: the same texts in the student's tokens.
        """
        found, before = [], 0
        for row in reading.rows:
            shared = self.interpreter.shared(tokens[row], texts[row])
            found += [(row, ours, before + theirs) for ours, theirs in shared]
            before += len(texts[row]) + 1
        if not found:
            return None
        rows, places, positions = torch.tensor(found, device=reading.wanted.device).unbind(1)
        return Expectation(rows, places, self.probabilities(reading.wanted[positions]))

    @torch.no_grad()
    def probabilities(self, expected: Tensor) -> Tensor:
        """Return those of the student's tokens, (positions, vocab_size), from what the output matrix is given."""
        weight = self.decoder.token_embedding.weight
        return torch.cat([self.interpreter(F.linear(part, weight)) for part in expected.split(_TOKENS_AT_ONCE)])

    def hear(self, states: Tensor, lengths: Tensor, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return what leaves each of the decoder's blocks after the prompt and after each token of a text, (batch,
        tokens + 1, d_model), what follows a text's end being undefined.

        states: (batch, states, d_model); lengths: (batch,) int64; texts: from :meth:`read`, a batch.
        """
        prompt, device = self.vocabulary.prompt, states.device
        longest = max(map(len, texts))
        ids = torch.tensor([[*prompt, *text, *[0] * (longest - len(text))] for text in texts], device=device)
        heard = valid_mask(lengths, states.shape[1])[:, None].expand(-1, ids.shape[1], -1)
        outputs = self.decoder.hear(self.decoder.token_embedding(ids), states, heard)
        return [output[:, len(prompt) - 1 :] for output in outputs]

    def _expected(self, states: Tensor, lengths: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return what the decoder's output matrix is given at each text's tokens and end, (tokens, d_model)."""
        outputs = self.hear(states, lengths, texts)
        counts = torch.tensor([len(text) + 1 for text in texts], device=states.device)
        expected: Tensor = self.decoder.ln(outputs[-1])[valid_mask(counts, outputs[-1].shape[1])]
        return expected

    def _divergence(self, said: Tensor, wanted: Tensor) -> Tensor:
        parts = zip(said.split(_TOKENS_AT_ONCE), wanted.split(_TOKENS_AT_ONCE), strict=True)
        sums = [checkpoint(self._summed, *part, use_reentrant=False) for part in parts]
        return torch.stack(sums).sum() / len(said)

    def _summed(self, said: Tensor, wanted: Tensor) -> Tensor:
        ours, theirs = (
            F.linear(x, self.decoder.token_embedding.weight).float().log_softmax(-1) for x in (said, wanted)
        )
        return F.kl_div(ours, theirs, log_target=True, reduction="sum")
