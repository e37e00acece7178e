"""Claims 1, 2, 4 and 5: how fast Newton's method converges on whole sequences, on what that depends, and what its gradient costs.

Everything is float64 and drawn anew for three seeds. A draw is one layer: inputs x ~ N(0, 1), the block-diagonal map B, the bias
and the recurrent weights of a cell of paperlab.layers.cells.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.evidence import Laboratory, Outcome
from paperlab.layers.recurrent_cell import recipe
from paperlab.recurrence import Cell, Solver, newton_solve
from paperlab.recurrence.newton import newton_iterates

SEEDS = (0, 1, 2)
CELLS = ("gru", "lstm")
LENGTHS = (64, 256, 1024, 4096)
BOUNDS = (0.5, 0.9, 2.0, 4.0, 8.0)
GAINS = (0.9, 1.2, 1.5, 2.0)
WIDTH, HEADS, ROWS = 64, 4, 4
SCALE = f"d={WIDTH}, {HEADS} heads, {ROWS} rows, float64, seeds {list(SEEDS)}"
TOLERANCE = 1e-10
CHUNK = 32
TIME = 1  # the time axis of x [rows, T, inputs, width]


class Layer(NamedTuple):
    """cell, its recurrent parameters, and what it reads: B x + b, [rows, T, inputs, width]."""

    cell: Cell
    params: Any
    x: Array


def layer(
    name: str,
    length: int,
    seed: int,
    *,
    style: str = "library",
    rows: int = ROWS,
    width: int = WIDTH,
    heads: int = HEADS,
) -> Layer:
    """One layer on standard normal inputs of its own width, in float64."""
    made = recipe(name, width, heads, style=style)
    inputs, maps, weights = jax.random.split(jax.random.key(seed), 3)
    size = width // heads
    x = jax.random.normal(inputs, (rows, length, heads, size), jnp.float64)
    bound = made.bound(size, heads)
    B = jax.random.uniform(maps, (heads, size, made.inputs, size), jnp.float64, -bound, bound)
    fed = jnp.einsum("bthi,higj->btghj", x, B).reshape(rows, length, made.inputs, width)
    return Layer(made.cell, _double(made.init(weights)), fed + made.bias().astype(jnp.float64))


def _double(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _residuals(cell: Cell, method: str, iterations: int, params: Any, x: Array) -> Array:
    run = partial(newton_iterates, cell, axis=TIME, solver=Solver(method), impl="chunked", chunk=CHUNK)
    return run(params, x, iterations=iterations)[1].max(1)


def residuals(one: Layer, iterations: int, method: str = "newton") -> np.ndarray:
    """The largest residual of the guess and of every iterate, [iterations + 1]."""
    return np.asarray(_residuals(one.cell, method, iterations, one.params, one.x))


def iterations_needed(one: Layer, method: str = "newton", most: int = 256) -> int | None:
    """How many iterations bring every row to the tolerance; None where `most` do not."""
    return first_below(residuals(one, most, method))


def first_below(found: np.ndarray) -> int | None:
    """The first iterate whose residual is within the tolerance."""
    return int(np.argmax(found <= TOLERANCE)) if (found <= TOLERANCE).any() else None


def convergence(lab: Laboratory) -> list[dict[str, Any]]:
    """Residuals and counts of both cells at every length and seed, by Newton's method and by Picard's."""

    def measure() -> list[dict[str, Any]]:
        rows = []
        for name, length, seed in ((n, T, s) for n in CELLS for T in LENGTHS for s in SEEDS):
            one = layer(name, length, seed)
            newton, picard = residuals(one, 6), residuals(one, 100, "picard")
            row = {"cell": name, "length": length, "seed": seed, "residuals": newton[:5].tolist()}
            row |= {"newton": first_below(newton), "picard": first_below(picard)}
            row |= {"picard_residuals": picard[:5].tolist(), "picard_residual": float(picard[3])}
            rows.append(row)
        return rows

    with jax.enable_x64(True):
        return lab.once("convergence", measure)


def residual_after(lab: Laboratory, iterations: int) -> Outcome:
    """The largest residual after so many Newton iterations, over cells, lengths and seeds; draws all iterations."""
    from paperlab.papers.pararnn import pictures

    rows = convergence(lab)
    _save(pictures.convergence(_curves(rows)), lab.plots / "convergence.png")
    per_seed = [max(row["residuals"][iterations] for row in rows if row["seed"] == seed) for seed in SEEDS]
    return Outcome(
        max(per_seed), per_seed=per_seed, details={"plot": "pararnn/convergence.png", "scale": SCALE, "rows": rows}
    )


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """{label: the largest residual over seeds, by iteration}, of the shortest and the longest sequences."""
    names, curves = {"gru": "ParaGRU", "lstm": "ParaLSTM"}, {}
    for cell, length in ((cell, T) for cell in CELLS for T in (LENGTHS[0], LENGTHS[-1])):
        own = [row["residuals"] for row in rows if row["cell"] == cell and row["length"] == length]
        curves[f"{names[cell]}, L = {length}"] = np.max(own, 0).tolist()
    picard = [row["picard_residuals"] for row in rows if row["cell"] == "gru" and row["length"] == LENGTHS[-1]]
    return {**curves, f"Picard, ParaGRU, L = {LENGTHS[-1]}": np.max(picard, 0).tolist()}


def _save(figure: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(file, dpi=150)
    plt.close(figure)


def independent_of_length(lab: Laboratory) -> Outcome:
    """How far any count of iterations is from four."""
    counts = _counts(convergence(lab), "newton")
    worst = max(abs(count - 4) if count else float("inf") for row in counts.values() for count in row)
    return Outcome(worst, details={"iterations": counts, "tolerance": TOLERANCE, "scale": SCALE})


def picard_residual(lab: Laboratory) -> Outcome:
    """What three Picard iterations leave: the mean over cells and lengths, by seed."""
    rows = convergence(lab)
    per_seed = [float(np.mean([row["picard_residual"] for row in rows if row["seed"] == seed])) for seed in SEEDS]
    by_case = {f"{row['cell']} T={row['length']} seed {row['seed']}": row["picard_residual"] for row in rows}
    details = {"residuals": by_case, "iterations_to_tolerance": _counts(rows, "picard"), "scale": SCALE}
    return Outcome(float(np.mean(per_seed)), per_seed=per_seed, details={"smallest": min(by_case.values()), **details})


def _counts(rows: list[dict[str, Any]], method: str) -> dict[str, list[int | None]]:
    """{cell and length: iterations to the tolerance, by seed}."""
    counts: dict[str, list[int | None]] = {}
    for row in rows:
        counts.setdefault(f"{row['cell']} T={row['length']}", []).append(row[method])
    return counts


def bounded(lab: Laboratory) -> dict[float, dict[str, list[Any]]]:
    """ParaGRU with recurrent weights even in +-c, L = 512: residual after 3 iterations, iterations needed (of 12)."""

    def measure() -> dict[float, dict[str, list[Any]]]:
        found: dict[float, dict[str, list[Any]]] = {}
        for c in BOUNDS:
            ones = [_within(c, seed) for seed in SEEDS]
            left = [residuals(one, 12) for one in ones]
            found[c] = {"residual": [float(r[3]) for r in left], "iterations": [first_below(r) for r in left]}
        return found

    with jax.enable_x64(True):
        return lab.once("bounded", measure)


def _within(c: float, seed: int) -> Layer:
    one = layer("gru", 512, seed, style="paper", rows=1)
    drawn = jax.random.uniform(jax.random.key(1000 + seed), one.params["a"].shape, jnp.float64, -c, c)
    return one._replace(params={"a": drawn})


def _residual_means(lab: Laboratory) -> dict[float, float]:
    """Geometric means over the seeds: the residuals span ten orders of magnitude."""
    return {c: float(np.exp(np.mean(np.log(row["residual"])))) for c, row in bounded(lab).items()}


def small_bounds_converge(lab: Laboratory) -> Outcome:
    """The largest residual after 3 iterations with |a| <= 0.5 and 0.9."""
    found = bounded(lab)
    worst = [max(found[c]["residual"][i] for c in BOUNDS[:2]) for i in range(len(SEEDS))]
    return Outcome(max(worst), per_seed=worst, details={"by_bound": {str(c): row for c, row in found.items()}})


def large_bounds_do_not(lab: Laboratory) -> Outcome:
    """The smallest residual after 3 iterations with |a| <= 4 and 8."""
    found = bounded(lab)
    worst = [min(found[c]["residual"][i] for c in BOUNDS[-2:]) for i in range(len(SEEDS))]
    return Outcome(min(worst), per_seed=worst, details={"residual_means": _residual_means(lab)})


def bounds_are_ordered(lab: Laboratory) -> Outcome:
    """How many of the four neighbouring bounds stand in the wrong order of their residuals; draws all of them."""
    from paperlab.papers.pararnn import pictures

    found, means = bounded(lab), list(_residual_means(lab).values())
    left, counts = ([found[c][name] for c in BOUNDS] for name in ("residual", "iterations"))
    _save(pictures.bounds(BOUNDS, left, counts), lab.plots / "bounds.png")
    wrong = sum(later <= earlier for earlier, later in pairwise(means))
    return Outcome(wrong, details={"plot": "pararnn/bounds.png", "residual_means": means, "bounds": list(BOUNDS)})


def _mixing_step(params: Any, x: Array, h: Array) -> Array:
    """A user's cell: a leaky recurrence in which every channel reads every other."""
    return 0.5 * h + 0.5 * jnp.tanh(h @ params["w"].T + x[..., 0, :])


