"""The SGD and Adam family, written out as chains of Optax primitives.

In the formulas `p` is a parameter, `g` its gradient, `lr` the learning rate at this step and `t` the number of the
step, from 1. Each default is Optax's, and each function says which arguments give the steps of PyTorch and of Keras.
A learning rate is a number or an Optax schedule; schedules count steps from 0.
"""

from collections.abc import Callable
from typing import Any

import chex
import optax

from jaxopt_compress.optimizers.scaling import scale_by_adam_eps_hat, scale_by_rss_eps_outside

LearningRate = optax.ScalarOrSchedule
Optimizer = optax.GradientTransformationExtraArgs


def sgd(learning_rate: LearningRate) -> Optimizer:
    """Step against the gradient: stochastic gradient descent.

        p <- p - lr * g

    Args:
      learning_rate: a number or a schedule. PyTorch's default is 1e-3, Keras's 0.01.

    Differences:
      None in the step. PyTorch's `weight_decay` adds to the gradient, `optax.chain(optax.add_decayed_weights(wd),
      sgd(lr))`; Keras's decays the weights by `lr * wd` beside the step, which for plain SGD is the same.

    Reference:
      Robbins and Monro, 1951, "A stochastic approximation method".

    Example:
      >>> tx = sgd(0.5)
      >>> updates, state = tx.update({"w": 2.0}, tx.init({"w": 1.0}))
      >>> updates
      {'w': -1.0}
    """
    return optax.chain(optax.scale_by_learning_rate(learning_rate))


def momentum(learning_rate: LearningRate, decay: chex.Numeric = 0.9, *, lr_in_velocity: bool = False) -> Optimizer:
    """Step along a decaying sum of gradients: the heavy ball.

        v <- decay * v + g
        p <- p - lr * v                 (lr_in_velocity=False: PyTorch, Optax)

        v <- decay * v - lr * g
        p <- p + v                      (lr_in_velocity=True: Keras, Sutskever et al.)

    At a constant learning rate the two are equal. When the rate falls, the first slows down at once and the second
    coasts on at the old speed for about `1 / (1 - decay)` steps.

    Args:
      learning_rate: a number or a schedule.
      decay: the part of the velocity that stays, in [0, 1). All three frameworks have 0 unless told otherwise.
      lr_in_velocity: whether the velocity accumulates steps, `lr * g`, or gradients.

    Differences:
      PyTorch's `dampening` has no counterpart. See `sgd` for PyTorch's `weight_decay`.

    Reference:
      Polyak, 1964, "Some methods of speeding up the convergence of iteration methods".
    """
    return _with_velocity(optax.trace(decay), learning_rate, lr_in_velocity)


def nesterov(learning_rate: LearningRate, decay: chex.Numeric = 0.9, *, lr_in_velocity: bool = False) -> Optimizer:
    """Step along the velocity that the next step would have: Nesterov's accelerated gradient.

        v <- decay * v + g
        p <- p - lr * (g + decay * v)           (lr_in_velocity=False: PyTorch, Optax)

        v <- decay * v - lr * g
        p <- p + decay * v - lr * g             (lr_in_velocity=True: Keras)

    At a constant learning rate the two are equal. Both store the look-ahead point as `p`, so the gradient is taken
    at `p` itself.

    Args:
      learning_rate: a number or a schedule.
      decay: the part of the velocity that stays, in [0, 1).
      lr_in_velocity: whether the velocity accumulates steps, `lr * g`, or gradients (see `momentum`).

    Reference:
      Sutskever et al., 2013, "On the importance of initialization and momentum in deep learning", whose velocity
      has the learning rate inside; the form in terms of the look-ahead point is Bengio et al., 2012.
    """
    return _with_velocity(optax.trace(decay, nesterov=True), learning_rate, lr_in_velocity)


