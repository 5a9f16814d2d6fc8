"""The one line that says an operator's axes: how it is read, and what a call that breaks it is told."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.errors import ShapeError
from minilora.signature import Signature


def check(signature, *arrays):
    return Signature.parse(signature).check("op", arrays)


@pytest.mark.parametrize(
    "text",
    [
        "x[*, D], weight[D] -> y[*, D]",
        "x[...], y[...] -> z[...]",
        "x[*, K], W:weight[K, N], bias?[N] -> y[*, N]",
        "q[B, T], mask?:bool[B, T], ids:int[3] -> y[B], z[?]",
        "*xs[?] -> y[?]",
    ],
)
def test_a_signature_prints_as_it_was_written(text):
    assert str(Signature.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x[*]", "signature 'x[*]' has no '->'"),
        ("-> y[*]", "is not a list of name[axes]"),
        ("x -> y[*]", "signature part 'x ' is not a list of name[axes]"),
        ("x[*] -> ", "is not a list of name[axes]"),
        ("x[*] y! -> y[*]", "is not a list of name[axes]"),
        ("x:complex[*] -> y[*]", "is not a list of name[axes]"),
    ],
)
def test_a_line_that_is_no_signature_is_refused(text, message):
    with pytest.raises(ValueError) as caught:
        Signature.parse(text)
    assert message in str(caught.value)


def test_sizes_are_found_by_letter():
    sizes = check("x[*, K], W[K, N] -> y[*, N]", np.ones((2, 5, 3)), np.ones((3, 4)))
    assert sizes == {"*": (2, 5), "K": 3, "N": 4}


def test_broadcasting_operands_give_their_common_shape():
    assert check("x[...], y[...] -> z[...]", np.ones((2, 1)), np.ones(3)) == {"...": (2, 3)}


def test_leading_axes_may_be_none_at_all():
    assert check("x[*, K] -> y[*]", np.ones(3)) == {"*": (), "K": 3}


@pytest.mark.parametrize(
    ("signature", "arrays", "message"),
    [
        ("x[*, D], w[D] -> y[*, D]", (np.ones((2, 64)), np.ones(32)), "op: w has D=32, but x has D=64"),
        ("x[*], y[*] -> z[*]", (np.ones(2), np.ones((1, 2))), "op: y has *=(1, 2), but x has *=(2,)"),
        ("x[2, D] -> y[D]", (np.ones((3, 1)),), "op: x has 2=3, but the signature has 2=2"),
        ("x[A, B] -> y[A]", (np.ones(3),), "op: x has shape (3,), expected [A, B]"),
        ("x[*, A, B] -> y[A]", (np.ones(3),), "op: x has shape (3,), expected [*, A, B]"),
        ("x[A] -> y[A]", (np.ones((1, 1)),), "op: x has shape (1, 1), expected [A]"),
        ("x[D, D] -> y[D]", (np.ones((2, 3)),), "op: x has D=3, but x has D=2"),
        (
            "x[...], y[...] -> z[...]",
            (np.ones(2), np.ones(3)),
            "op: y has shape (3,), which does not broadcast with (2,) of x",
        ),
        ("x[*] -> y[*]", (None,), "op: x is None, expected an array"),
        ("x[*] -> y[*]", (np.arange(2),), "op: x has dtype int64, expected float32 or float64"),
        ("x:int[*] -> y[*]", (np.ones(2),), "op: x has dtype float64, expected integers"),
        ("x:bool[*] -> y[*]", (np.arange(2),), "op: x has dtype int64, expected booleans"),
        ("x:weight[*] -> y[*]", (np.array(["a"]),), "op: x has dtype <U1, expected float32 or float64"),
    ],
)
def test_a_call_that_breaks_the_signature_is_told_operand_and_sizes(signature, arrays, message):
    with pytest.raises(ShapeError) as caught:
        check(signature, *arrays)
    first, second = str(caught.value).split("\n")
    assert first == message
    assert second == f"  signature: {signature}"


def test_a_python_number_counts_as_real():
    assert check("x[...], y[...] -> z[...]", np.ones(3, np.float32), 2) == {"...": (3,)}


@pytest.mark.parametrize(
    ("signature", "value"), [("x[*] -> y[*]", 2.0), ("x:int[*] -> y[*]", 3), ("x[*] -> y[*]", "text")]
)
def test_what_is_no_array_is_refused_where_the_rule_needs_one(signature, value):
    with pytest.raises(ShapeError, match="op: x has dtype object, expected"):
        check(signature, value)


def test_half_precision_is_refused_since_no_operator_computes_in_it():
    with pytest.raises(ShapeError, match="op: x has dtype float16, expected float32 or float64"):
        check("x[*] -> y[*]", np.ones(2, np.float16))
