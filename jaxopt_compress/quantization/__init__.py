"""Quantization: numerics shared by training and serving, and the transform that rounds in the forward pass."""

from jaxopt_compress.quantization import bases as bases
from jaxopt_compress.quantization import fits as fits
from jaxopt_compress.quantization import learned as learned
from jaxopt_compress.quantization import observers as observers
from jaxopt_compress.quantization import post_training as post_training
from jaxopt_compress.quantization import schemes as schemes
from jaxopt_compress.quantization.fake_quantize import fake_quantize as fake_quantize
from jaxopt_compress.quantization.learned import Learned as Learned
from jaxopt_compress.quantization.low_bit import binary as binary
from jaxopt_compress.quantization.low_bit import dorefa as dorefa
from jaxopt_compress.quantization.low_bit import stochastic as stochastic
from jaxopt_compress.quantization.low_bit import ternary as ternary
from jaxopt_compress.quantization.numerics import Affine as Affine
from jaxopt_compress.quantization.observers import Observer as Observer
from jaxopt_compress.quantization.quantize import Quantization as Quantization
from jaxopt_compress.quantization.quantize import quantize as quantize
from jaxopt_compress.quantization.schemes import Scheme as Scheme
from jaxopt_compress.quantization.serving import Served as Served
from jaxopt_compress.quantization.serving import convert as convert
from jaxopt_compress.quantization.trained_ternary import trained_ternary as trained_ternary
