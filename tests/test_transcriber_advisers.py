"""Transcribers with hotwords, a language model, and several texts."""

import dataclasses
import shutil

import pytest
import torch

from samba_asr.audio.load import load_audio
from samba_asr.config import LanguageModelConfig, MixerConfig
from samba_asr.decoding.advisers import NOBODY
from samba_asr.decoding.prefix_beam import Hypothesis
from samba_asr.decoding.stretches import Found
from samba_asr.model.language_model import LanguageModel
from samba_asr.model.language_model_checkpoint import save_language_model
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.transcriber import Transcriber

SMALL = LanguageModelConfig(40, d_model=16, n_layers=1, d_ff=16, mixer=MixerConfig(expand=1, d_state=8, head_dim=8))


@pytest.fixture(scope="module")
def waveform(clips):
    return load_audio(clips[0][0])


@pytest.fixture(scope="module")
def joint(tiny_checkpoint):
    return Transcriber.load(tiny_checkpoint, search="joint", beam_size=6)


@pytest.fixture(scope="module")
def lm_folder(tiny_checkpoint, tmp_path_factory):
    tokenizer = Tokenizer.load(tiny_checkpoint / "tokenizer.model")
    torch.manual_seed(1)
    model = LanguageModel(dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        model.embedding.weight *= 4
    folder = tmp_path_factory.mktemp("lm")
    save_language_model(folder, model, tokenizer, "# small\n")
    return folder


def test_several_texts_the_best_first_and_none_twice(joint, waveform):
    one = joint.transcribe(waveform)
    found = joint.transcribe(waveform, n_best=4)
    assert one.n_best == () and "n_best" not in one.to_dict()
    assert (found.text, found.words) == (one.text, one.words)
    assert found.n_best[0].text == found.text
    texts, scores = zip(*((each.text, each.score) for each in found.n_best), strict=True)
    assert 2 <= len(set(texts)) == len(texts) <= 4 and list(scores) == sorted(scores, reverse=True)
    assert found.to_dict()["n_best"][1] == {"text": texts[1], "score": round(scores[1], 3)}
    wide = Transcriber(joint.model, joint.tokenizer, dataclasses.replace(joint.search, beam_size=40))
    assert len(wide.transcribe(waveform, n_best=30).n_best) > 6


def test_texts_of_stretches_are_joined(joint, waveform, monkeypatch):
    monkeypatch.setattr("samba_asr.decoding.search.LONGEST_SECONDS", 2.0)
    found = joint.transcribe(waveform, n_best=3)
    assert found.duration > 2 * 2.0
    assert found.n_best[0].text == found.text == joint.transcribe(waveform).text
    assert len(found.n_best) == 3 and len({len(each.text) for each in found.n_best}) > 1


def test_spellings_of_one_text_count_once(joint):
    """Of twelve stretches each, two spellings and another text far behind: five texts, not one."""
    ids = {text: i for i, text in enumerate(joint._pieces)}
    word = [ids[" "], ids["a"]] if " a" not in ids else [ids[" a"]]
    spellings = [tuple(word), (ids[" "], ids["a"])] if (ids.get(" "), ids["a"]) != tuple(word) else [tuple(word)]
    other = (ids[" "], ids["e"])
    texts = tuple(
        Hypothesis(tokens, score)
        for tokens, score in [*((s, -0.1 * i) for i, s in enumerate(spellings)), (other, -3.0)]
    )
    stretches = [Found(i, i + 1, list(texts[0].tokens), texts) for i in range(12)]
    found = joint._n_best(stretches, 5)
    assert found[0].text == " ".join(["a"] * 12) and found[0].score == 0.0
    assert len({each.text for each in found}) == 5
    assert [each.score for each in found[1:]] == [-3.0] * 4
    endless = Hypothesis(other, float("-inf"))
    assert [e.text for e in joint._n_best([Found(0, 1, [], (texts[0], endless))], 3)] == ["a"]


def test_silence_has_no_other_texts(joint):
    assert joint.transcribe(torch.zeros(8000).numpy(), n_best=3).n_best == ()


@pytest.mark.parametrize(
    ("changes", "n_best", "message"),
    [
        ({}, 0, r"n_best \(0\) must be positive"),
        ({}, 7, r"n_best \(7\) must not exceed beam_size \(6\): widen the beam"),
        ({"search": "ctc"}, 2, r"search \('ctc'\) must be 'joint' where n_best \(2\) is above 1"),
    ],
)
def test_more_texts_than_there_are(joint, waveform, changes, n_best, message):
    other = Transcriber(joint.model, joint.tokenizer, dataclasses.replace(joint.search, **changes))
    with pytest.raises(ValueError, match=message):
        other.transcribe(waveform, n_best=n_best)


def test_hotwords_are_heard_where_they_are_said(clips, tmp_path):
    """Real speech: "simmer" is heard as another word without help."""
    path = next(path for path, text in clips if text.lower().startswith("simmer for a minute"))
    transcriber = Transcriber.load("samba-tiny-en")
    plain = transcriber.transcribe(path).text
    assert "simmer" not in plain.split()
    found = transcriber.transcribe(path, hotwords="Simmer:2,Nadezhda:2").text
    assert found.split()[0] == "simmer" and "nadezhda" not in found
    (tmp_path / "words").write_text("# names\nSimmer:2\nNadezhda:2\n", encoding="utf-8")
    loaded = Transcriber.load("samba-tiny-en", hotwords=tmp_path / "words")
    assert loaded.hotwords == {"Simmer": 2.0, "Nadezhda": 2.0}
    assert [each.transcribe(path).text for each in (loaded, transcriber)] == [found, plain]
    assert transcriber.transcribe(path, hotwords={"simmer": 2.0}).text == found
    assert transcriber.transcribe(path, hotwords=["nadezhda"]).text == plain
    assert loaded.transcribe(path, hotwords={}).text == plain


def test_boosts_and_weights_of_nothing(joint, tiny_checkpoint, lm_folder):
    loaded = Transcriber.load(tiny_checkpoint, search="joint", lm=lm_folder, lm_weight=0.25, hotwords="apostle")
    advisers = loaded.advisers()
    assert advisers is loaded.advisers() and advisers.language_model is loaded.lm
    assert [weight for weight, _ in advisers.piece_scorers] == [loaded.search.hotword_boost]
    assert advisers.length_bonus == pytest.approx(0.25 * loaded.search.lm_length_bonus) != 0
    loaded.search = dataclasses.replace(loaded.search, hotword_boost=1.5)
    assert [weight for weight, _ in loaded.advisers().piece_scorers] == [1.5]
    loaded.search = dataclasses.replace(loaded.search, hotword_boost=0.0, lm_weight=0.0)
    assert loaded.advisers() == joint.advisers() == NOBODY


def test_a_lexicon_that_no_search_asks_is_refused(tiny_checkpoint, tmp_path):
    """The checkpoint's own is only left aside."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "lexicon.txt").write_text("word\n", encoding="utf-8")
    assert Transcriber.load(folder, search="ctc").advisers() == NOBODY
    with pytest.raises(ValueError, match=r"search \('ctc'\) must be 'joint' where a lexicon is given"):
        Transcriber.load(folder, search="ctc", lexicon=folder / "lexicon.txt")


def test_a_language_model_has_a_say(joint, tiny_checkpoint, waveform, lm_folder):
    texts = [
        Transcriber.load(tiny_checkpoint, search="joint", beam_size=6, lm=lm_folder, lm_weight=weight)
        .transcribe(waveform)
        .text
        for weight in (0.0, 1.0)
    ]
    assert texts[0] == joint.transcribe(waveform).text != texts[1]


def test_an_n_gram_model_has_a_say(tiny_checkpoint, waveform, joint, tmp_path):
    pytest.importorskip("kenlm")
    path = tmp_path / "two.arpa"
    path.write_text(
        "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-9\t<unk>\t0\n0\t<s>\t-0.1\n-1\t</s>\t0\n-0.5\tgospel\t-0.1\n"
        "-0.6\tis\t-0.1\n\n\\2-grams:\n-0.2\t<s> gospel\n-0.2\tgospel is\n\n\\end\\\n",
        encoding="utf-8",
    )
    advised = Transcriber.load(tiny_checkpoint, search="joint", beam_size=6, lm=path, lm_weight=3.0)
    assert advised.transcribe(waveform).text != joint.transcribe(waveform).text


def test_a_lexicon_has_a_say(tiny_checkpoint, waveform, joint, tmp_path):
    """The folder's own, one that is given, none; a penalty so high that hardly another word is left."""
    plain = joint.transcribe(waveform).text
    words = plain.split()
    assert len(set(words)) > 3 and joint.lexicon is None
    (tmp_path / "words").write_text("\n".join(set(words) - {words[0]}), encoding="utf-8")
    given = Transcriber.load(
        tiny_checkpoint, search="joint", beam_size=6, lexicon=tmp_path / "words", unknown_word_penalty=1e3
    )
    found = given.transcribe(waveform).text.split()
    assert words[0] not in found and sum(word not in given.lexicon for word in found) <= 1 <= words.count(words[0])
    given.search = dataclasses.replace(given.search, unknown_word_penalty=0.0)
    assert given.transcribe(waveform).text == plain
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "lexicon.txt").write_text("\n".join(words), encoding="utf-8")
    its = Transcriber.load(folder, search="joint", beam_size=6, unknown_word_penalty=1e3)
    assert its.lexicon == set(words) and set(its.transcribe(waveform).text.split()) <= set(words)
    assert Transcriber.load(folder, search="ctc").advisers() == NOBODY
    its.lexicon = None
    assert its.advisers() == NOBODY
    assert Transcriber.load(folder, search="joint", lexicon=tmp_path / "words").lexicon == given.lexicon


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lm": "nowhere"}, FileNotFoundError, "language model nowhere is neither a folder nor a file"),
        ({"hotwords": "no/where"}, FileNotFoundError, "hotwords file no/where is no file"),
        ({"hotwords": "żółw"}, ValueError, r"hotword 'żółw' has the character 'ż|hotword 'żółw' has"),
        ({"hotwords": "gospel", "search": "ctc"}, ValueError, r"search \('ctc'\) must be 'joint'"),
        ({"lexicon": "nowhere"}, FileNotFoundError, "lexicon nowhere is no file; it has a word a line"),
        ({"unknown_word_penalty": -1.0}, ValueError, r"unknown_word_penalty \(-1.0\) must be 0 or a positive"),
        ({"lm_weight": -1.0}, ValueError, r"lm_weight \(-1.0\) must be 0 or a positive number"),
        ({"hotword_boost": float("inf")}, ValueError, r"hotword_boost \(inf\) must be 0 or a positive"),
    ],
)
def test_what_cannot_be(tiny_checkpoint, settings, error, message):
    with pytest.raises(error, match=message):
        Transcriber.load(tiny_checkpoint, **{"search": "joint", **settings})


def test_a_language_model_of_other_tokens(tiny_checkpoint, tmp_path):
    tokenizer = Tokenizer.train(["other words than those of the recogniser, many of them"], 27)
    save_language_model(
        tmp_path, LanguageModel(dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)), tokenizer, ""
    )
    with pytest.raises(ValueError, match="has other tokens than the recogniser; train one for it with"):
        Transcriber.load(tiny_checkpoint, search="joint", lm=tmp_path)
    with pytest.raises(ValueError, match="language model"):
        Transcriber.load(tiny_checkpoint, search="joint", lm=tiny_checkpoint)
