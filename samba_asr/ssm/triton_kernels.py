"""Triton kernels of the selective scan: what one program on the GPU does. They are launched by triton_scan.py.

A program owns one sequence, a block of channels of one group and a stretch of time, which it walks four frames at a
time. The states of its channels lie in registers, as tensors of five axes:

    (CT channels, NT states, W warps, NL states, CL channels)

Triton hands out threads from the last axis backwards: the CL x NL lanes of a warp, then W warps over further channels;
what is left, CT x NT, lies in each thread's own registers. The recurrence never leaves a thread; sums over states take
log2(NL) shuffles and those over channels log2(CL), each after a thread has added up its own. A value for each channel
has the shape (CT, 1, W, 1, CL), one for each state (1, NT, 1, NL, 1). Frames are read one by one, since Triton would
spread a larger tensor over threads in another way, and pass everything through shared memory to get it back.

Time is counted in the order of the scan: ``s`` = 0 is the first frame scanned, which with REVERSE is a sequence's last
own frame; padding comes last in either direction and is never read. Decays are exp2(delta A log2(e)), since a GPU's
exponential has base 2. ``unit`` is 1: places multiplied by it look scattered to the compiler, which would otherwise
lay out what is read from them in its own way.

The backward pass runs the adjoint recurrence against the scan's order. With c[s] = C[s] dy[s], the gradient of the
state after frame s is g[s] = c[s] + a[s+1] g[s+1], where a is the decay; frame s passes on a[s] g[s] to the one before.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _exp2_in_assembly(x):
    """2 to the power of x in one instruction: tl.exp2 takes four, to tell numbers below 1e-38 from 0."""
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _exp2_in_the_interpreter(x):
    """The same for Triton's interpreter, which knows no assembly."""
    return tl.exp2(x)


_exp2 = _exp2_in_assembly if isinstance(_exp2_in_assembly, triton.runtime.JITFunction) else _exp2_in_the_interpreter


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1 to float32's precision, however small x is: 2 artanh(x / (2 + x)), by its series."""
    s = x / (2 + x)
    q = s * s
    series = 1.0 / 13 + q * (1.0 / 15)
    series = 1.0 / 11 + q * series
    series = 1.0 / 9 + q * series
    series = 1.0 / 7 + q * series
    series = 1.0 / 5 + q * series
    series = 1.0 / 3 + q * series
    return 2 * s * (1 + q * series)


@triton.jit
def _softplus(x):
    """As torch's, whose threshold of 20 float32 cannot tell from none; nothing overflows."""
    return tl.maximum(x, 0.0) + _log1p(_exp2(tl.abs(x) * -LOG2_E))


@triton.jit
def _softplus_slope(x):
    """The derivative of softplus, from the same exponential."""
    small = _exp2(tl.abs(x) * -LOG2_E)
    return tl.where(x >= 0, 1.0, small) / (1 + small)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + _exp2(x * -LOG2_E))


@triton.jit
def _channels(block, per_group, CT: tl.constexpr, W: tl.constexpr, CL: tl.constexpr):
    """A block's group and channels, and which of them exist: none reaches into two groups. Those that do not exist read
    what the group's last channel reads, without a mask."""
    blocks = tl.cdiv(per_group, CT * W * CL)
    group = block // blocks
    t = tl.arange(0, CT)[:, None, None, None, None]
    w = tl.arange(0, W)[None, None, :, None, None]
    lane = tl.arange(0, CL)[None, None, None, None, :]
    inside = ((block % blocks) * CT + t) * W * CL + w * CL + lane
    return group, group * per_group + tl.minimum(inside, per_group - 1), inside < per_group


@triton.jit
def _states(NT: tl.constexpr, NL: tl.constexpr):
    """The states of a thread lie side by side, so that B and C are read four at a time."""
    return tl.arange(0, NT)[None, :, None, None, None] + tl.arange(0, NL)[None, None, None, :, None] * NT


@triton.jit
def _over_states(x):
    """The sum over states."""
    return tl.sum(tl.sum(x, 1, keep_dims=True), 3, keep_dims=True)


@triton.jit
def _over_lanes(x):
    """The sum over a warp's channels."""
    return tl.sum(tl.sum(x, 0, keep_dims=True), 4, keep_dims=True)


