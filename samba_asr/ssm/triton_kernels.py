"""Triton kernels of the selective scan: what one program on the GPU does. They are launched by triton_scan.py.

A program owns one sequence, a block of channels of one group and a stretch of time, which it walks a tile of ``K`` frames
after the other. Within a tile everything happens in registers, in tensors of six axes:

    (K frames, CT channels, NT states, W warps, NL states, CL channels)

Triton hands out threads from the last axis backwards: the CL x NL lanes of a warp, then W warps over further channels;
what is left, K x CT x NT, lies in each thread's own registers. So the recurrence, over frames, never leaves a thread; sums
over states take log2(NL) shuffles and those over channels log2(CL), each after a thread has added up its own.

Time is counted in the order of the scan: ``s`` = 0 is the first frame scanned, which with REVERSE is a sequence's last
own frame; padding comes last in either direction. Steps of size 0 make it inert. Decays are exp2(delta A log2(e)), since
a GPU's exponential has base 2.

The backward pass runs the adjoint recurrence against the scan's order. With c[s] = C[s] dy[s], the gradient of the state
after frame s is g[s] = c[s] + a[s+1] g[s+1], where a is the decay; what frame s passes on to the one before is a[s] g[s].
"""

import triton
import triton.language as tl


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1 to float32's precision, however small x is: twice the series of artanh(x / (2 + x))."""
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
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _advance(decay, drive, left, decay_next, drive_next, left_next):
    """Join two stretches of the recurrence: their decay, their state from a zero start, and what the last frame's decay
    left of the state before it (decay x state, without that frame's drive)."""
    return decay * decay_next, decay_next * drive + drive_next, decay_next * drive + left_next


@triton.jit
def _advance_state(decay, drive, decay_next, drive_next):
    return decay * decay_next, decay_next * drive + drive_next


@triton.jit
def _retreat(first, decay, gradient, first_before, decay_before, gradient_before):
    """Join two stretches of the adjoint recurrence, the later one first: the decay of a stretch's first frame, the product
    of its other decays, and the gradient of the state after its first frame."""
    passed = decay_before * first
    return first_before, passed * decay, gradient_before + passed * gradient


@triton.jit
def _frames(start, length, time, K: tl.constexpr, REVERSE: tl.constexpr):
    """The K places in the scan's order from start on: which frames they are, which are the sequence's own, which exist."""
    s = start + tl.arange(0, K)
    own = s < length
    frame = tl.where(own, length - 1 - s, s) if REVERSE else s
    return frame.to(tl.int64), own, s < time


@triton.jit
def _place(block, per_group, BC: tl.constexpr):
    """The group of a block of channels, the block's channels, and which of them exist: none reaches into two groups."""
    blocks = tl.cdiv(per_group, BC)
    group = block // blocks
    inside = (block % blocks) * BC + tl.arange(0, BC)
    return group, group * per_group + inside, inside < per_group


