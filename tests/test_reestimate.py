"""Statistics of batch normalization, anew: the mean of those of batches, and what that is worth after rounding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.calibration import reestimate
from jaxopt_compress.quantization import quantize, schemes

BATCHES = [jax.random.normal(jax.random.key(i), (64, 6)) * (i + 1) + i for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_it_is_the_mean_of_the_statistics_of_batches(momentum):
    norm = nn.BatchNorm(momentum=momentum, use_running_average=False)
    variables = norm.init(jax.random.key(0), BATCHES[0])

    def update(stats, x):
        return norm.apply({**variables, "batch_stats": stats}, 100 * x, mutable=["batch_stats"])[1]["batch_stats"]

    far = jax.tree.map(lambda x: x + 1e6, variables["batch_stats"])
    found = reestimate(update, far, BATCHES)
    np.testing.assert_allclose(found["mean"], np.mean([100 * x.mean(0) for x in BATCHES], 0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["var"], np.mean([1e4 * x.var(0) for x in BATCHES], 0), rtol=1e-3)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for _ in range(3):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(32, use_bias=False)(x)))
        return nn.Dense(4)(x)


@pytest.mark.slow
def test_it_takes_back_part_of_what_rounding_to_few_bits_costs():
    net, x = Net(), BATCHES[0]
    variables = net.init(jax.random.key(0), x, train=True)
    train = lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]  # noqa: E731
    answer = lambda v, x: net.apply(v, x, train=False)  # noqa: E731
    put = lambda stats: {**variables, "batch_stats": stats}  # noqa: E731
    rules = {"**/kernel": schemes.weight_only(2)}
    trained = put(reestimate(lambda stats, x: train(put(stats), x), variables["batch_stats"], BATCHES))

    q, q_train = quantize(answer, trained, x, rules=rules), quantize(train, trained, x, rules={**rules, "**": None})
    ranges = q_train.init()
    stats = reestimate(lambda stats, x: q_train(put(stats), ranges, x), trained["batch_stats"], BATCHES)
    wanted = answer(trained, BATCHES[1])
    off = [float(jnp.mean((q(v, q.init(), BATCHES[1]) - wanted) ** 2)) for v in (trained, put(stats))]
    assert off[1] < 0.7 * off[0]


def test_other_leaves_stay_and_nonsense_is_refused():
    update = lambda s, x: {"mean": 0.9 * s["mean"] + 0.1 * x.mean(0), "steps": s["steps"] + 1}  # noqa: E731
    stats = {"mean": jnp.zeros(6), "steps": jnp.int32(7)}
    assert reestimate(update, stats, BATCHES)["steps"] == 7
    with pytest.raises(ValueError, match="`reestimate`: there are no batches"):
        reestimate(update, stats, [])
    with pytest.raises(ValueError, match="do not move"):
        reestimate(lambda stats, x: stats, {"mean": jnp.zeros(6)}, BATCHES)
