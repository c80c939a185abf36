"""The written form of text: case and punctuation, from normalisation to a trained checkpoint."""

import dataclasses
import random
import re
import sys

import pytest
from distil_cases import utterances
from test_training import small_model

from samba_asr.evaluation.wer import ScoredUtterance, normalize_for_scoring, score
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.text.normalization import normalize_for_training, normalize_text
from samba_asr.text.tokenizer import UNK_ID, Tokenizer
from samba_asr.training import run as training_run
from samba_asr.training.config import DataConfig, OptimiserConfig, TextConfig, TrainingConfig
from samba_asr.training.data import select_utterances
from samba_asr.training.manifest import write_manifest
from samba_asr.training.run import train
from samba_asr.training.text import read_sentences

WORD = r"[^\W_]+(?:(?:['.-]|(?<=\d),(?=\d))[^\W_]+)*[.,?!]?"
WRITTEN = re.compile(rf"(?:{WORD}(?: {WORD})*)?")
"""Words with one mark at most behind them, one space between two."""

SENTENCES = [
    "Mr. Quilter, is the well-known apostle of the classes?",
    "At nine. Two men, twenty-one or so, came from the U.S.A. at 10 p.m.; no!",
    "\u201cI can\u2019t,\u201d she said. \u201cIt\u2019s five o\u2019clock\u2026\u201d",
    "Dr. Jones drove to St. Ives: a well-known, twenty-mile road!",
    "One, two, three. Four! The colour of 10 men... is it, Mrs. Brown?",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" ... -- '!\" ", ""),
        ("MISTER QUILTER IS, THE", "mister quilter is, the"),
        ("Mister QUILTER", "Mister QUILTER"),
        ("She said, \u201cYes!\u201d  and \u2018left\u2019.", "She said, Yes! and left."),
        ("Well-known; Twenty\u2013one\u2014no", "Well-known, Twenty one no"),
        ("a- b -c d--e non\u2011stop co\u00adop", "a b c d e non-stop coop"),
        ("What?! No... Hm ,yes , no .", "What? No. Hm, yes, no."),
        ("Hm...? No!? Who.! Etc., so", "Hm? No? Who! Etc. so"),
        ("3.5 of 10,000 in the U.S., e.g. one,two", "3.5 of 10,000 in the U.S. e.g. one, two"),
        ("... and so on:", "and so on,"),
        ("at 3:30; (see below).", "at 3 30, see below."),
        ("Don\u2019t, 'tis the dogs' 'n' o'clock''s", "Don't, tis the dogs n o'clock s"),
        ("Caf\u00e9 \u00c6gir \u0152uvre Stra\u00dfe \u0141\u00f3d\u017a", "Cafe Aegir Oeuvre Strasse Lodz"),
        ("\u00c6GIR SAID. \u0152UVRE", "aegir said. oeuvre"),
        ("STRA\u1e9eE \uff26ull\uff01", "STRASSE Full!"),
        ("a_b 50% \u20ac5 R&D", "a b 50 5 R D"),
    ],
)
def test_the_written_form(text, expected):
    assert normalize_text(text, "written") == expected
    assert normalize_text(text, "spoken") == normalize_for_training(text)


def test_all_sorts_of_characters_and_of_their_sequences():
    """The written form has the words of the spoken one and an own grammar, and stays as it is."""
    rng = random.Random(0)
    signs = "aabAB12\u00e9\u00c6\u00df''\u2019\"\u201d.,?!;:---\u2013\u2026  ()$_\t"
    texts = ["".join(rng.choices(signs, k=rng.randint(0, 10))) for _ in range(60_000)]
    texts += [f"A{chr(code)}b" for code in (*range(0x3000), *range(0x3000, sys.maxunicode, 19))]
    for text in texts:
        written = normalize_text(text, "written")
        assert WRITTEN.fullmatch(written), (text, written)
        assert normalize_for_training(written) == normalize_for_training(text), text
        assert normalize_text(written, "written") == written, text
        letters = [char for char in written if char.isalpha()]
        assert not letters or any(char.islower() for char in letters) or written == written.lower(), text


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"form \('Written'\) must be spoken or written"):
        normalize_text("a", "Written")


def test_written_and_spoken_hypotheses_score_the_same(clips):
    texts = [*SENTENCES, *(f"{text.capitalize()}." for _, text in clips)]
    for text in texts:
        written, spoken = (normalize_for_scoring(normalize_text(text, form)) for form in ("written", "spoken"))
        assert written == spoken
    both = [
        score([ScoredUtterance("", 1.0, text, normalize_text(f"So, {text}", form)) for text in texts])
        for form in ("written", "spoken")
    ]
    assert both[0] == both[1] and both[0].insertions == len(texts)


