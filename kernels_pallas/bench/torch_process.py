"""Peers that need PyTorch, in a process of their own: `python -P torch_process.py`, one request a line on stdin, one answer a line.

    request  {"arrays": folder of arrays.json and N.npy, "op", "label", "which": "forward" | "both", "sets", "rounds", "seconds",
              "results": [shape | null, ...], "cotangents": [N | null, ...], "out": folder}
    answer   {"ms": [...], "device"} or {"refused": reason}; the checked part of results and gradients is in `out` as rN.npy, gN.npy

Of kernels_pallas it uses nothing but the numbers: JAX is not loaded. bfloat16 travels as uint16.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class RefusedError(Exception):
    """Why a peer does not take part."""


class Peer(NamedTuple):
    """call(*inputs) -> results; prepare(*arguments) -> inputs and back(results) -> the operation's results are not timed.

    same: False for another function of the same sizes, which is not checked.
    """

    label: str
    call: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]]
    back: Callable[[Any], list[Any]]
    same: bool = True


def module(name: str) -> Any:
    """A module, found at run time; refuses with its reason where it is not there."""
    try:
        return import_module(name)
    except Exception as error:
        raise RefusedError(f"{name} cannot be imported: {short(error)}") from error


def short(error: BaseException) -> str:
    """The kind and the first line of an error."""
    if isinstance(error, RefusedError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def gates_bxtxd(a: Any, b: Any) -> Any:
    """A coefficient [D] or [B,T,D] in the shape of b."""
    return a.expand(b.shape).contiguous()


def hgrn(name: str) -> Peer:
    """FLA's HGRN: h = exp(g) h + x."""

    def prepare(a: Any, b: Any, h0: Any = None) -> tuple[Any, ...]:
        if bool((a <= 0).any()):
            raise RefusedError("takes the logarithms of gates, and here some are not positive")
        return gates_bxtxd(a, b).log(), b, h0

    def call(g: Any, x: Any, h0: Any) -> Any:
        return getattr(module("fla.ops.hgrn"), name)(x, g, initial_state=h0, output_final_state=True)

    return Peer(f"FLA {name}", call, prepare, lambda out: [out[0], out[1]])


def accelerated(kind: str) -> Peer:
    """accelerated-scan, in its own layout [B,D,T], the initial state written into the first input."""

    def prepare(a: Any, b: Any, h0: Any = None) -> tuple[Any, ...]:
        x, gates = b.transpose(1, 2).clone(), gates_bxtxd(a, b).transpose(1, 2).contiguous()
        if h0 is not None:
            x[:, :, 0] += gates[:, :, 0] * h0.to(x.dtype)
        return gates, x.contiguous()

    def call(gates: Any, x: Any) -> Any:
        return module(f"accelerated_scan.{kind}").scan(gates, x)

    return Peer(f"accelerated-scan {kind}", call, prepare, lambda out: [out.transpose(1, 2), out[:, :, -1].float()])


def accelerated_complex() -> Peer:
    """The same with complex numbers."""

    def prepare(a_re: Any, a_im: Any, b_re: Any, b_im: Any, h0_re: Any = None, h0_im: Any = None) -> tuple[Any, ...]:
        torch = module("torch")
        a, b = (torch.complex(re.float(), im.float()) for re, im in ((a_re, a_im), (b_re, b_im)))
        x, gates = b.transpose(1, 2).clone(), gates_bxtxd(a, b).transpose(1, 2).contiguous()
        if h0_re is not None:
            x[:, :, 0] += gates[:, :, 0] * torch.complex(h0_re.float(), h0_im.float())
        return gates, x.contiguous()

    def call(gates: Any, x: Any) -> Any:
        return module("accelerated_scan.complex").scan(gates, x)

    def back(out: Any) -> list[Any]:
        h, last = out.transpose(1, 2), out[:, :, -1]
        return [h.real, h.imag, last.real, last.imag]

    return Peer("accelerated-scan complex", call, prepare, back)