MIXING = Cell(_mixing_step, (16,), "dense")


def _gradient_cases(seed: int, length: int) -> Iterator[tuple[str, Layer]]:
    for name in CELLS:
        yield name, layer(name, length, seed, width=16, rows=1)
    w, x = jax.random.split(jax.random.key(seed))
    params = {"w": jax.random.normal(w, (16, 16), jnp.float64) / 4}
    yield "user-defined dense", Layer(MIXING, params, jax.random.normal(x, (1, length, 1, 16), jnp.float64))


def _loss(cell: Cell, solver: Solver | None, impl: str, params: Any, x: Array, weights: Array) -> Array:
    found = newton_solve(cell, params, x, axis=TIME, solver=solver, impl=impl, chunk=CHUNK)
    return (found.outputs * weights).sum()


def gradients(lab: Laboratory) -> Outcome:
    """The largest difference between gradients by one linear solve and by autodiff of lax.scan, relative to the largest entry."""
    del lab
    per_seed: list[float] = []
    by_cell: dict[str, float] = {}
    with jax.enable_x64(True):
        for seed in SEEDS:
            worst = 0.0
            for name, one in _gradient_cases(seed, 128):
                outputs = (1, 128, 16)
                weights = jax.random.normal(jax.random.key(100 + seed), outputs, jnp.float64)
                ours, theirs = (
                    jax.jit(jax.grad(partial(_loss, one.cell, solver, impl), (0, 1)))(one.params, one.x, weights)
                    for solver, impl in ((Solver(tolerance=1e-14, relative=1e-15), "chunked"), (None, "sequential"))
                )
                error = max(
                    float(jnp.abs(a - b).max() / jnp.abs(b).max())
                    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
                )
                by_cell[name] = max(by_cell.get(name, 0.0), error)
                worst = max(worst, error)
            per_seed.append(worst)
    return Outcome(max(per_seed), per_seed=per_seed, details={"by_cell": by_cell, "scale": "d=16, T=128, float64"})


