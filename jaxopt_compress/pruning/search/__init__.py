"""The exact top-k of arrays that are large, many, or spread over a mesh: counting instead of sorting."""

from jaxopt_compress.pruning.search.ranking import top_k_masks as top_k_masks
