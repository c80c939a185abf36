"""The teacher's decoder reads along: what it expects of the student's states, and of its own encoder's."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from distil_cases import D_MODEL, N_LAYERS, N_TOKENS, close, teacher_weights, utterances
from test_whisper_matching import batch_of, clip_waveforms, run  # noqa: F401  # a fixture
from test_whisper_tokens import MERGES
from test_whisper_vocabulary import write_vocabulary
from whisper_cases import write_openai

from samba_asr.config import DecoderConfig
from samba_asr.model.asr import SambaASR
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import UNK_ID, Tokenizer
from samba_asr.training.callbacks import list_checkpoints, read_metrics
from samba_asr.training.config import DataConfig, EncoderTuningConfig, OptimiserConfig, TrainingConfig
from samba_asr.training.data import Example, collate
from samba_asr.training.manifest import write_manifest
from samba_asr.training.module import TrainingModule
from samba_asr.training.resume import read_checkpoint
from samba_asr.training.run import train
from samba_asr.training.whisper import reading as module
from samba_asr.training.whisper.matching import LiveMatching
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.reading import Expectation, Reader, divergence_from
from samba_asr.training.whisper.vocabulary import WhisperVocabulary

VOCAB_SIZE = 300


@pytest.fixture(scope="module")
def folder(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    write_vocabulary(folder / "tokenizer.json", merges=MERGES)
    Tokenizer.train([normalize_for_training(text) for _, text in clips], 48).save(folder / "tokenizer.model")
    write_openai(folder / "teacher.pt", teacher_weights(VOCAB_SIZE=VOCAB_SIZE))
    return folder


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(teacher_weights(VOCAB_SIZE=VOCAB_SIZE))


@pytest.fixture(scope="module")
def reader(folder, teacher):
    vocabulary = WhisperVocabulary.load(folder / "tokenizer.json")
    return Reader(teacher.decoder.requires_grad_(), vocabulary, Tokenizer.load(folder / "tokenizer.model"))


def expected(teacher, reader, states, text):
    """What the teacher's decoder itself says after each token of one text, log-probabilities in float64."""
    prompt = reader.vocabulary.prompt
    ids = torch.tensor([[*prompt, *text]])
    logits, _ = teacher.decoder(ids, teacher.decoder.read_memory(states[None]))
    return logits[0, len(prompt) - 1 :].double().log_softmax(-1)


def divergence(teacher, reader, said, taught, text):
    """Summed over a text and its end."""
    ours, theirs = (expected(teacher, reader, states, text) for states in (said, taught))
    return (theirs.exp() * (theirs - ours)).sum().item()


@pytest.mark.parametrize("at_once", [4, 2048])
def test_the_divergence_is_that_of_each_text_alone(reader, teacher, monkeypatch, at_once):
    """A text that cannot be read and an utterance without states count nothing; two views are averaged."""
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", at_once)
    texts = [reader.vocabulary.encode(" the king"), [], reader.vocabulary.encode(" a ring of the inn"), [7, 8]]
    lengths = torch.tensor([9, 4, 14, 0])
    torch.manual_seed(0)
    said, taught = torch.randn(8, 14, D_MODEL, requires_grad=True), torch.randn(4, 14, D_MODEL)
    found, _, read = reader(said, taught, lengths, texts)
    assert read == [0, 2]
    rows = [(view, row) for view in (0, 4) for row in (0, 2)]
    sums = [
        divergence(teacher, reader, said[view + row, : lengths[row]], taught[row, : lengths[row]], texts[row])
        for view, row in rows
    ]
    tokens = sum(len(texts[row]) + 1 for _, row in rows)
    assert found.item() == pytest.approx(sum(sums) / tokens, rel=1e-4)
    assert found > 0.1
    found.backward()
    for row, length in enumerate([9, 0, 14, 0] * 2):
        assert bool(said.grad[row, :length].any()) == bool(length)
        assert not said.grad[row, length:].any()
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in reader.parameters())


def test_the_gradient_leads_to_the_teacher_s_states(reader):
    """It is 0 there, and from elsewhere the divergence falls."""
    text = [reader.vocabulary.encode(" the king of the ring")]
    lengths = torch.tensor([12])
    torch.manual_seed(1)
    taught = torch.randn(1, 12, D_MODEL)
    assert reader(taught, taught, lengths, text).divergence.item() == pytest.approx(0.0, abs=1e-6)
    said = (taught + 0.3 * torch.randn_like(taught)).requires_grad_()
    optimiser = torch.optim.Adam([said], lr=1e-2)
    divergences = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = reader(said, taught, lengths, text).divergence
        loss.backward()
        optimiser.step()
        divergences.append(loss.item())
    assert divergences[-1] < 0.2 * divergences[0]


