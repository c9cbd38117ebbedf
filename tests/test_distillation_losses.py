"""Every loss of distillation against loops in NumPy, its slope against differences, and what no loss may do."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_compress import distillation as d
from tests import naive_distillation as naive
from tests.products import normal

LABELS = jnp.array([0, 3, 4, 1, 2, 2, 0, 4])
MARGIN, SPREAD = -jnp.abs(normal(3, seed=9)) / 4, normal(3, seed=8)


class Case(NamedTuple):
    """A loss under test.

    Attributes:
      loss: `(student, teacher) -> losses`.
      naive: the same in NumPy.
      student: the shape of its features.
      teacher: the shape of the teacher's.
      least: what it is where student and teacher are the same; None where that means nothing.
    """

    loss: Callable
    naive: Callable
    student: tuple[int, ...] = (8, 5)
    teacher: tuple[int, ...] = (8, 5)
    least: float | None = 0.0


def both(name: str, *more: Any, **options: Any) -> tuple[Callable, Callable]:
    mine, theirs = getattr(d, name), getattr(naive, name)
    plain = [np.asarray(x) for x in more]
    return lambda s, t: mine(s, t, *more, **options), lambda s, t: theirs(s, t, *plain, **options)


def top_k(s, t, k, temperature):
    return d.top_k_soft_targets(s, d.top_k(t, k, temperature=temperature), temperature=temperature)


def reviewed(review, module):
    """Fuse a picture and a coarser one."""
    stages = lambda x: [x, x[:, ::2, ::2]]  # noqa: E731
    shapes = stages(np.zeros(PICTURES["student"]))
    params = jax.tree.map(module.asarray, d.reviewer(jax.random.key(3), shapes, shapes))
    return lambda s, t: review(params, stages(s), stages(t))


PICTURES = {"student": (8, 5, 6, 3), "teacher": (8, 5, 6, 3)}
WIDER = {"student": (8, 3, 2, 3), "teacher": (8, 3, 2, 4)}
BATCH: dict[str, Any] = {"student": (8, 3), "teacher": (8, 2, 4), "least": None}
CASES = {
    "soft targets": Case(*both("soft_targets", temperature=3.0)),
    "reverse": Case(*both("reverse_kl", temperature=2.0)),
    "jsd": Case(*both("jsd")),
    "jsd, 0": Case(*both("jsd", beta=0.0, temperature=2.0)),
    "jsd, 0.1": Case(*both("jsd", beta=0.1)),
    "jsd, 1": Case(*both("jsd", beta=1.0)),
    "dkd": Case(*both("dkd", LABELS)),
    "dkd, other weights": Case(*both("dkd", LABELS, temperature=1.5, alpha=0.5, beta=2.0)),
    "dist": Case(*both("dist")),
    "dist, weights": Case(*both("dist", temperature=4.0, beta=2.0, gamma=0.5)),
    "top 1": Case(partial(top_k, k=1, temperature=1.0), partial(naive.top_k_soft_targets, k=1)),
    "top 3": Case(partial(top_k, k=3, temperature=2.0), partial(naive.top_k_soft_targets, k=3, temperature=2.0)),
    "top all": Case(partial(top_k, k=5, temperature=1.0), partial(naive.top_k_soft_targets, k=5)),
    "hint": Case(*both("hint"), **PICTURES),
    "attention": Case(*both("attention_transfer"), **WIDER, least=None),
    "attention, 4": Case(*both("attention_transfer", power=4), **PICTURES),
    "selectivity": Case(*both("nst"), **WIDER, least=None),
    "ofd": Case(*both("ofd", MARGIN), **PICTURES, least=None),
    "vid": Case(*both("vid", SPREAD), **PICTURES, least=None),
    "hcl": Case(*both("hcl"), **PICTURES),
    "review": Case(jax.jit(reviewed(d.review, jnp)), reviewed(naive.review, np), **PICTURES, least=None),
    "distance": Case(*both("rkd_distance"), **BATCH),
    "angle": Case(*both("rkd_angle"), **BATCH),
    "similarity": Case(*both("similarity_preserving"), **BATCH),
    "pkt": Case(*both("pkt"), **BATCH),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def inputs(case: Case, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    return normal(*case.student, seed=seed), 2 * normal(*case.teacher, seed=seed + 50)


@pytest.mark.slow
@EVERY
def test_losses_against_loops(case):
    student, teacher = inputs(case)
    losses = case.loss(student, teacher)
    assert losses.shape == (8,) and losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, case.naive(student, teacher), rtol=2e-5, atol=1e-6)


@pytest.mark.sampled(4)
@pytest.mark.slow
@EVERY
def test_slopes_against_differences(case):
    with jax.enable_x64(True):
        student, teacher = (jnp.asarray(np.asarray(x), jnp.float64) for x in inputs(case, seed=1))
        weights = jnp.asarray(np.random.default_rng(0).random(8))
        total = jax.jit(lambda s: jnp.sum(weights * case.loss(s, teacher)))
        slope, rng = jax.jit(jax.grad(total))(student), np.random.default_rng(1)
        assert slope.dtype == jnp.float64
        for _ in range(3):
            along = jnp.asarray(rng.normal(size=student.shape))
            moved = [float(total(student + sign * 1e-6 * along)) for sign in (1, -1)]
            np.testing.assert_allclose(jnp.sum(slope * along), (moved[0] - moved[1]) / 2e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.sampled(4)
@pytest.mark.slow
@EVERY
def test_nothing_reaches_the_teacher(case):
    student, teacher = inputs(case)
    assert not jax.grad(lambda t: jnp.sum(case.loss(student, t)))(teacher).any()
    assert jax.grad(lambda s: jnp.sum(case.loss(s, teacher)))(student).any()


@pytest.mark.sampled(2)
@pytest.mark.slow
@EVERY
def test_the_least_loss_is_that_of_the_teacher_itself(case):
    student, teacher = inputs(case)
    if case.least is None:
        assert np.isfinite(case.loss(student, teacher)).all()
        return
    np.testing.assert_allclose(case.loss(teacher, teacher), case.least, atol=2e-5)
    assert np.mean(case.loss(student, teacher)) > 1e-3
    assert np.abs(jax.grad(lambda s: jnp.sum(case.loss(s, teacher)))(teacher)).max() < 1e-3


@pytest.mark.sampled(3)
@pytest.mark.slow
@EVERY
def test_zeros_and_equal_examples_have_finite_slopes(case):
    student, teacher = inputs(case)
    for s, t in (
        (jnp.zeros_like(student), teacher),
        (student, jnp.zeros_like(teacher)),
        (jnp.zeros_like(student), jnp.zeros_like(teacher)),
        (jnp.broadcast_to(student[:1], student.shape), jnp.broadcast_to(teacher[:1], teacher.shape)),
    ):
        value, slope = jax.value_and_grad(lambda s, t=t: jnp.sum(case.loss(s, t)))(s)
        assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_examples_that_coincide_have_no_distance(name):
    """Far from 0, where what rounding leaves of a difference of squares is not small."""
    student, teacher = normal(8, 30, seed=1), normal(8, 40, seed=2)
    student, teacher = (jnp.tile(50 * x[:4], (2, 1)) for x in (student, teacher))
    losses = getattr(d, name)(student, teacher)
    np.testing.assert_allclose(losses, getattr(naive, name)(student, teacher), rtol=1e-4)
    assert np.abs(jax.grad(lambda s: jnp.sum(getattr(d, name)(s, teacher)))(student)).max() < 1


@pytest.mark.sampled(12)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@EVERY
def test_narrow_features_are_compared_in_float32(case, dtype):
    student, teacher = (x.astype(dtype) for x in inputs(case))
    losses = case.loss(student, teacher)
    assert losses.dtype == jnp.float32
    wide = case.loss(student.astype(jnp.float32), teacher.astype(jnp.float32))
    np.testing.assert_allclose(losses, wide, rtol=1e-6)
    assert jax.grad(lambda s: jnp.sum(case.loss(s, teacher)))(student).dtype == dtype


@pytest.mark.sampled(6)
@pytest.mark.slow
@EVERY
def test_batches_on_eight_devices(case):
    """The same losses and slopes with the batch sharded."""
    student, teacher = inputs(case)
    run = jax.jit(jax.value_and_grad(lambda s, t: jnp.mean(case.loss(s, t))))
    wanted = run(student, teacher)
    mesh = jax.make_mesh((8,), ("data",))
    shards = jax.device_put((student, teacher), NamedSharding(mesh, PartitionSpec("data")))
    found = jax.block_until_ready(run(*shards))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


@pytest.mark.sampled(6)
@pytest.mark.slow
@EVERY
def test_pmap_gives_every_device_the_losses_of_its_batch(case):
    batches = [inputs(case, seed) for seed in range(8)]
    loss = jax.value_and_grad(lambda s, t: jnp.mean(case.loss(s, t)))
    student, teacher = (jnp.stack(arrays) for arrays in zip(*batches, strict=True))
    found = jax.block_until_ready(jax.pmap(loss)(student, teacher))
    alone = jax.jit(loss)
    for number, batch in enumerate(batches):
        mine = jax.tree.map(lambda x, n=number: x[n], found)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), mine, alone(*batch))


TRACED_JSD = jax.jit(lambda student, teacher, beta: d.jsd(student, teacher, beta=beta))


@given(st.sampled_from([0.0, 1.0]) | st.floats(1e-3, 1 - 1e-3), st.integers(0, 100))
def test_jsd_lies_between(beta, seed):
    student, teacher = inputs(CASES["jsd"], seed)
    found = np.asarray(d.jsd(student, teacher, beta=beta))
    np.testing.assert_allclose(found, naive.jsd(student, teacher, beta=beta), rtol=1e-3, atol=1e-5)
    traced = TRACED_JSD(student, teacher, jnp.float32(beta))
    np.testing.assert_allclose(traced, found, rtol=1e-4, atol=1e-6)
    swapped = d.jsd(teacher, student, beta=1 - beta)  # the roles of both change with beta
    np.testing.assert_allclose(found, swapped, rtol=1e-3, atol=1e-5)


def test_dkd_is_kd_in_parts():
    student, teacher = inputs(CASES["dkd"])
    for temperature in (1.0, 4.0):
        p = jax.nn.softmax(teacher / temperature)
        rest = 1 - jnp.take_along_axis(p, LABELS[:, None], 1)[:, 0]
        found = d.dkd(student, teacher, LABELS, temperature=temperature, alpha=1.0, beta=rest)
        np.testing.assert_allclose(
            found, d.soft_targets(student, teacher, temperature=temperature), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_what_is_kept_of_a_teacher():
    student, teacher = inputs(CASES["hint"]._replace(student=(8, 50), teacher=(8, 50)))
    whole = d.soft_targets(student, teacher, temperature=2.0)
    losses = [top_k(student, teacher, k, 2.0) for k in (1, 5, 20, 49, 50)]
    for fewer, more in zip(losses, losses[1:]):
        assert np.all(np.asarray(fewer) <= np.asarray(more) + 1e-5)  # what is taken together cannot differ
    for same in losses[-2:]:
        np.testing.assert_allclose(same, whole, rtol=1e-5)
    kept = d.top_k(teacher, 5, temperature=2.0)
    mass = jnp.exp(kept.log_probs).sum(-1) + jnp.exp(kept.rest)
    np.testing.assert_allclose(mass, 1, rtol=1e-6)
    slope = jax.grad(lambda s: jnp.sum(d.top_k_soft_targets(s, kept, temperature=2.0)))(student)
    np.testing.assert_allclose(slope.sum(-1), 0, atol=1e-5)
    rest = np.ones((8, 50), bool)
    np.put_along_axis(rest, np.asarray(kept.classes), False, 1)
    assert np.all(np.asarray(slope)[rest].reshape(8, 45).std(1) > 0)  # by the student's own shares, not to zero


@pytest.mark.slow
def test_classes_that_are_ruled_out():
    student, teacher = (x.at[:, 2].set(-jnp.inf) for x in inputs(CASES["jsd"]))
    labels = jnp.where(LABELS == 2, 0, LABELS)
    few = [jnp.delete(x, 2, axis=1) for x in (student, teacher)]
    for loss in (partial(d.soft_targets, temperature=2.0), d.reverse_kl, d.jsd):
        np.testing.assert_allclose(loss(student, teacher), loss(*few), rtol=1e-5, atol=1e-6)
        assert np.isfinite(jax.grad(lambda s, loss=loss: jnp.sum(loss(s, teacher)))(student)).all()
    assert np.isfinite(d.dkd(student, teacher, labels)).all()


@pytest.mark.slow
def test_standardized_logits():
    student, teacher = inputs(CASES["jsd"])
    np.testing.assert_allclose(d.standardize(student), naive.standardize(student), rtol=1e-5, atol=1e-6)
    loss = lambda s, t: d.soft_targets(d.standardize(s), d.standardize(t), temperature=2.0)  # noqa: E731
    np.testing.assert_allclose(loss(student, teacher), loss(5 * student + 3, 0.1 * teacher - 1), rtol=1e-4, atol=1e-6)
    assert not d.standardize(jnp.ones((2, 3))).any()
    assert np.isfinite(jax.grad(lambda s: jnp.sum(d.standardize(s) ** 2))(jnp.ones((2, 3)))).all()


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", [None, (40.0, 55.0)])
def test_contrast_against_loops(normalizer):
    student, teacher = normal(4, 6, seed=1), normal(4, 6, seed=2)
    held = d.bank(jax.random.key(0), 20, 6)
    held = held if normalizer is None else held._replace(normalizer=jnp.asarray(normalizer))
    examples, negatives = jnp.array([3, 0, 19, 7]), jax.random.randint(jax.random.key(1), (4, 9), 0, 20)
    losses, after = d.crd(student, teacher, held, examples, negatives)
    plain = [np.asarray(x) for x in (held.student, held.teacher, examples, negatives)]
    wanted, means = naive.crd(student, teacher, *plain, normalizer=normalizer)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    np.testing.assert_allclose(after.normalizer, means if normalizer is None else normalizer, rtol=1e-5)
    kept = d.remember(after, student, teacher, examples)
    for memory, old, new in ((kept.student, held.student, student), (kept.teacher, held.teacher, teacher)):
        row = 0.5 * np.asarray(old)[19] + 0.5 * np.asarray(new)[2] / np.linalg.norm(new[2])
        np.testing.assert_allclose(memory[19], row / np.linalg.norm(row), rtol=1e-5)
        np.testing.assert_array_equal(memory[1], old[1])


@pytest.mark.slow
def test_margins_of_normal_features():
    mean, deviation = jnp.array([0.5, -1.0, 9.0]), jnp.array([1.0, 2.0, 1.0])
    drawn = np.random.default_rng(0).normal(np.asarray(mean), np.asarray(deviation), (1_000_000, 3))
    wanted = [drawn[:, i][drawn[:, i] < 0].mean() for i in (0, 1)]
    np.testing.assert_allclose(d.negative_mean(mean, deviation)[:2], wanted, rtol=1e-2)
    assert d.negative_mean(mean, deviation)[2] == -3
    np.testing.assert_allclose(jax.nn.softplus(d.spread_of(5.0)) + 1e-5, 5.0, rtol=1e-6)


@pytest.mark.slow
def test_masked_tokens_have_no_slope():
    """Whatever stands there: labels of -100, logits that are no numbers."""
    mask = jnp.array([[True, True, False, True], [False, True, True, False]])
    clean, teacher = normal(2, 4, 5, seed=3), normal(2, 4, 5, seed=4)
    broken = [jnp.where(mask[..., None], x, jnp.nan) for x in (clean, teacher)]
    labels = jnp.where(mask, 2, -100)
    for loss in (d.kd, d.dkd):
        run = lambda s, t, y, loss=loss: d.token_mean(d.masked(loss)(s, t, y, mask=mask), mask)  # noqa: E731
        value, slope = jax.jit(jax.value_and_grad(run))(*broken, labels)
        np.testing.assert_allclose(value, loss(clean, teacher, jnp.maximum(labels, 0))[mask].mean(), rtol=1e-6)
        assert not np.asarray(slope)[~np.asarray(mask)].any()
        assert np.asarray(slope)[np.asarray(mask)].all(-1).all()
    nothing = jnp.zeros_like(mask)
    assert d.token_mean(d.masked(d.cross_entropy)(clean, labels, mask=nothing), nothing) == 0


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 4, 9, 20])
def test_chunks_change_nothing(size):
    hidden, head, teacher = normal(9, 6, seed=1), normal(6, 7, seed=2), normal(9, 7, seed=3)
    labels = jnp.arange(9) % 7

    def found(wrap):
        loss = lambda h, w: jnp.sum(wrap(lambda h, t, y: d.kd(h @ w, t, y))(h, teacher, labels) ** 2)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head)

    whole, pieces = found(lambda f: f), found(lambda f: d.in_chunks(f, size))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), pieces, whole)


def test_chunks_keep_memory_small():
    hidden, head = normal(512, 8, seed=1), normal(8, 2000, seed=2)
    labels = jnp.zeros(512, jnp.int32)

    def temporaries(wrap):
        loss = lambda h, w: jnp.sum(wrap(lambda h, y: d.cross_entropy(h @ w, y))(h, labels))  # noqa: E731
        analysis: Any = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporaries(lambda f: d.in_chunks(f, 32)) < temporaries(lambda f: f) / 4


FEATURES = jnp.zeros((4, 3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.reverse_kl(FEATURES, FEATURES[:2]), "`reverse_kl`: student and teacher logits have one shape"),
        (lambda: d.jsd(FEATURES, FEATURES, temperature=0), "`jsd`: `temperature` is positive; got 0."),
        (lambda: d.jsd(FEATURES, FEATURES, beta=1.5), "`jsd`: `beta` is in [0, 1]; got 1.5."),
        (
            lambda: d.dkd(FEATURES[0], FEATURES[0], jnp.zeros(3)),
            "`dkd`: labels are integers of shape (3,); got float32 of (3,).",
        ),
        (
            lambda: d.dkd(FEATURES[..., :1], FEATURES[..., :1], jnp.zeros((4, 3), int)),
            "`dkd`: logits have two classes or more",
        ),
        (lambda: d.standardize(FEATURES[..., :1]), "`standardize`: logits have two classes or more"),
        (lambda: d.top_k(FEATURES, 3), "`top_k`: `k` is 1 to 2, the number of classes; got 3."),
        (lambda: d.top_k_soft_targets(FEATURES, d.top_k(FEATURES[0], 1)), "`top_k_soft_targets`: the teacher kept is"),
        (lambda: d.hint(FEATURES, FEATURES[..., :1]), "`hint`: student and teacher features have one shape"),
        (lambda: d.attention_transfer(FEATURES, FEATURES[:, :2]), "`attention_transfer`: features are (examples, pos"),
        (lambda: d.nst(FEATURES[0], FEATURES[0]), "`nst`: features are (examples, positions ..., channels)"),
        (lambda: d.ofd(FEATURES, FEATURES, jnp.zeros(3)), "`ofd`: one margin a channel, (2,); got (3,)."),
        (lambda: d.vid(FEATURES, FEATURES, jnp.zeros(3)), "`vid`: one spread a channel, (2,); got (3,)."),
        (lambda: d.hcl(FEATURES, FEATURES), "`hcl`: features are (examples, height, width, channels)"),
        (lambda: d.rkd_angle(FEATURES, FEATURES[:2]), "`rkd_angle`: features are (examples, ...), as many"),
        (
            lambda: d.crd(FEATURES[0], FEATURES[0], d.bank(jax.random.key(0), 5, 2), jnp.arange(2), jnp.zeros((3, 2))),
            "`crd`: `examples` are (3,) and `negatives` (3, m)",
        ),
        (lambda: d.masked(d.hint)(FEATURES, FEATURES, mask=jnp.ones(4)), "`masked`: `mask` is boolean; got float32."),
        (
            lambda: d.masked(d.hint)(FEATURES, mask=jnp.ones(3, bool)),
            "`masked`: arrays begin with the axes of the mask",
        ),
        (lambda: d.in_chunks(d.hint, 0), "`in_chunks`: `size` is 1 or more; got 0."),
        (lambda: d.in_chunks(d.hint, 2)(FEATURES, FEATURES[:2]), "`in_chunks`: arrays have one first axis"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message)
