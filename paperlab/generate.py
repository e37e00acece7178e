"""Text from a finished run, token by token as it is drawn.

    python -m paperlab.generate --workdir=DIR --prompt="def " --tokens=200 [--temperature=0.8 --top_k=40 --seed=0]

The prompt goes through the model in one parallel call; every further token takes one step of the recurrent form. It
ends after `--tokens` tokens, or where the model begins a new document. In Python: `paperlab.generate.generate`.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from paperlab.decoding import generate, stream
from paperlab.errors import ConfigError

__all__ = ["generate", "main", "stream", "text"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, prints the continuation, and returns the exit status."""
    flags = _parser().parse_args(argv)
    try:
        import paperlab
        from paperlab.devices import keep_compiled_programs

        keep_compiled_programs()
        run = paperlab.load(flags.workdir)
        pieces = text(
            run, flags.prompt, flags.tokens, temperature=flags.temperature, top_k=flags.top_k, seed=flags.seed
        )
        print(flags.prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def text(
    run: Any, prompt: str, tokens: int, *, temperature: float = 1.0, top_k: int = 0, seed: int = 0
) -> Iterator[str]:
    """Yields the continuation of `prompt` in pieces of whole characters; `run` is what `paperlab.load` returns.

    Raises:
      ValueError: before the first piece, for a number that is out of range.
    """
    ids = jnp.asarray([[run.tokenizer.bos, *run.tokenizer.encode(prompt)]], jnp.int32)
    drawn = stream(run.model, run.params, ids, tokens, jax.random.key(seed), temperature=temperature, top_k=top_k)
    return _pieces(drawn, run.tokenizer)


def _pieces(drawn: Iterator[Any], tokenizer: Any) -> Iterator[str]:
    seen: list[int] = []
    shown = ""
    for token in drawn:
        if int(token[0]) == tokenizer.bos:
            break
        seen.append(int(token[0]))
        whole = tokenizer.decode(seen)
        if not whole.endswith(UNFINISHED):
            yield whole[len(shown) :]
            shown = whole
    yield tokenizer.decode(seen)[len(shown) :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m paperlab.generate", description="Continues a text with a trained model."
    )
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--prompt", default="", help="text to continue; nothing: begin a document")
    parser.add_argument("--tokens", type=int, default=200, help="number of tokens to draw")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token")
    parser.add_argument("--top_k", type=int, default=0, help="draw among the k most probable tokens; 0: among all")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
