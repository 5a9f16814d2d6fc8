"""``minilora eval``: the loss of every counted token, with and without an adapter."""

from __future__ import annotations

import json
import math

import pytest

from minilora.models import load_model
from minilora.tokenizer import load_tokenizer


@pytest.fixture
def evaluate(minilora, model_folder, data_file):
    def run(*words: object, data: object = data_file):
        return minilora("eval", "--model", model_folder, "--data", data, *words)

    return run


def test_the_loss_is_that_of_all_counted_tokens_together(evaluate, model_folder, tmp_path):
    pairs = [("ab", "c"), ("a", "bcdefgh")]
    data = tmp_path / "held.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    code, out, err = evaluate("--json", data=data)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    total, count = 0.0, 0
    for prompt, completion in pairs:
        ids = [*tokenizer.encode(prompt + completion), tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        total += model.loss([ids], [labels], reduction="sum").item()
        count += len(completion) + 1
    assert facts["tokens"] == count == 10
    assert facts["loss"] == pytest.approx(total / count, rel=1e-5)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert facts["examples"] == 2


def test_people_read_loss_and_perplexity(evaluate, data_file):
    code, out, _ = evaluate()
    facts = json.loads(evaluate("--json")[1])
    assert code == 0
    assert f"{data_file}: 10 examples (completion)" in out
    assert f"loss     {facts['loss']:.4f} nats a token, over 30 counted tokens" in out
    assert f"perplexity {facts['perplexity']:.2f}" in out


def test_an_adapter_lowers_the_loss_on_what_it_learnt(evaluate, trained):
    bare = json.loads(evaluate("--json")[1])["loss"]
    assert json.loads(evaluate("--json", "--adapter", trained)[1])["loss"] < bare


def test_the_batch_size_does_not_matter(evaluate):
    losses = [json.loads(evaluate("--json", "--batch-size", size)[1])["loss"] for size in (1, 3, 10)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--batch-size", 0), 2, "--batch-size 0: wanted a whole number >= 1"),
        (("--max-length", 1), 2, "--max-length 1: wanted a whole number >= 2"),
        (("--max-length", 3), 2, "no completion token is left within 3 tokens"),
        (("--adapter", "no/such/folder"), 1, "no/such/folder"),
    ],
)
def test_bad_usage_is_named(evaluate, words, code, message):
    found, out, err = evaluate(*words)
    assert found == code
    assert out == ""
    assert message in err


def test_a_loss_that_is_not_finite_is_an_error(evaluate, monkeypatch):
    monkeypatch.setattr("minilora.training.evaluate", lambda *a, **k: (math.nan, 3))
    code, out, err = evaluate("--json")
    assert (code, out) == (1, "")
    assert "is nan; the model or the adapter is damaged" in err