@triton.jit
def _vector(pointer, channel, GIVEN: tl.constexpr):
    """A value for each channel in float32, 0 where there is no tensor."""
    if GIVEN:
        value = tl.load(pointer + channel)
    else:
        value = tl.zeros_like(channel).to(tl.float32)
    return value


@triton.jit
def _frame(s, length, REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """The frame at place s in the scan's order; past a sequence's end, its last one, which is safe to read."""
    s = tl.minimum(s, length - 1)
    frame = tl.maximum(length - 1 - s if REVERSE else s, 0)
    if WIDE:
        frame = frame.to(tl.int64)
    return frame


@triton.jit
def _row(pointer, frame, channel, stride):
    """One frame's value for each channel."""
    return tl.load(pointer + (frame * stride + channel))


@triton.jit
def _write_row(pointer, frame, place, value, stride, mask, NL: tl.constexpr):
    """Write one frame's value for each channel, from the first of the lanes that hold it: left to itself, Triton would
    share the work out among them, at the price of a trip through shared memory."""
    first = tl.arange(0, NL)[None, None, None, :, None] == 0
    value = tl.broadcast_to(value.to(pointer.dtype.element_ty), place.shape)
    tl.store(pointer + (frame * stride + place), value, mask=mask & first)


@triton.jit
def _weights(pointer, frame, n, stride, STATE: tl.constexpr, N: tl.constexpr):
    """One frame of B or C, 0 for states that do not exist."""
    if STATE == N:
        value = tl.load(pointer + (frame * stride + n))
    else:
        value = tl.load(pointer + (frame * stride + n), mask=n < STATE, other=0.0)
    return value


@triton.jit
def _step(raw, offset, own, SOFTPLUS: tl.constexpr):
    """Step sizes: 0 past a sequence's end, which leaves the state as it is."""
    step = raw.to(tl.float32) + offset
    if SOFTPLUS:
        step = _softplus(step)
    return tl.where(own, step, 0.0)


@triton.jit
def _advance(state, step, x, gain, rate):
    """One frame of the recurrence: the new state, what the decay left of the old one, and the decay."""
    decay = _exp2(step * rate)
    left = decay * state
    return left + (step * x.to(tl.float32)) * gain, left, decay


@triton.jit
def _write_output(s, frame, state, x, gate, weight, skip, y, channels, spread, limit, HAS_Z: tl.constexpr,
                  NL: tl.constexpr):  # fmt: skip
    """y of one frame from the state after it."""
    out = _over_states(state * weight) + x.to(tl.float32) * skip
    if HAS_Z:
        out *= gate.to(tl.float32) * _sigmoid(gate.to(tl.float32))
    _write_row(y, frame, spread, out, channels, s < limit, NL)


@triton.jit
def _blank(pointer, begin, end, stride, places, mask):
    """Write 0 to a stretch of padding, which lies at the same frames in either direction."""
    zero = tl.zeros_like(places).to(pointer.dtype.element_ty)
    for s in range(begin, end):
        tl.store(pointer + (tl.cast(s, tl.int64) * stride + places), zero, mask=mask)


@triton.jit(do_not_specialize=["unit"])
def scan_kernel(
    u, delta, A, B, C, D, z, bias, lengths, entry, sums, kept, y, last,
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time,
    time, channels, groups, per_group, segment, segments, unit,
    STATE: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, WIDE: tl.constexpr, KEEP: tl.constexpr,
    ENDS: tl.constexpr,
    CT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """Scan one segment of one sequence for one block of channels.

    ENDS: from a zero state, to write only the state it ends in, where the next segment's entry belongs, and its sum of
    steps. Otherwise from its entry, to write y, the last state and, with KEEP, the state before every chunk.
    """
    batch, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    group, channel, mask = _channels(tl.program_id(0), per_group, CT, W, CL)
    n = _states(NT, NL)
    exists = mask & (n < STATE)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), time) if HAS_LENGTHS else time
    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    y += batch * time * channels
    B += (batch * time * groups + group) * STATE
    C += (batch * time * groups + group) * STATE
    by_state = groups * STATE
    matrix = tl.cast(channels, tl.int64) * STATE
    entry += (batch * segments + part) * matrix
    kept += batch * tl.cdiv(time, CHUNK) * matrix
    place = (n * channels + channel) * unit
    rate = tl.load(A + (channel * STATE + n) * unit, mask=exists, other=0.0) * LOG2_E
    if ENDS:
        state = tl.zeros([CT, NT, W, NL, CL], tl.float32)
    else:
        state = tl.load(entry + place, mask=exists, other=0.0)
    spread = (channel + tl.zeros([CT, 1, W, NL, CL], tl.int32)) * unit
    offset = _vector(bias, channel, HAS_BIAS)
    skip = _vector(D, channel, HAS_D)
    total = tl.zeros([CT, 1, W, 1, CL], tl.float32)
    limit = tl.where(mask, length, 0)  # the places in the scan's order that exist, for each channel
    begin = part * segment
    end = tl.minimum(begin + segment, time)
    # Four frames are read while the four before them are scanned: memory takes that long to answer.
    f0 = _frame(begin, length, REVERSE, WIDE)
    x0, d0 = _row(u, f0, channel, u_time), _row(delta, f0, channel, delta_time)
    z0 = _row(z, f0, channel, z_time) if HAS_Z else x0
    f1 = _frame(begin + 1, length, REVERSE, WIDE)
    x1, d1 = _row(u, f1, channel, u_time), _row(delta, f1, channel, delta_time)
    z1 = _row(z, f1, channel, z_time) if HAS_Z else x1
    f2 = _frame(begin + 2, length, REVERSE, WIDE)
    x2, d2 = _row(u, f2, channel, u_time), _row(delta, f2, channel, delta_time)
    z2 = _row(z, f2, channel, z_time) if HAS_Z else x2
    f3 = _frame(begin + 3, length, REVERSE, WIDE)
    x3, d3 = _row(u, f3, channel, u_time), _row(delta, f3, channel, delta_time)
    z3 = _row(z, f3, channel, z_time) if HAS_Z else x3
    for s in range(begin, tl.minimum(end, length), 4):
        g0 = _frame(s + 4, length, REVERSE, WIDE)
        next_x0, next_d0 = _row(u, g0, channel, u_time), _row(delta, g0, channel, delta_time)
        next_z0 = _row(z, g0, channel, z_time) if HAS_Z else next_x0
        b0 = _weights(B, f0, n, by_state, STATE, NT * NL)
        g1 = _frame(s + 5, length, REVERSE, WIDE)
        next_x1, next_d1 = _row(u, g1, channel, u_time), _row(delta, g1, channel, delta_time)
        next_z1 = _row(z, g1, channel, z_time) if HAS_Z else next_x1
        b1 = _weights(B, f1, n, by_state, STATE, NT * NL)
        g2 = _frame(s + 6, length, REVERSE, WIDE)
        next_x2, next_d2 = _row(u, g2, channel, u_time), _row(delta, g2, channel, delta_time)
        next_z2 = _row(z, g2, channel, z_time) if HAS_Z else next_x2
        b2 = _weights(B, f2, n, by_state, STATE, NT * NL)
        g3 = _frame(s + 7, length, REVERSE, WIDE)
        next_x3, next_d3 = _row(u, g3, channel, u_time), _row(delta, g3, channel, delta_time)
        next_z3 = _row(z, g3, channel, z_time) if HAS_Z else next_x3
        b3 = _weights(B, f3, n, by_state, STATE, NT * NL)
        if KEEP:
            if s % CHUNK == 0:
                tl.store(kept + (s // CHUNK) * matrix + place, state, mask=exists)
        step0 = _step(d0, offset, s < limit, SOFTPLUS)
        step1 = _step(d1, offset, s + 1 < limit, SOFTPLUS)
        step2 = _step(d2, offset, s + 2 < limit, SOFTPLUS)
        step3 = _step(d3, offset, s + 3 < limit, SOFTPLUS)
        state0, _, _ = _advance(state, step0, x0, b0, rate)
        state1, _, _ = _advance(state0, step1, x1, b1, rate)
        state2, _, _ = _advance(state1, step2, x2, b2, rate)
        state, _, _ = _advance(state2, step3, x3, b3, rate)
        if ENDS:
            total += (step0 + step1) + (step2 + step3)
        else:
            c0 = _weights(C, f0, n, by_state, STATE, NT * NL)
            c1 = _weights(C, f1, n, by_state, STATE, NT * NL)
            c2 = _weights(C, f2, n, by_state, STATE, NT * NL)
            c3 = _weights(C, f3, n, by_state, STATE, NT * NL)
            _write_output(s, f0, state0, x0, z0, c0, skip, y, channels, spread, limit, HAS_Z, NL)
            _write_output(s + 1, f1, state1, x1, z1, c1, skip, y, channels, spread, limit, HAS_Z, NL)
            _write_output(s + 2, f2, state2, x2, z2, c2, skip, y, channels, spread, limit, HAS_Z, NL)
            _write_output(s + 3, f3, state, x3, z3, c3, skip, y, channels, spread, limit, HAS_Z, NL)
        f0, f1, f2, f3 = g0, g1, g2, g3
        x0, x1, x2, x3 = next_x0, next_x1, next_x2, next_x3
        d0, d1, d2, d3 = next_d0, next_d1, next_d2, next_d3
        z0, z1, z2, z3 = next_z0, next_z1, next_z2, next_z3
    if ENDS:
        tl.store(entry + matrix + place, state, mask=exists)
        tl.store(sums + (batch * segments + part) * channels + channel, total, mask=mask)
    else:
        _blank(y, tl.maximum(begin, length), end, channels, channel, mask)
        if part == segments - 1:
            tl.store(last + batch * matrix + place, state, mask=exists)


@triton.jit
def carry_kernel(
    A, states, sums, channels, segments, STATE: tl.constexpr, BACKWARDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Turn what each segment by itself passes on into what enters each: states (batch, segments, state, channels)."""
    batch = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < STATE * channels
    n, channel = at // channels, at % channels
    rate = tl.load(A + channel * STATE + n, mask=mask, other=0.0) * LOG2_E
    states += batch * segments * STATE * channels + at
    sums += batch * segments * channels + channel
    first = segments - 1 if BACKWARDS else 0
    state = tl.load(states + first * STATE * channels, mask=mask, other=0.0)
    for i in range(1, segments):
        segment = segments - 1 - i if BACKWARDS else i
        before = segment + 1 if BACKWARDS else segment - 1
        decay = _exp2(tl.load(sums + before * channels, mask=mask, other=0.0) * rate)
        state = tl.load(states + segment * STATE * channels, mask=mask, other=0.0) + decay * state
        tl.store(states + segment * STATE * channels, state, mask=mask)


@triton.jit(do_not_specialize=["unit"])
def adjoint_kernel(
    delta, A, C, z, bias, lengths, dy, exits, sums,
    delta_batch, delta_time, z_batch, z_time, dy_batch, dy_time,
    time, channels, groups, per_group, segment, segments, unit,
    STATE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, WIDE: tl.constexpr,
    CT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """Run the adjoint recurrence over one segment, but the first, from zero; write what it passes on, where what comes
    back into the segment before it belongs, and its sum of steps."""
    batch, part = tl.program_id(2).to(tl.int64), tl.program_id(1) + 1
    group, channel, mask = _channels(tl.program_id(0), per_group, CT, W, CL)
    n = _states(NT, NL)
    exists = mask & (n < STATE)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), time) if HAS_LENGTHS else time
    delta += batch * delta_batch
    z += batch * z_batch
    dy += batch * dy_batch
    C += (batch * time * groups + group) * STATE
    place = (n * channels + channel) * unit
    rate = tl.load(A + (channel * STATE + n) * unit, mask=exists, other=0.0) * LOG2_E
    offset = _vector(bias, channel, HAS_BIAS)
    passed = tl.zeros([CT, NT, W, NL, CL], tl.float32)
    total = tl.zeros([CT, 1, W, 1, CL], tl.float32)
    limit = tl.where(mask, length, 0)  # the places in the scan's order that exist, for each channel
    begin = part * segment
    end = tl.minimum(tl.minimum(begin + segment, time), length)
    for i in range(end - begin):
        frame = _frame(end - 1 - i, length, REVERSE, WIDE)
        step = _step(_row(delta, frame, channel, delta_time), offset, end - 1 - i < limit, SOFTPLUS)
        gradient = _row(dy, frame, channel, dy_time).to(tl.float32)
        if HAS_Z:
            gate = _row(z, frame, channel, z_time).to(tl.float32)
            gradient *= gate * _sigmoid(gate)
        weight = _weights(C, frame, n, groups * STATE, STATE, NT * NL)
        passed = _exp2(step * rate) * (gradient * weight + passed)
        total += step
    tl.store(exits + (batch * segments + part - 1) * STATE * channels + place, passed, mask=exists)
    tl.store(sums + (batch * segments + part) * channels + channel, total, mask=mask)


@triton.jit
def _read_back(s, u, delta, dy, z, u_time, delta_time, dy_time, z_time, channel, offset, length, limit,
               SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """What the backward pass needs of one frame for each channel: its place, u, the step, the step's
    derivative, the gradient of y and z."""
    frame = _frame(s, length, REVERSE, WIDE)
    x = _row(u, frame, channel, u_time).to(tl.float32)
    raw = _row(delta, frame, channel, delta_time)
    step = _step(raw, offset, s < limit, SOFTPLUS)
    slope = _softplus_slope(raw.to(tl.float32) + offset) if SOFTPLUS else step
    gradient = tl.where(s < limit, _row(dy, frame, channel, dy_time).to(tl.float32), 0.0)
    gate = _row(z, frame, channel, z_time).to(tl.float32) if HAS_Z else x
    return frame, x, step, slope, gradient, gate


@triton.jit
def _replay(s, state, u, delta, B, u_time, delta_time, by_state, channel, n, rate, offset, length, limit,
            STATE: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
            WIDE: tl.constexpr):  # fmt: skip
    """The state after one more frame."""
    frame = _frame(s, length, REVERSE, WIDE)
    step = _step(_row(delta, frame, channel, delta_time), offset, s < limit, SOFTPLUS)
    gain = _weights(B, frame, n, by_state, STATE, N)
    return _advance(state, step, _row(u, frame, channel, u_time), gain, rate)[0]


@triton.jit
def _retreat(
    s, frame, passed, sum_A, sum_D, sum_bias, x, step, slope, gradient, gate, decay, left,
    B, C, du, ddelta, dz, channels, by_state, spread, n, rate, skip, limit,
    STATE: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, NL: tl.constexpr,
):  # fmt: skip
    """One frame of the adjoint recurrence: write its gradients, add to the sums; return what it passes on, the sums
    and each warp's share of the gradients of B and C."""
    own = s < limit
    gain, weight = _weights(B, frame, n, by_state, STATE, N), _weights(C, frame, n, by_state, STATE, N)
    driven = step * x
    state = left + driven * gain
    if HAS_Z:
        opened = _sigmoid(gate)
        out = _over_states(state * weight) + x * skip
        dgate = gradient * out * opened * (1 + gate * (1 - opened))
        _write_row(dz, frame, spread, dgate, channels, own, NL)
        gradient *= gate * opened
    g = gradient * weight + passed
    through = g * left
    pull = _over_states(g * gain)
    dstep = pull * x + _over_states(through * rate) * LN_2
    if SOFTPLUS:
        dstep *= slope
    dstep = tl.where(own, dstep, 0.0)
    _write_row(ddelta, frame, spread, dstep, channels, own, NL)
    _write_row(du, frame, spread, pull * step + gradient * skip, channels, own, NL)
    shares = tl.join(_over_lanes(g * driven), _over_lanes(state * gradient))
    return decay * g, sum_A + through * step, sum_D + gradient * x, sum_bias + dstep, shares


@triton.jit(do_not_specialize=["unit"])
def gradient_kernel(
    u, delta, A, B, C, D, z, bias, lengths, kept, exits, dy,
    du, ddelta, dA, dBC, dD, dz, dbias, dentry,
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time, dy_batch, dy_time,
    batches, time, channels, groups, per_group, segment, segments, unit,
    STATE: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, WIDE: tl.constexpr,
    CT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """Write all gradients of one segment of one sequence for one block of channels.

    Chunk after chunk, against the scan's order: from the kept state before the chunk, the states before each four of
    its frames are computed again and held in registers; then each four, last first, run the recurrence and its adjoint.
    du, ddelta and dz are whole; dBC holds this block's share of both, dA, dD and dbias this segment's.
    """
    TILES: tl.constexpr = CHUNK // 4
    batch, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    group, channel, mask = _channels(tl.program_id(0), per_group, CT, W, CL)
    n = _states(NT, NL)
    exists = mask & (n < STATE)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), time) if HAS_LENGTHS else time
    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    dy += batch * dy_batch
    du += batch * time * channels
    ddelta += batch * time * channels
    dz += batch * time * channels
    B += (batch * time * groups + group) * STATE
    C += (batch * time * groups + group) * STATE
    share = tl.program_id(0) % tl.cdiv(per_group, CT * W * CL) * batches + batch
    dBC += (share * time * groups + group) * STATE
    to_C = tl.cast(tl.cdiv(per_group, CT * W * CL), tl.int64) * batches * time * groups * STATE
    by_state = groups * STATE
    matrix = tl.cast(channels, tl.int64) * STATE
    kept += batch * tl.cdiv(time, CHUNK) * matrix
    segment_row = batch * segments + part
    place = (n * channels + channel) * unit
    rate = tl.load(A + (channel * STATE + n) * unit, mask=exists, other=0.0) * LOG2_E
    spread = (channel + tl.zeros([CT, 1, W, NL, CL], tl.int32)) * unit
    offset = _vector(bias, channel, HAS_BIAS)
    skip = _vector(D, channel, HAS_D)
    # Four frames' shares of the gradients of B and C: (1, NT, NL, 1, which of both, odd frame, later two).
    n_7 = tl.arange(0, NT)[None, :, None, None, None, None, None] + (
        tl.arange(0, NL)[None, None, :, None, None, None, None] * NT
    )
    of_C = tl.arange(0, 2)[None, None, None, None, :, None, None].to(tl.int64)
    four = tl.arange(0, 2)[None, None, None, None, None, :, None] + (
        tl.arange(0, 2)[None, None, None, None, None, None, :] * 2
    )
    tile = tl.arange(0, TILES)[:, None, None, None, None, None]
    passed = tl.load(exits + segment_row * matrix + place, mask=exists, other=0.0)
    sum_A = tl.zeros([CT, NT, W, NL, CL], tl.float32)
    sum_D = tl.zeros([CT, 1, W, 1, CL], tl.float32)
    sum_bias = tl.zeros([CT, 1, W, 1, CL], tl.float32)
    limit = tl.where(mask, length, 0)  # the places in the scan's order that exist, for each channel
    begin = part * segment
    end = tl.minimum(begin + segment, time)
    chunks = tl.cdiv(tl.maximum(tl.minimum(end, length) - begin, 0), CHUNK)
    # fmt: off
    for i in range(chunks):
        first = begin + (chunks - 1 - i) * CHUNK
        state = tl.load(kept + (first // CHUNK) * matrix + place, mask=exists, other=0.0)
        entries = tl.where(tile == 0, state[None], 0.0)
        for j in range(1, TILES):
            s = first + (j - 1) * 4
            state = _replay(
                s, state, u, delta, B, u_time, delta_time, by_state, channel, n, rate, offset, length, limit,
                STATE, NT * NL, SOFTPLUS, REVERSE, WIDE,
            )
            state = _replay(
                s + 1, state, u, delta, B, u_time, delta_time, by_state, channel, n, rate, offset, length, limit,
                STATE, NT * NL, SOFTPLUS, REVERSE, WIDE,
            )
            state = _replay(
                s + 2, state, u, delta, B, u_time, delta_time, by_state, channel, n, rate, offset, length, limit,
                STATE, NT * NL, SOFTPLUS, REVERSE, WIDE,
            )
            state = _replay(
                s + 3, state, u, delta, B, u_time, delta_time, by_state, channel, n, rate, offset, length, limit,
                STATE, NT * NL, SOFTPLUS, REVERSE, WIDE,
            )
            entries = tl.where(tile == j, state[None], entries)
        for j in range(TILES):
            s = first + (TILES - 1 - j) * 4
            f0, x0, d0, slope0, y0, z0 = _read_back(
                s, u, delta, dy, z, u_time, delta_time, dy_time, z_time, channel, offset, length, limit,
                SOFTPLUS, HAS_Z, REVERSE, WIDE,
            )
            f1, x1, d1, slope1, y1, z1 = _read_back(
                s + 1, u, delta, dy, z, u_time, delta_time, dy_time, z_time, channel, offset, length, limit,
                SOFTPLUS, HAS_Z, REVERSE, WIDE,
            )
            f2, x2, d2, slope2, y2, z2 = _read_back(
                s + 2, u, delta, dy, z, u_time, delta_time, dy_time, z_time, channel, offset, length, limit,
                SOFTPLUS, HAS_Z, REVERSE, WIDE,
            )
            f3, x3, d3, slope3, y3, z3 = _read_back(
                s + 3, u, delta, dy, z, u_time, delta_time, dy_time, z_time, channel, offset, length, limit,
                SOFTPLUS, HAS_Z, REVERSE, WIDE,
            )
            state = tl.sum(tl.where(tile == TILES - 1 - j, entries, 0.0), 0)
            state, left0, decay0 = _advance(state, d0, x0, _weights(B, f0, n, by_state, STATE, NT * NL), rate)
            state, left1, decay1 = _advance(state, d1, x1, _weights(B, f1, n, by_state, STATE, NT * NL), rate)
            state, left2, decay2 = _advance(state, d2, x2, _weights(B, f2, n, by_state, STATE, NT * NL), rate)
            _, left3, decay3 = _advance(state, d3, x3, _weights(B, f3, n, by_state, STATE, NT * NL), rate)
            passed, sum_A, sum_D, sum_bias, shares3 = _retreat(
                s + 3, f3, passed, sum_A, sum_D, sum_bias, x3, d3, slope3, y3, z3, decay3, left3,
                B, C, du, ddelta, dz, channels, by_state, spread, n, rate, skip, limit,
                STATE, NT * NL, SOFTPLUS, HAS_Z, NL,
            )
            passed, sum_A, sum_D, sum_bias, shares2 = _retreat(
                s + 2, f2, passed, sum_A, sum_D, sum_bias, x2, d2, slope2, y2, z2, decay2, left2,
                B, C, du, ddelta, dz, channels, by_state, spread, n, rate, skip, limit,
                STATE, NT * NL, SOFTPLUS, HAS_Z, NL,
            )
            passed, sum_A, sum_D, sum_bias, shares1 = _retreat(
                s + 1, f1, passed, sum_A, sum_D, sum_bias, x1, d1, slope1, y1, z1, decay1, left1,
                B, C, du, ddelta, dz, channels, by_state, spread, n, rate, skip, limit,
                STATE, NT * NL, SOFTPLUS, HAS_Z, NL,
            )
            passed, sum_A, sum_D, sum_bias, shares0 = _retreat(
                s, f0, passed, sum_A, sum_D, sum_bias, x0, d0, slope0, y0, z0, decay0, left0,
                B, C, du, ddelta, dz, channels, by_state, spread, n, rate, skip, limit,
                STATE, NT * NL, SOFTPLUS, HAS_Z, NL,
            )
            shares = tl.sum(tl.join(tl.join(shares0, shares1), tl.join(shares2, shares3)), 2)
            at = s + four
            frame = tl.maximum(length - 1 - at if REVERSE else at, 0).to(tl.int64)
            where = dBC + (frame * by_state + n_7 + of_C * to_C)
            tl.store(where, shares, mask=at < tl.where(n_7 < STATE, length, 0))
    # fmt: on
    _blank(du, tl.maximum(begin, length), end, channels, channel, mask)
    _blank(ddelta, tl.maximum(begin, length), end, channels, channel, mask)
    if HAS_Z:
        _blank(dz, tl.maximum(begin, length), end, channels, channel, mask)
    _blank(dBC, tl.maximum(begin, length), end, by_state, n, n < STATE)
    _blank(dBC + to_C, tl.maximum(begin, length), end, by_state, n, n < STATE)
    tl.store(dA + segment_row * matrix + place, sum_A, mask=exists)
    tl.store(dbias + segment_row * channels + channel, sum_bias, mask=mask)
    tl.store(dD + segment_row * channels + channel, sum_D, mask=mask)
    if part == 0:
        tl.store(dentry + batch * matrix + place, passed, mask=exists)
