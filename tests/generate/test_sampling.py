"""Choosing the next token: greedy, or drawn as temperature, top-k and top-p say."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ConfigError, MiniloraError
from minilora.generate import Sampling

LOGITS = np.log(np.array([[0.05, 0.4, 0.3, 0.2, 0.05]], np.float32))


def frequencies(sampling: Sampling, logits=LOGITS, draws: int = 20_000) -> np.ndarray:
    """How often each token is drawn."""
    rng = np.random.default_rng(0)
    chosen = sampling.choose(np.repeat(logits, draws, axis=0), rng)
    return np.bincount(chosen, minlength=logits.shape[1]) / draws


def close(found, wanted):
    # Five standard deviations of a binomial share.
    wanted = np.asarray(wanted)
    return np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 20_000))


def test_temperature_zero_takes_the_first_of_the_most_likely():
    rng = np.random.default_rng(0)
    logits = np.array([[1.0, 5.0, 5.0], [-1.0, -3.0, -2.0]])
    np.testing.assert_array_equal(Sampling().choose(logits, rng), [1, 0])
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state  # nothing was drawn


def test_temperature_one_draws_from_the_models_own_distribution():
    assert close(frequencies(Sampling(temperature=1.0)), [0.05, 0.4, 0.3, 0.2, 0.05])


def test_temperature_divides_the_logits():
    shares = np.array([0.05, 0.4, 0.3, 0.2, 0.05]) ** 2
    assert close(frequencies(Sampling(temperature=0.5)), shares / shares.sum())


def test_a_tiny_temperature_is_greedy_and_a_huge_one_uniform():
    assert frequencies(Sampling(temperature=1e-4))[1] == 1
    assert close(frequencies(Sampling(temperature=1e6)), [0.2] * 5)


def test_top_k_draws_among_the_k_most_likely():
    assert close(frequencies(Sampling(1.0, top_k=2)), [0, 4 / 7, 3 / 7, 0, 0])
    assert frequencies(Sampling(1.0, top_k=1))[1] == 1
    np.testing.assert_array_equal(frequencies(Sampling(1.0, top_k=5)), frequencies(Sampling(1.0)))
    np.testing.assert_array_equal(frequencies(Sampling(1.0, top_k=99)), frequencies(Sampling(1.0)))


def test_top_p_draws_among_the_fewest_that_reach_p():
    assert close(frequencies(Sampling(1.0, top_p=0.6)), [0, 4 / 7, 3 / 7, 0, 0])
    assert close(frequencies(Sampling(1.0, top_p=0.75)), [0, 4 / 9, 3 / 9, 2 / 9, 0])
    assert frequencies(Sampling(1.0, top_p=1e-9))[1] == 1  # one is always left
    np.testing.assert_array_equal(frequencies(Sampling(1.0, top_p=1.0)), frequencies(Sampling(1.0)))


def test_top_p_is_taken_of_what_top_k_left():
    # Among the two left, the first has 4/7 > 0.5.
    assert frequencies(Sampling(1.0, top_k=2, top_p=0.5))[1] == 1


def test_rows_are_drawn_one_by_one():
    logits = np.array([[0.0, -np.inf, -np.inf], [-np.inf, 0.0, -np.inf], [-np.inf, -np.inf, 0.0]])
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.9), Sampling()):
        np.testing.assert_array_equal(sampling.choose(logits, np.random.default_rng(0)), [0, 1, 2])


def test_large_logits_do_not_overflow():
    logits = np.array([[3e38, -3e38, 0.0]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        assert Sampling(0.01).choose(logits, np.random.default_rng(0))[0] == 0


def test_an_impossible_token_is_never_drawn_even_at_the_edges_of_the_draw():
    class Edge:
        def __init__(self, at):
            self.at = at

        def random(self, shape):
            return np.full(shape, self.at)

    logits = np.array([[-np.inf, 0.0, 0.0, -np.inf]])
    assert Sampling(1.0).choose(logits, Edge(0.0))[0] == 1
    assert Sampling(1.0).choose(logits, Edge(np.nextafter(1.0, 0.0)))[0] == 2


def test_logits_that_are_not_numbers_are_refused_instead_of_drawn_from():
    for bad in (np.nan, np.inf):
        for sampling in (Sampling(), Sampling(1.0)):
            with pytest.raises(MiniloraError) as error:
                sampling.choose(np.array([[0.0, 1.0], [bad, 0.0]]), np.random.default_rng(0))
            assert "generate: the model's logits hold NaN or infinity" in str(error.value)
            assert "try without the adapter" in str(error.value)


WRONG = {
    "temperature is -1": {"temperature": -1},
    "temperature is nan": {"temperature": float("nan")},
    "temperature is inf": {"temperature": float("inf")},
    "temperature is 'hot'": {"temperature": "hot"},
    "top_k is 0": {"top_k": 0},
    "top_k is 2.5": {"top_k": 2.5},
    "top_p is 0": {"top_p": 0},
    "top_p is 1.5": {"top_p": 1.5},
    "top_p is nan": {"top_p": float("nan")},
    "top_p is '0.9'": {"top_p": "0.9"},
}


@pytest.mark.parametrize(("text", "settings"), WRONG.items(), ids=WRONG)
def test_a_setting_out_of_range_is_refused_by_name(text, settings):
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert text in str(error.value)
    assert "expected" in str(error.value)
