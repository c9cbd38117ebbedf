"""What a function does with its parameters, read from its jaxpr."""

from jaxopt_compress.graph.blocks import Block as Block
from jaxopt_compress.graph.cost import multiply_adds as multiply_adds
from jaxopt_compress.graph.groups import Group as Group
from jaxopt_compress.graph.groups import Slices as Slices
from jaxopt_compress.graph.maxima import Codes as Codes
from jaxopt_compress.graph.maxima import Early as Early
from jaxopt_compress.graph.narrowing import Narrowing as Narrowing
from jaxopt_compress.graph.narrowing import removed_atoms as removed_atoms
from jaxopt_compress.graph.program import bind as bind
from jaxopt_compress.graph.reads import reads as reads
from jaxopt_compress.graph.reads import unread as unread
from jaxopt_compress.graph.rewriting import States as States
from jaxopt_compress.graph.rewriting import rewrite as rewrite
from jaxopt_compress.graph.rewriting import survey as survey
from jaxopt_compress.graph.sites import Site as Site
from jaxopt_compress.graph.sites import sites as sites
from jaxopt_compress.graph.sites import sites_of as sites_of
from jaxopt_compress.graph.tapping import Tapped as Tapped
from jaxopt_compress.graph.tapping import tap as tap
from jaxopt_compress.graph.tapping import taps as taps
from jaxopt_compress.graph.trace import Graph as Graph
from jaxopt_compress.graph.trace import struct as struct
from jaxopt_compress.graph.trace import trace as trace
from jaxopt_compress.graph.uses import Use as Use
