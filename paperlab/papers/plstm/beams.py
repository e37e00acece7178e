"""Claims 2 and 4: P-mode is a beam that can be steered, D-mode reaches everything, and an angle is learned.

One source on a grid whose gates are the same at every node; what every node reads of it is known in closed form. Float64.
"""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from paperlab.evidence import Laboratory, Outcome
from paperlab.recurrence.grid import Gates, gating, grid_memory

DELTAS = (16, 32, 64, 128, 256)  # anti-diagonals at which the beam's peak is read


def constant_gates(X: int, Y: int, **values: Array | float | None) -> Gates:
    """Gates that are the same at every node, all J being 1; None is zero."""

    def full(name: str, value: Array | float | None) -> Array | None:
        tail = (1,) * (2 if len(name) == 2 else 3)
        return None if value is None else jnp.broadcast_to(jnp.asarray(value, float), (X, Y, *tail))

    return Gates(**{name: full(name, value) for name, value in values.items()})  # type: ignore[arg-type]


def p_mode(X: int, Y: int, alpha: Array | float, gamma: Array | float = 1.0) -> Gates:
    """Equation 10 with one angle and one decay, a unit source split by the angle, marks of one."""
    right, down = gamma * alpha, gamma * (1 - alpha)
    turns = {"rl": right, "ru": right, "dl": down, "du": down}
    return constant_gates(X, Y, source_r=alpha, source_d=1 - alpha, mark_l=1.0, mark_u=1.0, **turns)


def d_mode(X: int, Y: int, gamma: float = 1.0, chirality: str = "L") -> Gates:
    """Diffusion: one turn is missing, so there is one path between two nodes."""
    turns = {"rl": gamma, "ru": gamma, "dl": gamma, "du": gamma} | {"dl" if chirality == "L" else "ru": None}
    return constant_gates(X, Y, source_r=1.0, source_d=1.0, mark_l=1.0, mark_u=1.0, **turns)


def response(gates: Gates, source: tuple[int, int] = (0, 0)) -> Array:
    """What every node reads of one source: a column of G, [X, Y]."""
    X, Y = gates.rl.shape[:2]
    ones = jnp.ones((X, Y, 1, 1), gates.rl.dtype)
    only = jnp.zeros_like(ones).at[source].set(1)
    return grid_memory(ones, only, ones, gates, scale=1.0, impl="wavefront", chunk=8)[0][..., 0, 0]


def closed_form(side: int, alpha: float, gamma: float) -> np.ndarray:
    """binom(x + y, x) alpha^x (1 - alpha)^y gamma^(x + y - 1), and nothing at the source itself."""
    x, y = np.indices((side, side))
    paths = np.vectorize(lambda x, y: comb(x + y, x), otypes=[float])(x, y)
    field = paths * alpha**x * (1 - alpha) ** y * gamma ** (x + y - 1.0)
    field[0, 0] = 0
    return field


def beam_formula(lab: Laboratory) -> Outcome:
    """The largest difference of the impulse response from the closed form, 16 x 16; P-mode and D-mode."""
    errors = {}
    with jax.enable_x64(True):
        for alpha in (0.3, 0.5, 0.8):
            for gamma in (1.0, 0.9):
                field = np.asarray(response(p_mode(16, 16, alpha, gamma)))
                errors[f"P angle {alpha} decay {gamma}"] = float(np.abs(field - closed_form(16, alpha, gamma)).max())
        for chirality in "LR":
            field = np.asarray(gating(d_mode(16, 16, 1.0, chirality)))[:, :, 0, 0, 0, 0, 0, 0]
            want = np.ones((16, 16))
            want[0, 0] = 0
            errors[f"D {chirality}"] = float(np.abs(field - want).max())
    if lab.plots.is_dir():
        from paperlab.papers.plstm import pictures

        pictures.main(lab.plots)
    return Outcome(max(errors.values()), details={"largest_difference": errors})


