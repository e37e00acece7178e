"""Sharing weights and bringing them back: sources, centroids, singular values, exactness; costs by count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.depth.convert import INITS, residual_lora, sources, tie, unlike, untie
from paperlab.depth.costs import LayerCosts, cache_bytes, cache_entries, forward_flops, layer_weights, tokens_of
from paperlab.depth.deltas import add_lora, with_magnitudes, zero_lora
from paperlab.depth.program import loop, plain, shared

L, IN, OUT = 6, 5, 4
PROGRAMS = [
    shared(L, 3, "cycle"),
    shared(L, 3, "sequence"),
    shared(L, 2, "middle_cycle"),
    shared(L, 2, "middle_sequence"),
]


def stack():
    draw = np.random.default_rng(0)
    return {
        "q": {"kernel": jnp.asarray(draw.standard_normal((L, IN, OUT)))},
        "norm": {"scale": jnp.asarray(draw.standard_normal((L, IN)))},
    }


def test_sources():
    gemma = shared(18, 2, "cycle")
    assert sources(gemma, "stepwise") == (0, 2, 4, 6, 8, 11, 13, 15, 17)
    assert sources(gemma, "lower") == tuple(range(9))
    assert sources(gemma, "upper") == tuple(range(9, 18))
    assert sources(shared(8, 3, "middle_cycle"), "stepwise") == (0, 1, 6, 7)
    assert sources(shared(8, 3, "middle_cycle"), "upper") == (0, 5, 6, 7)
    assert sources(gemma, "random", 3) == tuple(sorted(set(sources(gemma, "random", 3))))
    with pytest.raises(ValueError, match="choose one of"):
        sources(gemma, "middle")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("init", INITS)
def test_full_rank_brings_every_layer_back(program, init):
    untied = stack()
    tied = tie(untied, program, init)
    assert tied["q"]["kernel"].shape[0] == program.unique
    lora = residual_lora(untied, tied, program, rank=99)
    again = add_lora(untie(tied, program), lora)
    np.testing.assert_allclose(again["q"]["kernel"], untied["q"]["kernel"], atol=1e-5)
    np.testing.assert_allclose(again["norm"]["scale"], tied["norm"]["scale"][jnp.asarray(program.layers)])


def test_what_a_rank_leaves_is_the_tail_of_the_singular_values():
    untied, program = stack(), PROGRAMS[0]
    tied = tie(untied, program, "average")
    again = add_lora(untie(tied, program), residual_lora(untied, tied, program, rank=2))
    residual = np.asarray(untied["q"]["kernel"] - untie(tied, program)["q"]["kernel"])
    tails = np.sqrt((np.linalg.svd(residual, compute_uv=False)[:, 2:] ** 2).sum(-1))
    left = np.linalg.norm(np.asarray(untied["q"]["kernel"] - again["q"]["kernel"]), axis=(-2, -1))
    np.testing.assert_allclose(left, tails, rtol=1e-4)


def test_the_mean_is_the_nearest_and_a_layer_that_stays_gets_a_fresh_pair():
    untied, program = stack(), PROGRAMS[0]
    away = {init: unlike(untied, tie(untied, program, init), program)["q/kernel"] for init in INITS}
    assert min(away, key=away.get) == "average"
    tied = tie(untied, program, "lower")
    lora = residual_lora(untied, tied, program, rank=2)["q/kernel"]
    assert jnp.all(lora["b"][:2] == 0)
    assert jnp.all(jnp.abs(lora["a"][:2]).sum((1, 2)) > 0)
    np.testing.assert_array_equal(
        add_lora(untie(tied, program), {"q/kernel": lora})["q"]["kernel"][:2], untied["q"]["kernel"][:2]
    )
    same = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), untied)
    np.testing.assert_allclose(tie(same, program, "average")["q"]["kernel"][0], untied["q"]["kernel"][0], rtol=1e-6)


def test_fresh_pairs_change_nothing_and_dora_starts_the_same():
    params = {"q": {"kernel": stack()["q"]["kernel"][0]}}
    lora = zero_lora(jax.random.key(0), params, 8, lead=(3,))
    assert lora["q/kernel"]["a"].shape == (3, IN, min(8, OUT))
    one = jax.tree.map(lambda a: a[0], lora)
    np.testing.assert_array_equal(add_lora(params, one)["q"]["kernel"], params["q"]["kernel"])
    one["q/kernel"]["b"] = jnp.ones_like(one["q/kernel"]["b"])
    plain_lora = add_lora(params, one, 0.5)["q"]["kernel"]
    np.testing.assert_allclose(
        add_lora(params, with_magnitudes(params, one, 0.5), 0.5)["q"]["kernel"], plain_lora, rtol=1e-5
    )


def test_flops_and_caches_of_the_paper_s_360m():
    """Mixture-of-Recursions, claim 6.1 and section 3.4: T = 2048, d = 960, 15 heads over 5, FFN 2560."""
    q, kv, ffn = 960 * 960, 2 * 960 * 320, 3 * 960 * 2560
    layer = LayerCosts(2 * q + kv + ffn, attention=960, cache=640, shared_weights=kv)
    full = forward_flops(plain(32), layer, 2048)
    for times, share, entries in ((2, 0.746, 3 / 4), (3, 0.665, 2 / 3)):
        program = shared(32, times, "middle_cycle")
        capacity = tuple((times - r) / times for r in range(times))
        assert forward_flops(program, layer, 2048, capacity=capacity) / full == pytest.approx(share, abs=0.002)
        inner = cache_entries(program, 2048, capacity=capacity) - 2 * 2048
        assert inner / (30 * 2048) == pytest.approx(entries, abs=1e-3)
        alike = cache_entries(program, 2048, capacity=capacity, policy="shared") - 2 * 2048
        assert alike / (30 * 2048) == pytest.approx(1 / times)
        kept = cache_bytes(program, layer, 2048, 2, capacity=capacity, policy="shared")
        assert kept == (alike + 2 * 2048) * 640 * 2
    assert tokens_of(loop(1, 2, before=1), 10, (1.0, 0.5)) == [10, 10, 5]
    assert layer_weights(jax.tree.map(lambda a: a[0], stack())) == IN * OUT
