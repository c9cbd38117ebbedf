"""What a function does with its parameters, read from its jaxpr."""

from jaxopt_compress.graph.cost import multiply_adds as multiply_adds
