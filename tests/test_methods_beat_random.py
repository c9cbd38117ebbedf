"""Every pruning method beats random pruning at equal density, on digits that ship with scikit-learn, over paired seeds.

The methods are those of `benchmarks.pruning_methods`, which does the same at length on Fashion-MNIST.
"""

from functools import partial

import jax
import pytest

from benchmarks import _lenet
from benchmarks.pruning_methods import against_random, run

pytestmark = pytest.mark.slow
SEEDS, EPOCHS = 3, 60
WIDTHS = (64, 96, 64, 10)
GROUPS = {
    "at once": lambda bench: partial(bench.at_once, 0.15, 10),
    "neurons": lambda bench: partial(bench.neurons, 0.3, 10),
    "scaled neurons": lambda bench: bench.scaled_neurons,
    "2:4 at once": lambda bench: partial(bench.n_of_m_at_once, 10),
    "before training": lambda bench: partial(bench.before, 0.03),
    "from scratch": lambda bench: partial(bench.scratch, 0.03),
    "while tuning": lambda bench: partial(bench.tuned, 0.03),
    "1:16": lambda bench: partial(bench.n_of_m, 1, 16),
}
BETTER_FIRST = {  # the orderings that the papers report
    "at once": [
        ("Fisher, global", "magnitude, global"),
        ("Taylor, global", "magnitude, global"),
        ("Fisher, global, 10 rounds", "Fisher, global"),
        ("Wanda", "magnitude"),
    ],
    "neurons": [("gate, 10 rounds", "norm")],
    "scaled neurons": [("normalization scale", "norm")],
    "before training": [("random, ERK", "random"), ("SynFlow", "magnitude")],
    "from scratch": [("RigL", "SET"), ("SET", "random"), ("gradual magnitude, ERK", "gradual magnitude, uniform")],
    "while tuning": [("movement", "magnitude")],
    "1:16": [("SR-STE", "straight-through")],
}
KNOWN_TO_LOSE = {  # as their critics say
    ("scaled neurons", "norm"): "a kernel whose outputs are standardized has no scale of its own",
    ("1:16", "straight-through"): "weights that are not seen run away; SR-STE is the cure",
}


@pytest.fixture(autouse=True)
def user_promotion():
    """Run with JAX's own settings, as a user would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


SHORT = ("neurons", "2:4 at once")  # `make exhaustive` runs every group


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.exhaustive) for name in GROUPS]
)
def test_every_method_beats_random_pruning(name):
    data = _lenet.parts("digits")
    errors, _ = run(GROUPS[name], data.train, data.test, EPOCHS, SEEDS, WIDTHS)
    rows = against_random(errors)
    for method, row in rows.items():
        if "random" not in method and (name, method) not in KNOWN_TO_LOSE:
            assert row["better by"] > 0, (method, rows)
    for better, worse in BETTER_FIRST.get(name, ()):
        assert rows[better]["error"] < rows[worse]["error"], (better, worse, rows)
