"""Tokenizers from a Hugging Face folder: what is read, and every way in which a stranger's file is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError, FormatError, MiniloraError
from minilora.tokenizer import LostTextWarning, load_tokenizer

Write = Callable[..., Path]


def test_a_folder_gives_ids_and_names(write_folder: Write) -> None:
    folder = write_folder(
        tokenizer_config__json={"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "x"},
        special_tokens_map__json={"pad_token": "<s>", "eos_token": "<|im_start|>"},
        generation_config__json={"eos_token_id": [1, 3]},
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("hello") == [263]
    assert tokenizer.decode([263, 3]) == "hello<|im_end|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 0)
    assert tokenizer.eos_token_ids == (1, 3)
    assert tokenizer.chat_template == "x"
    assert tokenizer.template_variables == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>"}
    assert load_tokenizer(folder / "tokenizer.json").encode("hello") == [263]


def test_a_folder_needs_no_other_file(write_folder: Write) -> None:
    tokenizer = load_tokenizer(write_folder())
    assert tokenizer.eos_token_ids == (3,), "<|im_end|> ends a turn, whoever names it"
    assert tokenizer.chat_template is None


def test_the_template_may_be_a_file_or_one_of_several(write_folder: Write) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = write_folder(tokenizer_config__json={"chat_template": several})
    assert load_tokenizer(folder).chat_template == "yes"
    (folder / "chat_template.jinja").write_text("from a file")
    assert load_tokenizer(folder).chat_template == "from a file"


def test_the_post_processor_adds_tokens_unless_told_not_to(write_folder: Write, tiny: dict[str, Any]) -> None:
    tiny["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    tokenizer = load_tokenizer(write_folder(tiny))
    assert tokenizer.encode("hello") == [0, 263]
    assert tokenizer.encode("hello", parse_special=False) == [0, 263]
    assert tokenizer.encode("hello", add_special=False) == [263]


def test_truncation_padding_and_dropout_in_the_file_are_ignored(write_folder: Write, tiny: dict[str, Any]) -> None:
    tiny["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    tiny["padding"] = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<s>"}  # fmt: skip
    tiny["model"]["dropout"] = 0.9
    tokenizer = load_tokenizer(write_folder(tiny))
    assert tokenizer.encode("hello hello") == load_tokenizer(write_folder()).encode("hello hello")
    assert len({tuple(tokenizer.encode("hello")) for _ in range(20)}) == 1


def test_bytes_without_a_token_draw_a_warning(write_folder: Write, tiny: dict[str, Any]) -> None:
    del tiny["model"]["vocab"]["z"]
    with pytest.warns(LostTextWarning, match=r"no token for byte 0x7a \('z', character 3 of the text\)"):
        assert load_tokenizer(write_folder(tiny)).encode("hexz") == load_tokenizer(write_folder()).encode("hex")


def test_ids_out_of_range_are_named(write_folder: Write) -> None:
    tokenizer = load_tokenizer(write_folder())
    size = tokenizer.vocab_size
    for bad in (-100, size):
        with pytest.raises(ConfigError, match=rf"^decode: id {bad} is outside the vocabulary of .*, 0\.\.{size - 1}$"):
            tokenizer.decode([0, bad])
    with pytest.raises(ConfigError, match=r"^decode: ids must be integers, found 1\.5$"):
        tokenizer.decode([1.5])  # type: ignore[list-item]


def test_text_that_is_no_text_is_named(write_folder: Write) -> None:
    tokenizer = load_tokenizer(write_folder())
    with pytest.raises(ConfigError, match=r"^encode: character 2 is a lone surrogate \('\\ud800'\)"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(ConfigError, match=r"^encode: text must be a string, found NoneType"):
        tokenizer.encode(None)  # type: ignore[arg-type]


def test_a_special_word_without_literal_spelling_is_an_error_not_an_injection(write_folder: Write) -> None:
    words = {"type": "WordLevel", "vocab": {"[CLS]": 0, "a": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    added = [{"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for token, i in (("[CLS]", 0), ("[UNK]", 2))]  # fmt: skip
    content = {"model": words, "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    tokenizer = load_tokenizer(write_folder(content))
    assert tokenizer.encode("a b [CLS]") == [1, 2, 0]
    assert tokenizer.encode("a b", parse_special=False) == [1, 2], "an unknown word is no special token"
    with pytest.raises(ConfigError, match=r"no literal spelling of '\[CLS\]', only the special token 0"):
        tokenizer.encode("a [CLS]", parse_special=False)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            content = content[name]
        content[last] = value

    return apply


def replace_step(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
REFUSED = {
    "normalizer unknown": (change("normalizer", {"type": "Evil"}), "normalizer is of type 'Evil', which is not suppo"),
    "normalizer opaque": (change("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AA=="}),
                          "normalizer is of type 'Precompiled'"),
    "normalizer a list": (change("normalizer", []), "normalizer is of type 'None'"),
    "pre-tokenizer unknown": (change("pre_tokenizer", {"type": "Custom"}), "pre_tokenizer is of type 'Custom'"),
    "decoder unknown": (change("decoder", {"type": "CTC"}), "decoder is of type 'CTC'"),
    "post-processor unknown": (change("post_processor", {"type": 3}), "post_processor is of type '3'"),
    "nested unknown": (change("normalizer", sequence(sequence({"type": "Evil"}))), "normalizer is of type 'Evil'"),
    "too many": (change("normalizer", sequence(*[{"type": "NFC"}] * 99)), "normalizer has more than 32 components"),
    "sequence of nothing": (change("normalizer", {"type": "Sequence"}), "type Sequence has no list of components"),
    "doubling": (change("normalizer", sequence(*[replace_step({"String": "a"}, "aa")] * 20)),
                 "normalizer could lengthen a text 1048576 times; the limit is 64"),
    "huge replacement": (change("normalizer", replace_step({"String": "a"}, "b" * 4000)), "lengthen a text 4000 times"),
    "hanging regex": (change("normalizer", replace_step({"Regex": "(a+)+$"}, "b")),
                      "normalizer Replace: Regex '(a+)+$' repeats what is itself a group or repeated"),
    "hanging split": (change("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "(x|x)*y"}}), "Regex '(x|x)*y' repeats"),
    "regex a number": (change("pre_tokenizer", {**SPLIT, "pattern": {"Regex": 3}}), "Regex must be text"),
    "bad regex": (change("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "a)"}}), "the tokenizers library refused it"),
    "no model": (change("model", None), "model is NoneType, expected an object"),
    "model unknown": (change("model.type", "Pickle"), "model is of type 'Pickle'"),
    "no vocabulary": (change("model.vocab", {}), "model BPE has no vocab object"),
    "id negative": (change("model.vocab.h", -1), "vocab 'h': token id -1, expected an integer from 0"),
    "id huge": (change("model.vocab.h", 10**30), "expected an integer from 0 to 4194303"),
    "id a float": (change("model.vocab.h", 1.0), "token id 1.0, expected an integer"),
    "id a boolean": (change("model.vocab.h", True), "token id True, expected an integer"),
    "id twice": (change("model.vocab.new", 5), "vocab gives one id to two tokens"),
    "token huge": (change("model.vocab." + "x" * 5000, 999), "a token of 5000 characters; the limit is 4096"),
    "no merges": (change("model.merges", None), "model BPE has no merges list"),
    "merge of strangers": (change("model.merges", ["xx yy"]), "the tokenizers library refused it"),
    "merges of numbers": (change("model.merges", [1, 2]), "the tokenizers library refused it"),
    "added a number": (change("added_tokens", 3), "added_tokens is int, expected a list"),
    "added without content": (change("added_tokens", [{"id": 1}]), "expected an object with content"),
    "added flag": (change("added_tokens", [{"id": 1, "content": "x", "special": "yes"}]), "special must be true"),
    "template ids": (change("post_processor", {"type": "TemplateProcessing", "single": [], "pair": [],
                            "special_tokens": {"x": {"id": "x", "ids": [0] * 999, "tokens": ["x"]}}}),
                     "special_tokens must each hold a short list of ids"),
    "template long": (change("post_processor", {"type": "TemplateProcessing", "single": ["$A"] * 99}), "99 pieces"),
    "word piece": (change("model", {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 10**9}),
                   "max_input_chars_per_word is 1000000000, expected 1 to 1000"),
    "long prefix": (change("normalizer", {"type": "Prepend", "prepend": "x" * 17}), "prepend has 17 characters"),
    "prefixes": (change("normalizer", sequence(*[{"type": "Prepend", "prepend": "x" * 9}] * 3)), "lengthen a text"),
    "old and unknown": (change("model", {"vocab": {"a": 0}}), "model is of type 'None'"),
    "unigram empty": (change("model", {"type": "Unigram", "vocab": []}), "model Unigram has no vocab list"),
    "unigram scores": (change("model", {"type": "Unigram", "unk_id": 0, "vocab": [["a", "b"]]}), "expected [token, sc"),
    "unigram unknown": (change("model", {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}), "unk_id 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_tokenizer_json_is_refused_with_its_reason(
    case: str, write_folder: Write, tiny: dict[str, Any]
) -> None:
    apply, message = REFUSED[case]
    apply(tiny)
    folder = write_folder(tiny)
    with pytest.raises(FormatError, match=rf"(?s)^{re.escape(str(folder))}/tokenizer\.json: .*{re.escape(message)}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "holds list, expected an object"),
        ("{", "not JSON"),
        ('{"model": NaN}', "NaN is not JSON"),
        ("[" * 200_000, "nested too deep"),
        ('{"model": {"type": "BPE", "vocab": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}}", "tokenizer.json"),
    ],
)
def test_a_file_that_is_not_such_json_is_refused(text: str, message: str, write_folder: Write) -> None:
    with pytest.raises(FormatError, match=message):
        load_tokenizer(write_folder(text))


def test_a_file_of_an_old_version_may_leave_out_the_models_type(write_folder: Write, tiny: dict[str, Any]) -> None:
    del tiny["model"]["type"]
    assert load_tokenizer(write_folder(tiny)).encode("hello") == [263]


def test_unigram_and_sentence_encoders_load(write_folder: Write) -> None:
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]]}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = load_tokenizer(write_folder({"model": unigram, "pre_tokenizer": metaspace, "decoder": metaspace}))
    assert tokenizer.encode("ab a") == [1, 2, 1]
    assert tokenizer.decode([1, 2, 1]) == "ab a"
    assert repr(tokenizer).endswith("tokenizer.json', vocab_size=3, eos_token_ids=())")


def test_a_file_that_is_not_utf_8_is_named(write_folder: Write) -> None:
    folder = write_folder()
    (folder / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FormatError, match=r"tokenizer_config\.json: not UTF-8 at byte 7"):
        load_tokenizer(folder)


def test_a_file_over_the_limit_is_not_read(write_folder: Write) -> None:
    folder = write_folder()
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(FormatError, match=r"tokenizer\.json: 1099511627776 bytes; the limit is 67108864"):
        load_tokenizer(folder)


def test_a_folder_without_tokenizer_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no tokenizer\.json\n  a folder with tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(FormatError, match="not a regular file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config__json": []}, r"tokenizer_config\.json: holds list, expected an object"),
        ({"tokenizer_config__json": "{"}, r"tokenizer_config\.json: not JSON"),
        ({"tokenizer_config__json": {"bos_token": 3}}, "bos_token is 3, expected text"),
        ({"tokenizer_config__json": {"chat_template": 3}}, "chat_template must be text"),
        ({"tokenizer_config__json": {"chat_template": "x" * 300_000}}, "must be text of at most 262144 characters"),
        ({"generation_config__json": {"eos_token_id": "x"}}, r"generation_config\.json: eos_token_id holds x"),
        ({"generation_config__json": {"eos_token_id": [-1]}}, "eos_token_id holds -1, expected token ids"),
    ],
)
def test_a_bad_file_beside_it_is_named(files: dict[str, Any], message: str, write_folder: Write) -> None:
    with pytest.raises(FormatError, match=message):
        load_tokenizer(write_folder(**files))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@given(data=st.data())
def test_a_mutated_file_loads_or_is_refused_but_nothing_else(
    data: st.DataObject, folder: Path, tiny_base: dict[str, Any]
) -> None:
    tree = node = json.loads(json.dumps(tiny_base))
    parent, key = node, "model"
    while isinstance(node, (dict, list)) and node and (node is tree or data.draw(st.booleans())):
        parent, key = node, data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = parent[key]
    parent[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
        | st.sampled_from([[], {}, [[]], {"type": "Sequence"}, {"type": "BPE"}, {"Regex": "a*"}, {"String": ""}])
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("hello <|im_end|> é"))
    except MiniloraError:
        pass
