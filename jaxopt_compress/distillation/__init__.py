"""Distillation: losses between student and teacher, and combinators of loss functions."""

from jaxopt_compress.distillation.combinators import with_teacher as with_teacher
from jaxopt_compress.distillation.logits import cross_entropy as cross_entropy
from jaxopt_compress.distillation.logits import kd as kd
from jaxopt_compress.distillation.logits import mix as mix
from jaxopt_compress.distillation.logits import soft_targets as soft_targets
