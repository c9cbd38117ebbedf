"""The losses of distillation against a naive reference, and the properties that make them what they are."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from jaxopt_compress.distillation import cross_entropy, kd, mix, soft_targets, with_teacher

LOGITS = hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-30, 30, width=32))
STUDENT, TEACHER = (jax.random.normal(jax.random.key(seed), (4, 7)) * 3 for seed in (0, 1))
LABELS = jnp.array([0, 6, 3, 3])


def naive_log_softmax(z):
    z = np.asarray(z, np.float64) - np.max(z, -1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def naive_soft(student, teacher, temperature):
    losses = np.zeros(student.shape[:-1])
    for at in np.ndindex(losses.shape):
        q, p = (naive_log_softmax(np.asarray(z[at], np.float64) / temperature) for z in (student, teacher))
        losses[at] = temperature**2 * sum(np.exp(b) * (b - a) for a, b in zip(q, p, strict=True))
    return losses


def naive_hard(student, labels):
    return np.array([-naive_log_softmax(row)[label] for row, label in zip(student, labels, strict=True)])


@given(LOGITS, LOGITS, st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_soft_targets_against_a_naive_loop(student, teacher, temperature):
    losses = soft_targets(jnp.asarray(student), jnp.asarray(teacher), temperature=temperature)
    assert losses.shape == (2, 3)
    np.testing.assert_allclose(losses, naive_soft(student, teacher, temperature), rtol=1e-4, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_against_a_naive_loop(alpha, temperature):
    hard, soft = naive_hard(STUDENT, LABELS), naive_soft(STUDENT, TEACHER, temperature)
    losses = kd(STUDENT, TEACHER, LABELS, temperature=temperature, alpha=alpha)
    np.testing.assert_allclose(losses, (1 - alpha) * hard + alpha * soft, rtol=1e-5)


@pytest.mark.slow
def test_the_defaults():
    want = 0.1 * naive_hard(STUDENT, LABELS) + 0.9 * naive_soft(STUDENT, TEACHER, 4.0)
    np.testing.assert_allclose(kd(STUDENT, TEACHER, LABELS), want, rtol=1e-5)


@given(LOGITS, LOGITS)
def test_divergence_is_not_negative(student, teacher):
    losses = soft_targets(jnp.asarray(student), jnp.asarray(teacher), temperature=2.0)
    assert np.all(np.asarray(losses) >= -1e-4)


@given(LOGITS, st.floats(-100, 100, width=32))
def test_divergence_from_itself_is_zero_and_shifts_do_not_matter(logits, shift):
    assert not np.asarray(soft_targets(jnp.asarray(logits), jnp.asarray(logits), temperature=3.0)).any()
    shifted = soft_targets(jnp.asarray(logits + shift), jnp.asarray(logits), temperature=3.0)
    np.testing.assert_allclose(shifted, np.zeros((2, 3)), atol=1e-3)


def slope(loss, at):
    return jax.grad(lambda z: jnp.sum(loss(z)))(at)


def test_the_gradient_is_the_difference_of_the_softened_distributions():
    for temperature in (0.5, 4.0):
        q, p = (jax.nn.softmax(z / temperature) for z in (STUDENT, TEACHER))
        found = slope(lambda z, t=temperature: soft_targets(z, TEACHER, temperature=t), STUDENT)
        np.testing.assert_allclose(found, temperature * (q - p), rtol=1e-4, atol=1e-6)


def test_temperature_does_not_change_the_size_of_the_gradient():
    def size(temperature):
        return np.linalg.norm(slope(lambda z: soft_targets(z, TEACHER, temperature=temperature), STUDENT))

    # As T grows the gradient tends to the difference of the centred logits over the number of classes.
    centred = [z - z.mean(-1, keepdims=True) for z in (STUDENT, TEACHER)]
    limit = np.linalg.norm(centred[0] - centred[1]) / STUDENT.shape[-1]
    np.testing.assert_allclose([size(100.0), size(1000.0)], limit, rtol=0.05)
    assert 0.3 < size(4.0) / limit < 3


def test_no_gradient_reaches_the_teacher():
    assert not slope(lambda z: kd(STUDENT, z, LABELS, alpha=1.0), TEACHER).any()

    def loss(scale):
        teacher = lambda x: scale * x  # noqa: E731
        return with_teacher(cross_entropy, teacher)(STUDENT, LABELS, inputs=TEACHER).sum()

    assert jax.grad(loss)(jnp.asarray(2.0)) == 0
    assert loss(jnp.asarray(2.0)) != loss(jnp.asarray(3.0))


@pytest.mark.slow
@pytest.mark.parametrize("big", [1e4, 1e30])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_large_logits(big, temperature):
    student = jnp.array([[big, -big, 0.0], [1.0, 2.0, 3.0]])
    teacher = jnp.array([[big, 0.0, -big], [3.0, -big, big]])
    losses = kd(student, teacher, jnp.array([0, 2]), temperature=temperature)
    assert np.isfinite(losses).all()
    assert np.isfinite(slope(lambda z: kd(z, teacher, jnp.array([0, 2]), temperature=temperature), student)).all()
    assert losses[0] == 0  # both are sure of the label


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_compared_in_float32(dtype):
    student, teacher = STUDENT.astype(dtype), TEACHER.astype(dtype)
    losses = kd(student, teacher, LABELS)
    assert losses.dtype == jnp.float32
    wide = kd(student.astype(jnp.float32), teacher.astype(jnp.float32), LABELS)
    np.testing.assert_array_equal(losses, wide)
    assert slope(lambda z: kd(z, teacher, LABELS), student).dtype == dtype


@pytest.mark.slow
def test_double_precision_stays():
    with jax.enable_x64(True):
        student, teacher = (jnp.asarray(np.asarray(z, np.float64)) for z in (STUDENT, TEACHER))
        losses = kd(student, teacher, LABELS)
        assert losses.dtype == jnp.float64
        want = 0.1 * naive_hard(student, LABELS) + 0.9 * naive_soft(student, teacher, 4.0)
        np.testing.assert_allclose(losses, want, rtol=1e-12)


def test_temperature_and_alpha_may_be_traced():
    traced = jax.jit(lambda t, a: kd(STUDENT, TEACHER, LABELS, temperature=t, alpha=a))
    for temperature, alpha in ((2.0, 0.25), (5.0, 1.0)):
        want = kd(STUDENT, TEACHER, LABELS, temperature=temperature, alpha=alpha)
        np.testing.assert_allclose(traced(jnp.float32(temperature), jnp.float32(alpha)), want, rtol=1e-5)
    assert traced._cache_size() == 1


def test_with_teacher_is_kd_with_cross_entropy():
    x = jax.random.normal(jax.random.key(2), (4, 3))
    w = jax.random.normal(jax.random.key(3), (3, 7))
    for options in ({}, {"temperature": 2.0, "alpha": 0.3}):
        loss_fn = with_teacher(cross_entropy, lambda x: x @ w, **options)
        np.testing.assert_array_equal(loss_fn(STUDENT, LABELS, inputs=x), kd(STUDENT, x @ w, LABELS, **options))


def test_with_teacher_takes_any_loss_and_any_number_of_targets():
    smooth = lambda logits, labels, weight: weight * optax.softmax_cross_entropy(logits, labels)  # noqa: E731
    one_hot, weight = jax.nn.one_hot(LABELS, 7), jnp.array([1.0, 0.0, 2.0, 1.0])
    loss_fn = with_teacher(smooth, lambda x: x, temperature=3.0, alpha=0.5)
    losses = loss_fn(STUDENT, one_hot, weight, inputs=TEACHER)
    want = 0.5 * smooth(STUDENT, one_hot, weight) + 0.5 * soft_targets(STUDENT, TEACHER, temperature=3.0)
    np.testing.assert_allclose(losses, want, rtol=1e-6)


def test_combinators_compose():
    first, second = (lambda x: x), (lambda x: -x)
    loss_fn = with_teacher(with_teacher(cross_entropy, first), second)
    with pytest.raises(TypeError, match="inputs"):  # the inner one needs its inputs too: partial application gives them
        loss_fn(STUDENT, LABELS, inputs=TEACHER)
    inner = with_teacher(cross_entropy, first)
    both = with_teacher(lambda z, y: inner(z, y, inputs=TEACHER), second)(STUDENT, LABELS, inputs=TEACHER)
    want = 0.1 * kd(STUDENT, TEACHER, LABELS) + 0.9 * soft_targets(STUDENT, -TEACHER, temperature=4.0)
    np.testing.assert_allclose(both, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kd(STUDENT, TEACHER[:, :6], LABELS),
            "`soft_targets`: student and teacher logits have one shape; got (4, 7) and (4, 6).",
        ),
        (
            lambda: kd(STUDENT, TEACHER, LABELS[:3]),
            "`cross_entropy`: labels are integers of shape (4,); got int32 of (3,).",
        ),
        (
            lambda: kd(STUDENT, TEACHER, LABELS.astype(jnp.float32)),
            "`cross_entropy`: labels are integers of shape (4,); got float32 of (4,).",
        ),
        (
            lambda: cross_entropy(STUDENT, jax.nn.one_hot(LABELS, 7)),
            "`cross_entropy`: labels are integers of shape (4,); got float32 of (4, 7).",
        ),
        (lambda: kd(STUDENT, TEACHER, LABELS, temperature=0), "`soft_targets`: `temperature` is positive; got 0."),
        (
            lambda: kd(STUDENT, TEACHER, LABELS, temperature=-1.0),
            "`soft_targets`: `temperature` is positive; got -1.0.",
        ),
        (lambda: kd(STUDENT, TEACHER, LABELS, alpha=1.5), "`alpha` is the teacher's share, in [0, 1]; got 1.5."),
        (lambda: mix(STUDENT, TEACHER, float("nan")), "`alpha` is the teacher's share, in [0, 1]; got nan."),
        (
            lambda: with_teacher(lambda z, y: cross_entropy(z, y).mean(), lambda x: x)(STUDENT, LABELS, inputs=TEACHER),
            "`with_teacher`: `loss_fn` returns one number an example, (4,); got ().",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match="`") as error:
        call()
    assert str(error.value) == message
