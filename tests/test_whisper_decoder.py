"""A decoder's start from its teacher's: what is copied, what is learnt, and the command that does it."""

import dataclasses
import json

import pytest
import torch
from distil_cases import D_MODEL, N_LAYERS, Clock, close, teacher_weights, utterances
from safetensors.torch import load_file
from test_whisper_vocabulary import write_vocabulary
from torch import nn
from whisper_cases import write_openai

from samba_asr.config import DecoderConfig, MixerConfig, ModelConfig
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.decoder import Decoder
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID, UNK_ID, Tokenizer
from samba_asr.training.config import DataConfig, TrainingConfig
from samba_asr.training.manifest import read_manifest, write_manifest
from samba_asr.training.run import train
from samba_asr.training.whisper import decoder as module
from samba_asr.training.whisper.cli import main_decoder
from samba_asr.training.whisper.decoder import (
    DecoderDistillation,
    distil_decoder,
    piece_embeddings,
    start_decoder,
)
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.settings import DecoderDistilConfig
from samba_asr.training.whisper.vocabulary import WhisperVocabulary

MIXER = MixerConfig(expand=1, d_state=8, head_dim=32)
CONFIG = DecoderConfig(n_layers=N_LAYERS, d_ff=4 * D_MODEL, dropout=0.0, mixer=MIXER)


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_openai(folder / "teacher.pt", teacher_weights(VOCAB_SIZE=300))
    write_vocabulary(folder / "tokenizer.json")
    write_manifest(folder / "train.jsonl", utterances(clips))
    write_manifest(folder / "dev.jsonl", utterances(clips[2:4]))
    Tokenizer.train([normalize_for_training(text) for _, text in clips], 40).save(folder / "tokenizer.model")
    return folder