@jax.jit
def _diagonals(alpha: Array) -> Array:
    """[256, 257]: the response of P-mode on anti-diagonal 1, 2 ... by x; the recurrence of one source, one line at a time."""
    width = DELTAS[-1] + 1
    right, down = jnp.zeros(width).at[0].set(alpha), jnp.zeros(width).at[0].set(1 - alpha)

    def step(edges: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        right, down = edges  # that leave nodes (x, d - x)
        node = jnp.roll(right, 1).at[0].set(0) + down
        return (alpha * node, (1 - alpha) * node), node

    return lax.scan(step, (right, down), None, length=DELTAS[-1])[1]


def beams(alphas: tuple[float, ...] = (0.3, 0.5)) -> dict[float, np.ndarray]:
    """{angle: response by anti-diagonal}, the first of them checked against `grid_memory`."""
    with jax.enable_x64(True):
        found = {alpha: np.asarray(_diagonals(jnp.asarray(alpha))) for alpha in alphas}
        for alpha, lines in found.items():
            field = np.asarray(response(p_mode(16, 16, alpha)))
            for d in (1, 7, 15):
                np.testing.assert_allclose(lines[d - 1, : d + 1], [field[x, d - x] for x in range(d + 1)], atol=1e-12)
    return found


def slope(lines: np.ndarray) -> float:
    """Of the peak over the anti-diagonal, both logarithmic."""
    return float(np.polyfit(np.log(DELTAS), np.log([lines[d - 1].max() for d in DELTAS]), 1)[0])


def beam_decay(lab: Laboratory, *, steepest: bool) -> Outcome:
    """The slope of the peak over anti-diagonals 16 to 256: the steeper of two angles, or the flatter."""
    found = lab.once("plstm beams", beams)
    slopes = {alpha: slope(lines) for alpha, lines in found.items()}
    if lab.plots.is_dir():
        from paperlab.papers.plstm import pictures

        pictures.save(pictures.beams(found), lab.plots / "beams.png")
    return Outcome((min if steepest else max)(slopes.values()), details={"slope": slopes})


def beam_direction(lab: Laboratory) -> Outcome:
    """Distance of the peak's direction x / (x + y) from the angle, times the anti-diagonal: at most one node."""
    found = lab.once("plstm beams", beams)
    off = {alpha: max(float(abs(lines[d - 1].argmax() - alpha * d)) for d in DELTAS) for alpha, lines in found.items()}
    return Outcome(max(off.values()), details={"nodes_off": off})


def beam_mass(lab: Laboratory) -> Outcome:
    """How far the sum over an anti-diagonal is from one, 256 of them."""
    found = lab.once("plstm beams", beams)
    return Outcome(float(max(np.abs(lines.sum(1) - 1).max() for lines in found.values())))


def vertical_neighbour(lab: Laboratory) -> Outcome:
    """What a node reads of its upper neighbour at decay 0.95 on a grid 32 wide: on the grid, and along a scan of its rows."""
    del lab
    decay, width = 0.95, 32
    with jax.enable_x64(True):
        gates = d_mode(width, 2, decay)._replace(source_d=jnp.full((width, 2, 1, 1, 1), decay))
        on_grid = float(response(gates)[0, 1])
        ones = jnp.ones((2 * width, 1, 1, 1))
        row = Gates(decay * ones[..., None], None, decay * ones, None, None, None, ones[..., None], None)
        along_rows = float(response(row)[width, 0])
    return Outcome(on_grid, along_rows, details={"closed_form": {"grid": decay, "rows": decay**width}})


def learn_angle(target: tuple[int, int], steps: int = 400, rate: float = 0.02) -> np.ndarray:
    """The angle after every step of gradient ascent on the log response at `target`, from 0.5: a single logit."""
    x, y = target

    @jax.jit
    def climb(logit: Array) -> Array:
        def objective(logit: Array) -> Array:
            return jnp.log(response(p_mode(x + 1, y + 1, jax.nn.sigmoid(logit)))[x, y])

        def step(logit: Array, _: None) -> tuple[Array, Array]:
            return logit + rate * jax.grad(objective)(logit), jax.nn.sigmoid(logit)

        last, path = lax.scan(step, logit, None, length=steps)
        return jnp.append(path, jax.nn.sigmoid(last))

    with jax.enable_x64(True):
        return np.asarray(climb(jnp.zeros(())))


TARGETS = ((3, 11), (7, 7), (10, 4), (12, 2))


def angle_learned(lab: Laboratory) -> Outcome:
    """The largest distance of the learned angle from x / (x + y), over four targets with x + y = 14."""
    paths = lab.once("plstm angles", lambda: {target: learn_angle(target) for target in TARGETS})
    errors = {str(t): float(abs(path[-1] - t[0] / sum(t))) for t, path in paths.items()}
    if lab.plots.is_dir():
        from paperlab.papers.plstm import pictures

        pictures.save(pictures.angles(paths), lab.plots / "angle.png")
    return Outcome(max(errors.values()), per_seed=list(errors.values()), details={"error": errors})


def angle_transfers(lab: Laboratory) -> Outcome:
    """Cells between the beam's peak on 64 x 64 and the line through the target, on any anti-diagonal from 14 to 63."""
    paths = lab.once("plstm angles", lambda: {target: learn_angle(target) for target in TARGETS})
    off = {}
    with jax.enable_x64(True):
        for (x, y), path in paths.items():
            field = np.asarray(response(p_mode(64, 64, float(path[-1]))))
            peaks = [(d, np.argmax([field[i, d - i] for i in range(d + 1)])) for d in range(14, 64)]
            off[str((x, y))] = float(max(abs(peak - d * x / (x + y)) for d, peak in peaks))
    return Outcome(max(off.values()), per_seed=list(off.values()), details={"cells_off": off})
