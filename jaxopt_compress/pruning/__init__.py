"""Pruning: criteria, exact selection, and the transform that masks."""

from jaxopt_compress.pruning.criteria import elementwise as elementwise
from jaxopt_compress.pruning.criteria import magnitude as magnitude
from jaxopt_compress.pruning.prune import prune as prune
