"""Calibration: what the products of a function see, gathered over batches, for methods that need no labels."""

from jaxopt_compress.calibration.calibrate import calibrate as calibrate
from jaxopt_compress.calibration.statistics import Gram as Gram
from jaxopt_compress.calibration.statistics import Moments as Moments
from jaxopt_compress.calibration.statistics import Statistic as Statistic
from jaxopt_compress.calibration.statistics import gram as gram
from jaxopt_compress.calibration.statistics import moments as moments
