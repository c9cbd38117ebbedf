"""Serving: a quantized function with its weights stored as codes, laid out for the machine that runs it."""

from jaxopt_compress.quantization.serving.convert import Served as Served
from jaxopt_compress.quantization.serving.convert import convert as convert
