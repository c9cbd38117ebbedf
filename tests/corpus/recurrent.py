"""Loops over time: 5 features, 8 hidden units, 6 steps, 3 outputs, unless said otherwise."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_init, nonzero, normal, positive, seed

HEAD = "head/kernel:1 head/bias:0"
LAYER = axes("x/kernel:1 x/bias:0 h/kernel:0,1 head/kernel:0")
LAYER_ENDS = axes(f"x/kernel:0 {HEAD}")


def over_time(step, carry, x):
    """Scan over the second axis."""
    carry, ys = lax.scan(step, carry, x.swapaxes(0, 1))
    return carry, ys.swapaxes(0, 1)


def cell_init(rng, n, width, gates):
    return {"x": dense_init(rng, n, gates * width), "h": dense_init(rng, width, gates * width, bias=False)}


def rnn_step(p):
    def step(h, a):
        h = jnp.tanh(dense(p["x"], a) + dense(p["h"], h))
        return h, h

    return step


def lstm_step(p):
    def step(carry, a):
        h, c = carry
        i, f, g, o = jnp.split(dense(p["x"], a) + dense(p["h"], h), 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return step


def gru_step(p):
    def step(h, a):
        r, z, n = jnp.split(dense(p["x"], a), 3, -1)
        hr, hz, hn = jnp.split(dense(p["h"], h), 3, -1)
        z = jax.nn.sigmoid(z + hz)
        h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h
        return h, h

    return step


def zeros(width=8):
    return jnp.zeros((2, width))


def pair(width=8):
    return zeros(width), zeros(width)


def recurrent(run, gates=1, **extra):
    """`run(p, x)` makes (2, ..., 8) out of (2, 6, 5)."""

    def make():
        rng = seed()
        params = {**cell_init(rng, 5, 8, gates), "head": dense_init(rng, 8, 3)}
        params |= {name: init(rng) for name, init in extra.items()}
        return lambda p, x: dense(p["head"], run(p, x)), params, (normal(rng, 2, 6, 5),)

    return make


def unrolled(p, x):
    h = zeros()
    for time in range(6):
        h, _ = rnn_step(p)(h, x[:, time])
    return h


def by_fori(p, x):
    step = rnn_step(p)
    return lax.fori_loop(0, 6, lambda i, h: step(h, lax.dynamic_index_in_dim(x, i, 1, keepdims=False))[0], zeros())


def by_while(p, x):
    step = rnn_step(p)

    def body(carry):
        i, h = carry
        return i + 1, step(h, lax.dynamic_index_in_dim(x, i, 1, keepdims=False))[0]

    return lax.while_loop(lambda carry: carry[0] < 6, body, (jnp.asarray(0, jnp.int32), zeros()))[1]


def until_still(p, x):
    """A fixed point: it stops when the state does, which sees all units."""
    a = dense(p["x"], x[:, 0])

    def body(carry):
        i, h, _ = carry
        new = jnp.tanh(a + 0.1 * dense(p["h"], h))
        return i + 1, new, jnp.abs(new - h).max()

    start = (jnp.asarray(0, jnp.int32), zeros(), jnp.asarray(1.0))
    return lax.while_loop(lambda carry: (carry[0] < 20) & (carry[2] > 1e-3), body, start)[1]


def learned_start(p, x):
    return over_time(rnn_step(p), jnp.broadcast_to(p["start"][None], (2, 8)), x)[0]


def peephole(p, x):
    def step(carry, a):
        h, c = carry
        i, f, g = jnp.split(dense(p["x"], a) + dense(p["h"], h), 3, -1)
        c = jax.nn.sigmoid(f + p["peep"][None] * c) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jnp.tanh(c), c), c

    return over_time(step, pair(), x)[0][0]


def input_state(lstm):
    """The caller gives the first state, and so its width."""

    def make():
        rng = seed()
        params = {**cell_init(rng, 5, 8, 4 if lstm else 1), "head": dense_init(rng, 8, 3)}

        def fn(p, x, h):
            if lstm:
                return dense(p["head"], over_time(lstm_step(p), (h, zeros()), x)[1])
            return dense(p["head"], over_time(rnn_step(p), h, x)[0])

        return fn, params, (normal(rng, 2, 6, 5), normal(rng, 2, 8))

    return make


def state_shown():
    rng = seed()
    params = {**cell_init(rng, 5, 8, 4), "head": dense_init(rng, 8, 3)}

    def fn(p, x):
        (_, c), h = over_time(lstm_step(p), pair(), x)
        return dense(p["head"], h), c

    return fn, params, (normal(rng, 2, 6, 5),)


def two_lstms():
    rng = seed()
    params = {"a": cell_init(rng, 5, 8, 4), "b": cell_init(rng, 8, 7, 4), "head": dense_init(rng, 7, 3)}

    def fn(p, x):
        h = over_time(lstm_step(p["a"]), pair(), x)[1]
        return dense(p["head"], over_time(lstm_step(p["b"]), pair(7), h)[0][0])

    return fn, params, (normal(rng, 2, 6, 5),)


def bidirectional(join):
    def make():
        rng = seed()
        params = {"a": cell_init(rng, 5, 8, 3), "b": cell_init(rng, 5, 8 if join is jnp.add else 7, 3)}
        params["head"] = dense_init(rng, 8 if join is jnp.add else 15, 3)

        def fn(p, x):
            forth = over_time(gru_step(p["a"]), zeros(), x)[1]
            back = over_time(gru_step(p["b"]), zeros(p["b"]["h"]["kernel"].shape[0]), x[:, ::-1])[1]
            return dense(p["head"], join(forth, back[:, ::-1]))

        return fn, params, (normal(rng, 2, 6, 5),)

    return make


def encoder_decoder():
    """The state of the first goes into the second, which reads its own output."""
    rng = seed()
    params = {"a": cell_init(rng, 5, 8, 3), "b": cell_init(rng, 3, 8, 3), "head": dense_init(rng, 8, 3)}

    def fn(p, x):
        h, _ = over_time(gru_step(p["a"]), zeros(), x)

        def step(carry, _):
            h, y = carry
            h, _ = gru_step(p["b"])(h, y)
            y = dense(p["head"], h)
            return (h, y), y

        return lax.scan(step, (h, zeros(3)), length=4)[1]

    return fn, params, (normal(rng, 2, 6, 5),)


def filtered(run, **extra):
    """`run(p, h)` goes over the time axis of (2, 6, 8) and has leaves of its own, no matrix of 8 by 8."""

    def make():
        rng = seed()
        params = {"x": dense_init(rng, 5, 8), "head": dense_init(rng, 8, 3)}
        params |= {name: init(rng) for name, init in extra.items()}
        return lambda p, x: dense(p["head"], run(p, dense(p["x"], x))), params, (normal(rng, 2, 6, 5),)

    return make


def decaying(p, h):
    decay = jax.nn.sigmoid(p["decay"])[None]
    return over_time(lambda s, a: ((s := decay * s + a), s), zeros(), h)[1]


def associative(p, h):
    decay = jnp.broadcast_to(jax.nn.sigmoid(p["decay"])[None, None], h.shape)
    join = lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])  # noqa: E731
    return lax.associative_scan(join, (decay, h), axis=1)[1]


def state_space(p, h):
    """Each of 8 channels drives 4 states with their own decay (S4D, Mamba)."""
    decay = jnp.exp(-jax.nn.softplus(p["decay"]))[None]

    def step(s, u):
        s = decay * s + p["b"][None] * u[..., None]
        return s, (s * p["c"][None]).sum(-1) + p["skip"][None] * u

    return over_time(step, jnp.zeros((2, 8, 4)), h)[1]


def running_mean(p, h):
    return jnp.cumsum(h, 1) / jnp.arange(1, 7, dtype=jnp.float32)[None, :, None]


def causal_filter(p, h):
    padded = jnp.pad(h, ((0, 0), (3, 0), (0, 0)))
    return sum(padded[:, i : i + 6] * p["taps"][i][None, None] for i in range(4))


STATES = {name: (lambda rng: normal(rng, 8, 4)) for name in ("b", "c", "decay")} | {"skip": lambda rng: nonzero(rng, 8)}


def plain(name, run, gates=1, more="", **extra):
    return Case(name, recurrent(run, gates, **extra), exact=LAYER + axes(more), pinned=LAYER_ENDS)


def per_channel(name, run, more="", pinned="", **extra):
    exact = axes(f"x/kernel:1 x/bias:0 head/kernel:0 {more}")
    return Case(name, filtered(run, **extra), exact=exact, pinned=LAYER_ENDS + axes(pinned))


TWO = "{a,b}/x/kernel:1 {a,b}/x/bias:0 {a,b}/h/kernel:0,1 head/kernel:0"

CASES = (
    plain("rnn", lambda p, x: over_time(rnn_step(p), zeros(), x)[0]),
    plain("rnn_all_states", lambda p, x: over_time(rnn_step(p), zeros(), x)[1]),
    plain("rnn_unrolled", unrolled),
    plain("rnn_fori_loop", by_fori),
    plain("rnn_while_loop", by_while),
    plain("rnn_until_still", until_still),
    plain("rnn_learned_start", learned_start, more="start:0", start=lambda rng: nonzero(rng, 8)),
    plain("lstm", lambda p, x: over_time(lstm_step(p), pair(), x)[0][0], 4),
    plain("lstm_peephole", peephole, 3, "peep:0", peep=lambda rng: nonzero(rng, 8)),
    plain("gru", lambda p, x: over_time(gru_step(p), zeros(), x)[1], 3),
    Case("rnn_input_state", input_state(False), exact=(), pinned=LAYER + LAYER_ENDS),
    Case("lstm_input_state", input_state(True), exact=(), pinned=LAYER + LAYER_ENDS),
    Case("lstm_state_shown", state_shown, exact=(), pinned=LAYER + LAYER_ENDS),
    Case("lstm_two_layers", two_lstms, exact=axes(f"{TWO} b/x/kernel:0"), pinned=axes(f"a/x/kernel:0 {HEAD}")),
    Case(
        "gru_bidirectional",
        bidirectional(lambda a, b: jnp.concatenate([a, b], -1)),
        exact=axes(TWO),
        pinned=axes(f"{{a,b}}/x/kernel:0 {HEAD}"),
    ),
    Case(
        "gru_bidirectional_sum",
        bidirectional(jnp.add),
        exact=axes(TWO),
        pinned=axes(f"{{a,b}}/x/kernel:0 {HEAD}"),
    ),
    Case("gru_encoder_decoder", encoder_decoder, exact=axes(TWO), pinned=axes(f"{{a,b}}/x/kernel:0 {HEAD}")),
    per_channel("recurrent_decay", decaying, "decay:0", decay=lambda rng: nonzero(rng, 8)),
    per_channel("recurrent_associative_scan", associative, "decay:0", decay=lambda rng: nonzero(rng, 8)),
    per_channel("recurrent_state_space", state_space, "{b,c,decay}:0,1 skip:0", **STATES),
    per_channel("recurrent_cumsum", running_mean),
    per_channel("recurrent_cummax", lambda p, h: lax.cummax(h, axis=1)),
    per_channel("recurrent_causal_filter", causal_filter, "taps:1", "taps:0", taps=lambda rng: positive(rng, 4, 8)),
)
