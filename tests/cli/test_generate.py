"""``minilora generate``: prompts, chats, adapters, streams, and what it refuses."""

from __future__ import annotations

import json

import pytest

from minilora.models import load_model
from minilora.tokenizer import load_tokenizer


@pytest.fixture
def generate(minilora, model_folder):
    def run(*words: object, model: object = model_folder):
        return minilora("generate", "--model", model, *words)

    return run


def test_the_text_is_what_the_model_generates_greedily(generate, model_folder):
    code, out, err = generate("--prompt", "abc", "--max-new-tokens", 8, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    ids = model.generate([tokenizer.encode("abc")], max_new_tokens=8)[0, 3:]
    ids = [i for i in ids.tolist() if i != tokenizer.eos_token_id]
    assert facts["text"] == tokenizer.decode(ids)
    assert facts["prompt_tokens"] == 3
    assert facts["new_tokens"] == len(ids)


def test_the_streamed_text_is_the_whole_text(generate):
    _, streamed, _ = generate("--prompt", "abc", "--max-new-tokens", 12)
    text = json.loads(generate("--prompt", "abc", "--max-new-tokens", 12, "--json")[1])["text"]
    assert streamed.rstrip("\n") == text.rstrip("\n")


def test_text_arrives_while_it_is_written(generate, monkeypatch):
    pieces = []
    monkeypatch.setattr("minilora.cli.generate.sys.stdout.write", pieces.append)
    generate("--prompt", "abc", "--max-new-tokens", 12)
    assert len([piece for piece in pieces if piece]) > 3


def test_a_prompt_is_taken_literally_and_a_chat_goes_through_the_template(generate):
    literal = json.loads(generate("--prompt", "<|im_end|>", "--max-new-tokens", 1, "--json")[1])
    assert literal["prompt_tokens"] == len("<|im_end|>")
    chat = json.loads(generate("--chat", "hi", "--max-new-tokens", 1, "--json")[1])
    assert chat["prompt_tokens"] == len("?user\nhi?\n?assistant\n")  # each ? one special token


def test_without_a_limit_it_writes_what_the_model_has_room_for(generate):
    facts = json.loads(generate("--prompt", "a" * 100, "--json")[1])
    assert facts["ended"] == "end token" or facts["new_tokens"] == 28


def test_an_adapter_changes_the_answer(generate, trained):
    with_it = generate("--prompt", "ax>", "--max-new-tokens", 6, "--adapter", trained)
    assert with_it[0] == 0
    assert with_it[2] == ""
    assert with_it[1] != generate("--prompt", "ax>", "--max-new-tokens", 6)[1]


def test_an_adapter_used_the_other_way_draws_a_warning(generate, minilora, trained, model_folder, chat_file, tmp_path):
    code, _, err = generate("--chat", "hi", "--max-new-tokens", 1, "--adapter", trained)
    assert code == 0
    assert "minilora: warning: this adapter was trained on plain text; --prompt gives it the text as it is" in err
    minilora("train", "--model", model_folder, "--data", chat_file, "--out", tmp_path / "chat", "--steps", 1)
    code, _, err = generate("--prompt", "hi", "--max-new-tokens", 1, "--adapter", tmp_path / "chat")
    assert code == 0
    assert "minilora: warning: this adapter was trained on chat messages; --chat puts" in err
    assert generate("--chat", "hi", "--max-new-tokens", 1, "--adapter", tmp_path / "chat")[2] == ""


def test_the_same_seed_draws_the_same_text_and_another_another(generate):
    words = ("--prompt", "abc", "--temperature", 3, "--max-new-tokens", 12, "--json")
    texts = [json.loads(generate(*words, "--seed", seed)[1])["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_threads_reach_the_kernels(generate, monkeypatch):
    seen = []
    monkeypatch.setattr("minilora.kernels.set_num_threads", seen.append)
    assert generate("--prompt", "a", "--max-new-tokens", 1, "--threads", 3)[0] == 0
    assert seen == [3]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "one of the arguments --prompt --chat is required"),
        (("--prompt", "a", "--chat", "b"), 2, "not allowed with argument"),
        (("--prompt", ""), 2, "--prompt is empty; give at least one character to continue"),
        (("--prompt", "a", "--max-new-tokens", 0), 2, "--max-new-tokens 0: wanted a whole number >= 1"),
        (("--prompt", "a", "--temperature", -1), 2, "temperature is -1.0, expected 0 (greedy) or more"),
        (("--prompt", "a", "--seed", -1), 2, "--seed -1: wanted a whole number >= 0"),
        (("--prompt", "abc", "--max-new-tokens", 126), 2, "the prompt has 3 tokens and the model 128 positions, which"),
        (("--prompt", "a" * 128), 2, "the prompt has 128 tokens and the model 128 positions, which leaves 0"),
        (("--prompt", "a", "--threads", 0), 2, "--threads 0: wanted a whole number >= 1"),
        (("--prompt", "a", "--adapter", "no/such/folder"), 1, "no/such/folder"),
    ],
)
def test_bad_usage_is_named(generate, words, code, message):
    found, out, err = generate(*words)
    assert found == code
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_missing_model_is_named(generate):
    code, _, err = generate("--prompt", "a", model="smollm3-135m")
    assert code == 2
    assert "smollm3-135m" in err


@pytest.mark.model
def test_a_real_model_answers(minilora):
    code, out, err = minilora(
        "generate", "--model", "smollm2-135m", "--chat", "What is the capital of France?", "--max-new-tokens", 7
    )
    assert (code, err) == (0, "")
    assert "Paris" in out
