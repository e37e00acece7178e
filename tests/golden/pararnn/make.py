"""Makes the shipped known answers of ParaRNN: `python -m tests.golden.pararnn.make` writes the .npz files and cases.json beside it.

Plain numpy in float64, written from the equations (arXiv 2510.21450, sections 2 and 3) and from nothing else of this repository:
loops over time, derivatives by complex steps, one dense matrix a Newton system. A cell is its step function alone.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]
Step = Callable[[Arrays, np.ndarray, np.ndarray], np.ndarray]
TINY = 1e-200


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


NONLINEARITIES: dict[str, Callable] = {"tanh": np.tanh, "silu": lambda x: x * sigmoid(x)}


def fed(params: Arrays, x: np.ndarray) -> list[np.ndarray]:
    """B x + b, a part for each of the three gates; B [heads, in, 3, out] is block-diagonal over the heads."""
    heads, width = params["B"].shape[:2]
    parts = np.einsum("...hi,higj->...ghj", x.reshape(*x.shape[:-1], heads, width), params["B"])
    return list(np.moveaxis(parts.reshape(*x.shape[:-1], 3, -1) + params["b"], -2, 0))


def gru(phi: Callable) -> Step:
    def step(params: Arrays, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        (a_z, a_r, a_c), (x_z, x_r, x_c) = params["A"], fed(params, x)
        z, r = sigmoid(a_z * h + x_z), sigmoid(a_r * h + x_r)
        return (1 - z) * h + z * phi(a_c * h * r + x_c)

    return step


def lstm(phi: Callable, psi: Callable) -> Step:
    def step(params: Arrays, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        c, h = np.split(state, 2, axis=-1)
        (a_f, a_o, a_c), (p_f, p_o), (x_f, x_o, x_c) = params["A"], params["C"], fed(params, x)
        f = sigmoid(a_f * h + x_f + p_f * c)
        c = f * c + (1 - f) * phi(a_c * h + x_c)
        return np.concatenate([c, sigmoid(a_o * h + x_o + p_o * c) * psi(c)], axis=-1)

    return step


def elman(params: Arrays, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    return np.tanh(h @ params["W"].T + x @ params["U"].T + params["c"])


def shifted(h: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(h[:, :1]), h[:, :-1]], axis=1)


def jacobian(step: Step, params: Arrays, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """d step / d h [B, L, N, N] by complex steps, one column at a time."""
    columns = [step(params, x, h + 1j * TINY * unit).imag / TINY for unit in np.eye(h.shape[-1])]
    return np.stack(columns, axis=-1)


def solved(J: np.ndarray, r: np.ndarray) -> np.ndarray:
    """s_t = J_t s_{t-1} + r_t from zero, by substitution; J [B, L, N, N]."""
    s = np.zeros_like(r)
    for t in range(r.shape[1]):
        s[:, t] = r[:, t] + (np.einsum("bij,bj->bi", J[:, t], s[:, t - 1]) if t else 0)
    return s


def slopes(step: Step, params: Arrays, x: np.ndarray, before: np.ndarray, lam: np.ndarray) -> Arrays:
    """Gradients of sum(lam * step) with respect to x and every parameter, entry by entry."""

    def entries(array: np.ndarray) -> Iterable[np.ndarray]:
        for place in np.ndindex(array.shape):
            moved = array.astype(complex)
            moved[place] += 1j * TINY
            yield moved

    gradients = {}
    for name, array in params.items():
        moved = [np.sum(lam * step({**params, name: a}, x, before).imag) / TINY for a in entries(array)]
        gradients[f"grad_{name}"] = np.array(moved).reshape(array.shape)
    columns = [np.sum(lam * step(params, x + 1j * TINY * e, before).imag, -1) / TINY for e in np.eye(x.shape[-1])]
    return gradients | {"grad_x": np.stack(columns, -1)}


def answers(step: Step, params: Arrays, x: np.ndarray, w: np.ndarray, size: int, guess: str) -> Arrays:
    """Everything that a cell's file holds; the output is the last part of a state, as wide as w."""
    B, L = x.shape[:2]
    states = np.zeros((B, L, size))
    for t in range(L):
        states[:, t] = step(params, x[:, t], states[:, t - 1] if t else np.zeros((B, size)))
    J = jacobian(step, params, x, shifted(states))
    h = np.zeros_like(states) if guess == "zeros" else step(params, x, np.zeros_like(states))
    found = {"guess": h}
    iterates, residuals = [], []
    for _ in range(9):
        r = step(params, x, shifted(h)) - h
        residuals.append(np.abs(r).max())
        h = h + solved(jacobian(step, params, x, shifted(h)), r)
        iterates.append(h)
    direct = np.zeros_like(states)
    direct[..., size - w.shape[-1] :] = w
    following = np.concatenate([J[:, 1:], np.zeros_like(J[:, :1])], axis=1).swapaxes(-1, -2)
    lam = solved(following[:, ::-1], direct[:, ::-1])[:, ::-1]
    return {
        **found,
        "y_seq": states[..., size - w.shape[-1] :],
        "state_seq": states,
        "newton": np.stack(iterates[:4]),
        "resnorm": np.array(residuals),
        "adjoint": lam,
        "jac": J,
        **slopes(step, params, x, shifted(states), lam),
    }