@pytest.fixture(scope="module")
def corpus(clips, tmp_path_factory):
    """Four clips with case and punctuation to train on, the same as their corpora write them for development."""
    folder = tmp_path_factory.mktemp("written")
    spoken = sorted(utterances(clips), key=lambda utterance: utterance.duration)[:4]
    labelled = [dataclasses.replace(u, text=f"\u201c{u.text.capitalize()}!\u201d") for u in spoken]
    write_manifest(folder / "train.jsonl", labelled)
    write_manifest(folder / "dev.jsonl", spoken)
    for form in ("spoken", "written"):
        Tokenizer.train([normalize_text(u.text, form) for u in labelled], 40).save(folder / f"{form}.model")
    return folder, labelled, spoken


def settings(folder, text_form, tokenizer=None, **changes):
    files = [str(folder / name) for name in ("train.jsonl", "dev.jsonl", f"{tokenizer or text_form}.model")]
    data = DataConfig(*files, text_form=text_form, batch_seconds=9.0, max_duration=9.0, num_workers=0)
    optimiser = OptimiserConfig(warmup_steps=5)
    return TrainingConfig(data, small_model(), optimiser, max_steps=2, accelerator="cpu", **changes)


def test_what_is_selected_is_written(corpus):
    folder, labelled, spoken = corpus
    config = settings(folder, "written")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    limits = {"min_duration": 0.3, "max_duration": 9.0}
    for form in ("written", "spoken"):
        selection = select_utterances(labelled, tokenizer, config.model, **limits, text_form=form)
        found = [tokenizer.decode(tokens) for tokens in selection.tokens]
        assert found == [normalize_text(u.text, form) for u in labelled]
        assert not any(UNK_ID in tokens for tokens in selection.tokens)
    assert found == [normalize_for_training(u.text) for u in spoken]
    as_before = select_utterances(labelled, tokenizer, config.model, **limits)
    assert as_before.tokens == selection.tokens


def test_sentences_are_written_and_left_out_whatever_their_case(tmp_path):
    lines = ["The cat sat.", "the cat sat", "A dog barked!", "A dog barked?"]
    tokenizer = Tokenizer.train([normalize_text(line, "written") for line in lines], 24)
    (tmp_path / "a.txt").write_text("\n".join(lines))

    def sentences(*unwanted, form):
        found = read_sentences([str(tmp_path / "a.txt")], tokenizer, unwanted, form)
        return [tokenizer.decode(sentence) for sentence in found]

    assert sentences(form="written") == lines
    assert sentences("a dog barked", form="written") == lines[:2]
    assert sentences("a dog barked", form="spoken") == ["the cat sat"]


def test_a_run_learns_the_written_form_and_says_so(corpus, tmp_path, monkeypatch):
    folder, labelled, spoken = corpus
    (tmp_path / "text.txt").write_text("\n".join([spoken[0].text, labelled[1].text, "His house!"]))
    text = TextConfig([str(tmp_path / "text.txt")])
    kept, selected = [], []
    batches, select = training_run.TextBatches, training_run.select_utterances
    monkeypatch.setattr(training_run, "TextBatches", lambda *given: kept.extend(given[0]) or batches(*given))
    monkeypatch.setattr(
        training_run,
        "select_utterances",
        lambda *given, **named: selected.append(select(*given, **named)) or selected[-1],
    )
    train(settings(folder, "written", text=text), tmp_path / "run")
    tokenizer = load_checkpoint(tmp_path / "run" / "checkpoint")[1]
    assert [tokenizer.decode(sentence) for sentence in kept] == ["His house!"]
    found = [[tokenizer.decode(tokens) for tokens in selection.tokens] for selection in selected]
    assert found == [[normalize_text(u.text, "written") for u in each] for each in (labelled, spoken)]
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert "to words with case and punctuation (. , ? ! and hyphens inside words)." in card
    assert "text_form: written\n" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"data.text_form \(spoken\) was written in .*step=2.ckpt: resume with that"):
        train(settings(folder, "spoken", tokenizer="written"), tmp_path / "run", resume=True)


def test_a_tokenizer_without_capitals_cannot_write(corpus, tmp_path):
    config = settings(corpus[0], "written", tokenizer="spoken")
    with pytest.raises(ValueError, match=r"data.text_form \(written\) needs a tokenizer that knows capitals; .*spoken"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