@triton.jit
def _read(pointer, rows, columns, stride, row_mask, column_mask):
    """A tile (rows, columns) in float32, 0 where a mask says no."""
    mask = row_mask[:, None] & column_mask[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(pointer, tile, rows, columns, stride, row_mask, column_mask):
    mask = row_mask[:, None] & column_mask[None, :]
    value = tile.to(pointer.dtype.element_ty)
    tl.store(pointer + rows[:, None] * stride + columns[None, :], value, mask=mask)


@triton.jit
def _step(raw, bias, own, SOFTPLUS: tl.constexpr):
    """Step sizes (K, channels): 0 on padding, which leaves the state as it is."""
    step = raw + bias[None, :]
    if SOFTPLUS:
        step = _softplus(step)
    return tl.where(own[:, None], step, 0.0)


@triton.jit
def _vector(pointer, channels, mask, GIVEN: tl.constexpr):
    """A value for each channel, 0 where there is none."""
    if GIVEN:
        return tl.load(pointer + channels, mask=mask, other=0.0).to(tl.float32)
    return tl.zeros_like(channels).to(tl.float32)


@triton.jit
def _by_channel(x, K: tl.constexpr, CT: tl.constexpr, W: tl.constexpr, CL: tl.constexpr):
    """(K, channels) in the six axes."""
    return tl.reshape(x, (K, CT, 1, W, 1, CL))


@triton.jit
def _by_state(x, K: tl.constexpr, NT: tl.constexpr, NL: tl.constexpr):
    """(K, states) in the six axes."""
    return tl.reshape(x, (K, 1, NT, 1, NL, 1))


@triton.jit
def _over_states(x, K: tl.constexpr, BC: tl.constexpr):
    """The sum over states, (K, channels)."""
    return tl.reshape(tl.sum(tl.sum(x, 2), 3), (K, BC))


@triton.jit
def _over_channels(x, K: tl.constexpr, N: tl.constexpr):
    """The sum over a block's channels, (K, states)."""
    return tl.reshape(tl.sum(tl.sum(tl.sum(x, 1), 4), 2), (K, N))


@triton.jit
def _pick(x, chosen):
    """The one of x's first axis that is chosen, with that axis kept."""
    return tl.sum(tl.where(chosen, x, 0.0), 0, keep_dims=True)


@triton.jit
def _matrix(channel, mask, by_state, by_channel, STATE: tl.constexpr, CT: tl.constexpr, NT: tl.constexpr,
            W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr):  # fmt: skip
    """Where a block's values lie in a matrix over states and channels, in the six axes, and which of them exist."""
    n = _by_state(tl.arange(0, NT * NL), 1, NT, NL)
    c = _by_channel(channel, 1, CT, W, CL)
    exists = _by_channel(mask.to(tl.int32), 1, CT, W, CL) > 0
    return n * by_state + c * by_channel, (n < STATE) & exists


@triton.jit
def scan_kernel(
    u, delta, A, B, C, D, z, bias, lengths, entry, sums, kept, y, last,
    u_batch, u_time, delta_batch, delta_time, B_batch, B_time, B_group, C_batch, C_time, C_group, z_batch, z_time,
    time, channels, per_group, segment, segments,
    STATE: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, KEEP: tl.constexpr, ENDS: tl.constexpr,
    K: tl.constexpr, CT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """Scan one segment of one sequence for one block of channels.

    ENDS: from a zero state, to write only the state it ends in, where the next segment's entry belongs, and its sum of
    steps. Otherwise from its entry, to write y, the last state and, with KEEP, the state before every chunk.
    """
    N: tl.constexpr = NT * NL
    BC: tl.constexpr = CT * W * CL
    batch, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    group, channel, mask = _place(tl.program_id(0), per_group, BC)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), time) if HAS_LENGTHS else time
    u += batch * u_batch
    delta += batch * delta_batch
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    z += batch * z_batch
    y += batch * time * channels
    entry += (batch * segments + part) * STATE * channels
    states = tl.arange(0, N)
    real = states < STATE
    place, exists = _matrix(channel, mask, 1, STATE, STATE, CT, NT, W, NL, CL)
    rate = tl.load(A + place, mask=exists, other=0.0) * 1.4426950408889634
    place, exists = _matrix(channel, mask, channels, 1, STATE, CT, NT, W, NL, CL)
    if ENDS:
        state = tl.zeros([1, CT, NT, W, NL, CL], tl.float32)
    else:
        state = tl.load(entry + place, mask=exists, other=0.0)
    offset = _vector(bias, channel, mask, HAS_BIAS)
    skip = _vector(D, channel, mask, HAS_D)
    k = tl.reshape(tl.arange(0, K), (K, 1, 1, 1, 1, 1))
    total = tl.zeros([BC], tl.float32)
    begin = part * segment
    for start in range(begin, tl.minimum(begin + segment, time), K):
        frame, own, there = _frames(start, length, time, K, REVERSE)
        x = _read(u, frame, channel, u_time, own, mask)
        step = _step(_read(delta, frame, channel, delta_time, own, mask), offset, own, SOFTPLUS)
        gain = _by_state(_read(B, frame, states, B_time, own, real), K, NT, NL)
        if KEEP:
            if start % CHUNK == 0:
                chunk = batch * tl.cdiv(time, CHUNK) + start // CHUNK
                tl.store(kept + chunk * STATE * channels + place, state, mask=exists)
        decay = tl.exp2(_by_channel(step, K, CT, W, CL) * rate)
        drive = _by_channel(step * x, K, CT, W, CL) * gain
        drive = tl.where(k == 0, drive + decay * state, drive)
        _, history = tl.associative_scan((decay, drive), 0, _advance_state)
        state = _pick(history, k == K - 1)
        if ENDS:
            total += tl.sum(step, 0)
        else:
            out = history * _by_state(_read(C, frame, states, C_time, own, real), K, NT, NL)
            out = _over_states(out, K, BC) + x * skip[None, :]
            if HAS_Z:
                gate = _read(z, frame, channel, z_time, own, mask)
                out *= gate * _sigmoid(gate)
            _write(y, tl.where(own[:, None], out, 0.0), frame, channel, channels, there, mask)
    if ENDS:
        tl.store(entry + STATE * channels + place, state, mask=exists)
        tl.store(sums + (batch * segments + part) * channels + channel, total, mask=mask)
    elif part == segments - 1:
        tl.store(last + batch * STATE * channels + place, state, mask=exists)