def adam(
    learning_rate: LearningRate,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    *,
    eps_hat: bool = False,
    mu_dtype: Any = None,
) -> Optimizer:
    """Step by the mean gradient over its root mean square, both debiased.

        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        p <- p - lr * m' / (sqrt(v' + eps_root) + eps),     m' = m / (1 - b1^t),  v' = v / (1 - b2^t)

    With `eps_hat=True` epsilon meets `v` before its bias is corrected:

        p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v + eps_root) + eps)

    The two differ where gradients are as small as epsilon, most of all in the first steps.

    Args:
      learning_rate: a number or a schedule. The paper, PyTorch and Keras have 1e-3.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root: 1e-8 in the paper, PyTorch and Optax, 1e-7 in Keras.
      eps_root: added inside the root, to differentiate through the update where `v` is 0; only Optax has it.
      eps_hat: whether epsilon is the paper's "epsilon hat". False in PyTorch and Optax, True in Keras.
      mu_dtype: the dtype of the first moment; that of the parameters if `None`.

    Differences:
      Keras is `adam(lr, eps=1e-7, eps_hat=True)`. The `weight_decay` of PyTorch's `Adam` adds to the gradient,
      `optax.chain(optax.add_decayed_weights(wd), adam(lr))`; that of Keras's `Adam` is `adamw`.

    Reference:
      Kingma and Ba, 2015, "Adam: a method for stochastic optimization".
    """
    scale = scale_by_adam_eps_hat if eps_hat else optax.scale_by_adam
    return optax.chain(
        scale(b1=b1, b2=b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: LearningRate,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    *,
    weight_decay: LearningRate = 1e-4,
    mask: chex.ArrayTree | Callable | None = None,
    eps_hat: bool = False,
    mu_dtype: Any = None,
) -> Optimizer:
    """Step as `adam` does and shrink the weights beside it.

        p <- p - lr * (u + weight_decay * p),     u: the direction of `adam`

    The decay meets neither moment, but all three frameworks multiply it by the learning rate. The paper multiplies
    it by the schedule alone, `eta` in `lr = alpha * eta`; that one is
    `optax.chain(adam(lr), optax.add_decayed_weights(lambda step: -weight_decay * eta(step)))`.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: see `adam`.
      eps_root: see `adam`.
      weight_decay: a number or a schedule: 1e-4 in Optax, 1e-2 in PyTorch, 4e-3 in Keras.
      mask: a tree of bools, or a function from parameters to one: which leaves decay. All of them if `None`, as in
        the three frameworks; biases and norm scales are better left out.
      eps_hat: see `adam`.
      mu_dtype: see `adam`.

    Differences:
      PyTorch is `adamw(lr, weight_decay=1e-2)`, Keras `adamw(lr, eps=1e-7, eps_hat=True, weight_decay=4e-3)`.

    Reference:
      Loshchilov and Hutter, 2019, "Decoupled weight decay regularization".
    """
    scale = scale_by_adam_eps_hat if eps_hat else optax.scale_by_adam
    return optax.chain(
        scale(b1=b1, b2=b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def rmsprop(
    learning_rate: LearningRate,
    decay: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
    *,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: chex.Numeric | None = None,
    nesterov: bool = False,
    lr_in_velocity: bool = True,
    initial_scale: chex.Numeric = 0.0,
    bias_correction: bool = False,
) -> Optimizer:
    """Step by the gradient over its running root mean square.

        v <- decay * v + (1 - decay) * g^2
        m <- decay * m + (1 - decay) * g            (centered=True; else m = 0)
        u = g / sqrt(v - m^2 + eps)                 (eps_in_sqrt=True: Optax, Keras)
        u = g / (sqrt(v - m^2) + eps)               (eps_in_sqrt=False: PyTorch)
        p <- p - lr * u

    With `momentum`, `u` goes through a velocity, which by default holds `lr * u` (see `momentum`). Where `centered`
    meets a gradient that never changes, `v - m^2` is 0 up to rounding: steps are then as large as `eps` allows, and
    NaN where rounding leaves it below `-eps`, in every framework alike.

    Args:
      learning_rate: a number or a schedule.
      decay: of the running means: 0.9 in the lecture, Optax and Keras, 0.99 in PyTorch.
      eps: 1e-8 in Optax and PyTorch, 1e-7 in Keras. Inside the root its effect is that of `sqrt(eps)` outside.
      eps_in_sqrt: whether epsilon is inside the root.
      centered: whether the mean is subtracted, so that `u` is scaled by the standard deviation.
      momentum: decay of a velocity; `None` has none.
      nesterov: whether that velocity looks ahead; only Optax has it.
      lr_in_velocity: whether the velocity holds `lr * u` (Optax, Keras) or `u` (PyTorch); equal at a constant rate.
      initial_scale: the start of `v`; 0 in the three frameworks.
      bias_correction: whether the means are debiased as in Adam; only Optax has it.

    Differences:
      PyTorch is `rmsprop(lr, 0.99, eps_in_sqrt=False, lr_in_velocity=False)`, Keras `rmsprop(lr, eps=1e-7)`.

    Reference:
      Tieleman and Hinton, 2012, lecture 6.5 of "Neural networks for machine learning"; centered: Graves, 2013,
      "Generating sequences with recurrent neural networks".
    """
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    direction = scale(decay, eps, initial_scale, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction)
    velocity = optax.identity() if momentum is None else optax.trace(momentum, nesterov=nesterov)
    return optax.chain(direction, _with_velocity(velocity, learning_rate, lr_in_velocity))


def adagrad(
    learning_rate: LearningRate,
    initial_accumulator_value: chex.Numeric = 0.1,
    eps: chex.Numeric = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> Optimizer:
    """Step by the gradient over the root of the sum of all its squares.

        s <- s + g^2                                (from initial_accumulator_value)
        p <- p - lr * g / sqrt(s + eps)             (eps_in_sqrt=True: Optax, Keras)
        p <- p - lr * g / (sqrt(s) + eps)           (eps_in_sqrt=False: PyTorch)

    Args:
      learning_rate: a number or a schedule.
      initial_accumulator_value: the start of `s`: 0.1 in Optax and Keras, 0 in the paper and in PyTorch.
      eps: 1e-7 in Optax and Keras, 1e-10 in PyTorch.
      eps_in_sqrt: whether epsilon is inside the root.

    Differences:
      PyTorch is `adagrad(lr, 0.0, 1e-10, eps_in_sqrt=False)`, and its `lr_decay` is the schedule
      `lambda step: lr / (1 + step * lr_decay)`; Keras is `adagrad(lr)`.

    Reference:
      Duchi, Hazan and Singer, 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """
    scale = optax.scale_by_rss if eps_in_sqrt else scale_by_rss_eps_outside
    return optax.chain(scale(initial_accumulator_value, eps), optax.scale_by_learning_rate(learning_rate))


def _with_velocity(velocity: optax.GradientTransformation, learning_rate: LearningRate, lr_inside: bool) -> Optimizer:
    rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(rate, velocity) if lr_inside else optax.chain(velocity, rate)
