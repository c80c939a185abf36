"""The decoder's window on the recording: against a slow loop, and who hears what."""

from dataclasses import replace

import pytest
import torch
from model_fixture import CONFIG

from samba_asr.model.listening import Heard, Window
from samba_asr.ssm.mixer import Move

BEFORE, AFTER, HEADS = 3, 4, 2
LENGTHS = torch.tensor([20, 7, 0, 13])
PLACES = torch.tensor([[-2, 0, 2, 9, 19], [0, 1, 6, 7, 30], [0, 0, 3, 9, 1], [-9, 12, 13, 15, 16]])


@pytest.fixture
def window():
    decoder = replace(CONFIG.decoder, listening="window", window_before=BEFORE, window_after=AFTER)
    window = Window(replace(CONFIG, decoder=decoder)).double()
    for layer in (window.kernel, window.salience):  # they start at 0
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias)
    return window


def random_case(dtype=torch.float64):
    """Texts, and the states of their recordings."""
    return torch.randn(4, 5, CONFIG.d_model, dtype=dtype), torch.randn(4, 20, CONFIG.d_model, dtype=dtype)


def slow(window, x, memory, lengths, rows, places):
    """One text, token, head and state after the other."""
    result = torch.zeros_like(x)
    apply = torch.nn.functional.linear
    for text, row in enumerate(rows.tolist()):
        for token in range(x.shape[1]):
            asked = apply(x[text, token], window.kernel.weight, window.kernel.bias)
            parts = []
            for head in range(HEADS):
                channels = slice(16 * head, 16 * head + 16)
                total, mixed = 0.0, torch.zeros(16, dtype=x.dtype)
                for offset in range(BEFORE + AFTER):
                    state = int(places[text, token]) - BEFORE + offset
                    if not 0 <= state < lengths[row]:
                        continue
                    salience = apply(memory[row, state], window.salience.weight, window.salience.bias)[head]
                    weight = (asked[offset * HEADS + head] + salience).exp()
                    value = apply(memory[row, state], window.value.weight, window.value.bias)[channels]
                    total, mixed = total + weight, mixed + weight * value
                parts.append(mixed / total if total else mixed)
            result[text, token] = apply(torch.cat(parts), window.out_proj.weight, window.out_proj.bias)
    return result


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0, 0, 1]])
def test_equals_a_slow_loop_in_values_and_gradients(window, rows):
    x, memory = (tensor.requires_grad_() for tensor in random_case())
    rows = torch.tensor(rows)
    found = window(x, window.read(memory, LENGTHS)._replace(rows=rows), PLACES)
    expected = slow(window, x, memory, LENGTHS, rows, PLACES)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    wanted = [x, memory, *window.parameters()]
    direction = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad(y, wanted, direction) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        assert one.any()


def test_a_new_window_takes_the_mean():
    window = Window(replace(CONFIG, decoder=replace(CONFIG.decoder, window_before=1, window_after=2))).double()
    x, memory = random_case()
    heard = window.read(memory, torch.full((4,), 20))
    mean = window.out_proj(window.value(memory[:, 5:8]).mean(1))
    torch.testing.assert_close(window(x, heard, torch.full((4, 5), 6))[:, 2], mean)


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(window):
    x, memory = random_case()
    alone = [
        window(x[i : i + 1], window.read(memory[i : i + 1, :n], LENGTHS[i : i + 1]), PLACES[i : i + 1])
        for i, n in enumerate(LENGTHS)
    ]
    for row, n in zip(memory, LENGTHS, strict=True):
        row[n:] = 1e3
    torch.testing.assert_close(window(x, window.read(memory, LENGTHS), PLACES), torch.cat(alone), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("states", [0, 20])
def test_where_nothing_is_heard_nothing_is_said(window, states):
    x, memory = random_case()
    nothing = window.out_proj.bias.expand_as(x)
    torch.testing.assert_close(window(x, window.read(memory[:, :states], torch.zeros_like(LENGTHS)), PLACES), nothing)
    far = torch.full_like(PLACES, states + BEFORE)
    torch.testing.assert_close(window(x, window.read(memory[:, :states], torch.full((4,), states)), far), nothing)


def test_it_hears_all_the_states_in_its_window_and_no_other(window):
    x, memory = random_case()
    for place in (-4, -3, 0, 5, 12, 18, 22, 23):
        memory.requires_grad_()
        said = window(x, window.read(memory, torch.full((4,), 20)), torch.full((4, 5), place))
        (gradient,) = torch.autograd.grad(said[1, 2].square().sum(), memory)
        heard = [state for state in range(20) if gradient[1, state].any()]
        assert heard == [state for state in range(20) if place - BEFORE <= state < place + AFTER]
        assert not gradient[[0, 2, 3]].any()


def test_a_text_hears_its_own_recording_wherever_it_moves():
    heard = Heard(torch.zeros(3, 1, 1), torch.ones(3, dtype=torch.int64), torch.arange(3))
    heard = heard.reorder(torch.tensor([2, 0, 1, 0, 2, 1]))
    assert heard.rows.tolist() == [2, 0, 1, 0, 2, 1]
    own = heard.rows.tolist()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.randperm(6, generator=generator)
        sources, targets = order[:3], order[[0, 3, 4]]  # the first goes on in its own place
        here, heard = heard.move(Move(sources, targets))
        assert here.rows.tolist() == [own[source] for source in sources]
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            own[target] = own[source]
        assert heard.rows.tolist() == own
    assert heard.move(None) == (heard, heard)


def test_reordering_leaves_the_old_pool_alone():
    heard = Heard(torch.zeros(2, 1, 1), torch.ones(2, dtype=torch.int64), torch.arange(2))
    copy = heard.reorder(torch.tensor([0, 1]))
    copy.move(Move(torch.tensor([0]), torch.tensor([1])))
    assert (heard.rows.tolist(), copy.rows.tolist()) == ([0, 1], [0, 0])


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_other_number_formats(window, dtype, tolerance):
    x, memory = random_case()
    expected = window(x, window.read(memory, LENGTHS), PLACES)
    window.to(dtype)
    said = window(x.to(dtype), window.read(memory.to(dtype), LENGTHS), PLACES)
    assert said.dtype == dtype
    torch.testing.assert_close(said.double(), expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_mixed_precision(window):
    x, memory = random_case()
    expected = window(x, window.read(memory, LENGTHS), PLACES)
    window.float()
    with torch.autocast("cpu", torch.bfloat16):
        said = window(x.float(), window.read(memory.float(), LENGTHS), PLACES)
    torch.testing.assert_close(said.double(), expected, rtol=0.1, atol=0.1)
