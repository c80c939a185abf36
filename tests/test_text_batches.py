"""Batches of text for the decoder, and its loss on them."""

import dataclasses

import pytest
import torch

from samba_asr.config import DecoderConfig, EncoderConfig, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import BOS_ID, EOS_ID, Tokenizer
from samba_asr.training.config import TextConfig
from samba_asr.training.text import LONGEST, TextBatches, read_sentences

LINES = ["The cat sat on the mat.", "the cat sat on the mat", "", "... --", "A dog barked", "No bird sang that day"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat", "a dog barked", "no bird sang that day"] * 3, 27)


def test_lines_are_normalised_and_taken_once(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    (tmp_path / "b.txt").write_text("A DOG BARKED!\n" + "the cat " * LONGEST)
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    found = [tokenizer.decode(sentence) for sentence in read_sentences(files, tokenizer, {"no bird sang that day"})]
    assert found == ["the cat sat on the mat", "a dog barked"]


def test_files_that_cannot_be_used(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_sentences([str(tmp_path / "none.txt")], tokenizer, ())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary is not UTF-8"):
        read_sentences([str(tmp_path / "binary")], tokenizer, ())
    (tmp_path / "empty.txt").write_text("\n?\n")
    with pytest.raises(ValueError, match=r"empty\.txt hold no sentence"):
        read_sentences([str(tmp_path / "empty.txt")], tokenizer, ())


def test_batches_hold_whole_sentences_and_no_more_tokens_than_asked():
    sentences = [[10 + n] * (1 + n % 30) for n in range(200)]
    batches = TextBatches(sentences, 64, seed=3)
    seen = set()
    for step in range(400):
        tokens, lengths = batches.batch(step)
        assert tokens.numel() <= 64
        for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
            assert row[:length] in sentences and not any(row[length:])
            seen.add(row[0])
    assert len(seen) > 190


def test_a_long_sentence_makes_a_batch_by_itself():
    tokens, lengths = TextBatches([[7] * 50], 10, seed=0).batch(0)
    assert tokens.tolist() == [[7] * 50] and lengths.tolist() == [50]


def test_batches_follow_from_seed_and_step():
    sentences = [[10 + n] * (1 + n % 30) for n in range(200)]
    batches = [TextBatches(sentences, 64, seed) for seed in (1, 1, 2)]
    drawn = [[b.batch(step)[0].tolist() for step in range(20)] for b in batches]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({str(tokens) for tokens in drawn[0]}) > 10


def test_text_loss_is_the_decoders_alone_step_by_step():
    """Against the chain rule through Decoder.step from its initial state, a sentence at a time."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=20, d_model=64, encoder=EncoderConfig(1, d_ff=0), decoder=DecoderConfig(2, d_ff=32))
    model = SambaASR(config).eval()
    tokens, lengths = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]]), torch.tensor([4, 2])
    total, count = 0.0, 0
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        text = row[:length].tolist()
        state = model.decoder.read_memory(torch.zeros(1, 0, 64), torch.tensor([0]))
        for given, said in zip([BOS_ID, *text], [*text, EOS_ID], strict=True):
            logits, state = model.decoder.step(torch.tensor([given]), state)
            total -= logits.log_softmax(-1)[0, said].item()
            count += 1
    loss = model.text_loss(tokens, lengths, label_smoothing=0.0)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.decoder.out_proj.parameters())


@pytest.mark.parametrize("name", ["tokens", "weight"])
def test_settings_that_cannot_be(name):
    with pytest.raises(ValueError, match=rf"text\.{name} \(0\) must be positive"):
        dataclasses.replace(TextConfig(), **{name: 0})
