"""Reports: what compression did, in numbers and as a table."""

from jaxopt_compress.report.table import LeafReport as LeafReport
from jaxopt_compress.report.table import Report as Report
from jaxopt_compress.report.table import table as table
