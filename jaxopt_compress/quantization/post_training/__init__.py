"""Post-training methods: better codes for the weights of a trained function, from unlabelled batches."""

from jaxopt_compress.quantization.post_training.adaround import adaround as adaround
from jaxopt_compress.quantization.post_training.bias import corrected as corrected
from jaxopt_compress.quantization.post_training.blocks import reconstruct_blocks as reconstruct_blocks
from jaxopt_compress.quantization.post_training.equalize import Equalized as Equalized
from jaxopt_compress.quantization.post_training.equalize import equalize as equalize
from jaxopt_compress.quantization.post_training.gptq import gptq as gptq
from jaxopt_compress.quantization.post_training.method import Found as Found
from jaxopt_compress.quantization.post_training.method import Layer as Layer
from jaxopt_compress.quantization.post_training.method import Method as Method
from jaxopt_compress.quantization.post_training.nearest import nearest as nearest
from jaxopt_compress.quantization.post_training.reconstruct import mean_square as mean_square
from jaxopt_compress.quantization.post_training.reconstruct import reconstruct as reconstruct
from jaxopt_compress.quantization.post_training.round_weights import Rounded as Rounded
from jaxopt_compress.quantization.post_training.round_weights import round_weights as round_weights
from jaxopt_compress.quantization.post_training.smoothing import awq as awq
from jaxopt_compress.quantization.post_training.smoothing import smoothquant as smoothquant
from jaxopt_compress.quantization.post_training.soft import Schedule as Schedule
