"""Which sentences are chosen to be spoken."""

import random
from collections import Counter

import pytest

from samba_asr.text.normalization import normalize_for_training
from samba_asr.training.sentences import choose_sentences

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


@pytest.fixture(scope="module")
def zipf():
    """2,000 sentences of 6 words; the n-th word is 1 / n as frequent as the first."""
    rng = random.Random(3)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    return [" ".join(rng.choices(WORDS, weights, k=6)).capitalize() + "." for _ in range(2_000)]


def test_chosen_sentences_hold_rarer_words_than_any_random_choice(zipf):
    chosen = choose_sentences([zipf], 100)
    assert len(chosen) == len(set(chosen)) == 100
    assert set(chosen) <= set(zipf)

    def least_heard(sentences):
        heard = Counter(word for sentence in sentences for word in normalize_for_training(sentence).split())
        return sum(min(heard[word], 3) for word in WORDS)

    rng = random.Random(0)
    assert least_heard(chosen) > max(least_heard(rng.sample(zipf, 100)) for _ in range(200))


def test_the_choice_depends_on_the_seed_alone(zipf):
    assert choose_sentences([zipf], 50, seed=1) == choose_sentences([zipf], 50, seed=1)
    assert choose_sentences([zipf], 50, seed=1) != choose_sentences([zipf], 50, seed=2)


def test_no_group_has_more_than_its_share(zipf):
    groups = [zipf[:1_000], zipf[1_000:]]
    for group in groups:
        chosen = choose_sentences(groups, 101)
        assert 45 <= sum(sentence in group for sentence in chosen) <= 51
    assert len(choose_sentences([zipf[:10], zipf[1_000:]], 100)) == 60


def test_known_sentences_are_never_taken_however_they_are_written(zipf):
    known = [sentence.upper().rstrip(".") for sentence in zipf[:1_500]]
    chosen = choose_sentences([zipf], 2_000, known)
    left = {normalize_for_training(sentence) for sentence in zipf} - {normalize_for_training(text) for text in known}
    assert {normalize_for_training(sentence) for sentence in chosen} == left


def test_sentences_of_the_wrong_length_or_with_digits_are_passed_over():
    lines = [
        "one two three",
        "one two three four",
        "one two three " * 9,
        "in 1984 it was cold",
        "",
        "One two three four!",
    ]
    assert choose_sentences([lines], 10) in (["one two three four"], ["One two three four!"])
    assert choose_sentences([lines], 10, most_words=40, least_words=3) != []


def test_words_that_may_be_misprints_attract_nothing():
    common = [f"{a} {b} {c} {d}" for a, b, c, d in zip(WORDS, WORDS[1:], WORDS[2:], WORDS[3:], strict=False)]
    misprints = [f"xq{word} zz{word} qx{word} vv{word}" for word in WORDS]
    assert set(choose_sentences([common + misprints], len(common))) == set(common)
    assert set(choose_sentences([common + misprints], len(common), least_occurrences=1)) != set(common)


def test_a_count_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"count \(0\)"):
        choose_sentences([["one two three four"]], 0)
    with pytest.raises(ValueError, match=r"least_words \(0\)"):
        choose_sentences([["one two three four"]], 1, least_words=0)
