"""What numbers a code stands for: integers, small floating-point numbers, or the levels of a table.

A grid is the one definition of a rounding, shared by training, encoding and serving: `round` takes numbers that were
divided by their scale to codes, `values` takes codes back, and `round(values(codes)) == codes`. All of it is exact
arithmetic of float32, with no table to look up, so that it is the same on every machine and fuses.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import jax
import jax.numpy as jnp


class Grid(Protocol):
    """The numbers that codes stand for. Codes are int8 for integers and uint8 for all others."""

    @property
    def bits(self) -> int:
        """How many bits a code needs."""
        ...

    @property
    def largest(self) -> float:
        """The number to which the largest absolute value is scaled."""
        ...

    def round(self, x: jax.Array) -> jax.Array:
        """Return the codes of the nearest numbers of the grid."""
        ...

    def inside(self, x: jax.Array) -> jax.Array:
        """Tell which numbers lie in the range of the grid, so that clipping does not change them."""
        ...

    def values(self, codes: jax.Array) -> jax.Array:
        """Return the numbers that codes stand for, in float32."""
        ...


@dataclass(frozen=True)
class Integers:
    """Integers of two's complement.

    Attributes:
      bits: 2 to 8.
      restricted: whether the lowest integer is left out, so that the grid is symmetric: [-127, 127] for 8 bits, and
        not [-128, 127]. The restricted grid of 2 bits is ternary: -1, 0, 1.
    """

    bits: int = 8
    restricted: bool = True

    def __post_init__(self):
        """Refuse what is no width."""
        if type(self.bits) is not int or self.bits not in range(2, 9):
            raise ValueError(f"`Integers`: `bits` is 2 to 8; got {self.bits!r}.")

    @property
    def lowest(self) -> int:
        """The lowest integer."""
        return self.restricted - 2 ** (self.bits - 1)

    @property
    def highest(self) -> int:
        """The highest integer."""
        return 2 ** (self.bits - 1) - 1

    @property
    def largest(self) -> float:
        """The middle of the two ends; 127.5 for the whole range of 8 bits, as in PyTorch."""
        return (self.highest - self.lowest) / 2

    def round(self, x: jax.Array) -> jax.Array:
        """Round half to even."""
        return jnp.clip(jnp.round(x), self.lowest, self.highest).astype(jnp.int8)

    def inside(self, x: jax.Array) -> jax.Array:
        """Tell which numbers round to an integer of the range."""
        rounded = jnp.round(x)
        return (rounded >= self.lowest) & (rounded <= self.highest)

    def values(self, codes: jax.Array) -> jax.Array:
        """Return the integers themselves."""
        return codes.astype(jnp.float32)


@dataclass(frozen=True)
class Floats:
    """Small floating-point numbers, coded by their bits: sign, exponent, mantissa.

    Rounding is half to even and saturates, as in PyTorch and in the MX specification; -0 keeps its sign.

    Attributes:
      exponent: how many bits.
      mantissa: how many bits.
      reserved: how many codes at the end of the range are infinities and NaN.

    Reference: OCP 8-bit Floating Point Specification, 2023; OCP Microscaling Formats Specification, 2023.
    """

    exponent: int
    mantissa: int
    reserved: int = 0

    def __post_init__(self):
        """Refuse what does not fit a byte."""
        room = 2 <= self.exponent <= 5 and self.mantissa >= 0 and self.bits <= 8
        if not (room and 0 <= self.reserved <= 2**self.mantissa):
            raise ValueError(f"`Floats`: an exponent of 2 to 5 bits, at most 8 in all; got {self}.")

    @property
    def bits(self) -> int:
        """How many bits a code needs."""
        return 1 + self.exponent + self.mantissa

    @property
    def highest(self) -> int:
        """The code of the largest number."""
        return 2 ** (self.bits - 1) - 1 - self.reserved

    @property
    def smallest_exponent(self) -> int:
        """The exponent of the smallest normal number."""
        return 2 - 2 ** (self.exponent - 1)

    @property
    def largest(self) -> float:
        """The largest number."""
        mantissa = 2**self.mantissa + self.highest % 2**self.mantissa
        return mantissa * 2.0 ** (self.highest // 2**self.mantissa - 1 + self.smallest_exponent - self.mantissa)

    def round(self, x: jax.Array) -> jax.Array:
        """Round half to even; what is too large becomes the largest number, and NaN the last code."""
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        above = jnp.int32(jnp.right_shift(bits & jnp.uint32(0x7FFF_FFFF), 23)) - (127 + self.smallest_exponent)
        above = jnp.maximum(above, 0)  # exponents above the smallest
        steps = jnp.round(jnp.abs(x) * power_of_two(self.mantissa - self.smallest_exponent - above))
        magnitude = (above << self.mantissa) + jnp.minimum(steps, 2.0 ** (self.mantissa + 1)).astype(jnp.int32)
        magnitude = jnp.minimum(magnitude, self.highest)
        magnitude = jnp.where(jnp.isnan(x), 2 ** (self.bits - 1) - 1, magnitude)
        sign = jnp.right_shift(bits, 31).astype(jnp.int32) << (self.bits - 1)
        return (sign | magnitude).astype(jnp.uint8)

    def inside(self, x: jax.Array) -> jax.Array:
        """Tell which numbers are no larger than the largest."""
        return jnp.abs(x) <= self.largest

    def values(self, codes: jax.Array) -> jax.Array:
        """Return the numbers; NaN for all reserved codes."""
        codes = codes.astype(jnp.int32)
        magnitude = codes & (2 ** (self.bits - 1) - 1)
        field, rest = magnitude >> self.mantissa, magnitude & (2**self.mantissa - 1)
        steps = jnp.where(field == 0, rest, rest + 2**self.mantissa).astype(jnp.float32)
        size = steps * power_of_two(jnp.maximum(field, 1) - 1 + self.smallest_exponent - self.mantissa)
        size = jnp.where(magnitude > self.highest, jnp.nan, size)
        sign = (codes >> (self.bits - 1)).astype(jnp.uint32) << 31  # as a bit: compilers drop the sign of a 0
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(size, jnp.uint32) | sign, jnp.float32)


@dataclass(frozen=True)
class Levels:
    """The levels of a table, ascending; the code is the place in the table. What lies in the middle goes up.

    Attributes:
      levels: 2 to 256 numbers, exact in float32.
    """

    levels: tuple[float, ...]

    def __post_init__(self):
        """Refuse what is no table."""
        finite = all(map(isfinite, self.levels))
        if not (finite and 2 <= len(self.levels) <= 256 and all(a < b for a, b in zip(self.levels, self.levels[1:]))):
            raise ValueError(f"`Levels`: 2 to 256 ascending numbers; got {self.levels}.")

    @property
    def bits(self) -> int:
        """How many bits a code needs."""
        return (len(self.levels) - 1).bit_length()

    @property
    def largest(self) -> float:
        """The largest absolute value of a level."""
        return max(map(abs, self.levels))

    def round(self, x: jax.Array) -> jax.Array:
        """Count the middles between neighbours that a number reaches."""
        reached = [(x >= (a + b) / 2).astype(jnp.uint8) for a, b in zip(self.levels, self.levels[1:])]
        return sum(reached[1:], start=reached[0])

    def inside(self, x: jax.Array) -> jax.Array:
        """Tell which numbers lie between the first level and the last."""
        return (x >= self.levels[0]) & (x <= self.levels[-1])

    def values(self, codes: jax.Array) -> jax.Array:
        """Choose by one bit after another: a lookup would not vectorize."""
        nothing = (codes & 0).astype(jnp.float32)  # compiled away; it lies on a mesh like the codes
        found = [nothing + level for level in self.levels]
        for bit in range(self.bits):
            odd = (codes >> bit) & 1 == 1
            last = found[-1:] * (len(found) % 2)
            found = [jnp.where(odd, b, a) for a, b in zip(found[::2], [*found[1::2], *last])]
        return found[0]


def power_of_two(exponent: jax.Array | int) -> jax.Array:
    """Return 2^exponent for integers from -126 to 127, exactly."""
    return jax.lax.bitcast_convert_type((jnp.asarray(exponent, jnp.int32) + 127) << 23, jnp.float32)


BINARY = Levels((-1.0, 1.0))
TERNARY = Integers(2)
E4M3, E5M2 = Floats(4, 3, reserved=1), Floats(5, 2, reserved=4)
E3M2, E2M3, E2M1 = Floats(3, 2), Floats(2, 3), Floats(2, 1)
NF4 = Levels(
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    )
)  # Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs", 2023; bitsandbytes' table
