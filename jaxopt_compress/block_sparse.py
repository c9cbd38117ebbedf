"""Products that skip blocks of zeros.

A weight that was pruned in blocks is stored as the blocks that are left, for each block of outputs as many, and where
in the inputs they stand. The product gathers those inputs and is one batched product of dense blocks: work and bytes
shrink with what is left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_compress import graph, tree
from jaxopt_compress.calibration import per_layer, weights_seen
from jaxopt_compress.graph import Site
from jaxopt_compress.products import Dot, product


class BlockSparse(NamedTuple):
    """The parameters of a function that skips blocks.

    Attributes:
      dense: the parameters that are not skipped in, by path.
      blocks: by the name of a product, "values" `(batch, blocks of outputs, kept inputs, outputs of a block)` and
        "places" `(batch, blocks of outputs, blocks kept)`, int32; layers of a scan in front. Where a block of outputs
        has fewer blocks than another it is filled up with zeros.

    `BlockSparse(**jc.export.load(path))` is what `jc.export.save(path, sparse._asdict())` wrote.
    """

    dense: dict[str, jax.Array]
    blocks: dict[str, dict[str, jax.Array]]


def skip_blocks(
    fn: Callable, params: Any, *inputs: Any, block: tuple[int, int] = (64, 64), least: float = 0.5
) -> tuple[Callable, BlockSparse]:
    """Turn a function with pruned weights into one that skips their blocks of zeros.

    It computes what `fn` does but for the order of its sums; sums of integers are the same, so that what
    `quantization.convert` returns may be given as well. Products that would not skip enough stay as they are. Prune
    with `pruning.patterns.blocks(*block)`; the same number in every column of blocks wastes nothing.

    Args:
      fn: `fn(params, *inputs)`, pure.
      params: any pytree of arrays; the zeros of its weights are looked for now.
      *inputs: examples, arrays or shapes; the result takes any others that `fn` takes.
      block: inputs and outputs of a block; weights that blocks do not tile stay as they are.
      least: the share of its blocks that a product has to skip. On a CPU a half was 1.6 times as fast as the dense
        layer at batch 1, and 0.4 times at batch 128; three quarters were faster at all (`benchmarks.block_sparse`).

    Returns:
      `(sparse_fn, sparse_params)`; the function is compiled, and takes its parameters as an argument.

    Raises:
      ValueError: no product skips as much; a size below 1, `least` outside of [0, 1].

    Example:
      >>> params = {"w": jnp.zeros((256, 128)).at[:64].set(1.0)}
      >>> fn, sparse = skip_blocks(lambda p, x: x @ p["w"], params, jnp.ones((1, 256)))
      >>> sparse.blocks["w"]["values"].shape, fn(sparse, jnp.ones((1, 256)))[0, 0].item()
      ((1, 2, 64, 64), 64.0)
    """
    if min(block) < 1 or not 0 <= least <= 1:
        raise ValueError(f"`skip_blocks`: blocks are at least 1 x 1, `least` in [0, 1]; got {block}, {least}.")
    sites = [site for site in graph.sites(fn, params, *inputs) if _is_candidate(site)]
    shapes = jax.tree.map(lambda leaf: graph.struct(leaf, "an input"), inputs)
    seen, paths = weights_seen(fn, sites, params, shapes), {site.name: site.path for site in sites}
    blocks, same, shares = {}, dict[str, str](), dict[str, float]()
    for site in sites:
        tiles = per_layer(site, partial(_tiles, site, block=block))(seen[site.name])
        shares[site.name], found = _kept(site, tiles, least)
        if found is not None:
            alike = (name for name in blocks if paths[name] == site.path and _equal(blocks[name], found))
            same[site.name] = next(alike, site.name)  # one parameter may stand in several branches
            blocks[same[site.name]] = found
    if not blocks:
        skipped = {name: round(share, 3) for name, share in shares.items()}
        raise ValueError(f"`skip_blocks`: no product can skip {least:g} of its blocks of {block}; they can {skipped}.")
    return _skipping(fn, params, shapes, same, blocks)


def _is_candidate(site: Site) -> bool:
    plain = site.weight is not None and site.kind == "dot_general" and not site.closed_in
    return plain and site.op.params.get("out_sharding") is None


def _tiles(site: Site, w: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Cut a weight into `(batch, blocks of outputs, blocks of inputs, inputs, outputs)`; nothing if it is not tiled."""
    matrix = product(site).matrix(site.weight or 0, w)
    batch, outs, ins = matrix.shape
    if ins % block[0] or outs % block[1] or not w.size:
        return jnp.zeros((batch, 0, 0, *block), w.dtype)
    cut = matrix.reshape(batch, outs // block[1], block[1], ins // block[0], block[0])
    return cut.transpose(0, 1, 3, 4, 2)


def _kept(site: Site, tiles: jax.Array, least: float) -> tuple[float, dict[str, jax.Array] | None]:
    """Return the share of blocks that are skipped, and those that are not if it is enough."""
    columns, rows = tiles.shape[len(site.stacked) + 1 : len(site.stacked) + 3]
    if not columns * rows:
        return 0.0, None
    full = jnp.any(tiles != 0, axis=(-2, -1))
    most = max(int(jnp.max(jnp.sum(full, axis=-1))), 1)
    if 1 - most / rows < least:
        return 1 - most / rows, None
    places = jnp.argsort(~full, axis=-1, stable=True)[..., :most]  # those that are full, and then some that are not
    values = jnp.take_along_axis(tiles, places[..., None, None], axis=-3)
    values = values.reshape(*values.shape[:-3], values.shape[-3] * values.shape[-2], values.shape[-1])
    return 1 - most / rows, {"values": values, "places": places.astype(jnp.int32)}


def _equal(a: Any, b: Any) -> bool:
    return all(x.shape == b[key].shape and bool(jnp.array_equal(x, b[key])) for key, x in a.items())


def _skipping(fn: Callable, params: Any, shapes: Any, same: Any, blocks: Any) -> tuple[Callable, BlockSparse]:
    leaves, template = tree.leaves(params), jax.tree.structure(params)
    structs = {path: graph.struct(leaf, path) for path, leaf in leaves.items()}
    body = graph.rewrite(fn, same, lambda site, args, state: ([_multiply(site, args, state)], state))

    def sparse_fn(sparse: BlockSparse, *inputs: Any) -> Any:
        whole = [sparse.dense.get(path, graph.unread(like)) for path, like in structs.items()]
        held = {name: sparse.blocks[other] for name, other in same.items()}
        return body(jax.tree.unflatten(template, whole), held, *inputs)[0]

    needed = graph.reads(lambda dense, *inputs: sparse_fn(BlockSparse(dense, blocks), *inputs), structs, *shapes)
    return jax.jit(sparse_fn), BlockSparse({path: leaves[path] for path in needed}, blocks)


def _multiply(site: Site, args: Any, held: dict[str, jax.Array]) -> jax.Array:
    """Multiply the inputs that are not skipped."""
    how, side = product(site), site.weight or 0
    if not isinstance(how, Dot):
        raise TypeError(f"`skip_blocks`: {site.name!r} is no matrix product.")
    x = args[1 - side]
    batch, columns, inner, outs = held["values"].shape
    size = inner // held["places"].shape[2]
    rows = how.matrix(1 - side, x)
    parts = jnp.swapaxes(rows.reshape(batch, rows.shape[1], -1, size), 1, 2)
    taken = jax.vmap(lambda part, places: part[places])(parts, held["places"])  # batch, columns, kept, rows, size
    taken = jnp.swapaxes(taken, 2, 3).reshape(batch, columns, rows.shape[1], inner)
    numbers = (((3,), (2,)), ((0, 1), (0, 1)))
    precision, dtype = site.op.params["precision"], site.op.outs[0].aval.dtype
    sums = site.op.params["preferred_element_type"] or dtype
    found = lax.dot_general(taken, held["values"], numbers, precision=precision, preferred_element_type=sums)
    whole = jnp.swapaxes(found, 1, 2).reshape(batch, rows.shape[1], columns * outs)
    return how.output(side, whole, x.shape, site.shapes[side]).astype(dtype)