def test_in_half_precision_sums_are_float32(reader):
    texts = [reader.vocabulary.encode(" the king of the ring")]
    lengths = torch.tensor([12])
    torch.manual_seed(2)
    said, taught = torch.randn(1, 12, D_MODEL, requires_grad=True), torch.randn(1, 12, D_MODEL)
    whole = reader(said, taught, lengths, texts).divergence
    with torch.autocast("cpu", torch.bfloat16):
        half = reader(said, taught, lengths, texts).divergence
        (gradient,) = torch.autograd.grad(half, said)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)
    (expected_gradient,) = torch.autograd.grad(whole, said)
    assert F.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), 0) > 0.99


def test_what_it_expects_is_told_in_the_student_s_tokens(reader, teacher, folder):
    """Of the texts read, where both tokenizers have a boundary, from the teacher's states."""
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    said = ["the king", "", "a ring of the inn", "the ring"]
    tokens = [tokenizer.encode(text) for text in said]
    texts, lengths = [reader.read(row) for row in tokens], torch.tensor([9, 4, 14, 0])
    torch.manual_seed(3)
    states, taught = torch.randn(4, 14, D_MODEL), torch.randn(4, 14, D_MODEL)
    found = reader.expectation(reader(states, taught, lengths, texts), texts, tokens)
    positions = []
    for row in (0, 2):
        wanted = reader.interpreter(expected(teacher, reader, taught[row, : lengths[row]], texts[row]).float())
        for ours, theirs in reader.interpreter.shared(tokens[row], texts[row]):
            close(found.probabilities[len(positions)], wanted[theirs])
            positions.append((row, ours))
    assert list(zip(found.rows.tolist(), found.places.tolist(), strict=True)) == positions
    assert reader.expectation(reader(states, taught, lengths, texts), texts, [[UNK_ID]] * 4) is None


def test_the_divergence_from_what_is_expected():
    """Two views, against float64; where nothing is expected nothing is to be learnt."""
    torch.manual_seed(4)
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    rows, places = torch.tensor([0, 2, 2]), torch.tensor([4, 0, 3])
    wanted = torch.randn(3, 7).softmax(-1)
    wanted[1] = 0
    found = divergence_from(Expectation(rows, places, wanted), logits)
    said = logits[:, rows, places].double().log_softmax(-1)
    terms = wanted.double() * (wanted.double().clamp_min(1e-30).log() - said)
    assert found.item() == pytest.approx(terms.sum().item() / 6, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, logits)
    moved = {(row, place) for _, row, place, _ in gradient.nonzero().tolist()}
    assert moved == {(0, 4), (2, 3)}


def test_texts_are_read_in_the_teacher_s_tokens(reader, folder):
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    tokens = tokenizer.encode("the king")
    assert reader.read(tokens) == reader.vocabulary.encode(" the king")
    assert reader.read([]) == []
    assert reader.read([*tokens, UNK_ID]) == []
    one = tokenizer.encode("a")
    longest = N_TOKENS - len(reader.vocabulary.prompt)
    assert reader.vocabulary.encode(" a a") == 2 * reader.vocabulary.encode(" a")
    assert len(reader.read(one * longest)) == longest
    assert reader.read(one * (longest + 1)) == []
    assert reader(torch.zeros(1, 3, D_MODEL), torch.zeros(1, 3, D_MODEL), torch.tensor([3]), [[]]) is None