def structured(J: np.ndarray, variables: int) -> np.ndarray:
    """The entries of K x K diagonals: [B, L, n] for K = 1, else [B, L, K n, K]; all others must be zero."""
    n = J.shape[-1] // variables
    planes = J.reshape(*J.shape[:2], variables, n, variables, n)
    kept = np.einsum("blinjn->blinj", planes)
    assert np.count_nonzero(planes) <= np.count_nonzero(kept)
    return kept.reshape(*J.shape[:2], -1) if variables == 1 else kept.reshape(*J.shape[:2], -1, variables)


def gated(name: str, B: int, L: int, din: int, S: int, H: int, seed: int, **how: Any) -> tuple[Arrays, dict]:
    """One file of a ParaGRU or ParaLSTM: (arrays, its entry of cases.json)."""
    draw = np.random.default_rng(seed)
    phi, psi, strength = how.get("phi", "tanh"), how.get("psi", "tanh"), how.get("strength", 0.6)
    params = {"A": strength * draw.standard_normal((3, S)), "B": draw.uniform(-1, 1, (H, din // H, 3, S // H))}
    if name == "lstm":
        params["C"] = strength * draw.standard_normal((2, S))
    params["b"] = 0.3 * draw.standard_normal((3, S))
    x, w = draw.standard_normal((B, L, din)), draw.standard_normal((B, L, S))
    K = 2 if name == "lstm" else 1
    step = gru(NONLINEARITIES[phi]) if K == 1 else lstm(NONLINEARITIES[phi], NONLINEARITIES[psi])
    found = answers(step, params, x, w, K * S, "step_from_zero_state")
    found["jac"] = structured(found["jac"], K)
    options = {
        "cell": name,
        "structure": "diag" if K == 1 else "block2",
        "num_heads": H,
        "candidate_nonlinearity": phi,
        "output_nonlinearity": psi if K == 2 else None,
        "gate_order": ["z", "r", "c"] if K == 1 else ["f", "o", "c"],
        "state_order": ["h"] if K == 1 else ["c", "h"],
    }
    return {"x": x, "w": w, **params, **found}, entry(f"{name}_cell", options, params, found, S, din)


def dense(B: int, L: int, din: int, S: int, gain: float, seed: int) -> tuple[Arrays, dict]:
    """One file of an Elman cell, from a guess of zeros."""
    draw = np.random.default_rng(seed)
    params = {"W": gain * draw.standard_normal((S, S)) / np.sqrt(S), "U": draw.standard_normal((S, din))}
    params["c"] = 0.1 * draw.standard_normal(S)
    x, w = draw.standard_normal((B, L, din)), draw.standard_normal((B, L, S))
    found = answers(elman, params, x, w, S, "zeros")
    kept = {name: array for name, array in found.items() if name not in ("jac", "adjoint", "state_seq")}
    options = {
        "cell": "elman",
        "structure": "dense",
        "num_heads": 1,
        "candidate_nonlinearity": "tanh",
        "output_nonlinearity": None,
        "gate_order": [],
        "state_order": ["h"],
        "initial_guess": "zeros",
        "newton_exact_prefix_offset": 0,
    }
    return {"x": x, "w": w, **params, **kept}, entry("elman_cell", options, params, kept, S, din)


def entry(kind: str, options: dict, params: Arrays, found: Arrays, S: int, din: int) -> dict:
    """What cases.json says; iterates that rounding may move are not compared beyond the first."""
    residuals = found["resnorm"]
    met = np.flatnonzero(residuals < 1e-10)
    easy = bool(met.size)
    sizes = {"state_dim": S, "input_dim": din, "initial_state": "zero", "initial_guess": "step_from_zero_state"}
    facts = {
        "gradient_loss": "sum(w*y_seq)",
        "newton_jacobian": "exact",
        "newton_damping": 1.0,
        "newton_iterates_compared": 4 if easy else 1,
        "newton_exact_prefix_offset": 1,
        "iterations_to_1e-10": int(met[0]) if easy else None,
        "iterations_slack": 0,
        "residual_after_3_min": None if easy else 0.1,
        "residual_after_3_max": float(f"{3 * residuals[3]:.0e}") if easy else None,
    }
    outputs = {}
    for name, array in found.items():
        if name == "resnorm":
            continue
        size = float(np.abs(array[0] if name == "newton" else array).max())
        relative = 1e-8 if name == "newton" else 1e-9
        outputs[name] = {
            "atol": (1e-8 if name == "newton" else 1e-10) if easy else relative * max(size, 1),
            "rtol": 0.0,
        }
    return {
        "kind": kind,
        "options": sizes | facts | options,
        "inputs": ["x", "w"],
        "params": list(params),
        "outputs": outputs,
        "reference": False,
        "source": "own numpy loops, tests/golden/pararnn/make.py",
        "licence": "own",
        "info": ["resnorm"],
    }


def linear(L: int, n: int, seed: int) -> tuple[Arrays, dict]:
    """Random linear systems of every structure, solved by substitution."""
    draw = np.random.default_rng(seed)
    arrays: Arrays = {}
    subcases = {}
    for name, K in {"diag": 1, "block2": 2, "block3": 3, "dense": n}.items():
        N = n if name == "dense" else K * n
        J = draw.uniform(-0.9, 0.9, (2, L, N, N)) / np.sqrt(K)
        if name != "dense":
            J = J * np.kron(np.ones((K, K)), np.eye(n))
        r = draw.standard_normal((2, L, N))
        own = {"J": J if name == "dense" else structured(J, K), "r": r, "sol": solved(J, r)}
        arrays |= {f"{name}_{part}": array for part, array in own.items()}
        order = "variable-major (row i*n_channels + channel), last axis = input variable"
        subcases[name] = {
            "kind": "linear_solve",
            "options": {"structure": name, "block_size": K, "initial_state": "zero", "block_row_order": order},
            "inputs": [f"{name}_J", f"{name}_r"],
            "outputs": {f"{name}_sol": {"atol": 1e-11, "rtol": 1e-11}},
            "reference": False,
        }
    own = {"source": "own numpy loops, tests/golden/pararnn/make.py", "licence": "own"}
    return arrays, {"kind": "linear_solve_bundle", "options": {}, **own, "subcases": subcases}


def files() -> dict[str, tuple[Arrays, dict]]:
    """Every file: small, of several widths, heads and nonlinearities, two of them beyond where Newton converges."""
    return {
        "gru_L23_h2": gated("gru", 2, 23, 4, 6, 2, seed=0),
        "gru_L18_h3_silu": gated("gru", 1, 18, 6, 6, 3, seed=1, phi="silu"),
        "gru_hard_L40": gated("gru", 2, 40, 4, 4, 1, seed=2, strength=14.0),
        "lstm_L23_h2": gated("lstm", 2, 23, 4, 6, 2, seed=3),
        "lstm_L17_h1_silu": gated("lstm", 1, 17, 3, 5, 1, seed=4, phi="silu"),
        "lstm_hard_L40": gated("lstm", 2, 40, 4, 4, 2, seed=5, strength=14.0),
        "elman_dense_L20": dense(2, 20, 3, 4, 0.8, seed=6),
        "linear_solve_L29": linear(29, 3, seed=7),
    }


def main() -> None:
    """Writes the files."""
    cases = {}
    for name, (arrays, case) in files().items():
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        cases[f"{name}.npz"] = case
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
