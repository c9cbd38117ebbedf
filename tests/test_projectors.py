"""Projectors and the fusion of ReviewKD: shapes, values against loops, what is refused, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_compress import distillation as d
from tests import naive_distillation as naive
from tests.products import normal


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_projector_averages_and_projects():
    student, teacher = normal(2, 4, 6, 3), normal(2, 2, 2, 5, seed=1)
    params = d.projector(jax.random.key(0), student, teacher)
    params["bias"] = normal(5, seed=2)
    want = np.zeros(teacher.shape)
    for n, i, j in np.ndindex(2, 2, 2):
        window = np.asarray(student)[n, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].reshape(-1, 3).mean(0)
        want[n, i, j] = window @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(d.project(params, student, teacher), want, rtol=1e-5, atol=1e-6)


def test_plain_vectors_and_bfloat16():
    student, teacher = normal(8, 3).astype(jnp.bfloat16), normal(8, 6)
    projected = d.project(d.projector(jax.random.key(0), student, teacher), student, teacher)
    assert projected.shape == (8, 6) and projected.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((8, 4, 4, 3), (8, 3, 2, 3)),
        ((8, 4), (8, 2, 4)),
        ((8, 4), (7, 4)),
        ((8, 2, 3), (8, 4, 3)),
        ((8, 0, 3), (8, 0, 3)),
    ],
)
def test_positions_that_do_not_fit(student, teacher):
    with pytest.raises(ValueError, match=r"`projector`: features are \(examples, positions"):
        d.projector(jax.random.key(0), shape(*student), shape(*teacher))


def test_no_channels_and_a_foreign_kernel():
    with pytest.raises(ValueError, match="features have channels"):
        d.projector(jax.random.key(0), shape(8, 0), shape(8, 4))
    params = d.projector(jax.random.key(0), shape(8, 3), shape(8, 4))
    with pytest.raises(ValueError, match=r"the kernel is \(3, 5\); got \(3, 4\)"):
        d.project(params, jnp.ones((8, 3)), jnp.ones((8, 5)))


STUDENTS = [normal(3, 4, 4, 2), normal(3, 2, 2, 3, seed=1)]
TEACHERS = [normal(3, 8, 8, 3, seed=2), normal(3, 2, 2, 4, seed=3)]


@pytest.mark.slow
def test_review_against_loops():
    params = d.reviewer(jax.random.key(0), STUDENTS, TEACHERS)
    params = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape, seed=5), params)
    losses = jax.jit(d.review)(params, STUDENTS, TEACHERS)
    plain = jax.tree.map(np.asarray, (params, STUDENTS, TEACHERS))
    np.testing.assert_allclose(losses, naive.review(*plain), rtol=1e-4)


@pytest.mark.slow
def test_review_learns_and_leaves_teachers_alone():
    params = d.reviewer(jax.random.key(0), STUDENTS, TEACHERS, width=4)

    @jax.jit
    def loss(params, teachers):
        return d.review(params, STUDENTS, teachers).mean()

    assert not any(jnp.any(g) for g in jax.tree.leaves(jax.grad(loss, argnums=1)(params, TEACHERS)))
    tx = optax.sgd(0.1)
    state, first = tx.init(params), loss(params, TEACHERS)
    slopes = jax.jit(jax.grad(loss))
    for _ in range(30):
        updates, state = tx.update(slopes(params, TEACHERS), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params, TEACHERS) < 0.8 * first


@pytest.mark.slow
def test_review_refuses_stages_that_do_not_fit():
    with pytest.raises(ValueError, match="`reviewer`: features of as many stages"):
        d.reviewer(jax.random.key(0), STUDENTS, TEACHERS[:1])
    params = d.reviewer(jax.random.key(0), STUDENTS, TEACHERS)
    with pytest.raises(ValueError, match="a fusion module a stage, 2; got 1"):
        d.review(params[:1], STUDENTS, TEACHERS)
    with pytest.raises(ValueError, match="`review`: features of as many stages"):
        d.review(params, [normal(3, 4)], [normal(3, 4)])
