"""Whisper's ids in a student's tokens, against brute force over prefixes and over ids."""

import pytest
import torch
from distil_cases import close
from test_whisper_tokens import PIECES, whisper  # noqa: F401  # a fixture

from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import EOS_ID, SPECIAL_IDS, UNK_ID, Tokenizer
from samba_asr.training.whisper.interpreter import Interpreter

VOCAB_SIZE = 300
TEXTS = ["the king of the inn", "a ring", "and the other one in hers", "o"]


@pytest.fixture(scope="module")
def tokenizer(clips):
    return Tokenizer.train([normalize_for_training(text) for _, text in clips], PIECES)


def cuts(texts):
    """How many of the texts lie before each length that some of them make."""
    return {len("".join(texts[:count])): count for count in range(len(texts) + 1)}


@pytest.mark.parametrize("text_form", ["spoken", "written"])
@pytest.mark.parametrize("text", TEXTS)
def test_boundaries_are_where_prefixes_are_alike(whisper, tokenizer, text, text_form):  # noqa: F811
    tokens, ids = tokenizer.encode(text), whisper.encode(f" {text}")
    ours = cuts([tokenizer.pieces()[token] for token in tokens])
    theirs = cuts([whisper.decode([i]) for i in ids])
    expected = [(ours[length], theirs[length]) for length in sorted(ours.keys() & theirs.keys())]
    assert expected[0] == (0, 0) and expected[-1] == (len(tokens), len(ids))
    found = Interpreter(whisper, VOCAB_SIZE, tokenizer, text_form).shared(tokens, ids)
    assert found == (expected if text_form == "written" else expected[:-1])


def test_other_texts_share_nothing(whisper, tokenizer):  # noqa: F811
    interpreter = Interpreter(whisper, VOCAB_SIZE, tokenizer)
    tokens = tokenizer.encode("a ring")
    assert interpreter.shared(tokens, whisper.encode(" a king")) == []
    assert interpreter.shared([*tokens, UNK_ID], whisper.encode(" a ring")) == []
    assert interpreter.shared(tokens, whisper.encode(" a ring\u00e9")) == []  # its bytes apart are no characters


@pytest.mark.parametrize("text_form", ["spoken", "written"])
def test_probabilities_are_sums_over_ids(whisper, tokenizer, text_form):  # noqa: F811
    logits = 3 * torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    found = Interpreter(whisper, VOCAB_SIZE, tokenizer, text_form)(logits)
    pieces = tokenizer.pieces()
    expected = torch.zeros(5, len(pieces), dtype=torch.float64)
    for i, shares in enumerate(logits.double().softmax(-1).T):
        text = whisper.decode([i]) if i < whisper.end_id else ""
        if text_form == "spoken":
            text = text.lower()
        begins = [j for j, piece in enumerate(pieces) if j not in SPECIAL_IDS and text.startswith(piece)]
        begins = [j for j in begins if pieces[j].strip() or not text.strip()]
        if i == whisper.end_id:
            expected[:, EOS_ID] += shares
        elif begins:
            expected[:, max(begins, key=lambda j: len(pieces[j]))] += shares
    close(found, expected / expected.sum(-1, keepdim=True), 1e-5)
    close(found.sum(-1), torch.ones(5))


def test_capitals_are_folded_and_marks_left_out(whisper, tokenizer):  # noqa: F811
    """Where the student writes neither."""
    spoken, written = (
        Interpreter(whisper, VOCAB_SIZE, tokenizer, form).table.tolist() for form in ("spoken", "written")
    )
    (small,), (capital,), (comma,) = (whisper.encode(text) for text in ("e", "E", ","))
    assert spoken[capital] == spoken[small] == written[small] >= 0
    assert written[capital] == spoken[comma] == -1
    assert all(spoken[i] == -1 for i in (*whisper.prompt, whisper.end_id + 5)) and spoken[whisper.end_id] == EOS_ID


def test_where_nothing_else_is_expected_nothing_is(whisper, tokenizer):  # noqa: F811
    logits = torch.full((1, VOCAB_SIZE), -200.0)
    logits[0, whisper.encode(",")] = 200.0
    assert not Interpreter(whisper, VOCAB_SIZE, tokenizer)(logits).any()