@triton.jit
def carry_kernel(A, states, sums, channels, segments, STATE: tl.constexpr, BACKWARDS: tl.constexpr, BLOCK: tl.constexpr):
    """Turn what each segment by itself passes on into what enters each: states (batch, segments, state, channels)."""
    batch = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < STATE * channels
    n, channel = at // channels, at % channels
    rate = tl.load(A + channel * STATE + n, mask=mask, other=0.0) * 1.4426950408889634
    states += batch * segments * STATE * channels + at
    sums += batch * segments * channels + channel
    first = segments - 1 if BACKWARDS else 0
    state = tl.load(states + first * STATE * channels, mask=mask, other=0.0)
    for i in range(1, segments):
        segment = segments - 1 - i if BACKWARDS else i
        before = segment + 1 if BACKWARDS else segment - 1
        decay = tl.exp2(tl.load(sums + before * channels, mask=mask, other=0.0) * rate)
        state = tl.load(states + segment * STATE * channels, mask=mask, other=0.0) + decay * state
        tl.store(states + segment * STATE * channels, state, mask=mask)


@triton.jit
def adjoint_kernel(
    delta, A, C, z, bias, lengths, dy, exits, sums,
    delta_batch, delta_time, C_batch, C_time, C_group, z_batch, z_time, dy_batch, dy_time,
    time, channels, per_group, segment, segments,
    STATE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    K: tl.constexpr, CT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """Run the adjoint recurrence over one segment, but the first, from zero; write what it passes on, where what comes
    back into the segment before it belongs, and its sum of steps."""
    N: tl.constexpr = NT * NL
    BC: tl.constexpr = CT * W * CL
    batch, part = tl.program_id(2).to(tl.int64), tl.program_id(1) + 1
    group, channel, mask = _place(tl.program_id(0), per_group, BC)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), time) if HAS_LENGTHS else time
    delta += batch * delta_batch
    C += batch * C_batch + group * C_group
    z += batch * z_batch
    dy += batch * dy_batch
    states = tl.arange(0, N)
    real = states < STATE
    place, exists = _matrix(channel, mask, 1, STATE, STATE, CT, NT, W, NL, CL)
    rate = tl.load(A + place, mask=exists, other=0.0) * 1.4426950408889634
    place, exists = _matrix(channel, mask, channels, 1, STATE, CT, NT, W, NL, CL)
    offset = _vector(bias, channel, mask, HAS_BIAS)
    k = tl.reshape(tl.arange(0, K), (K, 1, 1, 1, 1, 1))
    passed = tl.zeros([1, CT, NT, W, NL, CL], tl.float32)
    total = tl.zeros([BC], tl.float32)
    begin = part * segment
    tiles = tl.cdiv(tl.minimum(segment, time - begin), K)
    for i in range(tiles):
        frame, own, _ = _frames(begin + (tiles - 1 - i) * K, length, time, K, REVERSE)
        step = _step(_read(delta, frame, channel, delta_time, own, mask), offset, own, SOFTPLUS)
        gradient = _read(dy, frame, channel, dy_time, own, mask)
        if HAS_Z:
            gate = _read(z, frame, channel, z_time, own, mask)
            gradient *= gate * _sigmoid(gate)
        weight = _by_state(_read(C, frame, states, C_time, own, real), K, NT, NL)
        decay = tl.exp2(_by_channel(step, K, CT, W, CL) * rate)
        drive = decay * (_by_channel(gradient, K, CT, W, CL) * weight + tl.where(k == K - 1, passed, 0.0))
        _, history = tl.associative_scan((decay, drive), 0, _advance_state, reverse=True)
        passed = _pick(history, k == 0)
        total += tl.sum(step, 0)
    tl.store(exits + (batch * segments + part - 1) * STATE * channels + place, passed, mask=exists)
    tl.store(sums + (batch * segments + part) * channels + channel, total, mask=mask)


