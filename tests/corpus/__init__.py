"""Small real models and what can be removed from them, one file a family."""

from tests.corpus import (
    attention,
    beyond,
    branches,
    cnn,
    exotic,
    experts,
    indexing,
    leaves,
    mlp,
    modules,
    recurrent,
    residual,
    sequences,
    transformers,
    weights,
)

FILES = (
    mlp.CASES,
    cnn.CASES,
    residual.CASES,
    branches.CASES,
    attention.CASES,
    transformers.CASES,
    recurrent.CASES,
    indexing.CASES,
    leaves.CASES,
    exotic.CASES,
    experts.CASES,
    modules.CASES,
    weights.CASES,
    beyond.CASES,
    sequences.CASES,
)
CASES = tuple(case for cases in FILES for case in cases)
