"""Calibration: what the products of a function see, gathered over batches, for methods that need no labels."""

from jaxopt_compress.calibration.calibrate import calibrate as calibrate
from jaxopt_compress.calibration.calibrate import chosen as chosen
from jaxopt_compress.calibration.calibrate import per_layer as per_layer
from jaxopt_compress.calibration.calibrate import stages as stages
from jaxopt_compress.calibration.calibrate import weighted as weighted
from jaxopt_compress.calibration.reestimate import reestimate as reestimate
from jaxopt_compress.calibration.statistics import Gram as Gram
from jaxopt_compress.calibration.statistics import Moments as Moments
from jaxopt_compress.calibration.statistics import Statistic as Statistic
from jaxopt_compress.calibration.statistics import gram as gram
from jaxopt_compress.calibration.statistics import moments as moments
from jaxopt_compress.calibration.surgeon import inverse_factor as inverse_factor
from jaxopt_compress.calibration.weights import put_back as put_back
from jaxopt_compress.calibration.weights import weights_seen as weights_seen
