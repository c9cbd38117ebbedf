"""The SGD/Adam family as Optax chains, and what joins an optimizer with a transform."""

from jaxopt_compress.optimizers.alternate import alternate as alternate
from jaxopt_compress.optimizers.attach import Attached as Attached
from jaxopt_compress.optimizers.attach import attach as attach
from jaxopt_compress.optimizers.attach import compress_state as compress_state
from jaxopt_compress.optimizers.eight_bit import Adam8BitState as Adam8BitState
from jaxopt_compress.optimizers.eight_bit import adam_8bit as adam_8bit
from jaxopt_compress.optimizers.eight_bit import scale_by_adam_8bit as scale_by_adam_8bit
from jaxopt_compress.optimizers.first_order import adagrad as adagrad
from jaxopt_compress.optimizers.first_order import adam as adam
from jaxopt_compress.optimizers.first_order import adamw as adamw
from jaxopt_compress.optimizers.first_order import momentum as momentum
from jaxopt_compress.optimizers.first_order import nesterov as nesterov
from jaxopt_compress.optimizers.first_order import rmsprop as rmsprop
from jaxopt_compress.optimizers.first_order import sgd as sgd
from jaxopt_compress.optimizers.freeze import FreezeState as FreezeState
from jaxopt_compress.optimizers.freeze import freeze as freeze
from jaxopt_compress.optimizers.keep_within import keep_within as keep_within
from jaxopt_compress.optimizers.plateau import plateau as plateau