def settings(data, **changes):
    config = DecoderDistilConfig(
        teacher=str(data / "teacher.pt"),
        teacher_tokenizer=str(data / "tokenizer.json"),
        tokenizer=str(data / "tokenizer.model"),
        train=[str(data / "train.jsonl")],
        dev=[str(data / "dev.jsonl")],
        mixer=MIXER,
        minutes=40 / 16,
        windows=2,
        warmup_steps=3,
        validate_minutes=20 / 16,
        bf16=False,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def clock(monkeypatch):
    def start(**when):
        monkeypatch.setattr(module, "time", Clock(**when))

    start()
    return start


@torch.no_grad()
def test_a_piece_is_the_mean_of_its_whisper_tokens(data):
    tokenizer, vocabulary = Tokenizer.load(data / "tokenizer.model"), WhisperVocabulary.load(data / "tokenizer.json")
    embedding = torch.randn(300, 5)
    found = piece_embeddings(tokenizer, vocabulary, embedding)
    assert found.shape == (40, 5)
    for i in range(4, 40):
        text = tokenizer.decode([i]) if not tokenizer.pieces()[i].startswith(" ") else f" {tokenizer.decode([i])}"
        tokens = vocabulary.encode(text)
        assert vocabulary.decode(tokens) == text
        close(found[i], sum(embedding[token] for token in tokens) / len(tokens), 1e-6)
    assert not found[BLANK_ID].any()
    assert torch.equal(found[EOS_ID], embedding[vocabulary.end_id])
    assert torch.equal(found[BOS_ID], embedding[vocabulary.prompt[-1]])
    close(found[UNK_ID], embedding[: vocabulary.end_id].mean(0))


class Attends(nn.Module):
    """The teacher's causal self-attention in a mixer's place; without a state, whole texts only."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, lengths, state):
        return self.attention(x, self.attention.read(x), causal=True), state


@torch.no_grad()
def test_with_its_attention_the_start_is_the_teacher_that_hears_nothing():
    """Against the teacher without positions whose cross-attention says nothing, on the teacher's own tokens."""
    weights = teacher_weights()
    weights |= {name: torch.zeros_like(w) for name, w in weights.items() if "cross_attn.out" in name}
    weights["decoder.positional_embedding"] = torch.zeros_like(weights["decoder.positional_embedding"])
    teacher = build_teacher(weights)
    embedding = teacher.decoder.token_embedding.weight
    decoder = Decoder(ModelConfig(vocab_size=len(embedding), d_model=D_MODEL, decoder=CONFIG)).eval()
    start_decoder(decoder, teacher, embedding)
    memory = torch.randn(2, 7, D_MODEL)
    state = decoder.read_memory(memory, torch.tensor([7, 3]))
    for block, taught in zip(decoder.blocks, teacher.decoder.blocks, strict=True):
        block.mixer = Attends(taught.attn)
    tokens = torch.randint(len(embedding), (2, 9))
    found, _ = decoder(tokens, torch.tensor([9, 9]), state)
    close(found, teacher.decoder(tokens, teacher.decoder.read_memory(memory))[0])


@torch.no_grad()
def test_taps_are_what_attention_is_given_and_says():
    teacher = build_teacher(teacher_weights())
    tokens, memory = torch.randint(250, (2, 6)), torch.randn(2, 5, D_MODEL)
    heard = []
    for block in teacher.decoder.blocks:
        block.attn.register_forward_hook(lambda layer, given, said: heard.append((given[0], said)))
    taps = teacher.decoder.taps(tokens, teacher.decoder.read_memory(memory))
    assert len(taps) == len(heard) == N_LAYERS
    for tap, (given, said) in zip(taps, heard, strict=True):
        assert torch.equal(tap.given, given) and torch.equal(tap.said, said)


def test_mixers_learn_and_the_rest_stays(data, tmp_path, clock):
    run = DecoderDistillation(settings(data), tmp_path / "run")
    before = {name: value.clone() for name, value in run.decoder.state_dict().items()}
    first = run.errors(run.dev_states, [0])
    assert not any(mixer(torch.randn(1, 4, D_MODEL))[0].any() for mixer in run.mixers)
    run.train()
    with torch.no_grad():
        assert (run.errors(run.dev_states, [0]) < 0.8 * first).all()
    for name, value in run.decoder.state_dict().items():
        assert torch.equal(value, before[name]) == (".mixer." not in name), name


def test_padding_in_a_batch_changes_no_error(data, tmp_path):
    run = DecoderDistillation(settings(data), tmp_path / "run")
    torch.nn.init.normal_(run.mixers[0].out_proj.weight)
    tokens, lengths = run._tokens(run.train_states.windows, [0, 1])
    assert lengths[0] != lengths[1]
    memory = run.teacher.decoder.read_memory(run.train_states.states([0, 1]))
    changed = tokens.clone()
    for row, length in enumerate(lengths.tolist()):
        changed[row, length:] = 7
    with torch.no_grad():
        errors = [run._error(0, run.teacher.decoder.taps(each, memory)[0], lengths) for each in (tokens, changed)]
    assert torch.equal(*errors)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data, tmp_path, clock):
    config = settings(data)
    whole = load_file(distil_decoder(config, tmp_path / "whole"))
    clock(interrupt_at=30)
    with pytest.raises(KeyboardInterrupt):
        distil_decoder(config, tmp_path / "cut")
    clock()
    resumed = load_file(distil_decoder(config, tmp_path / "cut", resume=True))
    assert json.loads((tmp_path / "cut" / "config.json").read_text()) == dataclasses.asdict(config)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_training_goes_on_from_it(data, tmp_path, clock):
    """From the command line to a checkpoint, whose decoder is the file's where the run leaves it alone."""
    flags = {"teacher": "teacher.pt", "teacher_tokenizer": "tokenizer.json", "tokenizer": "tokenizer.model"}
    words = [word for name, file in flags.items() for word in (f"--{name}", str(data / file))]
    words += ["--train", f"[{data / 'train.jsonl'}]", "--dev", f"[{data / 'dev.jsonl'}]", "--windows", "1"]
    words += ["--minutes", "0.1", "--mixer.d_state", "8", "--mixer.head_dim", "32", "--out", str(tmp_path / "a")]
    assert main_decoder(words) == 0
    model = ModelConfig(d_model=D_MODEL, decoder=CONFIG)
    config = TrainingConfig(
        data=DataConfig(str(data / "train.jsonl"), str(data / "dev.jsonl"), str(data / "tokenizer.model"), 30.0),
        model=dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, n_layers=1, mixer=MIXER)),
        decoder_weights=str(tmp_path / "a" / "decoder.safetensors"),
        decoder_from_step=10,
        max_steps=1,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=0))
    train(config, tmp_path / "b", False, ["train.py"])
    trained = load_checkpoint(tmp_path / "b" / "checkpoint")[0].decoder.state_dict()
    for name, value in load_file(tmp_path / "a" / "decoder.safetensors").items():
        assert torch.equal(trained[name], value.float()), name
    card = (tmp_path / "b" / "checkpoint" / "README.md").read_text()
    assert f"The decoder began as: `{config.decoder_weights}`" in card
    spoken = [utterance.text for utterance in read_manifest(data / "train.jsonl")]
    Tokenizer.train([normalize_for_training(text) for text in spoken], 40, "bpe").save(tmp_path / "other.model")
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(tmp_path / "other.model")))
    with pytest.raises(ValueError, match=r"was made for another tokenizer than data.tokenizer \(.*other.model\)"):
        train(other, tmp_path / "d", False, ["train.py"])
    for path, says in ((tmp_path / "none", "does not exist; make it with"), (data / "tokenizer.model", "does not fit")):
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            train(dataclasses.replace(config, decoder_weights=str(path)), tmp_path / "c", True, ["train.py"])


def test_another_tokenizer_cannot_resume(data, tmp_path, clock):
    distil_decoder(settings(data), tmp_path / "run")
    spoken = [utterance.text for utterance in read_manifest(data / "train.jsonl")]
    Tokenizer.train([normalize_for_training(text) for text in spoken], 40, "bpe").save(tmp_path / "other.model")
    with pytest.raises(ValueError, match=r"state.pt was made for another tokenizer than .*other.model"):
        distil_decoder(settings(data, tokenizer=str(tmp_path / "other.model")), tmp_path / "run", resume=True)


def test_gradients_that_are_never_finite_end_the_run(data, tmp_path, clock):
    run = DecoderDistillation(settings(data), tmp_path / "run")
    with torch.no_grad():
        run.mixers[0].in_proj.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"not finite 20 times in a row, at step 19: lower learning_rate"):
        run.train()


def test_what_cannot_be_used_is_told(data, tmp_path):
    for name in ("minutes", "windows", "learning_rate", "validate_minutes"):
        with pytest.raises(ValueError, match=rf"{name} \(0\) must be positive"):
            settings(data, **{name: 0})
    with pytest.raises(ValueError, match="at least one manifest"):
        settings(data, dev=[])
    with pytest.raises(ValueError, match=r"fewer than a batch's \(windows: 99\)"):
        distil_decoder(settings(data, windows=99), tmp_path / "few")
    assert not (tmp_path / "few").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty: continue its run with --resume true"):
        distil_decoder(settings(data), tmp_path / "full")