def fla_gla(name: str, gate: str) -> Peer:
    """FLA's gated linear attention, in the same layout; `gate` is the name of its argument."""
    simple = name == "chunk_simple_gla"

    def prepare(q: Any, k: Any, v: Any, log_alpha: Any, state: Any = None, segments: Any = None) -> tuple[Any, ...]:
        if segments is not None:
            raise RefusedError("compared without segments only")
        if log_alpha is None or (log_alpha.shape[-1] == 1) != simple:
            raise RefusedError(f"takes {'one gate a head' if simple else 'a gate a channel'} only")
        return q, k, v, log_alpha[..., 0].contiguous() if simple else log_alpha, state

    def call(q: Any, k: Any, v: Any, log_alpha: Any, state: Any) -> Any:
        f = getattr(module("fla.ops.simple_gla" if simple else "fla.ops.gla"), name)
        options = {"scale": q.shape[-1] ** -0.5, "initial_state": state, "output_final_state": True}
        return f(q, k, v, **{gate: log_alpha}, **options)

    return Peer(f"FLA {name}", call, prepare, lambda out: [out[0], out[1]])


def softmax() -> Peer:
    """PyTorch's causal softmax attention."""

    def prepare(q: Any, k: Any, v: Any, *rest: Any) -> tuple[Any, ...]:
        return tuple(x.transpose(1, 2).contiguous() for x in (q, k, v))

    def call(q: Any, k: Any, v: Any) -> Any:
        return module("torch.nn.functional").scaled_dot_product_attention(q, k, v, is_causal=True)

    return Peer("torch softmax attention (another function)", call, prepare, lambda out: [out], same=False)


def recurrent(kind: str) -> Peer:
    """cuDNN's GRU or LSTM of the same width: its recurrent matrix is dense, and it projects its input itself."""
    layers: dict[Any, Any] = {}

    def prepare(x: Any, *rest: Any) -> tuple[Any, ...]:
        torch = module("torch")
        D = x.shape[-1]
        layer = getattr(torch.nn, kind)(D, D, batch_first=True).to(device=x.device, dtype=x.dtype)
        layers[kind] = layer
        return (x[:, :, 0].contiguous(),)

    def call(x: Any) -> Any:
        return layers[kind](x)[0]

    return Peer(f"torch {kind} (a dense recurrence)", call, prepare, lambda out: [out], same=False)


PEERS: dict[str, list[Peer]] = {
    "linear_scan": [
        hgrn("fused_recurrent_hgrn"),
        hgrn("chunk_hgrn"),
        accelerated("scalar"),
        accelerated("warp"),
    ],
    "complex_scan": [accelerated_complex()],
    "gla": [
        fla_gla("chunk_gla", "g"),
        fla_gla("fused_recurrent_gla", "gk"),
        fla_gla("chunk_simple_gla", "g"),
        softmax(),
    ],
    "newton_gru": [recurrent("GRU")],
    "newton_lstm": [recurrent("LSTM")],
}


class Held(NamedTuple):
    """The arguments of a case, on the device."""

    folder: str
    arrays: tuple[Any, ...]


def load(folder: str, device: Any) -> Held:
    """Arrays from a folder: arrays.json is [dtype | null, ...]."""
    dtypes = json.loads((Path(folder) / "arrays.json").read_text(encoding="utf-8"))
    arrays = tuple(None if d is None else tensor(Path(folder) / f"{n}.npy", d, device) for n, d in enumerate(dtypes))
    return Held(folder, arrays)


def tensor(file: Path, dtype: str, device: Any) -> Any:
    """One array, on the device."""
    torch = module("torch")
    x = torch.from_numpy(np.load(file, allow_pickle=False))
    return (x.view(torch.bfloat16) if dtype == "bfloat16" else x).to(device)


def answer(request: dict[str, Any], held: Held, device: Any) -> dict[str, Any]:
    """Checks and times one peer."""
    peer = next(p for p in PEERS[request["op"]] if p.label == request["label"])
    if peer.same:
        write_part(peer, request, held, device)
    return {"ms": times(peer, request, held, device), "device": str(device)}


