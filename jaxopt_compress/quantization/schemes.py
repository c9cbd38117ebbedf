"""Schemes: how the two operands of a product are rounded."""

from dataclasses import dataclass, field

from jaxopt_compress.grids import Grid, Integers
from jaxopt_compress.quantization import fits
from jaxopt_compress.quantization.observers import Observer


@dataclass(frozen=True)
class Scheme:
    """How the two operands of a product are rounded.

    Attributes:
      weight: the grid of the operand that comes from parameters alone; None leaves it as it is.
      activation: the grid of what depends on the inputs, of both operands where both do; None leaves it as it is.
      static: an observer of `quantization.observers`, for one range of the whole activation, known beforehand. Without
        one every token (every row that is summed, every example of a convolution) has its own range, found as it comes.
      zero_point: whether activations with a static range use all codes of a range that is not symmetric, as after a
        ReLU; of two activations only the first does.
      group_size: how many neighbours along the last summed axis share a scale of the weight; None is all.
      fit: how scales of weights are found, one of `quantization.fits`.
    """

    weight: Grid | None = field(default=Integers(8))
    activation: Grid | None = field(default=Integers(8))
    static: Observer | None = None
    zero_point: bool = False
    group_size: int | None = None
    fit: fits.Fit = fits.absmax

    def __post_init__(self):
        """Refuse what contradicts itself."""
        if self.weight is None and self.activation is None:
            raise ValueError(
                "`Scheme`: neither weights nor activations are rounded; leave the rule out, or say `None`."
            )
        if self.zero_point and (self.static is None or not isinstance(self.activation, Integers)):
            raise ValueError("`Scheme`: a zero point needs a static range and activations on a grid of integers.")
        if self.static is not None and self.activation is None:
            raise ValueError("`Scheme`: a static range is one of activations, and `activation` is None.")


def dynamic(bits: int = 8, activation_bits: int = 8) -> Scheme:
    """Round weights per channel and activations per token."""
    return Scheme(Integers(bits), Integers(activation_bits))


def weight_only(weight: int | Grid = 8, group_size: int | None = None) -> Scheme:
    """Round weights alone."""
    return Scheme(Integers(weight) if isinstance(weight, int) else weight, None, group_size=group_size)


def static(observer: Observer, bits: int = 8, activation_bits: int = 8, zero_point: bool = False) -> Scheme:
    """Round weights per channel and activations with ranges that were observed."""
    grid = Integers(activation_bits, restricted=not zero_point)
    return Scheme(Integers(bits), grid, observer, zero_point)