def scans_of_gradient(lab: Laboratory) -> Outcome:
    """How many scans over time the gradient adds to the program of one cell (the most of three cells)."""
    del lab
    length = 256
    counts: dict[str, int] = {}
    with jax.enable_x64(True):
        for name, one in _gradient_cases(0, length):
            loss = partial(_loss, one.cell, Solver(iterations=3), "chunked")
            arguments = (one.params, one.x, jnp.ones((1, length, 16)))
            before, after = (_scans(f, length // CHUNK, arguments) for f in (loss, jax.grad(loss, (0, 1))))
            counts[name] = after - before
    return Outcome(max(counts.values()), details={"added": counts})


def _scans(function: Any, length: int, arguments: tuple) -> int:
    """Scans of so many steps in the program of a function, inner programs included."""

    def of(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "scan" and equation.params["length"] == length
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
                inner = getattr(inner, "jaxpr", inner)
                total += of(inner) if hasattr(inner, "eqns") else 0
        return total

    return of(jax.make_jaxpr(function)(*arguments).jaxpr)


def gradient_memory(lab: Laboratory) -> Outcome:
    """Temporary bytes of the gradient with 8 Newton iterations, against 2 (the worst ratio of both cells)."""
    del lab
    found = {name: {n: _temporary(name, Solver(iterations=n)) for n in (2, 8)} for name in CELLS}
    unrolled = {"gru": _temporary("gru", Solver(iterations=8, differentiate="unrolled"))}
    worst = max(found.values(), key=lambda row: row[8] / row[2])
    return Outcome(worst[8], worst[2], details={"bytes": found, "through_8_iterations": unrolled})


def _temporary(name: str, solver: Solver) -> int:
    made = recipe(name, WIDTH, HEADS)
    params = jax.eval_shape(made.init, jax.eval_shape(lambda: jax.random.key(0)))
    x = jax.ShapeDtypeStruct((1, 256, made.inputs, WIDTH), jnp.float32)
    weights = jax.ShapeDtypeStruct((1, 256, WIDTH), jnp.float32)
    step = jax.jit(jax.grad(partial(_loss, made.cell, solver, "chunked"), (0, 1)))
    analysis = step.lower(params, x, weights).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not say how much memory a program needs")
    return analysis.temp_size_in_bytes


def dense_counts(lab: Laboratory) -> dict[str, dict[float, list[int]]]:
    """{method: {gain: iterations to the tolerance, by seed}} of Elman cells, d = 16, L = 256."""

    def measure() -> dict[str, dict[float, list[int]]]:
        made = recipe("elman", 16)
        found: dict[str, dict[float, list[int]]] = {}
        for method in ("newton", "quasi", "picard"):
            found[method] = {}
            for gain in GAINS:
                counts = [iterations_needed(_elman(made.cell, gain, seed), method) for seed in SEEDS]
                found[method][gain] = [256 if count is None else count for count in counts]
        return found

    with jax.enable_x64(True):
        return lab.once("dense counts", measure)


def _elman(cell: Cell, gain: float, seed: int) -> Layer:
    """Recurrent matrix N(0, gain^2 / d), inputs of deviation 1."""
    w, x = jax.random.split(jax.random.key(seed))
    params = {"w": gain / 4 * jax.random.normal(w, (16, 16), jnp.float64)}
    return Layer(cell, params, jax.random.normal(x, (1, 256, 1, 16), jnp.float64))


def exact_beats_diagonal(lab: Laboratory) -> Outcome:
    """The largest ratio of iterations, exact Jacobian over its diagonal, at gains up to 1.5."""
    found = dense_counts(lab)
    ratios = [max(found["newton"][g][i] / found["quasi"][g][i] for g in GAINS[:3]) for i in range(len(SEEDS))]
    return Outcome(max(ratios), per_seed=ratios, details={"iterations": _readable(found)})


def chaos_costs(lab: Laboratory) -> Outcome:
    """Mean iterations with the exact Jacobian at gain 2, against gain 1.5."""
    found = dense_counts(lab)["newton"]
    return Outcome(float(np.mean(found[2.0])), float(np.mean(found[1.5])), list(found[2.0]), {"at_1.5": found[1.5]})


def _readable(found: dict[str, dict[float, list[int]]]) -> dict[str, dict[str, list[int]]]:
    return {method: {str(gain): counts for gain, counts in row.items()} for method, row in found.items()}
