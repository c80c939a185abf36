"""A decoder distilled from Whisper's: what is copied, what is heard, what is learnt, and the command that does it."""

import dataclasses
import json
import math

import pytest
import torch
from distil_cases import D_MODEL, N_LAYERS, N_MELS, Clock, close, teacher_weights, utterances
from test_whisper_tokens import MERGES, PIECES
from test_whisper_vocabulary import write_vocabulary
from whisper_cases import write_openai

from samba_asr.audio.features import LogMel
from samba_asr.audio.load import load_audio
from samba_asr.config import (
    CTCConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    MixerConfig,
    ModelConfig,
    SearchConfig,
    WordConfig,
)
from samba_asr.model.alignment import LEAD
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint, save_checkpoint, save_config
from samba_asr.model.decoder import Decoder
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import UNK_ID, Tokenizer
from samba_asr.training.config import DataConfig, TrainingConfig
from samba_asr.training.data import read_manifests
from samba_asr.training.manifest import write_manifest
from samba_asr.training.run import train
from samba_asr.training.whisper import decoder as module
from samba_asr.training.whisper.cli import main_decoder
from samba_asr.training.whisper.decoder import DecoderDistillation, distil_decoder
from samba_asr.training.whisper.decoder_data import collate
from samba_asr.training.whisper.decoder_start import followed_layers, read_blocks, start_decoder
from samba_asr.training.whisper.decoder_teacher import DecoderTeacher, Norm
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.reading import Reader
from samba_asr.training.whisper.settings import DecoderDistilConfig
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.transcriber import Transcriber

MIXER = MixerConfig(expand=1, groups=0)
SMALL = MixerConfig(expand=1, d_state=8, head_dim=32)
WINDOWS = DecoderConfig(n_layers=1, d_ff=4 * D_MODEL, dropout=0.0, mixer=MIXER, listening="window", tied_embedding=True)
ENCODER = EncoderConfig(n_layers=1, subsampling_channels=4, d_ff=32, mixer=SMALL)
OLD = DecoderConfig(n_layers=1, d_ff=16, mixer=SMALL)


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory):
    """A teacher, manifests, and two checkpoints: one whose CTC head has a block of its own, and one without."""
    folder = tmp_path_factory.mktemp("data")
    write_openai(folder / "teacher.pt", teacher_weights(VOCAB_SIZE=300))
    write_vocabulary(folder / "tokenizer.json", merges=MERGES)
    spoken = sorted(utterances(clips), key=lambda one: one.duration)
    write_manifest(folder / "train.jsonl", spoken[:2])
    write_manifest(folder / "dev.jsonl", spoken[1:3])
    (folder / "text.txt").write_text("The king of the inn\n\nand the ring\n")
    tokenizer = Tokenizer.train([normalize_for_training(text) for _, text in clips], PIECES)
    torch.manual_seed(1)
    for name, blocks in (("plain", 0), ("own", 1)):
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size, d_model=D_MODEL, encoder=ENCODER, decoder=OLD, ctc=CTCConfig(blocks)
        )
        save_checkpoint(folder / name, SambaASR(config), tokenizer, "")
    return folder


