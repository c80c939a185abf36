"""The SSD scan with products in bfloat16 or float16: as near to float64 as the roundings of its products allow."""

import pytest
import torch
from ssm_cases import randn
from test_ssd import BY_TIME, make_inputs, reference
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from samba_asr.ssm.ssd import ssd_scan

LEAVES = (*BY_TIME, "A", "initial_state")
ROUNDINGS = {"y": 5, "state": 2, "x": 5, "delta": 5, "B": 6, "C": 6, "A": 4, "initial_state": 2}
"""How often a term of each result is rounded, on the longest of its ways.

y: what leaves a chunk, the product that adds it up, the state at a chunk's entry, its product with C, and y itself; or,
within a chunk, C B, that with decays, x with steps, their product, and y. state: the first two. Gradients go the same
ways back. x: y's gradient with a decay, that of the state at an entry, of what a chunk adds, of what leaves it, and x's
own. A: a decay stands between two factors that are rounded four times at most. delta: the same, and once itself. B: as
x, and its two parts are added up. C: the state at an entry (3), y's gradient with a decay, their product, and the sum.
initial_state: the first two of x.
"""


def results(scan, inputs: dict, weights: dict) -> dict[str, Tensor]:
    """Return y, state and the gradients of their products with weights; everything that is not given is left out."""
    leaves = {name: value.detach().clone().requires_grad_(name in LEAVES) for name, value in inputs.items()}
    y, state = scan(**leaves)
    torch.autograd.backward([y, state], [weights[name].to(out) for name, out in (("y", y), ("state", state))])
    found = {"y": y.detach(), "state": state.detach()} | {name: leaves[name].grad for name in LEAVES}
    return {name: value.cpu().double() for name, value in found.items()}


def sizes(inputs: dict, weights: dict, reverse: bool) -> dict[str, Tensor]:
    """Return for each result the sum of its terms' absolute values: what a scan of absolute values returns.

    A step has part in what a frame adds to the state and in the decay; the two parts of its gradient have unlike signs
    there, so each comes from a scan of its own, in which x makes up for the step in the other part."""
    absolute = {name: value.abs() if name in LEAVES and name != "A" else value for name, value in inputs.items()}
    weights = {name: weight.abs() for name, weight in weights.items()}

    def adding(x, delta, **others):
        fixed = delta.detach()
        return reference(reverse)(x=x * (delta / fixed).unsqueeze(-1), delta=fixed, **others)

    def decaying(x, delta, **others):
        return reference(reverse)(x=x * (delta.detach() / delta).unsqueeze(-1), delta=delta, **others)

    found, other = results(adding, absolute, weights), results(decaying, absolute, weights)
    return found | {"A": found["A"].abs(), "delta": found["delta"].abs() + other["delta"].abs()}


def problem(dtype: torch.dtype, lengths: list[int], time: int = 150, **options) -> tuple[dict, dict, dict]:
    """Return inputs with those by time in a type, the same numbers in float64, and weights."""
    given = make_inputs(3, time, 2, 16, 16, **options) | {"lengths": torch.tensor(lengths)}
    given = {name: value for name, value in given.items() if name in (*LEAVES, "lengths")}
    given["delta"] = given["delta"].sigmoid()
    types = {name: dtype if name in BY_TIME else torch.float32 for name in LEAVES}
    half = {name: value.to(types[name]) if name in types else value for name, value in given.items()}
    wide = {name: value.double() if name in types else value for name, value in half.items()}
    weights = {"y": randn(*given["x"].shape).to(dtype).double(), "state": randn(*given["initial_state"].shape)}
    return half, wide, weights


def assert_within_roundings(scan, half: dict, wide: dict, weights: dict, reverse: bool = False) -> None:
    found, expected = results(scan, half, weights), results(reference(reverse), wide, weights)
    bounds, unit = sizes(wide, weights, reverse), torch.finfo(half["x"].dtype).eps / 2
    for name, count in ROUNDINGS.items():
        # Besides, float32's own, of sums of up to some hundred terms, and what float16 loses below 6e-5.
        relative = (1 + unit) ** count - 1 + 200 * torch.finfo(torch.float32).eps
        assert ((found[name] - expected[name]).abs() <= relative * bounds[name] + 1e-5).all(), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk_size", [7, 64])
