"""Make neural networks small and fast in JAX: optimize, prune, quantize and distill in one jitted step."""

from jaxopt_compress import distillation as distillation
from jaxopt_compress import export as export
from jaxopt_compress import graph as graph
from jaxopt_compress import grids as grids
from jaxopt_compress import optimizers as optimizers
from jaxopt_compress import pruning as pruning
from jaxopt_compress import quantization as quantization
from jaxopt_compress import report as report
from jaxopt_compress import shrinking as shrinking
from jaxopt_compress import tree as tree
from jaxopt_compress.block_sparse import BlockSparse as BlockSparse
from jaxopt_compress.block_sparse import skip_blocks as skip_blocks
from jaxopt_compress.combinators import dense_backward as dense_backward
from jaxopt_compress.combinators import freezing as freezing
from jaxopt_compress.combinators import held as held
from jaxopt_compress.combinators import passthrough as passthrough
from jaxopt_compress.combinators import periodic as periodic
from jaxopt_compress.combinators import stacked as stacked
from jaxopt_compress.combinators import straight_through as straight_through
from jaxopt_compress.core import ParamTransform as ParamTransform
from jaxopt_compress.core import chain as chain
from jaxopt_compress.core import check as check
from jaxopt_compress.core import keep as keep
from jaxopt_compress.core import leafwise as leafwise
from jaxopt_compress.core import select as select
from jaxopt_compress.encoded import Quantized as Quantized
from jaxopt_compress.encoded import decode as decode
from jaxopt_compress.encoded import is_encoded as is_encoded
from jaxopt_compress.optimizers.attach import attach as attach

__version__ = "0.1.0"
