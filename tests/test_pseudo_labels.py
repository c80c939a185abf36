"""A teacher's case and punctuation on transcripts: which words agree, and what is written."""

import itertools
import random

import pytest

from samba_asr.evaluation.wer import count_errors, normalize_for_scoring
from samba_asr.text.normalization import normalize_for_training, normalize_text
from samba_asr.training.whisper.pseudo_labels import write_as

QUILTER = "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL"
WRITTEN_QUILTER = "Mr. Quilter is the apostle of the middle classes and we are glad to welcome his gospel."
NAMES = "Said lady Knollys, of Carlini's park."
TITLES = {
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "st": "saint",
    "prof": "professor",
    "capt": "captain",
    "gov": "governor",
    "gen": "general",
    "sen": "senator",
    "rep": "representative",
    "pres": "president",
    "rev": "reverend",
    "hon": "honorable",
    "lt": "lieutenant",
    "col": "colonel",
    "jr": "junior",
    "sr": "senior",
}


@pytest.mark.parametrize(
    ("transcript", "teacher", "text", "agreed", "words"),
    [
        (QUILTER, " " + QUILTER.capitalize().replace("Mister q", "Mr. Q") + ".", WRITTEN_QUILTER, 17, 17),
        ("MISSUS BROWN SAW SAINT PAUL", "Mrs. Brown saw St. Paul!", "Mrs. Brown saw St. Paul!", 5, 5),
        ("i saw ann today", "I saw Anne, today.", "I saw Ann, today.", 3, 4),  # misheard
        ("SAID LADY KNOLLYS OF CARLINI'S PARK", "Said lady Nollis, of Kaleeni's part.", NAMES, 3, 6),
        ("CRIED CARLINI", "Krat! Carlini?", "cried Carlini?", 1, 2),  # not alike
        ("I SAW HIM GO", "I saw, him.", "I saw, him. go", 3, 4),  # lost
        ("I SAW HIM", "I saw him. Yes, him.", "I saw him.", 3, 5),  # added
        ("THE WELL KNOWN MAN", "The well-known man.", "The well-known man.", 4, 4),
        ("THE WELL GROWN MAN", "The well-known man.", "The well grown man.", 3, 4),  # half a word: no hyphen
        ("he is in the u s today", "He is in the U.S. today.", "He is in the U.S. today.", 7, 7),
        ("he is in the u f today", "He is in the U.S. today.", "He is in the U f today.", 6, 7),
        ("THREE POINT FIVE", "3.5", "three point five", 2, 3),
        (
            "SIX MEN AND NINETEEN",
            "6, men and 19.",
            "six, men and nineteen.",
            4,
            4,
        ),  # digits stay words, with their marks
        ("TWENTY SIX MEN", "26 men.", "twenty six men.", 1, 3),
        ("THE COLOUR WAS GREY", "The Color was gray?", "The Colour was grey?", 4, 4),
        ("BECAUSE MADAM", "'Cause, Ma'am.", "Because, Madam.", 2, 2),
        ("DON'T CANNOT", "Don\u2019t, can't.", "Don't, cannot.", 1, 2),
        ("SIT DOWN THE COAL CAME", "St. down. The Col. came.", "Sit down. The Coal came.", 3, 5),  # no titles
        ("UM OH", "Uh, oh!", "Um, oh!", 1, 2),  # the normaliser drops both fillers, which makes them no equals
        ("A CAFE", "\u201cA Caf\u00e9\u201d (\u2026)", "A Cafe.", 2, 2),
        ("...", "", "", 0, 0),
        ("", "Thank you.", "", 0, 2),
        ("SO", "", "so", 0, 1),
    ],
)
def test_what_is_written(transcript, teacher, text, agreed, words):
    label = write_as(transcript, teacher)
    assert (label.text, label.agreed, label.words) == (text, agreed, words)
    assert label.agreement == (agreed / words if words else 1.0)


@pytest.mark.parametrize(("short", "long"), TITLES.items())
def test_titles_are_those_of_the_normaliser(short, long):
    assert normalize_for_scoring(short) == normalize_for_scoring(long) == long
    assert write_as(f"THE {long} ROSE".upper(), f"The {short.capitalize()}. rose.").text == (
        f"The {short.capitalize()}. rose."
    )


def spelled_out(text):
    return [TITLES.get(word, word) for word in normalize_for_training(text).split()]


WORDS = (
    *("the", "The", "a", "B.", "U.S.", "well-known", "known", "well", "Mr.", "mister", "MISTER", "five", "5", "3.5"),
    *("don't", "Don't.", "colour", "color,", "oh", "o", "one-"),
)


def test_no_word_is_added_lost_or_replaced():
    """Whatever the teacher says, the words are the transcript's, titles aside; it is in the written form."""
    rng = random.Random(0)
    for _ in range(3000):
        transcript, teacher = (" ".join(rng.choices(WORDS, k=rng.randint(0, 6))) for _ in range(2))
        label = write_as(transcript, teacher)
        assert spelled_out(label.text) == spelled_out(transcript), (transcript, teacher, label)
        assert normalize_text(label.text, "written") == label.text
        assert 0 <= label.agreed <= label.words


def test_agreement_is_what_error_rates_leave(clips):
    rng = random.Random(1)
    for _, text in clips:
        words = normalize_for_training(text).split()
        heard = [rng.choice([word, word, word, "zebra", ""]) for word in words]
        wer = count_errors(" ".join(words), " ".join(heard))
        label = write_as(text, " ".join(heard).capitalize() + ".")
        assert (label.agreed, label.words) == (wer.hits, max(len(words), len(" ".join(heard).split())))


def fewest_errors(words, others):
    """Return how many words agree in each of the alignments with fewest errors, all of them tried."""
    found = []
    for k in range(min(len(words), len(others)) + 1):
        for left in itertools.combinations(words, k):
            for right in itertools.combinations(others, k):
                agreed = sum(a == b for a, b in zip(left, right, strict=True))
                found.append((len(words) + len(others) - k - agreed, agreed))
    return {agreed for errors, agreed in found if errors == min(found)[0]}


def test_agreement_is_that_of_an_alignment_with_fewest_errors():
    for words, others in itertools.product(itertools.product("abc", repeat=4), itertools.product("abc", repeat=3)):
        assert write_as(" ".join(words), " ".join(others)).agreed in fewest_errors(words, others)


def test_the_same_words_agree_wherever_they_stand():
    """What agrees is in order: each word is written as its own partner is, not as another of the same letters."""
    label = write_as("no no no said the man no", "No, no! No said the Man. No?")
    assert label.text == "No, no! No said the Man. No?"
    assert write_as("no said the man no", "Said the Man. No?").text == "no Said the Man. No?"