def settings(data, **changes):
    config = DecoderDistilConfig(
        model=str(data / "own"),
        teacher=str(data / "teacher.pt"),
        teacher_tokenizer=str(data / "tokenizer.json"),
        train=[str(data / "train.jsonl")],
        dev=[str(data / "dev.jsonl")],
        texts=[str(data / "text.txt")],
        vocab_size=60,
        layers=[1],
        minutes=20 / 16,
        validate_minutes=10 / 16,
        warmup_steps=3,
        bf16=False,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def clock(monkeypatch):
    def start(**when):
        monkeypatch.setattr(module, "time", Clock(**when))

    start()
    return start


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(teacher_weights(VOCAB_SIZE=300))


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_the_teacher_reads_its_tokens_and_hears_everything(data, teacher, stride):
    """As Whisper's decoder itself, each text alone, with the student's norm and the means of the teacher's places."""
    tokenizer, whisper = load_checkpoint(data / "own")[1], WhisperVocabulary.load(data / "tokenizer.json")
    norm = Norm(torch.nn.LayerNorm(D_MODEL), torch.randn(40, D_MODEL), stride)
    torch.nn.init.normal_(norm.layer.weight)
    taught = DecoderTeacher(Reader(teacher.decoder, whisper, tokenizer), norm)
    texts = ["the king of the inn", "a ring"]
    read = [taught.read(tokenizer.encode(text)) for text in texts]
    ids = [ids for ids, _ in read]
    assert ids == [whisper.encode(f" {text}") for text in texts] and all(shared for _, shared in read)
    assert taught.read([UNK_ID]) == ([], []) and taught.read([]) == ([], [])
    states, lengths = torch.randn(2, 30, D_MODEL), [30, 11]
    heard = taught(states, torch.tensor(lengths), ids)
    assert len(heard.outputs) == N_LAYERS and heard.outputs[0].shape == heard.expected.shape
    places = [min(stride * i, 39) for i in range(30)]  # after the teacher's window its last mean does
    for row, (text, length) in enumerate(zip(ids, lengths, strict=True)):
        memory = norm.layer(states[row, :length]) + norm.means[places[:length]]
        prompted = torch.tensor([[*whisper.prompt, *text]])
        expected, _ = teacher.decoder(prompted, teacher.decoder.read_memory(memory[None]))
        expected = expected[0, len(whisper.prompt) - 1 :]
        said = heard.expected[row, : len(text) + 1]
        close(teacher.decoder.ln(heard.outputs[-1][row, : len(text) + 1]), said)
        close(taught.reader.probabilities(said), taught.reader.interpreter(expected))


@torch.no_grad()
def test_the_start_copies_layers(data, teacher):
    config = ModelConfig(vocab_size=50, d_model=D_MODEL, decoder=WINDOWS, ctc=CTCConfig(1, 40))
    decoder, embeddings = Decoder(config), torch.randn(50, D_MODEL)
    norm = Norm(torch.nn.LayerNorm(D_MODEL), torch.randn(5, D_MODEL), 2)
    torch.nn.init.normal_(norm.layer.weight)
    start_decoder(decoder, teacher, [1], embeddings, norm)
    (block,), taught = decoder.blocks, teacher.decoder.blocks[1]
    copies = (
        (block.norm, taught.attn_ln),
        (block.cross_norm, taught.cross_attn_ln),
        (block.cross.value, taught.cross_attn.value),
        (block.cross.out_proj, taught.cross_attn.out),
        (block.ff[0], taught.mlp_ln),
        (block.ff[1], taught.mlp[0]),
        (block.ff[4], taught.mlp[2]),
        (decoder.norm, teacher.decoder.ln),
    )
    for ours, theirs in copies:
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert torch.equal(decoder.memory_norm.weight, norm.layer.weight)
    close(decoder.memory_norm(embeddings), norm.layer(embeddings) + norm.means.mean(0))
    assert torch.equal(block.mixer.out_proj.weight, taught.attn.out.weight)  # one direction, not a half of two
    assert torch.equal(block.mixer.in_proj.weight[D_MODEL : 2 * D_MODEL], taught.attn.value.weight)
    assert not block.cross.kernel.weight.any() and not block.cross.salience.weight.any()
    assert decoder.out_proj.weight is decoder.embedding.weight
    said, positions = torch.randn(3, D_MODEL), teacher.decoder.positional_embedding
    close(decoder.out_proj(said).softmax(-1), (said @ embeddings.mT).softmax(-1))
    close(decoder.embedding(torch.tensor([7]))[0], embeddings[7] + positions[:40].mean(0))  # the teacher adds one, too
    with pytest.raises(ValueError, match=r"layers \(\[2\]\) must be below .* decoder layers \(2\)"):
        start_decoder(decoder, teacher, [2], embeddings, norm)


@torch.no_grad()
def test_blocks_are_read_as_the_decoder_reads_them(teacher):
    config = ModelConfig(vocab_size=50, d_model=D_MODEL, decoder=dataclasses.replace(WINDOWS, n_layers=2))
    decoder = Decoder(config).eval()
    tokens, memory = torch.randint(50, (2, 6)), torch.randn(2, 9, D_MODEL)
    lengths, places = torch.tensor([6, 4]), torch.randint(9, (2, 6))
    state = decoder.read_memory(memory, torch.tensor([9, 5]))
    expected, _ = decoder(tokens, lengths, state, places)
    found, outputs = read_blocks(decoder, tokens, lengths, memory, torch.tensor([9, 5]), places)
    close(found, expected)
    close(decoder.out_proj(decoder.norm(outputs[-1])), expected)


def test_utterances_are_heard_once(data, tmp_path):
    run = DecoderDistillation(settings(data), tmp_path / "run")
    assert len(run.train_set) == 2
    for said in run.train_set:
        assert said.states.dtype == torch.float16 and said.states.shape[1] == D_MODEL
        assert len(said.places) == len(said.tokens) + 1
        assert said.places == sorted(said.places) and said.places[-1] >= len(said.states) - LEAD
        assert said.characters == len(run.tokenizer.decode(said.tokens))
        assert run.teacher.read(said.tokens) == (said.ids, said.shared) and said.shared


@torch.no_grad()
def test_a_teacher_that_hears_its_own_encoder(data, teacher, tmp_path):
    """Each recording in a window of 30 s of its own, and of that the states that are not padding."""
    run = DecoderDistillation(settings(data, teacher_hears="own"), tmp_path / "run")
    logmel = LogMel(FeatureConfig(normalisation="whisper", n_mels=N_MELS))
    spoken, whisper = read_manifests([str(data / "train.jsonl")]), run.teacher.reader.vocabulary
    batch = collate(run.train_set, run.device)
    taught = run._taught(batch)
    at = 0
    for said, utterance in zip(run.train_set, spoken, strict=True):
        waveform = torch.from_numpy(load_audio(utterance.audio))
        window = torch.nn.functional.pad(waveform, (0, 30 * 16_000 - len(waveform)))[None]
        states = teacher.encoder(logmel(window, torch.tensor([window.shape[1]]))[0])[0][0]
        count = math.ceil(len(waveform) / 320)
        assert said.own.dtype == torch.float16 and said.own.shape == (count, D_MODEL)
        close(said.own, states[:count].half())
        prompted = torch.tensor([[*whisper.prompt, *said.ids]])
        logits, _ = teacher.decoder(prompted, teacher.decoder.read_memory(said.own.float()[None]))
        theirs = [len(whisper.prompt) - 1 + place for _, place in said.shared]
        wanted = run.teacher.reader.interpreter(logits[0, theirs].to(run.device))
        close(taught.expectation.probabilities[at : at + len(theirs)], wanted)
        last = taught.outputs[-1][at : at + len(theirs)].cpu()
        close(teacher.decoder.ln(last) @ teacher.decoder.token_embedding.weight.mT, logits[0, theirs])
        at += len(theirs)
    assert at == len(taught.expectation.probabilities) > 0
    unread = run.train_set[1]._replace(ids=[], shared=[])
    batch = collate([unread, run.train_set[0]], run.device)
    assert batch.own.shape[:1] == batch.own_lengths.shape == (1,) and batch.own_lengths[0] == len(run.train_set[0].own)
    assert collate([unread], run.device).own is None
    many = [torch.randn(count) for count in (480_001, *range(4_000, 4_010))]  # more than a window, and than a batch
    heard = run.teacher.listen(many, bf16=False)
    assert [len(each) for each in heard] == [1500, 13, *[13] * 9]
    close(heard[9], run.teacher.listen(many[9:10], bf16=False)[0], 1e-2)
    close(heard[9], run.teacher.listen(many[9:10], bf16=True)[0], 0.2)
    with pytest.raises(ValueError, match=r"max_duration \(31\) must be at most 30 with teacher_hears own"):
        DecoderDistillation(settings(data, teacher_hears="own", max_duration=31.0), tmp_path / "long")


def test_pieces_give_a_new_decoder_with_other_tokens(data, tmp_path, clock):
    start = distil_decoder(settings(data, minutes=1 / 16), tmp_path / "a")
    (tmp_path / "pieces.model").write_bytes((data / "own" / "tokenizer.model").read_bytes())
    config = settings(data, model=str(start), pieces=str(tmp_path / "pieces.model"), vocab_size=45, layers=[0, 1])
    (old, before), pieces = load_checkpoint(start), load_checkpoint(data / "own")[1]
    save_config(start, dataclasses.replace(old.config, words=WordConfig(0.1, 0.2, 0.3, 0.4)))
    run = DecoderDistillation(config, tmp_path / "b")
    assert PIECES < run.tokenizer.vocab_size <= 45 < before.vocab_size and len(run.decoder.blocks) == 2
    assert run.model.config.words == WordConfig(0.1, 0.2)  # confidence was the old decoder's
    assert run.tokenizer.pieces()[:PIECES] == pieces.pieces()
    for key, value in old.state_dict().items():
        if not key.startswith(("decoder.", "spellings")):
            assert torch.equal(run.model.state_dict()[key], value), key
    run.train()
    trained, _ = load_checkpoint(tmp_path / "b" / "checkpoint")
    assert trained.config == run.model.config and torch.equal(trained.spellings, run.model.spellings)
    run = DecoderDistillation(config, tmp_path / "b")
    fresh = DecoderDistillation(dataclasses.replace(config, model=str(data / "own")), tmp_path / "c")
    assert fresh.tokenizer.model_proto == run.tokenizer.model_proto
    assert torch.equal(fresh.decoder.embedding.weight, run.decoder.embedding.weight)
    assert torch.equal(fresh.model.spellings, run.model.spellings)
    with pytest.raises(ValueError, match=rf"pieces .* must hold the {PIECES} pieces of the model's CTC head"):
        DecoderDistillation(dataclasses.replace(config, pieces=str(start / "tokenizer.model")), tmp_path / "d")
    with pytest.raises(FileNotFoundError):
        DecoderDistillation(dataclasses.replace(config, pieces=str(tmp_path / "absent")), tmp_path / "d")


def test_of_what_the_teacher_cannot_read_only_the_transcript_is_learnt(data, tmp_path):
    run = DecoderDistillation(settings(data), tmp_path / "run")
    first, second = run.train_set
    unread = second._replace(ids=[], shared=[])
    batch = collate([first, unread], run.device)
    assert batch.ids == [first.ids] and batch.read.tolist() == [0]
    assert batch.shared.tolist() == [[0, ours, 0, theirs] for ours, theirs in first.shared]
    assert batch.shared.shape == (len(first.shared), 4)
    batch = collate([unread, first], run.device)
    assert batch.read.tolist() == [1] and batch.shared.tolist() == [[1, i, 0, j] for i, j in first.shared]
    assert run.losses(collate([unread], run.device)).keys() == {"ce"}
    run._learn(run.losses(collate([unread], run.device)))
    found = run.measure([unread])
    assert found.nats > 0 and (found.right, found.teacher_right) == (0, 0)


@pytest.mark.parametrize(("name", "kind"), [("plain", "mamba2"), ("own", "mamba2"), ("plain", "s4d")])
def test_the_decoder_learns_and_the_rest_stays(data, tmp_path, clock, name, kind):
    mixer = dataclasses.replace(MIXER, kind=kind)
    run = DecoderDistillation(settings(data, model=str(data / name), mixer=mixer), tmp_path / "run")
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    batch = collate(run.train_set, run.device)
    with torch.no_grad():
        first = run.losses(batch)
    before_it = run.measure(run.train_set)
    run.train()
    run.step = 0  # the same draws
    with torch.no_grad():
        last = run.losses(batch)
    assert last["kl"] < 0.8 * first["kl"] and last["hidden"] < first["hidden"]
    after = run.measure(run.train_set)
    assert after.nats < before_it.nats and after.teacher_right == before_it.teacher_right
    for key, value in run.model.state_dict().items():
        moved = key.startswith("decoder.") and "memory_norm" not in key
        assert torch.equal(value, before[key]) != moved, key


@pytest.mark.parametrize(
    ("count", "copied", "followed"),
    [(4, [0, 3], [1, 3]), (4, [0, 2, 3], [0, 2, 3]), (4, [3], [3]), (4, [0], [3]), (6, [3, 5], [3, 5])],
)
def test_which_of_the_teachers_outputs_is_followed(count, copied, followed):
    """Evenly spread ones, but none before the layer that a block began as."""
    assert followed_layers(count, copied) == followed


@torch.no_grad()
@pytest.mark.parametrize("hears", ["student", "own"])
def test_padding_in_a_batch_changes_nothing(data, tmp_path, hears):
    run = DecoderDistillation(settings(data, teacher_hears=hears), tmp_path / "run")
    apart = [run.measure([said]) for said in run.train_set]
    together = run.measure(run.train_set)
    for name, count in (
        ("nats", lambda said: said.characters),
        ("right", lambda said: len(said.shared)),
        ("teacher_right", lambda said: len(said.shared)),
    ):
        shares = torch.tensor([count(said) for said in run.train_set]).double()
        expected = (torch.tensor([getattr(found, name) for found in apart]).double() * shares).sum() / shares.sum()
        assert getattr(together, name) == pytest.approx(float(expected), rel=1e-4)


def test_the_checkpoint_is_a_whole_model(data, tmp_path, clock, clips):
    folder = distil_decoder(settings(data), tmp_path / "run")
    model, tokenizer = load_checkpoint(folder)
    old, pieces = load_checkpoint(data / "own")
    config = model.config
    assert PIECES < config.vocab_size == tokenizer.vocab_size <= 60
    assert tokenizer.pieces()[:PIECES] == pieces.pieces()
    assert (config.ctc.vocab_size, config.ctc.n_layers) == (PIECES, 1)
    assert config.decoder == WINDOWS and config.ctc.longest_spelling == model.spellings.shape[1] > 1
    for key, value in old.state_dict().items():
        if not key.startswith("decoder."):
            assert torch.equal(model.state_dict()[key], value), key
    for search in ("ctc", "joint"):
        assert isinstance(Transcriber.load(folder, search=search).transcribe(clips[0][0]).text, str)
    card = (folder / "README.md").read_text()
    assert "teacher.pt" in card and "train.jsonl" in card and "text.txt" in card


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data, tmp_path, clock):
    config = settings(data)
    whole = load_checkpoint(distil_decoder(config, tmp_path / "whole"))[0].state_dict()
    clock(interrupt_at=15)
    with pytest.raises(KeyboardInterrupt):
        distil_decoder(config, tmp_path / "cut")
    clock()
    resumed = load_checkpoint(distil_decoder(config, tmp_path / "cut", resume=True))[0].state_dict()
    assert json.loads((tmp_path / "cut" / "config.json").read_text()) == dataclasses.asdict(config)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    with pytest.raises(ValueError, match=r"state.pt was made for other tokens: model, pieces, train, texts and"):
        distil_decoder(dataclasses.replace(config, vocab_size=42), tmp_path / "cut", resume=True)
    with pytest.raises(ValueError, match=r"state.pt is of another student"):
        distil_decoder(dataclasses.replace(config, layers=[0, 1]), tmp_path / "cut", resume=True)