@pytest.mark.parametrize("lengths", [[150, 150, 150], [150, 64, 1]])
def test_within_the_roundings_of_its_products(device, dtype, reverse, chunk_size, lengths):
    half, wide, weights = problem(dtype, lengths)
    options = {"reverse": reverse, "chunk_size": chunk_size, "backend": "half" if device == "cpu" else "auto"}

    def scan(**given):
        return ssd_scan(**given, **options, return_last_state=True)

    assert_within_roundings(scan, {name: value.to(device) for name, value in half.items()}, wide, weights, reverse)


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_are_as_near(groups):
    assert_within_roundings(
        lambda **given: ssd_scan(**given, return_last_state=True, backend="half"),
        *problem(torch.bfloat16, [150, 64, 1], groups=groups),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types(dtype):
    """Results have the types that they have without half products, and come by them: other roundings, other numbers."""
    half, _, _ = problem(dtype, [150, 64, 1])
    y, state = ssd_scan(**half, return_last_state=True, backend="half")
    plain_y, plain_state = ssd_scan(**half, return_last_state=True, backend="torch")
    assert (y.dtype, state.dtype) == (dtype, torch.float32) == (plain_y.dtype, plain_state.dtype)
    assert not torch.equal(state, plain_state)


class Types(TorchDispatchMode):
    """Notes which types each operation takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        own = {arg.dtype for arg in args if torch.is_tensor(arg)}
        self.seen.setdefault(func.overloadpacket.__name__, set()).update(own)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_half_and_decays_are_not(dtype):
    half, _, weights = problem(dtype, [150, 64, 1])
    with Types() as types:
        results(lambda **given: ssd_scan(**given, return_last_state=True, backend="half"), half, weights)
    assert types.seen["bmm"] == {dtype}
    assert types.seen["exp"] == types.seen["cumsum"] == {torch.float32}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk_size", [8, 64])
def test_one_frame_is_heard_through_long_decays(reverse, chunk_size):
    """Up to exp(-60): an exponent that was rounded would be a quarter wrong."""
    half, wide, _ = problem(torch.bfloat16, [64, 64, 64], time=64)
    for given in (half, wide):
        given |= {name: given[name].abs() for name in ("B", "C", "x")} | {"delta": torch.ones_like(given["delta"])}
        given["A"], given["initial_state"] = (
            torch.full_like(given["A"], -0.95),
            torch.zeros_like(given["initial_state"]),
        )
        given["x"][:, slice(0, -1) if reverse else slice(1, None)] = 0
    y = ssd_scan(**half, reverse=reverse, chunk_size=chunk_size, backend="half")
    expected, _ = reference(reverse)(**wide)
    assert_close(y.double(), expected, rtol=(1 + 2**-8) ** ROUNDINGS["y"] - 1 + 1e-4, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 64])
def test_tiny_steps_keep_the_state(chunk_size):
    """A step of 0.001 is lost beside a state near 1 in bfloat16, whose numbers lie 0.004 apart there."""
    time, delta = 2000, torch.tensor(1e-3, dtype=torch.bfloat16)
    ones = torch.ones(1, time, 1, dtype=torch.bfloat16)
    inputs = {"x": ones.unsqueeze(-1), "delta": ones * delta, "A": -torch.ones(1), "B": ones, "C": ones}
    _, state = ssd_scan(**inputs, return_last_state=True, chunk_size=chunk_size, backend="half")
    settled = 1 - torch.exp(-time * delta.double())
    assert_close(state.double().squeeze(), settled, rtol=torch.finfo(torch.bfloat16).eps, atol=0)  # two roundings


def test_inputs_of_other_types_are_refused():
    inputs = {name: value.float() for name, value in make_inputs(full=False).items()}
    with pytest.raises(ValueError, match=r"backend 'half' takes x, B and C .* they are torch\.float32, .* use 'torch'"):
        ssd_scan(**inputs, backend="half")
    inputs |= {"x": inputs["x"].bfloat16(), "B": inputs["B"].bfloat16()}
    with pytest.raises(ValueError, match=r"they are torch\.bfloat16, torch\.bfloat16 and torch\.float32"):
        ssd_scan(**inputs, backend="half")


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"'triton'.*'auto', 'torch', 'half'"):
        ssd_scan(**make_inputs(), backend="triton")
