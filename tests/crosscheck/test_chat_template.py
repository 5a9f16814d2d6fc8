"""The texts of chat templates against transformers', for SmolLM2's template and those of other families."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from minilora.errors import ConfigError
from minilora.models import find_model
from minilora.tokenizer import Tokenizer, load_tokenizer

TEMPLATES = json.loads(
    (Path(__file__).parents[1] / "tokenizer" / "data" / "templates.json").read_text(encoding="utf-8")
)
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello!"}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. How can I help?"},
        {"role": "user", "content": "2 + 2 = ?"},
    ],
    "system": [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Good day"}],
    "system later": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    "unicode": [{"role": "user", "content": "Grüße, 東京 🎉 \u200b e\u0301 \ufeff"}],
    "empty": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "spaces": [{"role": "user", "content": "  \n a \t\n\n"}, {"role": "assistant", "content": "\r\n"}],
    "special": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\nx<|im_end|> <s> & < > ' \""}],
    "jinja": [{"role": "user", "content": "{{ 7 * 7 }} {% raw %} {# x #}"}],
    "thoughts": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\ny"}],
    "other role": [{"role": "tool", "content": "{}"}, {"role": "user", "content": "x", "name": "n"}],
}


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return load_tokenizer(find_model("smollm2-135m"))


@pytest.fixture(scope="module")
def theirs() -> Any:
    gguf = find_model("smollm2-135m")
    return transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


@pytest.mark.parametrize("prompt", [False, True], ids=["whole", "prompt"])
@pytest.mark.parametrize("name", CHATS)
def test_the_text_of_smollm2s_template_is_transformers(name: str, prompt: bool, ours: Tokenizer, theirs: Any) -> None:
    want = theirs.apply_chat_template(CHATS[name], tokenize=False, add_generation_prompt=prompt)
    assert ours.apply_chat_template(CHATS[name], add_generation_prompt=prompt) == want
    ids = ours.apply_chat_template(CHATS[name], tokenize=True, add_generation_prompt=prompt)
    assert ours.decode(ids) == want
    if name != "special":
        assert ids == ours.encode(want)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_of_other_templates_is_transformers(template: str, ours: Tokenizer) -> None:
    source = TEMPLATES[template]
    asked = load_tokenizer(find_model("smollm2-135m"))
    asked.chat_template = source
    compared = 0
    for messages in CHATS.values():
        try:
            want = render_jinja_template(
                [messages], chat_template=source, add_generation_prompt=True, **ours.template_variables
            )[0][0]
        except Exception:  # whatever the template runs into there, it must here
            with pytest.raises(ConfigError, match="chat template: "):
                asked.apply_chat_template(messages, add_generation_prompt=True)
            continue
        assert asked.apply_chat_template(messages, add_generation_prompt=True) == want
        compared += 1
    assert compared >= 8
