"""The SGD/Adam family as Optax chains, and what joins an optimizer with a transform."""

from jaxopt_compress.optimizers.attach import attach as attach