def write_part(peer: Peer, request: dict[str, Any], held: Held, device: Any) -> None:
    """The checked part of results and gradients, into the folder `out`."""
    torch = module("torch")
    out = Path(request["out"])
    asked = request["which"] == "both"
    arrays = tuple(copied(x, asked) for x in held.arrays)
    got = peer.back(peer.call(*peer.prepare(*arrays)))
    for number, (x, shape) in enumerate(zip(got, request["results"], strict=True)):
        if x is not None and shape is not None:
            np.save(out / f"r{number}.npy", part(x, shape))
    if not asked:
        return
    folder = Path(held.folder)
    pairs = [(x, shape, n) for x, shape, n in zip(got, request["results"], request["cotangents"], strict=True)]
    pairs = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
    weights = [padded(folder / f"w{n}.npy", x) for x, _, n in pairs]
    wanted = [x for x in arrays if x is not None and x.requires_grad]
    gradients = torch.autograd.grad([x for x, _, _ in pairs], wanted, weights, allow_unused=True)
    for number, (g, x, shape) in enumerate(zip(gradients, wanted, request["gradients"], strict=True)):
        np.save(out / f"g{number}.npy", part(torch.zeros_like(x) if g is None else g, shape))


def copied(x: Any, gradients: bool) -> Any:
    """A copy of its own, with a gradient where it can have one."""
    if x is None:
        return None
    return x.detach().clone().requires_grad_(gradients and (x.is_floating_point() or x.is_complex()))


def part(x: Any, shape: list[int]) -> np.ndarray:
    """The first entries along every axis, in float32."""
    return x.detach()[tuple(slice(0, n) for n in shape)].float().cpu().numpy()


def padded(file: Path, like: Any) -> Any:
    """A cotangent that is zero but in the checked part."""
    torch = module("torch")
    w = torch.zeros_like(like)
    given = torch.from_numpy(np.load(file, allow_pickle=False))
    w[tuple(slice(0, n) for n in given.shape)] = given.to(device=like.device, dtype=like.dtype)
    return w


def times(peer: Peer, request: dict[str, Any], held: Held, device: Any) -> list[float]:
    """Milliseconds a call, as kernels_pallas.bench.timing takes them: round the input sets, waited for once a sample."""
    torch = module("torch")
    both = request["which"] == "both"
    copies = [tuple(copied(x, False) for x in held.arrays) for _ in range(request["sets"])]
    inputs = [tuple(copied(x, both) for x in peer.prepare(*arrays)) for arrays in copies]
    del copies
    weights: list[Any] = []

    def call(number: int) -> Any:
        given = inputs[number % len(inputs)]
        if not both:
            with torch.no_grad():
                return peer.call(*given)
        found = peer.call(*given)
        out = [x for x in (found if isinstance(found, (tuple, list)) else [found]) if x is not None]
        if not weights:
            weights.extend(torch.randn_like(x) for x in out)
        wanted = [x for x in given if x is not None and x.requires_grad]
        return torch.autograd.grad(out, wanted, weights, allow_unused=True)

    def sample(count: int) -> float:
        start = time.perf_counter()
        for number in range(count):
            call(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / count

    for _ in range(2):
        sample(1)
    once = max(min(sample(1), sample(2)), 1e-4)
    count = max(1, min(50, round(5.0 / once)))
    rounds = max(min(3, request["rounds"]), min(request["rounds"], int(request["seconds"] * 1e3 / (once * count))))
    return [sample(count) for _ in range(rounds)]


def requests() -> Iterator[dict[str, Any]]:
    """Lines of stdin."""
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Answers until stdin ends; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    held: Held | None = None
    for request in requests():
        try:
            torch = module("torch")
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            if held is None or held.folder != request["arrays"]:
                held = None
                held = load(request["arrays"], device)
            told = answer(request, held, device)
            told["median"] = statistics.median(told["ms"])
        except Exception as error:
            told = {"refused": short(error)}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
