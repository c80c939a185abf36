"""A GPU gives what the CPU gives, beyond rounding: run by hand with -m gpu."""

import pytest
import torch
from model_fixture import CONFIG

from samba_asr.audio.augment import SpecAugment
from samba_asr.audio.load import load_audio
from samba_asr.config import SearchConfig
from samba_asr.decoding.search import search_tokens
from samba_asr.model.alignment import align
from samba_asr.model.asr import SambaASR
from samba_asr.transcriber import Transcriber

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
]


@pytest.fixture
def batch(clips):
    waveforms = [torch.from_numpy(load_audio(path)) for path, _ in clips[:4]]
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


def test_loss_and_gradients(batch):
    model = SambaASR(CONFIG).eval()
    tokens, token_lengths = torch.randint(4, 40, (4, 9)), torch.tensor([9, 3, 7, 1])

    def gradients(device):
        model.to(device).zero_grad()
        features, lengths = model.features(*(tensor.to(device) for tensor in batch))
        loss = model.loss(features, lengths, tokens.to(device), token_lengths.to(device)).total
        loss.backward()
        return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters()}

    loss, expected = gradients("cpu")
    gpu_loss, found = gradients("cuda")
    assert gpu_loss == pytest.approx(loss, rel=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()) + 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("search", ["ctc", "autoregressive", "rescoring", "joint"])
def test_searches(batch, search):
    model = SambaASR(CONFIG).eval().double()
    texts = []
    for device in ("cpu", "cuda"):
        features, lengths = model.to(device).features(*(tensor.to(device) for tensor in batch))
        states = model.encode_features(features.double(), lengths)
        texts.append(search_tokens(model, *states, SearchConfig(search)))
    assert texts[0] == texts[1]


def test_bfloat16_training_step_is_close(batch):
    model = SambaASR(CONFIG).cuda().eval()
    features, lengths = model.features(*(tensor.cuda() for tensor in batch))
    text = torch.randint(4, 40, (4, 9)).cuda(), torch.tensor([9, 3, 7, 1]).cuda()
    full = model.loss(features, lengths, *text).total
    with torch.autocast("cuda", torch.bfloat16):
        half = model.loss(features, lengths, *text).total
    half.backward()
    assert half.item() == pytest.approx(full.item(), rel=0.03)


def test_transcripts(tiny_checkpoint, quilter):
    texts = {device: Transcriber.load(tiny_checkpoint, device=device).transcribe(quilter) for device in ("cpu", "cuda")}
    assert texts["cuda"].text
    assert texts["cuda"].duration == texts["cpu"].duration


def test_masks_and_alignments():
    features, lengths = torch.randn(3, 300, 80), torch.tensor([300, 0, 120])
    masked = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(4)
        masked.append(SpecAugment()(features.to(device), lengths.to(device)).cpu())
    torch.testing.assert_close(*masked)
    log_probs, texts = features.log_softmax(-1), [[4, 5, 5, 6] * 9, [7], [8, 9] * 30]
    expected, found = (align(log_probs.to(device), lengths.tolist(), texts) for device in ("cpu", "cuda"))
    as_lists = [[None if row is None else row.tolist() for row in firsts] for firsts in (expected, found)]
    assert as_lists[0] == as_lists[1]
