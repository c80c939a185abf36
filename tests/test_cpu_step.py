"""One frame of a Mamba-2 mixer by native kernels against PyTorch in float64."""

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from samba_asr.config import MixerConfig
from samba_asr.ssm import cpu_step, native
from samba_asr.ssm.mixer import Mamba2, MixerState, Move, build_mixer

D_MODEL = 32
pytestmark = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")


def make_mixer(groups: int = 2, width: int = 4, d_state: int = 48) -> Mamba2:
    torch.manual_seed(5)
    config = MixerConfig(kind="mamba2", expand=2, head_dim=16, d_state=d_state, groups=groups, d_conv=width)
    mixer = Mamba2(D_MODEL, config).eval()
    with torch.no_grad():
        for vector in (mixer.D, mixer.norm.weight):
            vector.copy_(torch.randn_like(vector))
    return mixer


def make_state(mixer: Mamba2, places: int) -> MixerState:
    start = mixer.initial_state(places)
    return MixerState(torch.randn_like(start.conv), torch.randn_like(start.ssm))


def exact(mixer: Mamba2, x: Tensor, state: MixerState, move: Move | None = None) -> tuple[Tensor, MixerState]:
    """PyTorch's result in float64; the state given is left alone."""
    double = MixerState(state.conv.double(), state.ssm.double())
    return copy.deepcopy(mixer).double().step(x.double(), double, move)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls that reached the kernels."""
    made: list[int] = []
    level = cpu_step.level
    monkeypatch.setattr(cpu_step, "level", lambda: made.append(1) or level())
    return made


def assert_near(found: tuple[Tensor, MixerState], expected: tuple[Tensor, MixerState]) -> None:
    for a, b in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 0])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_step(groups: int, width: int, bias: bool, calls: list[int]) -> None:
    mixer = make_mixer(groups, width)
    if not bias:
        mixer.conv1d.bias = None
    x, state = torch.randn(5, D_MODEL), make_state(mixer, 5)
    before = copy.deepcopy(state)
    expected = exact(mixer, x, state)
    assert not calls
    assert_near(mixer.step(x, state), expected)
    assert calls
    assert_close(state, before, rtol=0, atol=0)


@pytest.mark.parametrize("level", [0, 1, 2])
@torch.no_grad()
def test_every_instruction_set(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if level > cpu_step.level():
        pytest.skip("this CPU lacks it")
    monkeypatch.setattr(cpu_step, "level", lambda: level)
    mixer, x = make_mixer(), torch.randn(3, D_MODEL)
    state = make_state(mixer, 3)
    assert_near(mixer.step(x, state), exact(mixer, x, state))


@torch.no_grad()
def test_a_move_changes_its_targets_alone(calls: list[int]) -> None:
    """Sources may be shared; a row may take its own source's place."""
    mixer, x = make_mixer(), torch.randn(4, D_MODEL)
    pool = make_state(mixer, 9)
    before = copy.deepcopy(pool)
    move = Move(torch.tensor([3, 3, 0, 7]), torch.tensor([1, 8, 0, 4]))
    expected_y, expected = exact(mixer, x, pool.reorder(move.sources))
    y, after = mixer.step(x, pool, move)
    assert calls and after.conv is pool.conv and after.ssm is pool.ssm
    assert_near((y, pool.reorder(move.targets)), (expected_y, expected))
    untouched = torch.tensor([2, 3, 5, 6, 7])
    assert_close(pool.reorder(untouched), before.reorder(untouched), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "s4d"])
@torch.no_grad()
def test_a_move_without_kernels(kind: str) -> None:
    config = MixerConfig(kind=kind, expand=1, head_dim=16, d_state=16)
    mixer = build_mixer(D_MODEL, config).double().eval()
    x, start = torch.randn(2, D_MODEL, dtype=torch.float64), mixer.initial_state(5)
    pool = MixerState(torch.randn_like(start.conv), torch.randn_like(start.ssm))
    before, move = copy.deepcopy(pool), Move(torch.tensor([2, 2]), torch.tensor([4, 0]))
    y, after = mixer.step(x, pool, move)
    expected_y, expected = mixer.step(x, before.reorder(move.sources))
    assert after is pool
    assert_close((y, pool.reorder(move.targets)), (expected_y, expected), rtol=0, atol=0)
    assert_close(pool.reorder(torch.tensor([1, 2, 3])), before.reorder(torch.tensor([1, 2, 3])), rtol=0, atol=0)


@torch.no_grad()
def test_a_row_is_the_same_in_any_company() -> None:
    mixer, x = make_mixer(), torch.randn(6, D_MODEL)
    state = make_state(mixer, 6)
    y, after = mixer.step(x, state)
    for row in range(6):
        alone = torch.tensor([row])
        assert_close(mixer.step(x[alone], state.reorder(alone)), (y[alone], after.reorder(alone)), rtol=0, atol=0)


@pytest.mark.parametrize("part", ["x", "conv", "ssm"])
@torch.no_grad()
def test_nan_stays_nan(part: str) -> None:
    mixer, x = make_mixer(), torch.randn(2, D_MODEL)
    state = make_state(mixer, 2)
    {"x": x, **state._asdict()}[part].flatten()[0] = torch.nan
    y, _ = mixer.step(x, state)
    assert y[0].isnan().all() and not y[1].isnan().any()


def test_what_the_kernels_cannot_do_goes_to_torch(calls: list[int]) -> None:
    mixer, x = make_mixer(), torch.randn(2, D_MODEL)
    state = make_state(mixer, 2)
    y, _ = mixer.step(x, state)
    y.sum().backward()
    assert mixer.A_log.grad is not None
    with torch.no_grad():
        odd = make_mixer(d_state=12)
        odd.step(x, make_state(odd, 2))
        mixer.double().step(x.double(), MixerState(*(tensor.double() for tensor in state)))
        with pytest.raises(ValueError, match="initial_state"):
            mixer.float().step(x, MixerState(state.conv, state.ssm[:1]))
    assert not calls


@pytest.mark.parametrize(("sources", "targets"), [([0, 3], [1, 2]), ([0, 1], [-1, 2])])
@torch.no_grad()
def test_places_that_there_are_not(sources: list[int], targets: list[int]) -> None:
    mixer = make_mixer()
    pool = make_state(mixer, 3)
    with pytest.raises(IndexError, match="between 0 and 2"):
        mixer.step(torch.randn(2, D_MODEL), pool, Move(torch.tensor(sources), torch.tensor(targets)))
    with pytest.raises(ValueError, match="2 places for 1 rows"):
        mixer.step(torch.randn(1, D_MODEL), pool, Move(torch.tensor([0, 1]), torch.tensor([1, 2])))


@torch.no_grad()
def test_another_default_type_changes_nothing() -> None:
    mixer, x = make_mixer(), torch.randn(3, D_MODEL)
    state = make_state(mixer, 3)
    expected = mixer.step(x, state)
    torch.set_default_dtype(torch.float64)
    try:
        found = mixer.step(x, state)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
def test_silence_is_no_division_by_zero() -> None:
    mixer = make_mixer()
    mixer.conv1d.bias = None
    y, _ = mixer.step(torch.zeros(2, D_MODEL), mixer.initial_state(2))
    assert torch.equal(y, torch.zeros(2, D_MODEL))
