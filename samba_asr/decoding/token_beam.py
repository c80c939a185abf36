"""A beam that goes from token to token: all its texts have as many, and CTC judges each by all its paths.

So no text is behind another, however far each has come in the recording, and none outlasts what was said.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samba_asr.config import SearchConfig
from samba_asr.decoding.advisers import Advisers
from samba_asr.decoding.pool import Asked, Pool, Search
from samba_asr.decoding.prefix_beam import Hypothesis
from samba_asr.decoding.prefix_scores import PrefixScores, Reached, log_sum, softened
from samba_asr.decoding.spelling import Spelling
from samba_asr.decoding.timing import Timing
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

MARGIN = 6.0
"""Nats below the best from which on a text is given up, and a token is not considered."""
HOPED_MARGIN = 9.0
"""As MARGIN, of CTC's pieces that a piece scorer hopes for."""
CONSIDERED = 3
"""Times beam_size: how many longer texts CTC is asked about, of those that the others find best."""
PREFERRED = 8
"""Times as many tokens are looked at where piece scorers favour some over those that the others find best."""
HEARD = 2
"""How many of the pieces that CTC hears next may lengthen a text though the others would go on otherwise."""

DOUBT = 1.0
"""Nats by which all ways to go on are less likely for CTC than the text before them, where it may hear another."""


class Weights:
    """What each say counts in a text's score."""

    def __init__(self, config: SearchConfig, advisers: Advisers, share: float) -> None:
        """share: of decoder and language model, 0 where nobody is asked."""
        self.beam_size = config.beam_size
        self.share = share
        self.ctc = config.ctc_weight
        self.spelling = config.spelling_weight
        self.piece = config.length_bonus + advisers.length_bonus
        self.scorers = advisers.piece_scorers
        self.favours = any(scorer.favours for _, scorer in self.scorers)

    def score(self, said: float, ctc: float, given: float) -> float:
        """Return the score of a text: said by decoder and language model, by CTC, and given for its pieces. None has
        one that CTC cannot say, though CTC counts nothing."""
        if ctc == -math.inf:
            return ctc
        return self.share * said + self.ctc * ctc + given


@dataclass(slots=True, eq=False)
class Text:
    """A text under way; of numbers, natural logarithms."""

    pieces: tuple[int, ...]
    tokens: int
    """How many it has."""
    token: int
    """The last of them."""
    said: float
    """By decoder and language model."""
    ctc: float
    """That what is said begins with it."""
    given: float
    """The bonus, and what the piece scorers say."""
    remembered: tuple[Any, ...]
    """By the piece scorers."""
    reached: Reached
    """Where CTC is after it: (1, states)."""
    listening: int
    """State where what follows is expected."""
    score: float
    place: int
    """In the pool; until its last token is read, that of the text before that."""


@dataclass(slots=True, eq=False)
class Longer:
    """A text, and a token that may lengthen it."""

    text: Text
    token: int
    pieces: tuple[int, ...]
    """The token's."""
    said: float
    given: float
    remembered: tuple[Any, ...]
    """All three as if it was there."""
    at_most: float
    """The longer text's score, if CTC were certain of the token."""


@dataclass(slots=True, eq=False)
class Ended:
    """A text that ends here."""

    pieces: tuple[int, ...]
    said: float
    ctc: float
    given: float
    score: float


@dataclass(slots=True, eq=False)
class Endings:
    """Texts that have ended, by their pieces: all ways in which each was found."""

    weights: Weights
    best: float = -math.inf
    texts: dict[tuple[int, ...], list[Ended]] = field(default_factory=dict)

    def add(self, ended: Ended) -> None:
        """Keep one."""
        self.best = max(self.best, ended.score)
        self.texts.setdefault(ended.pieces, []).append(ended)

    def hypotheses(self) -> list[Hypothesis]:
        """Return the texts, the best first."""
        found = [
            Hypothesis(pieces, self.weights.score(float(log_sum(np.array([way.said for way in ways]))), ctc, given))
            for pieces, ways in self.texts.items()
            for ctc, given in [(ways[0].ctc, ways[0].given)]
        ]
        return sorted(found, key=lambda each: -each.log_prob)[: self.weights.beam_size]