def test_training_and_distillation_go_on_from_it(data, tmp_path, clock):
    """From the command line to a checkpoint, to train.py, and back."""
    files = {"model": "plain", "teacher": "teacher.pt", "teacher_tokenizer": "tokenizer.json"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(data / file))]
    words += ["--train", f"[{data / 'train.jsonl'}]", "--dev", f"[{data / 'dev.jsonl'}]", "--vocab_size", "60"]
    words += ["--layers", "[0,1]", "--minutes", "0.1", "--bf16", "false", "--out", str(tmp_path / "a")]
    assert main_decoder(words) == 0
    start = tmp_path / "a" / "checkpoint"
    model, tokenizer = load_checkpoint(start)
    config = TrainingConfig(
        data=DataConfig(str(data / "train.jsonl"), str(data / "dev.jsonl"), str(start / "tokenizer.model"), 30.0),
        model=model.config,
        init_from=str(start),
        max_steps=1,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=0))
    train(config, tmp_path / "b", False, ["train.py"])
    trained = tmp_path / "b" / "checkpoint"
    run = DecoderDistillation(settings(data, model=str(trained), vocab_size=7), tmp_path / "c")
    assert run.tokenizer.model_proto == tokenizer.model_proto
    for key, value in load_checkpoint(trained)[0].state_dict().items():
        assert torch.equal(run.model.state_dict()[key], value), key
    assert run.followed == [0, 1]
    (trained / "lexicon.txt").write_text("word\n", encoding="utf-8")
    run.train()
    assert load_checkpoint(tmp_path / "c" / "checkpoint")[0].config == model.config
    assert (tmp_path / "c" / "checkpoint" / "lexicon.txt").read_text(encoding="utf-8") == "word\n"


