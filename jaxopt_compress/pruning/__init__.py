"""Pruning: criteria, exact selection, and the transform that masks."""

from jaxopt_compress.pruning.criteria import elementwise as elementwise
from jaxopt_compress.pruning.criteria import gate as gate
from jaxopt_compress.pruning.criteria import geometric_median as geometric_median
from jaxopt_compress.pruning.criteria import lamp as lamp
from jaxopt_compress.pruning.criteria import magnitude as magnitude
from jaxopt_compress.pruning.criteria import obd as obd
from jaxopt_compress.pruning.criteria import random as random
from jaxopt_compress.pruning.criteria import taylor as taylor
from jaxopt_compress.pruning.criteria import wanda as wanda
from jaxopt_compress.pruning.prune import prune as prune
from jaxopt_compress.pruning.sensitivity import fisher as fisher
from jaxopt_compress.pruning.sensitivity import grasp as grasp
from jaxopt_compress.pruning.sensitivity import settle as settle
from jaxopt_compress.pruning.sensitivity import synflow as synflow
