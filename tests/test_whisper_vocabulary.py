"""Whisper's vocabulary and greedy decoding with it, on a vocabulary and a network made for the test."""

import json

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from whisper_cases import D_MODEL, random_weights

from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.transcribe import transcribe_states
from samba_asr.training.whisper.vocabulary import WhisperVocabulary

MARKS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


MERGES = ["Ġ t", "h e", "Ġt he"]


def write_vocabulary(path, marks=MARKS, end_id=None, merges=MERGES):
    """Write a byte-level tokenizer.json: 256 bytes, " t", "he", " the" (or other merges), marks, two times; return the
    marks' ids."""
    pieces = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    ids = {mark: len(vocab) + i for i, mark in enumerate([*marks, "<|0.00|>", "<|0.02|>"])}
    if end_id is not None:
        ids["<|endoftext|>"] = end_id
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [{"id": i, "content": mark, "special": mark[2] != "0", **added} for mark, i in ids.items()]
    model = {"type": "BPE", "vocab": vocab | ids, "merges": merges}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {"version": "1.0", "added_tokens": tokens, "pre_tokenizer": level, "decoder": level, "model": model}
    path.write_text(json.dumps(content), encoding="utf-8")
    return ids


@pytest.fixture
def vocabulary(tmp_path):
    write_vocabulary(tmp_path / "tokenizer.json")
    return WhisperVocabulary.load(tmp_path / "tokenizer.json")


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(random_weights())


@pytest.mark.parametrize("text", ["", " the", "the end", " Caf\u00e9 \u65e5\u672c \U0001f600", "a <|endoftext|> b"])
def test_text_comes_back(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text and all(i < vocabulary.end_id for i in ids)


def test_merges_are_used_and_marks_left_out(vocabulary):
    assert vocabulary.encode(" the") == [258] and vocabulary.encode("the")[1:] == [257]
    assert vocabulary.decode([*vocabulary.prompt, 258, 264, 265, vocabulary.end_id]) == " the"
    assert vocabulary.decode(vocabulary.encode("\u00e9")[:1]) == "\ufffd"


def test_merges_are_told_in_order(vocabulary):
    """As the fixture writes them, after 256 bytes."""
    told = [[vocabulary.decode([token]) for token in pair] for pair in vocabulary.merges.values()]
    assert list(vocabulary.merges) == [256, 257, 258] and told == [[" ", "t"], ["h", "e"], [" t", "he"]]


def test_prompts(tmp_path):
    ids = write_vocabulary(tmp_path / "many.json")
    vocabulary = WhisperVocabulary.load(tmp_path / "many.json")
    assert vocabulary.prompt == tuple(ids[mark] for mark in MARKS[1:])
    assert (vocabulary.end_id, vocabulary.start_id) == (ids[MARKS[0]], ids[MARKS[1]])
    ids = write_vocabulary(tmp_path / "english.json", end_id=50256)
    english = WhisperVocabulary.load(tmp_path / "english.json")
    assert english.prompt == (ids["<|startoftranscript|>"], ids["<|notimestamps|>"]) and english.end_id == 50256


def test_vocabularies_of_other_models(tmp_path):
    """English-only models have 51,864 ids, multilingual ones 51,865 or 51,866, whose marks lie one further."""
    write_vocabulary(tmp_path / "english.json", end_id=50256)
    write_vocabulary(tmp_path / "multilingual.json", end_id=50257)
    english, multilingual = (WhisperVocabulary.load(tmp_path / f"{n}.json") for n in ("english", "multilingual"))
    english.check_size(51_864)
    for size in (51_865, 51_866):
        multilingual.check_size(size)
        with pytest.raises(ValueError, match=rf"the vocabulary .* is not the teacher's, which has {size} ids"):
            english.check_size(size)
    for vocabulary, size in ((multilingual, 51_864), (multilingual, 260)):
        with pytest.raises(ValueError, match=rf"the vocabulary .* is not the teacher's, which has {size} ids"):
            vocabulary.check_size(size)


def test_what_is_never_written(vocabulary):
    signs = {vocabulary.encode(sign)[0] for sign in "()[]{}\"#<>_-'"}
    assert signs - set(vocabulary.encode("-'")) <= set(vocabulary.symbol_ids)
    words = {i for sign in "abcXYZ019.,?!$%&" for i in vocabulary.encode(sign)}
    assert not words & set(vocabulary.symbol_ids)
    assert vocabulary.blank_ids == [*vocabulary.encode(" "), vocabulary.end_id]


def test_bad_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist; name the tokenizer\.json"):
        WhisperVocabulary.load(path)
    for content in (b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {}}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json is damaged, or not Whisper's"):
            WhisperVocabulary.load(path)
    for missing in MARKS:
        write_vocabulary(path, [mark for mark in MARKS if mark != missing])
        with pytest.raises(ValueError, match=rf"tokenizer\.json .*it has no <\|{missing[2:-2]}\|>"):
            WhisperVocabulary.load(path)


def greedy_alone(teacher, vocabulary, states, max_tokens):
    """One utterance, no cache, one rule after the other."""
    ids = list(vocabulary.prompt)
    for step in range(max_tokens):
        logits, _ = teacher.decoder(torch.tensor([ids]), teacher.decoder.read_memory(states[None]))
        for best in logits[0, -1].argsort(descending=True).tolist():
            if best > vocabulary.end_id or best in vocabulary.symbol_ids:
                continue
            if step == 0 and best in vocabulary.blank_ids:
                continue
            break
        if best == vocabulary.end_id:
            break
        ids.append(best)
    return ids[len(vocabulary.prompt) :]


def talkative(end_bias):
    """A teacher whose end token is as likely as a few others, so that texts differ in length."""
    weights = random_weights()
    embedding = weights["decoder.token_embedding.weight"]
    embedding[259] = embedding[:259].std() * end_bias * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    return build_teacher(weights)


def test_greedy_decoding(vocabulary):
    torch.manual_seed(0)
    teacher, states = talkative(2.4), 10 * torch.randn(40, 9, D_MODEL)
    alone = [greedy_alone(teacher, vocabulary, row, 20) for row in states]
    lengths = {len(ids) for ids in alone}
    assert len(lengths) > 2 and 20 in lengths  # some end early, some at the cap
    expected = [vocabulary.decode(ids).strip() for ids in alone]
    assert len(set(expected)) > 6
    assert transcribe_states(teacher, vocabulary, states, 20) == expected


def test_limits(teacher, vocabulary):
    assert transcribe_states(teacher, vocabulary, torch.zeros(0, 3, D_MODEL), 5) == []
    assert len(transcribe_states(teacher, vocabulary, torch.zeros(2, 1, D_MODEL), 28)) == 2
    for cap in (0, 29):
        with pytest.raises(ValueError, match=rf"max_tokens \({cap}\) must be between 1 and 28"):
            transcribe_states(teacher, vocabulary, torch.zeros(1, 3, D_MODEL), cap)


def test_another_models_vocabulary(teacher, tmp_path):
    write_vocabulary(tmp_path / "t.json", [*MARKS[:4], *(f"<|x{i}|>" for i in range(60)), MARKS[4]])
    with pytest.raises(ValueError, match=r"ids up to 323\) is not the teacher's, which has 300"):
        transcribe_states(teacher, WhisperVocabulary.load(tmp_path / "t.json"), torch.zeros(1, 3, D_MODEL), 5)
