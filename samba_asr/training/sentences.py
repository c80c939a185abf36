"""Which sentences to have spoken: those with the words that the training data lacks."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from samba_asr.text.normalization import normalize_for_training

RARITIES = (0.5, 0.35, 0.25, 0.18, 0.13, 0.1, 0.07, 0.05, 0.04, 0.03, 0.025, 0.02, 0.01, 0.0)
"""Least mean rarity of a sentence's words, pass after pass."""


def choose_sentences(
    groups: Sequence[Sequence[str]],
    count: int,
    known: Iterable[str] = (),
    *,
    least_words: int = 4,
    most_words: int = 24,
    least_occurrences: int = 3,
    seed: int = 0,
) -> list[str]:
    """Return at most ``count`` sentences, at most an equal share from each group, in random order.

    A word's rarity is 1 / (1 + how often the sentences chosen so far have it); a word that all sentences together have
    less than ``least_occurrences`` times counts 0, for it may be a misprint. Passes over all sentences in random order
    take those whose words' mean rarity is high enough, less and less of it, so that each word comes often before any
    sentence is taken for common words alone.

    groups: of sentences, such as one a text file. known: sentences that are never taken, such as those that were spoken
    before or that a test set has; they are compared as normalised. Sentences of fewer than ``least_words`` or more than
    ``most_words`` words, or with digits, which may be read in several ways, are passed over. A group's share that it
    cannot fill is lost. Raises ValueError for a count that is not positive.
    """
    for name, value in {"count": count, "least_words": least_words}.items():
        if value < 1:
            raise ValueError(f"{name} ({value}) must be positive")
    taken = {normalize_for_training(sentence) for sentence in known}
    occurrences: Counter[str] = Counter()
    candidates: list[tuple[int, str, list[str]]] = []
    for number, group in enumerate(groups):
        for sentence in group:
            text = normalize_for_training(sentence)
            words = text.split()
            occurrences.update(words)
            fits = least_words <= len(words) <= most_words and not any(char.isdigit() for char in text)
            if fits and text not in taken:
                taken.add(text)
                candidates.append((number, sentence, words))
    random.Random(seed).shuffle(candidates)
    frequent = {word for word, times in occurrences.items() if times >= least_occurrences}
    chosen = _passes(candidates, frequent, count, -(-count // max(len(groups), 1)))
    random.Random(seed).shuffle(chosen)
    return chosen


def _passes(candidates: list[tuple[int, str, list[str]]], frequent: set[str], count: int, share: int) -> list[str]:
    """The passes of :func:`choose_sentences`; share: of one group, in sentences."""
    chosen: list[str] = []
    heard: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    for least in RARITIES:
        left = []
        for candidate in candidates:
            number, sentence, words = candidate
            rarity = sum(1 / (1 + heard[word]) for word in words if word in frequent) / len(words)
            if rarity < least or sizes[number] >= share or len(chosen) >= count:
                left.append(candidate)
                continue
            chosen.append(sentence)
            heard.update(words)
            sizes[number] += 1
        candidates = left
    return chosen
