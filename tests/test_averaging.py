"""Averages of checkpoints against numpy."""

import numpy as np
import pytest
import torch

from samba_asr.training.averaging import average_states


def states(count=5, dtype=torch.float32):
    return [
        {
            "weight": torch.randn(4, 3, dtype=dtype),
            "bias": torch.randn(3, dtype=dtype),
            "mean": torch.full((3,), float(i)),
            "count": torch.tensor(i),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parameters_are_averaged_in_float64_and_the_rest_is_the_last(count):
    given = states(count)
    found = average_states(iter(given), {"weight", "bias", "count"})
    for name in ("weight", "bias"):
        expected = np.mean([state[name].double().numpy() for state in given], axis=0).astype(np.float32)
        assert found[name].dtype == torch.float32
        np.testing.assert_array_equal(found[name].numpy(), expected)
    assert found["mean"].tolist() == [count - 1] * 3
    assert found["count"] == count - 1 and found["count"].dtype == torch.int64


def test_sums_are_not_rounded_to_the_parameters_type():
    given = [{"weight": torch.tensor([1.0 if i == 0 else 2.0**-12], dtype=torch.bfloat16)} for i in range(256)]
    expected = (1.0 + 255 * 2.0**-12) / 256
    assert abs(average_states(given, {"weight"})["weight"].item() / expected - 1) < 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_states_are_left_as_they_were(dtype):
    given = states(2, dtype)
    copies = [{name: value.clone() for name, value in state.items()} for state in given]
    average_states(given, {"weight", "bias"})
    for state, copy in zip(given, copies, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_nothing_and_different_shapes_are_errors():
    with pytest.raises(ValueError, match="no checkpoint"):
        average_states([], set())
    one, other = states(2)
    other["weight"] = torch.zeros(5, 3)
    with pytest.raises(ValueError, match="different names or shapes"):
        average_states([one, other], {"weight"})
