"""Quantization: numerics shared by training and serving, and the transform that rounds in the forward pass."""

from jaxopt_compress.quantization import fits as fits
from jaxopt_compress.quantization.fake_quantize import fake_quantize as fake_quantize
from jaxopt_compress.quantization.numerics import Affine as Affine
