"""The encoder as a stream, against the same chunks of the whole recording at once."""

from dataclasses import replace

import pytest
import torch
from model_fixture import CONFIG, MIXER
from torch.testing import assert_close

from samba_asr.audio.load import load_audio
from samba_asr.config import CTCConfig, FeatureConfig, MixerConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.pretrained import PRETRAINED
from samba_asr.model.streaming import Chunks, EncoderStream
from samba_asr.ssm.hydra import Hydra, centred_conv1d

RATE = 16_000
MIXERS = {
    "mamba2": MIXER,
    "groups": replace(MIXER, groups=2),
    "a group a head": replace(MIXER, groups=0, d_conv=2),
    "odd sizes": MixerConfig(d_state=5, head_dim=8),
    "mamba": MixerConfig(kind="mamba", d_state=8),
    "s4d": MixerConfig(kind="s4d", d_state=8),
    "hydra": replace(MIXER, kind="hydra"),
    "grouped hydra": replace(MIXER, kind="hydra", groups=2, d_conv=3),
}
STEMS = ["conv4x", "whisper", "whisper4x", "whisper8x"]


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(PRETRAINED / "samba-tiny-en")[0].eval()


@pytest.fixture(scope="module")
def speech(clips):
    """Some seconds of real speech, (samples,)."""
    return torch.from_numpy(load_audio(clips[0][0]))


def random_model(mixer=MIXER, stem="whisper4x", shared=False, ctc_layers=1, features=None):
    """A model whose every parameter and statistic matters."""
    encoder = replace(CONFIG.encoder, mixer=mixer, subsampling=stem, shared_projections=shared)
    ctc = CTCConfig(n_layers=ctc_layers)
    config = replace(CONFIG, encoder=encoder, ctc=ctc, features=features or CONFIG.features)
    model = SambaASR(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "D")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    bands = config.features.n_mels
    model.features.set_statistics(torch.linspace(-3, 1, bands), torch.linspace(0.5, 2, bands))
    return model


@torch.inference_mode()
def whole(model, samples, chunk):
    """What the functions for whole recordings give."""
    features, lengths = model.features(samples[None], torch.tensor([len(samples)]))
    encoder_out, lengths = model.encode_features(features, lengths, chunk)
    return Chunks(encoder_out[0], model.ctc_log_probs(encoder_out, lengths, chunk)[0])


def streamed(model, samples, chunk, block=None, ahead=0):
    """What a stream gives in the end."""
    stream = EncoderStream(model, chunk, ahead)
    found = [stream.feed(part) for part in samples.split(block or max(len(samples), 1))] + [stream.finish()]
    assert not len(stream.finish().log_probs)
    return Chunks(*map(torch.cat, zip(*found, strict=True)))


def check(model, samples, chunk):
    found = streamed(model, samples, chunk)
    assert found.log_probs.dtype == torch.float32
    check_close(found, whole(model, samples, chunk))


