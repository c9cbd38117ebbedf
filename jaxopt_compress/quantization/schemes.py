"""Schemes: how the two operands of a product are rounded."""

from dataclasses import dataclass, field
from typing import Any

from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization import fits, learned
from jaxopt_compress.quantization.bases import Basis
from jaxopt_compress.quantization.learned import Learned
from jaxopt_compress.quantization.observers import Observer


@dataclass(frozen=True)
class Scheme:
    """How the two operands of a product are rounded.

    Attributes:
      weight: the grid of the operand that comes from parameters alone; None leaves it as it is.
      activation: the grid of what depends on the inputs, of both operands where both do; None leaves it as it is.
      static: one range for the whole activation, known beforehand: an observer of `quantization.observers`, or a range
        that is trained, one of `quantization.learned`. Without one every token (every row that is summed, every example
        of a convolution) has its own range, found as it comes.
      zero_point: whether activations with a static range use all codes of a range that is not symmetric, as after a
        ReLU; of two activations only the first does.
      group_size: how many neighbours along the last summed axis share a scale of the weight; None is all.
      fit: how scales of weights are found at every step, one of `quantization.fits`.
      learned: how scales of weights are trained instead, one of `quantization.learned`.
      basis: the coordinates in which the operands of a product with a weight are rounded, one of `quantization.bases`.
      compute: the dtype that products of floats cast their operands to, with sums in float32. With `jnp.bfloat16`
        products of stored weights are fast on machines that multiply bfloat16; None leaves them in the dtype of the
        function. Products of integers do not look at it.
    """

    weight: Grid | None = field(default=Integers(8))
    activation: Grid | None = field(default=Integers(8))
    static: Observer | Learned | None = None
    zero_point: bool = False
    group_size: int | None = None
    fit: fits.Fit = fits.absmax
    learned: Learned | None = None
    compute: Any = None
    basis: Basis | None = None

    def __post_init__(self):
        """Refuse what contradicts itself."""
        if self.weight is None and self.activation is None:
            raise ValueError(
                "`Scheme`: neither weights nor activations are rounded; leave the rule out, or say `None`."
            )
        if self.zero_point and not (isinstance(self.static, Observer) and isinstance(self.activation, Integers)):
            raise ValueError("`Scheme`: a zero point needs an observed range and activations on a grid of integers.")
        if self.static is not None and self.activation is None:
            raise ValueError("`Scheme`: a static range is one of activations, and `activation` is None.")
        for grid, range_ in ((self.weight, self.learned), (self.activation, self.static)):
            if isinstance(range_, Learned) and not isinstance(grid, Integers):
                raise ValueError(f"`Scheme`: only the ranges of integers are learned; got {grid}.")
        if self.learned is not None and self.fit is not fits.absmax:
            raise ValueError("`Scheme`: scales of weights are either fitted or learned; got a `fit` and `learned`.")


def dynamic(bits: int = 8, activation_bits: int = 8) -> Scheme:
    """Round weights per channel and activations per token."""
    return Scheme(Integers(bits), Integers(activation_bits))


def weight_only(
    weight: int | Grid = 8, group_size: int | None = None, compute: Any = None, basis: Basis | None = None
) -> Scheme:
    """Round weights alone.

    What is saved is memory. On a CPU most of these can be slower than float32 (0.6 of its speed was seen, for NF4 and
    for groups at 64 rows): they are unpacked anew for every product. `python -m benchmarks.serving` measures.
    """
    grid = Integers(weight) if isinstance(weight, int) else weight
    return Scheme(grid, None, group_size=group_size, compute=compute, basis=basis)


def static(observer: Observer, bits: int = 8, activation_bits: int = 8, zero_point: bool = False) -> Scheme:
    """Round weights per channel and activations with ranges that were observed."""
    grid = Integers(activation_bits, restricted=not zero_point)
    return Scheme(Integers(bits), grid, observer, zero_point)


def lsq(
    bits: int = 4, activation_bits: int | None = None, positive: bool = False, fit: fits.Fit | None = None
) -> Scheme:
    """Round weights per channel and activations as a whole, with step sizes that are learned.

    Args:
      bits: of the weights.
      activation_bits: as many if not given.
      positive: whether activations are at least 0, as after a ReLU, and use all codes.
      fit: how the steps start; see `learned.lsq`.
    """
    grid = Integers(activation_bits or bits, restricted=not positive)
    return Scheme(Integers(bits), grid, learned.lsq(positive, fit), learned=learned.lsq(fit=fit))