def test_listening_along_it_reads_what_both_say(run, clips, reader, teacher):  # noqa: F811
    """The student's states under the run's norm, in two views, and the teacher's, with the means of their places;
    nothing of the first utterance, which has no states, and of the second, given up for noise."""
    out, *_ = run
    matching = LiveMatching(out, teacher.encoder, 20.0, reader)
    waveforms, said = clip_waveforms(clips), [normalize_for_training(text) for _, text in clips]
    count, tokens = len(clips), [reader.tokenizer.encode(text) for text in said]
    tokens[1] = []
    batch = collate([Example(i, w, t) for i, (w, t) in enumerate(zip(waveforms, tokens, strict=True))])
    lengths = torch.tensor([0, *(-(-len(waveform) // 640) for waveform in waveforms[1:])])
    states = torch.randn(2 * count, int(lengths.max()), D_MODEL, requires_grad=True)
    torch.manual_seed(5)
    found = matching(states, lengths.repeat(2), batch)
    torch.manual_seed(5)
    taught = matching.targets(batch, range(1, count), lengths[1:])
    texts = [reader.vocabulary.encode(f" {text}") for text in said]
    sums = [
        divergence(
            teacher,
            reader,
            (matching.norm(states[view + row]) + taught.means[row - 1])[: lengths[row]],
            (taught.states[row - 1] + taught.means[row - 1])[: lengths[row]],
            texts[row],
        )
        for view in (0, count)
        for row in range(2, count)
    ]
    n_tokens = sum(len(text) + 1 for text in texts[2:])
    assert found.reading.item() == pytest.approx(sum(sums) / 2 / n_tokens, rel=1e-3)
    (gradient,) = torch.autograd.grad(found.reading, states)
    assert [bool(row.any()) for row in gradient] == 2 * [False, False, *[True] * (count - 2)]
    unspoken = batch_of(range(count), waveforms, [0] * count)
    torch.manual_seed(5)
    silent = matching(states, lengths.repeat(2), unspoken)
    assert silent.reading is None
    close(silent.states, found.states)
    assert found.expectation is None
    matching.interprets = True
    torch.manual_seed(5)
    told = matching(states, lengths.repeat(2), batch).expectation
    shared = [reader.interpreter.shared(tokens[row], texts[row]) for row in range(2, count)]
    expected_places = [(row, ours) for row, pairs in enumerate(shared, 2) for ours, _ in pairs]
    assert list(zip(told.rows.tolist(), told.places.tolist(), strict=True)) == expected_places
    torch.manual_seed(5)
    assert matching(states, lengths.repeat(2), unspoken).expectation is None


def reading_along(distilled, clips, folder, tmp_path, steps, changes=None, **tuning):
    """Settings of a run whose teacher reads the clips along; distilled: the fixture ``run``."""
    out, _, config = distilled
    write_manifest(tmp_path / "clips.jsonl", utterances(clips))
    manifest = str(tmp_path / "clips.jsonl")
    data = DataConfig(manifest, manifest, str(folder / "tokenizer.model"), 40.0, num_workers=0, dev_utterances=1)
    decoder = DecoderConfig(n_layers=1, d_ff=32, mixer=config.encoder.mixer)
    return TrainingConfig(
        data=dataclasses.replace(data, speed_factors=[1.0]),
        model=dataclasses.replace(
            config, encoder=dataclasses.replace(config.encoder, n_layers=N_LAYERS), decoder=decoder
        ),
        encoder=EncoderTuningConfig(
            weights=str(out / "encoder.safetensors"),
            teacher_run=str(out),
            teacher=str(folder / "teacher.pt"),
            teacher_tokenizer=str(folder / "tokenizer.json"),
            **tuning,
        ),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=2),
        max_steps=steps,
        average_last=1,
        accelerator="cpu",
        **(changes or {}),
    )


def test_training_lowers_what_the_decoder_expects(run, clips, folder, tmp_path):  # noqa: F811
    weights = {"teacher_weight": 0.5, "reading_weight": 3.0}
    settings = reading_along(run, clips, folder, tmp_path, 16, {"ctc_weight": 1.0}, **weights)
    tuning = settings.encoder
    train(settings, tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "loss" in row]
    for row in rows:
        assert row["loss"] == pytest.approx(row["ctc"] + 0.5 * row["teacher"] + 3.0 * row["reading"], rel=1e-4)
    assert rows[-1]["reading"] < rows[0]["reading"]
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    for line in (f"A teacher listened along: `{tuning.teacher}`", f"in the tokens of: `{tuning.teacher_tokenizer}`"):
        assert line in card
    state = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])["state_dict"]
    assert all(name.startswith("model.") for name in state)  # nothing of the teacher


def test_training_lowers_the_divergence_from_what_the_teacher_expects(run, clips, folder, tmp_path):  # noqa: F811
    """Also of transcripts with wrong tokens, heard twice."""
    changes = {"expectation_weight": 5.0, "consistency_weight": 0.2, "token_noise": 0.1}
    settings = reading_along(run, clips, folder, tmp_path, 12, changes)
    train(settings, tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "loss" in row]
    for row in rows:
        others = 0.3 * row["teacher"] + row["reading"] + 5.0 * row["expectation"] + 0.2 * row["consistency"]
        assert row["loss"] == pytest.approx(0.3 * row["ctc"] + 0.7 * row["decoder"] + others, rel=1e-4)
    assert rows[-1]["expectation"] < 0.9 * rows[0]["expectation"]


def test_the_teacher_is_told_the_tokens_that_the_decoder_has_to_say(run, clips, folder, monkeypatch):  # noqa: F811
    """Also where some are spelt, and once, not for each view."""
    _, _, config = run
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    model = SambaASR(dataclasses.replace(config, vocab_size=tokenizer.vocab_size, decoder=DecoderConfig(n_layers=1)))
    monkeypatch.setattr(model, "respell", lambda tokens, lengths, share: (tokens[:, :2], lengths.clamp_max(2)))
    told = []

    def matching(states, lengths, batch):
        told.append(batch)

    data = DataConfig("a.jsonl", "b.jsonl", "tokenizer.model")
    settings = TrainingConfig(data=data, model=model.config, spelt_share=0.5, consistency_weight=0.2)
    module = TrainingModule(settings, model, tokenizer, [], matching=matching)
    waveforms, tokens = clip_waveforms(clips)[:2], [[7, 8, 9], [5]]
    batch = collate([Example(i, w, t) for i, (w, t) in enumerate(zip(waveforms, tokens, strict=True))])
    module.losses(batch)
    (heard,) = told
    assert heard.tokens.tolist() == [[7, 8], [5, 0]] and heard.token_lengths.tolist() == [2, 1]
    assert heard.waveforms is batch.waveforms


def test_decoders_that_cannot_read_along(run, clips, folder, tmp_path, monkeypatch):  # noqa: F811
    out, _, config = run
    with pytest.raises(ValueError, match=r"encoder\.teacher_tokenizer \(t\.json\) needs encoder\.teacher, whose"):
        EncoderTuningConfig(teacher_run="run", teacher_tokenizer="t.json")
    with pytest.raises(ValueError, match=r"encoder\.reading_weight \(0\.0\) must be positive"):
        EncoderTuningConfig(reading_weight=0.0)
    data = DataConfig("a.jsonl", "b.jsonl", "tokenizer.model")
    with pytest.raises(
        ValueError, match=r"expectation_weight \(0\.5\) needs encoder\.teacher_tokenizer, whose teacher"
    ):
        TrainingConfig(data=data, expectation_weight=0.5)
    with pytest.raises(ValueError, match=r"expectation_weight \(-1\.0\) must not be negative"):
        TrainingConfig(data=data, expectation_weight=-1.0)
    small = build_teacher(teacher_weights(VOCAB_SIZE=200))
    vocabulary = WhisperVocabulary.load(folder / "tokenizer.json")
    with pytest.raises(ValueError, match=r"the vocabulary .* is not the teacher's, which has 200 ids"):
        Reader(small.decoder, vocabulary, Tokenizer.load(folder / "tokenizer.model"))
    write_manifest(tmp_path / "clips.jsonl", utterances(clips))
    manifest = str(tmp_path / "clips.jsonl")
    along = EncoderTuningConfig(
        teacher_run=str(out), teacher=str(folder / "teacher.pt"), teacher_tokenizer=str(folder / "tokenizer.json")
    )
    settings = TrainingConfig(
        data=DataConfig(manifest, manifest, str(folder / "tokenizer.model"), num_workers=0),
        model=config,
        encoder=along,
        accelerator="cpu",
    )
    absent = dataclasses.replace(along, teacher_tokenizer=str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist; name the tokenizer\.json of a Whisper"):
        train(dataclasses.replace(settings, encoder=absent), tmp_path / "absent")
    alone = {name: value for name, value in teacher_weights().items() if name.startswith("encoder.")}
    torch.save({"dims": {}, "model_state_dict": alone}, tmp_path / "encoder.pt")
    half = dataclasses.replace(along, teacher=str(tmp_path / "encoder.pt"))
    told = r"encoder\.teacher \(.*encoder\.pt\) cannot read with .*: these are not the weights of a whole Whisper model"
    with pytest.raises(ValueError, match=told):
        train(dataclasses.replace(settings, encoder=half), tmp_path / "half")
    monkeypatch.setitem(sys.modules, "samba_asr.training.whisper.vocabulary", None)
    with pytest.raises(ValueError, match=r"encoder\.teacher_tokenizer needs more packages .*'\.\[train,distil\]'"):
        train(settings, tmp_path / "without")