def check_close(found, expected):
    for each, other in zip(found, expected, strict=True):
        assert each.shape == other.shape
        if len(other):
            assert_close(each, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_the_shipped_model_says_in_a_stream_what_it_says_at_once(shipped, speech, chunk):
    check(shipped, speech[: 3 * RATE] if chunk == 1 else speech, chunk)


@pytest.mark.parametrize("chunk", [1, 5, 40])
@pytest.mark.parametrize("ctc_layers", [0, 1])
@pytest.mark.parametrize("stem", STEMS)
def test_all_stems(speech, stem, ctc_layers, chunk):
    check(random_model(stem=stem, ctc_layers=ctc_layers), speech[: 3 * RATE + 77], chunk)


@pytest.mark.parametrize("chunk", [1, 5, 40])
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_all_mixers(speech, mixer, chunk):
    check(random_model(mixer), speech[: 3 * RATE + 77], chunk)


@pytest.mark.parametrize("kind", ["mamba2", "mamba", "s4d"])
def test_shared_projections(speech, kind):
    check(random_model(MIXERS[kind], shared=True), speech[: 3 * RATE], 6)


def hydra_block(block, heard, start, end, convolved):
    """What comes out of a block, and its convolution up to the end of a chunk: there, its own chunk's frames have heard
    no more than the chunk did, and that is what the forward scan goes over later."""
    mixer = block.mixer
    z, mixed, steps = mixer._split(mixer.in_proj(block.norm(heard)))
    mixed = centred_conv1d(mixed, mixer.conv1d.weight, mixer.conv1d.bias)
    mixed = mixed if convolved is None else torch.cat([convolved, mixed[:, start:]], 1)
    x = heard + mixer._gated(mixer._before(mixed, steps, None)[0] + mixer._after(mixed, steps, None, None), mixed, z)
    return x + block.ff(x), mixed[:, :end]


@torch.inference_mode()
def with_ahead(model, samples, chunk, ahead):
    """What chunks say that hear some states of the next one. A block hears what the one before it has made of all
    chunks so far, and of the window that this chunk hears, as if nothing came after it."""
    features, lengths = model.features(samples[None], torch.tensor([len(samples)]))
    x, _ = model.encoder.subsampling(features, lengths)
    blocks = [*model.encoder.blocks, *model.ctc_blocks]
    done = [x[:, :0] for _ in range(len(blocks) + 1)]
    convolved = [None] * len(blocks)
    for start in range(0, x.shape[1], chunk):
        window = x[:, start : start + chunk + ahead]
        for layer, block in enumerate(blocks):
            heard = torch.cat([done[layer], window], 1)
            done[layer] = torch.cat([done[layer], window[:, :chunk]], 1)
            if isinstance(block.mixer, Hydra):
                heard, convolved[layer] = hydra_block(block, heard, start, start + chunk, convolved[layer])
            else:
                heard, _ = block(heard, torch.tensor([heard.shape[1]]))
            window = heard[:, start:]
        done[-1] = torch.cat([done[-1], window[:, :chunk]], 1)
    encoder_out = model.encoder.norm(done[len(model.encoder.blocks)])
    return Chunks(encoder_out[0], model.ctc_head(model.ctc_norm(done[-1]))[0].log_softmax(-1))


@pytest.mark.parametrize(("chunk", "ahead"), [(6, 0), (6, 2), (6, 6), (4, 9), (10, 30), (200, 5)])
@pytest.mark.parametrize("mixer", ["mamba2", "groups", "mamba", "s4d", "hydra", "shared"])
def test_a_chunk_may_hear_what_comes_next(speech, mixer, chunk, ahead):
    model = random_model(MIXERS.get(mixer, MIXER), shared=mixer == "shared")
    samples = speech[: 2 * RATE + 99]
    found, expected = streamed(model, samples, chunk, ahead=ahead), with_ahead(model, samples, chunk, ahead)
    check_close(found, expected)
    for block in (333, 5000):
        assert all(map(torch.equal, streamed(model, samples, chunk, block, ahead), found))


@pytest.mark.parametrize(
    "features",
    [
        FeatureConfig(normalisation="global"),
        FeatureConfig(n_fft=512, win_length=320),
        FeatureConfig(n_fft=401, win_length=401),
        FeatureConfig(n_fft=120, win_length=120, n_mels=20),
        FeatureConfig(sample_rate=8_000, n_fft=800, win_length=200, hop_length=80),
    ],
    ids=["global", "512", "odd", "shorter than a hop", "ten hops"],
)
@pytest.mark.parametrize("stem", ["conv4x", "whisper"])
def test_other_features(speech, features, stem):
    for chunk in (1, 9):
        check(random_model(stem=stem, features=features), speech[:RATE], chunk)


@pytest.mark.parametrize("stem", STEMS)
def test_every_length(stem):
    """Around the ends of windows, frames, states and chunks, and of what a chunk waits for."""
    model = random_model(stem=stem)
    border = 2 * model.config.encoder.subsampling_factor * 160
    around = (-161, -160, -1, 0, 1, 39, 40, 41, 160, 199, 200, 201, 361)
    samples = torch.randn(2 * border + 361) * 0.1
    for length in [1, 2, 40, 159, 160, 161, 199, 200, 201, 202, 319, 320, 321, 401]:
        check(model, samples[:length], 2)
    for length in [border * chunks + more for chunks in (1, 2) for more in around]:
        check(model, samples[:length], 2)


def test_no_samples(shipped):
    stream = EncoderStream(shipped, 16)
    for found in (stream.feed(torch.zeros(0)), stream.finish(), stream.finish()):
        assert (found.encoder_out.shape, found.log_probs.shape) == ((0, 384), (0, 256))


@pytest.mark.parametrize("name", ["shipped", *STEMS, "hydra"])
def test_blocks_of_any_size_change_no_bit(shipped, speech, name):
    model = shipped
    if name != "shipped":
        model = random_model(stem=name) if name in STEMS else random_model(MIXERS[name])
    samples = speech[: 2 * RATE + 3]
    expected = streamed(model, samples, 8)
    sizes = torch.randint(0, 3000, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    stream, start, found = EncoderStream(model, 8), 0, []
    for size in [*sizes, len(samples)]:
        found.append(stream.feed(samples[start : start + size]))
        start += size
    uneven = Chunks(*map(torch.cat, zip(*found, stream.finish(), strict=True)))
    for each in (uneven, *(streamed(model, samples, 8, block) for block in (7, 160, 1601, 5121))):
        assert all(map(torch.equal, each, expected))


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("stem", ["conv4x", "whisper8x"])
def test_a_chunk_comes_as_soon_as_it_can(stem, ahead):
    """With the sample that completes what it waits for, and not before; the next ones change none of it."""
    model = random_model(stem=stem)
    stream = EncoderStream(model, 3, ahead)
    state = model.config.encoder.subsampling_factor * 160
    size = 3 * state
    assert stream.lookahead_samples == ahead * state + (40 if stem == "conv4x" else 200)
    samples = torch.randn(3 * size + 200)
    start = 0
    for chunk in (1, 2):
        end = chunk * size + stream.lookahead_samples
        assert not len(stream.feed(samples[start : end - 1]).encoder_out)
        assert len(stream.feed(samples[end - 1 : end]).encoder_out) == 3
        start = end


def test_what_is_kept_is_little_and_stays_so(shipped, speech):
    stream = EncoderStream(shipped, 16)
    before = stream.state_bytes
    sizes = set()
    for block in speech.split(1000):
        stream.feed(block)
        sizes.add(stream.state_bytes)
    assert sizes == {before} and before < 4e6
    kept = [value for value in vars(stream).values() if isinstance(value, torch.Tensor)]
    assert sum(value.untyped_storage().nbytes() for value in kept if value is not stream._weight) <= before


def test_results_are_the_callers_own(shipped, speech):
    """What comes later writes nowhere into what has been returned."""
    stream = EncoderStream(shipped, 16)
    first = stream.feed(speech[: 2 * RATE])
    copies = [tensor.clone() for tensor in first]
    stream.feed(speech[2 * RATE :])
    stream.finish()
    assert all(map(torch.equal, first, copies))


def test_two_streams_of_one_model_share_nothing(shipped, speech):
    one, other = EncoderStream(shipped, 16), EncoderStream(shipped, 16)
    found = []
    for block in speech.split(9999):
        found.append(one.feed(block))
        other.feed(torch.randn(5000))
    found.append(one.finish())
    together = Chunks(*map(torch.cat, zip(*found, strict=True)))
    assert all(map(torch.equal, together, streamed(shipped, speech, 16)))


def test_what_cannot_be(shipped):
    for chunk in (0, -3):
        with pytest.raises(ValueError, match=rf"chunk \({chunk}\) must be a positive number of states"):
            EncoderStream(shipped, chunk)
    with pytest.raises(ValueError, match=r"ahead \(-1\) must not be negative"):
        EncoderStream(shipped, 16, -1)
    with pytest.raises(ValueError, match=r"normalisation \('whisper'\) needs the loudest frame"):
        EncoderStream(random_model(features=FeatureConfig(normalisation="whisper")), 16)
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        EncoderStream(random_model().train(), 16)
    stream = EncoderStream(shipped, 16)
    for samples in (torch.zeros(1, 5), torch.zeros(5, dtype=torch.int16)):
        with pytest.raises(ValueError, match=r"samples of shape .* must be \(samples,\), floats in \[-1, 1\]"):
            stream.feed(samples)
    stream.finish()
    with pytest.raises(ValueError, match="has been finished"):
        stream.feed(torch.zeros(5))
