"""Mixtures of experts: 5 tokens of width 6, 4 experts with 8 hidden units, routed in all the usual ways.

Hidden units of the experts go one by one, in all experts at once: their weights are stacked. An expert itself can go
where every token is given to all of them; where data choose, it stays.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tests.corpus.case import Case, axes
from tests.corpus.layers import dense, dense_init, normal, seed

TOKENS, WIDTH, EXPERTS, HIDDEN = 5, 6, 4, 8
INSIDE = axes("up:2 down:1")
STREAM = axes("in/kernel:1 in/bias:0 router:0 up:1 down:2 out/kernel:0")
ENDS = axes("in/kernel:0 out/kernel:1 out/bias:0")


def around(mixture, **more):
    """`x + mixture(p, x)` on tokens, between a dense layer in and one out."""

    def make():
        rng = seed()
        params = {"in": dense_init(rng, 7, WIDTH), "router": normal(rng, WIDTH, EXPERTS)}
        params |= {"up": normal(rng, EXPERTS, WIDTH, HIDDEN), "down": normal(rng, EXPERTS, HIDDEN, WIDTH)}
        params |= {name: normal(rng, *shape) for name, shape in more.items()} | {"out": dense_init(rng, WIDTH, 3)}

        def fn(p, x):
            h = dense(p["in"], x)
            return dense(p["out"], h + mixture(p, h))

        return fn, params, (normal(rng, TOKENS, 7),)

    return make


def every_expert(p, x):
    h = jax.nn.gelu(jnp.einsum("td,edf->tef", x, p["up"]))
    return jnp.einsum("tef,efd->ted", h, p["down"])


def soft(p, x):
    return jnp.einsum("te,ted->td", jax.nn.softmax(x @ p["router"], -1), every_expert(p, x))


def sigmoid(p, x):
    """Independent gates: an expert without a gate counts for half, but makes nothing."""
    return jnp.einsum("te,ted->td", jax.nn.sigmoid(x @ p["router"]), every_expert(p, x))


def first(p, x):
    """Top 1 as a one-hot vector, weighted by its probability (Switch)."""
    gates = jax.nn.softmax(x @ p["router"], -1)
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), EXPERTS)
    return jnp.einsum("te,ted->td", gates * chosen, every_expert(p, x))


def first_two(p, x):
    """Top 2 by `lax.top_k`, the gates renormalized."""
    logits, chosen = lax.top_k(x @ p["router"], 2)
    gates = jnp.einsum("tk,tke->te", jax.nn.softmax(logits, -1), jax.nn.one_hot(chosen, EXPERTS))
    return jnp.einsum("te,ted->td", gates, every_expert(p, x))


def capacity(p, x):
    """Dispatch and combine with two places an expert (GShard, Switch): what does not fit is dropped."""
    gates = jax.nn.softmax(x @ p["router"], -1)
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), EXPERTS)
    place = (jnp.cumsum(chosen, 0) * chosen - 1.0).astype(jnp.int32)
    dispatch = jax.nn.one_hot(place, 2)  # a place below 0 or above 1 is nowhere
    inside = jnp.einsum("tec,td->ecd", dispatch, x)
    h = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", inside, p["up"]))
    combine = dispatch * (gates * chosen).sum(-1)[:, None, None]
    return jnp.einsum("tec,ecd->td", combine, jnp.einsum("ecf,efd->ecd", h, p["down"]))


def by_vmap(p, x):
    made = jax.vmap(lambda up, down: jax.nn.gelu(x @ up) @ down)(p["up"], p["down"])
    return jnp.einsum("te,etd->td", jax.nn.softmax(x @ p["router"], -1), made)


def by_scan(p, x):
    gates = jax.nn.softmax(x @ p["router"], -1)

    def one(total, expert):
        up, down, gate = expert
        return total + gate[:, None] * (jax.nn.gelu(x @ up) @ down), None

    return lax.scan(one, jnp.zeros_like(x), (p["up"], p["down"], gates.T))[0]


def looked_up(p, x):
    """Each token reads the weights of its expert."""
    gates = jax.nn.softmax(x @ p["router"], -1)
    chosen = jnp.argmax(gates, -1)
    h = jax.nn.gelu(jnp.einsum("td,tdf->tf", x, p["up"][chosen]))
    return gates.max(-1)[:, None] * jnp.einsum("tf,tfd->td", h, p["down"][chosen])


def ragged(p, x, act=jax.nn.gelu):
    """Tokens sorted by expert, one ragged product for all (dropless; MegaBlocks)."""
    gates = jax.nn.softmax(x @ p["router"], -1)
    chosen = jnp.argmax(gates, -1)
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=EXPERTS).astype(jnp.int32)
    h = act(lax.ragged_dot(x[order], p["up"], sizes))
    made = lax.ragged_dot(h, p["down"], sizes)[jnp.argsort(order)]
    return gates.max(-1)[:, None] * made


def switched(p, x):
    """One expert for all, as branches of a `switch`."""
    chosen = jnp.argmax((x @ p["router"]).sum(0))
    one = lambda i: lambda z: jax.nn.gelu(z @ p["up"][i]) @ p["down"][i]  # noqa: E731
    return lax.switch(chosen, [one(i) for i in range(EXPERTS)], x)


def shared(p, x):
    """Routed experts beside one that every token passes (DeepSeek)."""
    return first_two(p, x) + jax.nn.gelu(x @ p["shared_up"]) @ p["shared_down"]


def of_gates(p, x):
    """SwiGLU experts."""
    h = jnp.einsum("td,edf->tef", x, p["up"]) * jax.nn.silu(jnp.einsum("td,edf->tef", x, p["gate"]))
    made = jnp.einsum("tef,efd->ted", h, p["down"])
    return jnp.einsum("te,ted->td", jax.nn.softmax(x @ p["router"], -1), made)


def expert_choice(p, x):
    """Experts choose two tokens each (Zhou et al., 2022)."""
    gates, chosen = lax.top_k(jax.nn.softmax(x @ p["router"], -1).T, 2)
    h = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", x[chosen], p["up"]))
    made = jnp.einsum("ecf,efd->ecd", h, p["down"]) * gates[..., None]
    return jnp.zeros_like(x).at[chosen].add(made)


def two_layers():
    rng = seed()
    params = {"in": dense_init(rng, 7, WIDTH), "router": normal(rng, WIDTH, EXPERTS), "out": dense_init(rng, 8, 3)}
    params |= {"experts": [dense_init(rng, WIDTH, 8) for _ in range(EXPERTS)]}

    def fn(p, x):
        h = jax.nn.relu(dense(p["in"], x))
        gates = jax.nn.softmax(h @ p["router"], -1)
        made = sum(gates[:, i, None] * dense(one, h) for i, one in enumerate(p["experts"]))
        return dense(p["out"], made)

    return fn, params, (normal(rng, TOKENS, 7),)


MADE = axes("up:0 down:0")
CHOSEN = axes("router:1") + MADE


def _case(name, mixture, exact=INSIDE, inexact=(), pinned=(), **more):
    return Case(f"experts_{name}", around(mixture, **more), STREAM + exact, inexact, ENDS + pinned)


CASES = (
    _case("soft", soft, exact=INSIDE + CHOSEN),  # a removed expert keeps its share of the softmax, as a masked one does
    _case("sigmoid", sigmoid, exact=INSIDE + CHOSEN),
    _case("first", first, pinned=CHOSEN),
    _case("first_two", first_two, exact=INSIDE + MADE, pinned=axes("router:1")),  # chosen or not, it makes nothing
    _case("capacity", capacity, pinned=CHOSEN),
    _case("by_vmap", by_vmap, exact=INSIDE + CHOSEN),
    _case("by_scan", by_scan, pinned=CHOSEN),
    _case("looked_up", looked_up, pinned=CHOSEN),
    _case("ragged", ragged, pinned=CHOSEN),
    _case(  # no bias after the product that a constant could go into
        "ragged_sigmoid", lambda p, x: ragged(p, x, jax.nn.sigmoid), exact=(), inexact=INSIDE, pinned=CHOSEN
    ),
    _case("switched", switched, pinned=CHOSEN),
    _case(
        "shared",
        shared,
        exact=INSIDE + MADE + axes("shared_up:1 shared_down:0"),
        pinned=axes("router:1"),
        shared_up=(WIDTH, 6),
        shared_down=(6, WIDTH),
    ),
    _case("of_gates", of_gates, exact=INSIDE + CHOSEN + axes("gate:0,2"), gate=(4, 6, 8)),
    _case("expert_choice", expert_choice, pinned=CHOSEN),
    Case(
        "experts_in_a_list",
        two_layers,
        exact=axes("in/kernel:1 experts/{0,1,2,3}/kernel:0,1 experts/{0,1,2,3}/bias:0 router:0 out/kernel:0"),
        pinned=axes("router:1 in/kernel:0 out/kernel:1"),
    ),
)