@pytest.mark.parametrize("share", ["copied_share", "embedding_share"])
def test_what_was_copied_learns_at_its_share(data, tmp_path, clock, share):
    """At none it stays as it was, and the rest learns."""
    run = DecoderDistillation(settings(data, **{share: 0.0}), tmp_path / "run")
    before = {name: value.clone() for name, value in run.decoder.state_dict().items()}
    run.train()
    stayed = {name for name, value in run.decoder.state_dict().items() if torch.equal(value, before[name])}
    embedding, window = {"embedding.weight", "out_proj.weight"}, "blocks.0.cross."
    new = {name for name in before if name.startswith(("blocks.0.mixer", f"{window}kernel", f"{window}salience"))}
    norm = {"memory_norm.weight", "memory_norm.bias"}
    frozen = embedding if share == "embedding_share" else before.keys() - embedding - new
    assert stayed - new == frozen | norm


def test_gradients_that_are_never_finite_end_the_run(data, tmp_path, clock):
    run = DecoderDistillation(settings(data, minutes=10.0), tmp_path / "run")
    with torch.no_grad():
        run.decoder.blocks[0].mixer.in_proj.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"not finite 20 times in a row, at step 19: lower learning_rate"):
        run.train()


def test_settings_that_cannot_be_used_are_told(data):
    for name in ("minutes", "batch_states", "learning_rate", "validate_minutes", "vocab_size", "window_after"):
        with pytest.raises(ValueError, match=rf"{name} \(0\) must be positive"):
            settings(data, **{name: 0})
    for name in ("window_before", "hidden_weight"):
        with pytest.raises(ValueError, match=rf"{name} \(-1\) must not be negative"):
            settings(data, **{name: -1})
    for name in ("copied_share", "embedding_share", "state_dropout"):
        with pytest.raises(ValueError, match=rf"{name} \(1.5\) must be in"):
            settings(data, **{name: 1.5})
    for layers in ([], [3, 0], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="must be numbers from 0 on, each once, in order"):
            settings(data, layers=layers)
    with pytest.raises(ValueError, match="at least one manifest"):
        settings(data, dev=[])
    with pytest.raises(ValueError, match=r"mixer.kind \('hydra'\) hears what comes later"):
        settings(data, mixer=MixerConfig(kind="hydra"))