class TokenBeam:
    """The search in one recording."""

    def __init__(
        self,
        log_probs: NDArray[np.floating],
        spelling: Spelling,
        weights: Weights,
        pool: tuple[Pool, int] | None,
        margin: float = MARGIN,
        most: int | None = None,
    ) -> None:
        """log_probs: (states, vocab_size) of CTC. spelling: of all tokens. pool: who reads texts, and the empty text's
        place there; None where CTC alone finds them. margin: nats; nothing is given up with infinity, and where the
        beam is wide enough, too, the search is exact. most: tokens of a text. Raises ValueError for a beam that is not
        positive."""
        if weights.beam_size < 1:
            raise ValueError(f"beam_size ({weights.beam_size}) must be positive")
        self._spelling, self._weights, self._margin = spelling, weights, margin
        self._pool: Pool | None = pool[0] if pool else None
        self._start = pool[1] if pool else 0
        self._most = 0 if not len(log_probs) else math.inf if most is None else most
        self._timing = Timing(log_probs)
        self._scores = PrefixScores(softened(log_probs, weights.spelling))

    def search(self) -> Search[list[Hypothesis]]:
        """Return the texts found, the best first."""
        texts, endings = [self._empty()], Endings(self._weights)
        while texts:
            answers = yield from self._read(texts)
            longer = self._lengthened(texts, answers) if texts[0].tokens < self._most else []
            both: list[Ended | Text] = [*self._ended(texts, answers), *longer]
            ranked = sorted(both, key=lambda each: -each.score)
            least = max(endings.best, ranked[0].score) - self._margin
            kept = [each for each in ranked[: self._weights.beam_size] if -math.inf < each.score >= least]
            for each in kept:
                if isinstance(each, Ended):
                    endings.add(each)
            going = [each for each in kept if isinstance(each, Text)]
            self._forget({text.place for text in texts} - {text.place for text in going})
            texts = going
        return endings.hypotheses()

    def _empty(self) -> Text:
        remembered = tuple(scorer.start() for _, scorer in self._weights.scorers)
        reached, listening = self._scores.begin(), self._timing.begin()
        return Text((), 0, BOS_ID, 0.0, 0.0, 0.0, remembered, reached, listening, 0.0, self._start)

    def _read(self, texts: Sequence[Text]) -> Search[NDArray[np.float64] | None]:
        """Let the pool read the texts' last tokens; return what it says of the next ones, (texts, vocab_size)."""
        if self._pool is None:
            return None
        asked = [Asked(text.token, text.place, self._pool.take(), text.listening) for text in texts]
        answers = yield asked
        self._forget({text.place for text in texts})
        for text, each in zip(texts, asked, strict=True):
            text.place = each.target
        return answers

    def _forget(self, places: set[int]) -> None:
        if self._pool is not None:
            self._pool.give_back(places - {self._start})

    def _ended(self, texts: Sequence[Text], answers: NDArray[np.float64] | None) -> Iterator[Ended]:
        weights = self._weights
        for row, text in enumerate(texts):
            said = text.said if answers is None else text.said + answers.item(row, EOS_ID)
            scorers = zip(weights.scorers, text.remembered, strict=True)
            given = text.given + sum(weight * scorer.end(state) for (weight, scorer), state in scorers)
            ctc = float(text.reached.whole()[0])
            yield Ended(text.pieces, said, ctc, given, weights.score(said, ctc, given))

    def _lengthened(self, texts: Sequence[Text], answers: NDArray[np.float64] | None) -> list[Text]:
        """Return longer texts, CTC's judgement included: those likeliest for the others, and with what CTC hears where
        it finds all of a text's doubtful, or piece scorers may favour it."""
        rows = [(text, None if answers is None else answers[row]) for row, text in enumerate(texts)]
        likely = [self._with(text, token, answer) for text, answer in rows for token in self._likely(answer)]
        likely.sort(key=lambda each: -each.at_most)
        least = likely[0].at_most - self._margin if likely else math.inf
        likely = [each for each in likely[: CONSIDERED * self._weights.beam_size] if each.at_most >= least]
        longer = self._judged(likely)
        known = {(each.text, each.token) for each in likely}
        doubtful = self._doubtful(texts, likely, longer)
        pairs = [(text, token, answer) for text, answer in rows if text in doubtful for token in self._heard(text)]
        heard = [self._with(*pair) for pair in pairs if pair[:2] not in known]
        least = max((each.score for each in longer), default=-math.inf) - self._margin
        return longer + self._judged([each for each in heard if each.at_most >= least])

    def _doubtful(self, texts: Sequence[Text], likely: Sequence[Longer], longer: Sequence[Text]) -> set[Text]:
        """Return the texts of which CTC doubts all that was considered: to end them, or to lengthen them in one of the
        ways that it has judged."""
        if self._weights.favours or self._pool is None:
            return set(texts)
        if not self._weights.ctc:
            return set()
        best = {text: text.reached.whole().item() for text in texts}
        for before, after in zip(likely, longer, strict=True):
            best[before.text] = max(best[before.text], after.ctc)
        return {text for text, ctc in best.items() if ctc < text.ctc - DOUBT}

    def _likely(self, answer: NDArray[np.float64] | None) -> list[int]:
        """Return the likeliest tokens; answer: what the pool says of all, (vocab_size,)."""
        if answer is None:
            return []
        count, spelt = self._weights.beam_size + 1, answer[self._spelling.said]
        if self._weights.favours:
            count *= PREFERRED
        likely = np.argpartition(-spelt, count)[:count] if count < len(spelt) else np.arange(len(spelt))
        least = max(answer.item(EOS_ID), spelt.max(initial=-math.inf)) - self._margin / self._weights.share
        found: list[int] = self._spelling.said[likely[spelt[likely] >= least]].tolist()
        return found

    def _heard(self, text: Text) -> Iterator[int]:
        """Return tokens of one piece: those that CTC hears next, and what piece scorers hope for."""
        scores = self._scores.start(text.reached, text.pieces[-1:], self._margin)
        best, count = scores.max(), HEARD if self._pool else self._weights.beam_size + 1
        pieces = [piece for piece in np.argsort(-scores)[:count].tolist() if scores[piece] >= best - self._margin]
        hoped = {
            piece
            for (_, scorer), state in zip(self._weights.scorers, text.remembered, strict=True)
            for piece in scorer.hoped(state)
            if scores[piece] >= best - HOPED_MARGIN and piece not in pieces
        }
        for piece in [*pieces, *sorted(hoped)]:
            token = self._spelling.single(piece)
            if token is not None:
                yield token

    def _with(self, text: Text, token: int, answer: NDArray[np.float64] | None) -> Longer:
        said = text.said if answer is None else text.said + answer.item(token)
        pieces, given, remembered = self._spelling.pieces[token], text.given, list(text.remembered)
        for piece in pieces:
            given += self._weights.piece
            for number, (weight, scorer) in enumerate(self._weights.scorers):
                added, remembered[number] = scorer.score(remembered[number], piece)
                given += weight * added
        at_most = self._weights.score(said, text.ctc, given)
        return Longer(text, token, pieces, said, given, tuple(remembered), at_most)

    def _judged(self, longer: Sequence[Longer]) -> list[Text]:
        """Ask CTC."""
        if not longer:
            return []
        voiced, blank = (np.concatenate(part) for part in zip(*(each.text.reached for each in longer), strict=True))
        lasts = np.array([each.text.pieces[-1] if each.text.pieces else BLANK_ID for each in longer])
        said, live = np.empty_like(voiced), list(range(len(longer)))
        for depth in range(max(len(each.pieces) for each in longer)):
            live = [i for i in live if len(longer[i].pieces) > depth]
            pieces = np.array([longer[i].pieces[depth] for i in live])
            reached = Reached(voiced[live], blank[live])
            said[live], (voiced[live], blank[live]) = self._scores.lengthen(reached, lasts[live], pieces)
            lasts[live] = pieces
        ctc, states = log_sum(said).tolist(), said.argmax(1).tolist()
        return [
            self._text(each, ctc[i], Reached(voiced[i : i + 1], blank[i : i + 1]), states[i])
            for i, each in enumerate(longer)
        ]

    def _text(self, longer: Longer, ctc: float, reached: Reached, state: int) -> Text:
        """state: where its last piece is most likely first said."""
        before, score = longer.text, self._weights.score(longer.said, ctc, longer.given)
        return Text(
            before.pieces + longer.pieces,
            before.tokens + 1,
            longer.token,
            longer.said,
            ctc,
            longer.given,
            longer.remembered,
            reached,
            self._timing.following(state, longer.pieces[-1]),
            score,
            before.place,
        )
