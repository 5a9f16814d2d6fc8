"""draw: every call, trained array and frozen operand is in the text, read back from it; errors; odd names."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import minilora as ml
from minilora import ConfigError, FrozenWeight, MiniloraError, ops
from minilora.autograd import REGISTRY, op
from minilora.graph.draw import LONGEST

SVG = "{http://www.w3.org/2000/svg}"


def trained(*shape, dtype=np.float32):
    return ml.tensor(np.ones(shape, dtype), requires_grad=True)


def lora_loss():
    A, B, W = trained(6, 2), trained(2, 5), FrozenWeight(np.ones((6, 5), np.float32))
    hidden = ops.lora_matmul(np.ones((3, 6), np.float32), W, A, B, 0.5)
    return (ops.silu(hidden) * hidden).mean(), {"q.A": A, "q.B": B}


def read_dot(text):
    """Return the boxes as {id: (lines, attributes)} and the arrows as (lines of start, lines of end, label)."""
    boxes = {
        name: (label.replace('\\"', '"').replace("\\\\", "\\").split("\\n"), rest)
        for name, label, rest in re.findall(r'^  (n\d+) \[label="((?:[^"\\]|\\.)*)"(.*)\];$', text, re.M)
    }
    arrows = re.findall(r'^  (n\d+) -> (n\d+) \[(?:label="((?:[^"\\]|\\.)*)"|style="dashed".*)\];$', text, re.M)
    assert len(boxes) + len(arrows) + 4 == len(text.splitlines())
    return boxes, [(boxes[a][0][0], boxes[b][0][0], label) for a, b, label in arrows]


def read_svg(text):
    """Return the boxes as (kind, lines), legend left out, and the number of arrows."""
    root = ET.fromstring(text)
    drawing = root.findall(f"{SVG}g")[-1]
    boxes = [(g.get("class"), [t.text for t in g.findall(f"{SVG}text")]) for g in drawing.findall(f"{SVG}g")]
    return boxes, len(drawing.findall(f"{SVG}path"))


def test_dot_has_a_box_for_every_call_and_trained_array_and_an_arrow_for_every_use():
    boxes, arrows = read_dot(ml.draw(lora_loss()[0]))
    assert [lines for lines, _ in boxes.values()] == [
        ["A", "float32 (6, 2)"],
        ["B", "float32 (2, 5)"],
        ["x (3, 6)", "W (6, 5)", "bias? (5)"],
        ["lora_matmul", "scale=0.5", "float32 (3, 5)"],
        ["silu", "float32 (3, 5)"],
        ["mul", "float32 (3, 5)"],
        ["mean", "float32 ()"],
    ]
    assert arrows == [
        ("A", "lora_matmul", "A"),
        ("B", "lora_matmul", "B"),
        ("x (3, 6)", "lora_matmul", ""),
        ("lora_matmul", "silu", "x"),
        ("silu", "mul", "x"),
        ("lora_matmul", "mul", "y"),
        ("mul", "mean", "x"),
    ]


def test_trained_frozen_and_result_are_marked():
    boxes, _ = read_dot(ml.draw(lora_loss()[0]))
    marks = {lines[0]: rest for lines, rest in boxes.values()}
    assert "#d9f2dd" in marks["A"]
    assert "dashed" in marks["x (3, 6)"]
    assert "penwidth=2" in marks["mean"]
    assert marks["mul"] == ""


def test_svg_shows_the_same_as_dot():
    loss, names = lora_loss()
    boxes, arrows = read_dot(ml.draw(loss, names=names))
    drawn, count = read_svg(ml.draw(loss, "svg", names=names))
    assert [lines for _, lines in drawn] == [lines for lines, _ in boxes.values()]
    assert [kind for kind, _ in drawn] == ["trained", "trained", "frozen", "call", "call", "call", "result"]
    assert count == len(arrows)
    assert drawn[0][1][0] == "q.A"


def test_drawing_changes_nothing():
    loss, names = lora_loss()
    assert ml.draw(loss) == ml.draw(loss)
    ml.draw(loss, "svg")
    loss.backward()
    assert np.any(names["q.B"].grad)


def test_a_tensor_used_twice_has_two_arrows_and_a_trained_array_one_box():
    x = trained(3)
    boxes, arrows = read_dot(ml.draw((x * x + x).sum()))
    assert [lines[0] for lines, _ in boxes.values()] == ["x", "mul", "add", "sum"]
    assert arrows == [("x", "mul", "x"), ("x", "mul", "y"), ("mul", "add", "x"), ("x", "add", "y"), ("add", "sum", "x")]


def test_outputs_of_one_call_are_told_apart():
    first, second = ops.split(trained(4), 2)
    _, arrows = read_dot(ml.draw((second - first).sum()))
    assert ("split", "sub", "x = output 1") in arrows
    assert ("split", "sub", "y = output 0") in arrows


def test_operands_of_any_number_and_frozen_ones_among_them_are_named():
    boxes, arrows = read_dot(ml.draw(ops.concat([trained(2), np.ones(3, np.float32), trained(1)]).sum()))
    name = REGISTRY["concat"].signature.inputs[0].name
    assert [lines[0] for lines, _ in boxes.values()].count(name) == 3  # two trained, one frozen
    assert len([a for a in arrows if a[1] == "concat"]) == 3


def test_a_number_and_integers_are_frozen_too():
    boxes, _ = read_dot(ml.draw((ops.embedding(np.array([0, 1]), trained(4, 3)) * 2.0).sum()))
    assert [lines for lines, rest in boxes.values() if "dashed" in rest] == [["ids (2)"], ["y"]]


def test_names_are_given_to_computed_tensors_too():
    x = trained(3)
    hidden = x * x
    boxes, _ = read_dot(ml.draw(hidden.sum(), names={"weight": x, "hidden": hidden, "constant": ml.tensor(np.ones(1))}))
    assert [lines[0] for lines, _ in boxes.values()] == ["weight", "mul → hidden", "sum"]


def test_only_parameters_other_than_the_default_are_shown():
    boxes, _ = read_dot(ml.draw(trained(2, 3).sum(axis=0).sum()))
    assert [lines for lines, _ in boxes.values()][1:] == [["sum", "axis=0", "float32 (3)"], ["sum", "float32 ()"]]


def test_an_array_among_the_parameters_is_shown_by_its_shape():
    boxes, _ = read_dot(ml.draw(trained(5)[np.array([1, 1])].sum()))
    assert any("int64 (2)" in line for lines, _ in boxes.values() for line in lines)


def test_a_checkpoint_is_one_box_with_arrows_from_all_it_was_computed_from():
    x, w = trained(3), trained(3)
    boxes, arrows = read_dot(ml.draw(ml.checkpoint(lambda x: ops.silu(x * w), x).sum(), names={"x": x, "w": w}))
    assert [lines[0] for lines, _ in boxes.values()] == ["x", "w", "checkpoint", "sum"]
    assert arrows[:2] == [("x", "checkpoint", "input 0"), ("w", "checkpoint", "input 1")]


def test_a_trained_array_itself_is_one_box():
    x = trained(3)
    assert read_dot(ml.draw(x))[0] == {"n0": (["trained", "float32 (3)"], read_dot(ml.draw(x))[0]["n0"][1])}
    assert read_svg(ml.draw(x, "svg", names={"w": x})) == ([("trained", ["w", "float32 (3)"])], 0)


def test_an_operator_that_belies_its_signature_is_drawn_without_shapes_of_what_is_frozen():
    @op("x[N], w[N] -> y[N]", source="none")
    def belying(x, w):
        return np.append(x, w), None

    @belying.defvjp
    def _(grad, saved, need):
        return grad, None

    try:
        boxes, _ = read_dot(ml.draw(belying(trained(2), np.ones(2))))
    finally:
        del REGISTRY["belying"]
    assert [lines for lines, rest in boxes.values() if "dashed" in rest] == [["w"]]


# ---------------------------------------------------------------- text


ODD = ['a"b\\c', "x < y & z > w", "line\nbreak\x00", "]]>", "\ud800", "重み", "a" * 200]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_names_are_escaped_and_long_ones_shortened(name):
    x = trained(3)
    text = ml.draw(x.sum(), names={name: x})
    shown = read_dot(text)[0]["n0"][0][0]
    drawn = read_svg(ml.draw(x.sum(), "svg", names={name: x}))[0][0][1][0]
    assert shown == drawn
    assert len(shown) <= LONGEST
    assert all(c.isprintable() for c in shown)
    if name.isprintable() and len(name) <= LONGEST:
        assert shown == name
    text.encode()


def test_a_long_name_keeps_its_end_which_says_most():
    x = trained(3)
    name = "model.layers.11.self_attn.q_proj.adapters.default.A"
    assert read_dot(ml.draw(x, names={name: x}))[0]["n0"][0][0] == "model.layers.…q_proj.adapters.default.A"[:13] + (
        "…" + name[-(LONGEST - LONGEST // 3 - 1) :]
    )


@pytest.mark.graphviz
@pytest.mark.parametrize("name", ['a"b\\c', "x < y & z > w"])
def test_graphviz_reads_the_text(name):
    loss, names = lora_loss()
    text = ml.draw(loss, names={name: names["q.A"]})
    run = subprocess.run(["dot", "-Tplain"], input=text, capture_output=True, text=True, check=True)
    assert len([line for line in run.stdout.splitlines() if line.startswith("node")]) == 7


# ---------------------------------------------------------------- what cannot be drawn


def test_a_format_that_there_is_not_is_refused():
    with pytest.raises(ConfigError) as caught:
        ml.draw(lora_loss()[0], "png")
    assert str(caught.value) == (
        "draw: format is 'png', expected 'dot' or 'svg'\n  Graphviz makes others: dot -Tpdf graph.dot"
    )


def test_a_tensor_without_a_graph_is_refused():
    with pytest.raises(MiniloraError) as caught:
        ml.draw(ml.tensor(np.ones(1)))
    assert str(caught.value) == (
        "draw: nothing here requires a gradient, so there is no graph\n"
        "  make the trained arrays with tensor(data, requires_grad=True), outside no_grad()"
    )


def test_a_consumed_tape_is_refused():
    loss = trained(3).sum()
    loss.backward()
    with pytest.raises(MiniloraError) as caught:
        ml.draw(loss)
    assert str(caught.value) == "draw: the tape was consumed already (at sum)\n  draw before backward()"


def test_a_chain_of_2000_calls_is_drawn_in_both_formats():
    h = trained(1)
    for _ in range(2000):
        h = -h
    assert ml.draw(h).count(" -> ") == 2000
    assert ml.draw(h, "svg").count("<path ") == 2000