def test_files_that_cannot_be_used_are_told(data, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty: continue its run with --resume true"):
        distil_decoder(settings(data), tmp_path / "full")
    with pytest.raises(ValueError, match=r"vocab_size \(40\) must be above"):
        distil_decoder(settings(data, vocab_size=40), tmp_path / "few")
    with pytest.raises(ValueError, match="no utterance to learn from"):
        distil_decoder(settings(data, max_duration=0.3), tmp_path / "short")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"texts: .*latin is not UTF-8 text"):
        distil_decoder(settings(data, texts=[str(tmp_path / "latin")]), tmp_path / "text")
    _, tokenizer = load_checkpoint(data / "plain")
    sizes = {"vocab_size": tokenizer.vocab_size, "encoder": ENCODER, "search": SearchConfig("ctc")}
    for name, model, says in (
        ("narrow", ModelConfig(d_model=32, decoder=OLD, **sizes), r"d_model \(32\) must be the width of the teacher"),
        ("spelt", ModelConfig(d_model=D_MODEL, decoder=OLD, ctc=CTCConfig(0, 30), **sizes), "does not listen by win"),
    ):
        save_checkpoint(tmp_path / name, SambaASR(model), tokenizer, "")
        with pytest.raises(ValueError, match=says):
            distil_decoder(settings(data, model=str(tmp_path / name)), tmp_path / "none")
    assert not (tmp_path / "none").exists()
