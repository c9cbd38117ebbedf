"""Reports: what compression did, in numbers and as a table."""

from jaxopt_compress.report.cost import CostReport as CostReport
from jaxopt_compress.report.cost import FunctionCost as FunctionCost
from jaxopt_compress.report.cost import LeafCost as LeafCost
from jaxopt_compress.report.cost import cost as cost
from jaxopt_compress.report.paths import LeafPaths as LeafPaths
from jaxopt_compress.report.paths import PathReport as PathReport
from jaxopt_compress.report.paths import effective_sparsity as effective_sparsity
from jaxopt_compress.report.plots import density_error as density_error
from jaxopt_compress.report.table import LeafReport as LeafReport
from jaxopt_compress.report.table import Report as Report
from jaxopt_compress.report.table import table as table
