"""The key-value cache holds what it was given, grows, and gives rows away."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ShapeError
from minilora.generate import KVCache

RNG = np.random.default_rng(0)


def part(rows: int, time: int, groups: int = 2, width: int = 3):
    return RNG.standard_normal((rows, time, groups, width)), RNG.standard_normal((rows, time, groups, width))


def fill(cache: KVCache, times, *, rows: int = 2, layers: int = 3):
    """Extend ``layers`` layers by pieces of these times; return all that was given, by layer."""
    given = [([], []) for _ in range(layers)]
    for time in times:
        for layer in range(layers):
            k, v = part(rows, time)
            given[layer][0].append(k)
            given[layer][1].append(v)
            found = cache.extend(layer, k, v)
            for got, pieces in zip(found, given[layer], strict=True):
                np.testing.assert_array_equal(got, np.concatenate(pieces, axis=1))
        cache.advance(time)
    return [tuple(np.concatenate(pieces, axis=1) for pieces in pair) for pair in given]


@pytest.mark.parametrize("times", [[1], [5, 1, 1], [1] * 70, [31, 1, 1], [32, 33], [100, 1], [1, 0, 200]])
def test_every_layer_sees_all_that_came_before(times):
    cache = KVCache()
    fill(cache, times)
    assert cache.length == sum(times)


def test_select_gives_copies_of_rows_in_any_order_and_number():
    cache = KVCache()
    given = fill(cache, [4, 2])
    chosen = cache.select(np.array([1, 1, 0]))
    assert chosen.length == 6
    k, v = part(3, 1)
    for layer in range(3):
        found = chosen.extend(layer, k, v)
        for got, old, new in zip(found, given[layer], (k, v), strict=True):
            np.testing.assert_array_equal(got, np.concatenate([old[[1, 1, 0]], new], axis=1))
    chosen.advance(1)
    assert cache.length == 6
    k, v = part(2, 1)  # the first cache goes its own way
    np.testing.assert_array_equal(cache.extend(0, k, v)[0], np.concatenate([given[0][0], k], axis=1))


def test_a_call_that_did_not_end_leaves_no_trace():
    cache = KVCache()
    cache.extend(0, *part(2, 3))  # interrupted: layers 1 and 2 never came, nor advance
    fill(cache, [2, 2], rows=4)
    assert cache.length == 4
    cache.extend(0, *part(4, 3))  # and once more, on a cache in use
    k, v = part(4, 1)
    assert cache.extend(0, k, v)[0].shape == (4, 5, 2, 3)


@pytest.mark.parametrize("rows", [1, 3])
def test_another_number_of_rows_is_refused(rows):
    cache = KVCache()
    fill(cache, [4])
    with pytest.raises(ShapeError) as error:
        cache.extend(0, *part(rows, 1))
    assert str(error.value) == f"cache: holds 2 rows, but {rows} came; call select to repeat or drop rows"


def test_another_models_layers_are_refused():
    cache = KVCache()
    fill(cache, [4])
    for call in (lambda: cache.extend(3, *part(2, 1)), lambda: cache.extend(0, *part(2, 1, groups=1))):
        with pytest.raises(ShapeError, match="its layers are those of another model; start a new one"):
            call()


def test_an_empty_cache_may_be_selected_from():
    assert KVCache().select(np.array([0, 0])).length == 0