@triton.jit
def gradient_kernel(
    u, delta, A, B, C, D, z, bias, lengths, kept, exits, dy,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dentry,
    u_batch, u_time, delta_batch, delta_time, B_batch, B_time, B_group, C_batch, C_time, C_group, z_batch, z_time,
    dy_batch, dy_time,
    batches, time, channels, groups, per_group, segment, segments,
    STATE: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    K: tl.constexpr, CT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, CL: tl.constexpr,
):  # fmt: skip
    """Write all gradients of one segment of one sequence for one block of channels.

    Chunk after chunk, against the scan's order: from the kept state before the chunk, the states before each of its tiles
    are computed again, but for the last without y, and held in registers; then each tile, last first, runs the recurrence
    and its adjoint. du, ddelta and dz are whole; dB and dC are this block's share, dA, dD and dbias this segment's.
    """
    N: tl.constexpr = NT * NL
    BC: tl.constexpr = CT * W * CL
    TILES: tl.constexpr = CHUNK // K
    batch, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    block = tl.program_id(0) % tl.cdiv(per_group, BC)
    group, channel, mask = _place(tl.program_id(0), per_group, BC)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), time) if HAS_LENGTHS else time
    u += batch * u_batch
    delta += batch * delta_batch
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    z += batch * z_batch
    dy += batch * dy_batch
    du += batch * time * channels
    ddelta += batch * time * channels
    dz += batch * time * channels
    share = ((block * batches + batch) * time * groups + group) * STATE
    dB += share
    dC += share
    segment_row = batch * segments + part
    states = tl.arange(0, N)
    real = states < STATE
    place, exists = _matrix(channel, mask, 1, STATE, STATE, CT, NT, W, NL, CL)
    rate = tl.load(A + place, mask=exists, other=0.0)
    rate2 = rate * 1.4426950408889634
    place, exists = _matrix(channel, mask, channels, 1, STATE, CT, NT, W, NL, CL)
    offset = _vector(bias, channel, mask, HAS_BIAS)
    skip = _vector(D, channel, mask, HAS_D)
    k = tl.reshape(tl.arange(0, K), (K, 1, 1, 1, 1, 1))
    tile = tl.reshape(tl.arange(0, TILES), (TILES, 1, 1, 1, 1, 1))
    passed = tl.load(exits + segment_row * STATE * channels + place, mask=exists, other=0.0)
    sum_A = tl.zeros([1, CT, NT, W, NL, CL], tl.float32)
    sum_D = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    begin = part * segment
    chunks = tl.cdiv(tl.minimum(segment, time - begin), CHUNK)
    for i in range(chunks):
        first = begin + (chunks - 1 - i) * CHUNK
        chunk = batch * tl.cdiv(time, CHUNK) + first // CHUNK
        state = tl.load(kept + chunk * STATE * channels + place, mask=exists, other=0.0)
        entries = tl.where(tile == 0, state, 0.0)
        for j in range(1, TILES):
            frame, own, _ = _frames(first + (j - 1) * K, length, time, K, REVERSE)
            step = _step(_read(delta, frame, channel, delta_time, own, mask), offset, own, SOFTPLUS)
            x = _read(u, frame, channel, u_time, own, mask)
            gain = _by_state(_read(B, frame, states, B_time, own, real), K, NT, NL)
            decay = tl.exp2(_by_channel(step, K, CT, W, CL) * rate2)
            drive = _by_channel(step * x, K, CT, W, CL) * gain
            drive = tl.where(k == 0, drive + decay * state, drive)
            _, history = tl.associative_scan((decay, drive), 0, _advance_state)
            state = _pick(history, k == K - 1)
            entries = tl.where(tile == j, state, entries)
        for j in range(TILES):
            back = TILES - 1 - j
            frame, own, there = _frames(first + back * K, length, time, K, REVERSE)
            raw = _read(delta, frame, channel, delta_time, own, mask)
            step = _step(raw, offset, own, SOFTPLUS)
            x = _read(u, frame, channel, u_time, own, mask)
            gradient = _read(dy, frame, channel, dy_time, own, mask)
            gain = _by_state(_read(B, frame, states, B_time, own, real), K, NT, NL)
            weight = _by_state(_read(C, frame, states, C_time, own, real), K, NT, NL)
            # The recurrence: history is the state after each frame, left what each frame's decay left of the one before.
            state = _pick(entries, tile == back)
            decay = tl.exp2(_by_channel(step, K, CT, W, CL) * rate2)
            drive = _by_channel(step * x, K, CT, W, CL) * gain
            left = tl.where(k == 0, decay * state, 0.0)
            _, history, left = tl.associative_scan((decay, drive + left, left), 0, _advance)
            if HAS_Z:
                gate = _read(z, frame, channel, z_time, own, mask)
                opened = _sigmoid(gate)
                out = _over_states(history * weight, K, BC) + x * skip[None, :]
                dgate = gradient * out * opened * (1 + gate * (1 - opened))
                _write(dz, tl.where(own[:, None], dgate, 0.0), frame, channel, channels, there, mask)
                gradient *= gate * opened
            # Its adjoint: g is the gradient of the state after each frame.
            spread = _by_channel(gradient, K, CT, W, CL)
            g = spread * weight + tl.where(k == K - 1, passed, 0.0)
            _, _, g = tl.associative_scan((decay, tl.full([K, CT, NT, W, NL, CL], 1.0, tl.float32), g), 0, _retreat, reverse=True)
            passed = _pick(decay * g, k == 0)
            _write(dC, _over_channels(history * spread, K, N), frame, states, groups * STATE, there, real)
            driven = _by_channel(step * x, K, CT, W, CL)
            _write(dB, _over_channels(g * driven, K, N), frame, states, groups * STATE, there, real)
            through = g * left
            sum_A += tl.sum(through * _by_channel(step, K, CT, W, CL), 0, keep_dims=True)
            pull = _over_states(g * gain, K, BC)
            dstep = pull * x + _over_states(through * rate, K, BC)
            if SOFTPLUS:
                dstep *= _sigmoid(raw + offset[None, :])
            dstep = tl.where(own[:, None], dstep, 0.0)
            _write(ddelta, dstep, frame, channel, channels, there, mask)
            dx = tl.where(own[:, None], pull * step + gradient * skip[None, :], 0.0)
            _write(du, dx, frame, channel, channels, there, mask)
            sum_bias += tl.sum(dstep, 0)
            sum_D += tl.sum(gradient * x, 0)
    tl.store(dA + segment_row * STATE * channels + place, sum_A, mask=exists)
    if HAS_BIAS:
        tl.store(dbias + segment_row * channels + channel, sum_bias, mask=mask)
    if HAS_D:
        tl.store(dD + segment_row * channels + channel, sum_D, mask=mask)
    if part == 0:
        tl.store(dentry + batch * STATE * channels + place, passed, mask=exists)
