"""Shrinking: pruned neurons, channels, heads and experts are physically removed, and the rest computes the same."""

from jaxopt_compress.shrinking.choosing import Cut as Cut
from jaxopt_compress.shrinking.choosing import choose as choose
from jaxopt_compress.shrinking.choosing import unit_scores as unit_scores
from jaxopt_compress.shrinking.narrowed import Narrowed as Narrowed
from jaxopt_compress.shrinking.remove import Shrunk as Shrunk
from jaxopt_compress.shrinking.remove import mask as mask
from jaxopt_compress.shrinking.remove import remove as remove
from jaxopt_compress.shrinking.remove import shrink as shrink
from jaxopt_compress.shrinking.sparsity import dead as dead
from jaxopt_compress.shrinking.sparsity import expected_units as expected_units
from jaxopt_compress.shrinking.sparsity import gated as gated
from jaxopt_compress.shrinking.sparsity import gates as gates
from jaxopt_compress.shrinking.sparsity import group_lasso as group_lasso
from jaxopt_compress.shrinking.sparsity import proximal_group_lasso as proximal_group_lasso
from jaxopt_compress.shrinking.sparsity import unit_norms as unit_norms
