"""A config's targets are found by PEFT's rules; what matches nothing is an error with the names that exist."""

from __future__ import annotations

import pytest

from minilora.errors import AdapterError
from minilora.lora import LoraConfig, find_targets
from minilora.lora.pattern import Patterns
from minilora.lora.targets import layer_index, smallest_names
from minilora.nn import Linear, Module


def paths(model, **settings):
    return list(find_targets(model, LoraConfig(**settings)))


def test_a_name_means_equal_or_the_end_after_a_dot(tiny):
    assert paths(tiny(), target_modules=["q_proj"]) == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    assert paths(tiny(), target_modules=["self_attn.v_proj"]) == [
        f"model.layers.{i}.self_attn.v_proj" for i in range(3)
    ]
    assert paths(tiny(), target_modules=["lm_head"]) == ["lm_head"]
    assert paths(tiny(), target_modules=["model.layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    with pytest.raises(AdapterError):
        paths(tiny(), target_modules=["proj"])


def test_all_linear_is_every_linear_but_the_output_head(tiny):
    found = paths(tiny(), target_modules="all-linear")
    assert len(found) == 12
    assert "lm_head" not in found
    assert paths(tiny(), target_modules="ALL-Linear") == found


def test_the_model_says_which_layer_is_its_head(tiny):
    class Other(tiny):
        output_head = "model.layers.0.mlp.up_proj"

    found = paths(Other(), target_modules="all-linear")
    assert "lm_head" in found
    assert "model.layers.0.mlp.up_proj" not in found


def test_a_text_is_a_regular_expression_for_the_whole_path(tiny):
    assert paths(tiny(), target_modules=r".*\.[02]\..*\.(q|v)_proj") == [
        f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 2) for n in "qv"
    ]
    with pytest.raises(AdapterError, match=r"target_modules 'q_proj' matches no module of Tiny"):
        paths(tiny(), target_modules="q_proj")


def test_exclude_modules_takes_names_or_a_regular_expression(tiny):
    assert paths(
        tiny(), target_modules=["q_proj", "v_proj"], exclude_modules=["v_proj", "layers.0.self_attn.q_proj"]
    ) == [f"model.layers.{i}.self_attn.q_proj" for i in (1, 2)]
    assert paths(tiny(), target_modules="all-linear", exclude_modules=r"model\.layers\.[01]\..*|.*mlp.*") == [
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.v_proj",
    ]


def test_layers_to_transform_keeps_those_layers(tiny):
    one = [f"model.layers.1.self_attn.{n}_proj" for n in "qv"]
    assert paths(tiny(), target_modules=["q_proj", "v_proj"], layers_to_transform=1) == one
    assert paths(tiny(), target_modules=["q_proj"], layers_to_transform=[0, 2], layers_pattern="layers") == [
        f"model.layers.{i}.self_attn.q_proj" for i in (0, 2)
    ]
    # As in PEFT, a target that is a whole path is not asked for its layer, and a head has none.
    assert paths(tiny(), target_modules=["lm_head", "q_proj"], layers_to_transform=[2]) == [
        "model.layers.2.self_attn.q_proj",
        "lm_head",
    ]


@pytest.mark.parametrize(
    ("path", "pattern", "index"),
    [
        ("model.layers.12.mlp.experts.3.up", None, 12),
        ("layers.0.mlp", None, None),  # PEFT asks for two modules above the number
        ("a.layers.3", None, None),
        ("a.blocks.7.x", ["layers", "blocks"], 7),
        ("blocks.7.x", ["blocks"], 7),
        ("a.myblocks.7.x", ["blocks"], None),
        ("a.h.1.blocks.7.x", ["blocks"], 7),
        ("a.h.1.blocks.7", ["blocks"], None),
        ("a.h.1.blocks.7.x", ["blocks", "h"], 7),
        ("a.h.1.blocks.7.x", ["h", "blocks"], 1),
    ],
)
def test_the_layer_of_a_path_is_its_first_number_in_a_list_of_that_name(path, pattern, index):
    lists = Patterns(pattern, "layers_pattern", as_suffix=True) if pattern else None
    assert layer_index(path, lists) == index


def test_a_name_that_matches_nothing_is_an_error_with_the_names_that_exist(tiny):
    with pytest.raises(AdapterError) as caught:
        paths(tiny(), target_modules=["q_proj", "up_porj"])
    assert str(caught.value) == (
        "target_modules 'up_porj' matches no module of Tiny\n"
        "  its Linear layers are q_proj (3), v_proj (3), up_proj (3), down_proj (3), lm_head (1); "
        "did you mean 'up_proj'?"
    )


def test_targets_that_are_all_left_out_again_are_an_error(tiny):
    with pytest.raises(
        AdapterError,
        match=r"matches 3 modules of Tiny, but exclude_modules \('q_proj', 'self_attn'\) .*leave none",
    ):
        paths(tiny(), target_modules=["q_proj"], exclude_modules=["q_proj", "self_attn"][::-1])
    with pytest.raises(AdapterError, match=r"layers_to_transform \(9,\) leave none"):
        paths(tiny(), target_modules=["q_proj"], layers_to_transform=[9])


def test_a_target_that_is_no_linear_is_refused_by_name(tiny):
    with pytest.raises(AdapterError, match=r"matches 'model.embed_tokens' of Tiny, which is no Linear but Embedding;"):
        paths(tiny(), target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(AdapterError, match=r"which is no Linear but Layer, and \d+ more like it"):
        paths(tiny(), target_modules=r"model\.layers.*")


def test_a_model_without_linear_layers_says_so():
    with pytest.raises(AdapterError, match="it has no Linear layer"):
        paths(Module(), target_modules="all-linear")


def test_a_shared_layer_is_one_target():
    model = Module()
    model.a = Linear(2, 2)
    model.b = model.a
    assert paths(model, target_modules="all-linear") == ["a"]


def test_the_smallest_names_mean_exactly_the_paths(tiny):
    model = tiny()
    every = paths(model, target_modules="all-linear")
    assert smallest_names(model, every) == ["down_proj", "q_proj", "up_proj", "v_proj"]
    assert smallest_names(model, every[1:]) == sorted(every[1:])
