"""The training loop: its laws, the order of its events, and what it leaves behind when something goes wrong."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.autograd import no_grad
from minilora.data import Dataset, evaluation_batches
from minilora.errors import ConfigError, MiniloraError
from minilora.lora import adapter_parameters, load_adapter
from minilora.optim import learning_rate
from minilora.training import (
    Evaluated,
    Step,
    TrainConfig,
    accumulate_gradients,
    evaluate,
    loop,
    output,
    steps,
    train,
)
from minilora.training.runfile import read_run

QUICK = {"lr": 0.05, "batch_size": 3, "warmup": 0, "schedule": "constant"}


def run(model, examples, **settings):
    """The events of a run; ``steps``' own arguments and settings may be mixed."""
    own = {k: settings.pop(k) for k in ("eval_data", "out", "settings", "should_stop") if k in settings}
    return list(steps(model, examples, TrainConfig(**{**QUICK, **settings}), **own))


def batch_of(examples):
    return next(evaluation_batches(examples, batch_size=len(examples)))


def weights(model):
    return [param.data.copy() for param in adapter_parameters(model)]


def kinds(events):
    return [(type(event).__name__, getattr(event, "step", 0)) for event in events]


# Laws ------------------------------------------------------------------------------------------------


@given(data=st.data(), prompts=st.lists(st.integers(1, 6), min_size=2, max_size=7))
def test_accumulated_gradients_are_those_of_one_large_batch(make_model, make_example, data, prompts):
    # Between 1 and 6 of 7 tokens count, so that a mean of the batches' means would be wrong.
    examples = [make_example([(i + 2 * k) % 13 for k in range(7)], p) for i, p in enumerate(prompts)]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(examples) - 1))))
    parts = [batch_of(examples[a:b]) for a, b in zip([0, *cuts], [*cuts, len(examples)], strict=True)]
    small, large = make_model(seed=1), make_model(seed=1)
    for model in (small, large):
        for param in adapter_parameters(model):
            param.data += 0.1  # B = 0 would leave A without gradient
    loss, tokens = accumulate_gradients(small, parts)
    want, count = accumulate_gradients(large, [batch_of(examples)])
    assert tokens == count == sum(7 - p for p in prompts)
    assert loss == pytest.approx(want, rel=1e-12)
    for a, b in zip(adapter_parameters(small), adapter_parameters(large), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-10, atol=1e-13)


def test_a_run_that_accumulates_is_the_run_with_the_large_batch(make_model, examples):
    a, b = make_model(), make_model()
    small = run(a, examples, steps=6, batch_size=2, accumulate=3)
    large = run(b, examples, steps=6, batch_size=6)
    for s, t in zip(small, large, strict=True):
        assert type(s) is type(t)
        if isinstance(s, Step):
            assert s.loss == pytest.approx(t.loss, rel=1e-9)
            assert s.grad_norm == pytest.approx(t.grad_norm, rel=1e-9)
            assert (s.tokens, s.processed) == (t.tokens, t.processed)
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)


@given(batch_size=st.integers(1, 20))
def test_the_held_out_loss_weighs_every_token_the_same(make_model, make_example, batch_size):
    model = make_model()
    rng = np.random.default_rng(0)
    made = [make_example(rng.integers(0, 13, length)) for length in (2, 9, 4, 2)]
    with no_grad():
        sums = [model.loss([e.input_ids], [e.labels], reduction="sum").item() for e in made]
    loss, tokens = evaluate(model, made, batch_size=batch_size)
    assert tokens == 13
    assert loss == pytest.approx(sum(sums) / 13, rel=1e-12)


def test_evaluation_leaves_mode_and_gradients_alone(make_model, examples):
    model = make_model()
    model.train()
    evaluate(model, examples)
    assert model.training
    assert all(param.grad is None for param in adapter_parameters(model))


def test_the_same_seed_gives_the_same_bits_and_another_other_ones(make_model, examples):
    finals = []
    for seed in (3, 3, 4):
        model = make_model()
        run(model, examples, steps=5, seed=seed)
        finals.append(weights(model))
    assert all(np.array_equal(a, b) for a, b in zip(finals[0], finals[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(finals[0], finals[2], strict=True))


def test_training_learns_and_leaves_the_frozen_weights_alone(make_model, examples):
    model = make_model()
    before = model.frozen_sha256()
    events = run(model, examples, steps=60, eval_data=examples)
    first, last = [event.loss for event in events if isinstance(event, Evaluated)]
    assert last < 0.5 * first
    assert model.frozen_sha256() == before


# Events ----------------------------------------------------------------------------------------------


def test_events_come_in_order_with_held_out_losses_and_saves_when_due(make_model, examples, tmp_path):
    events = run(make_model(), examples, steps=5, eval_data=examples[:2], eval_every=2, save_every=3, out=tmp_path)
    assert kinds(events) == [
        ("Started", 0), ("Evaluated", 0), ("Step", 1), ("Step", 2), ("Evaluated", 2), ("Step", 3), ("Saved", 3),
        ("Step", 4), ("Evaluated", 4), ("Step", 5), ("Saved", 5), ("Evaluated", 5), ("Stopped", 5),
    ]  # fmt: skip
    assert events[-1].reason == "finished"


def test_started_tells_what_is_resolved(make_model, examples):
    model = make_model()
    started = run(model, examples, epochs=2, batch_size=5, accumulate=2)[0]
    assert started.config.steps == 4  # 12 examples, 10 of them in a step: 2 steps an epoch
    assert started.examples == 12
    assert started.trainable == sum(w.size for w in weights(model)) > 0


def test_each_step_reports_its_rate_tokens_and_time(make_model, examples):
    config = {"lr": 0.02, "schedule": "cosine", "warmup": 2}
    reports = [e for e in run(make_model(), examples, steps=4, batch_size=12, **config) if isinstance(e, Step)]
    assert [r.lr for r in reports] == [learning_rate(s, lr=0.02, steps=4, warmup=2) for s in range(1, 5)]
    assert reports[0].tokens == sum(e.label_count for e in examples)
    assert reports[0].processed == sum(len(e) for e in examples)
    assert all(r.seconds > 0 and r.grad_norm > 0 for r in reports)


def test_the_first_loss_is_the_untrained_models(make_model, examples):
    model = make_model()
    want, _ = evaluate(model, examples)
    assert run(model, examples, steps=1, batch_size=12)[1].loss == pytest.approx(want, rel=1e-12)


def test_a_step_takes_its_own_gradient_and_none_of_earlier_steps(make_model, examples):
    # With a rate that moves nothing and all examples in each step, every step has the same gradient.
    norms = [e.grad_norm for e in run(make_model(), examples, steps=3, batch_size=12, lr=1e-30) if isinstance(e, Step)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-12)


def test_dropout_is_on_in_steps_and_off_in_held_out_losses(make_model, examples):
    seen = []
    model = make_model(lora_dropout=0.5)
    inner = model.loss
    model.loss = lambda *a, **k: (seen.append(model.hidden.adapters["default"].training), inner(*a, **k))[1]
    model.eval()
    run(model, examples, steps=2, batch_size=12, eval_data=examples, eval_every=1)
    assert seen == [False, True, False, True, False]
    assert not model.training  # as it was before


def test_gradient_checkpointing_is_on_for_the_run_and_refused_by_a_model_without_it(make_model, examples):
    model = make_model()
    with pytest.raises(ConfigError, match="Bigram has no gradient_checkpointing"):
        run(model, examples, gradient_checkpointing=True)
    model.gradient_checkpointing = False
    seen = []
    config = TrainConfig(steps=2, gradient_checkpointing=True)
    for event in steps(model, examples, config):
        seen.append(model.gradient_checkpointing)
        assert event is not None
    assert all(seen)
    assert model.gradient_checkpointing is False


def test_train_returns_what_the_events_told_and_adds_the_adapter_it_needs(make_model, examples, tmp_path):
    model = make_model()
    bare = type(model)()
    settings = TrainConfig(**QUICK, steps=3, r=3, lora_alpha=8, target_modules=("hidden", "head"))
    result = train(bare, examples, settings, eval_data=examples, out=tmp_path / "out")
    want = [e.loss for e in run(model, examples, steps=3) if isinstance(e, Step)]
    assert result.losses == pytest.approx(want)
    assert result.steps == 3
    assert [step for step, _ in result.eval_losses] == [0, 3]
    assert result.path == tmp_path / "out"
    assert result.tokens > 0
    assert result.seconds > 0


def test_train_goes_on_with_the_adapter_that_a_model_has(make_model, examples, tmp_path):
    model = make_model()
    params = adapter_parameters(model)
    train(model, examples, TrainConfig(**QUICK, steps=1, r=64), out=tmp_path)
    assert adapter_parameters(model)[0] is params[0]
    settings = read_run(tmp_path / "run.yaml")  # tells of the adapter that was trained
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (3, 8, ["head", "hidden"])


# Files -----------------------------------------------------------------------------------------------


def test_the_folder_holds_adapter_metrics_and_settings(make_model, examples, tmp_path):
    out = tmp_path / "deep" / "run"
    model = make_model()
    dataset = Dataset(tuple(examples), "completion", None, 0, 9, ())
    events = run(
        model, dataset, steps=2, eval_data=dataset, out=out,
        settings={"model": "tiny"},
    )  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "run.yaml",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("loss", line.get("eval_loss")) for line in lines] == [
        event.loss for event in events if isinstance(event, Step | Evaluated)
    ]
    assert set(lines[1]) >= {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}
    found = read_run(out / "run.yaml")
    assert found.pop("model") == "tiny"
    assert TrainConfig.from_mapping(found) == events[0].config
    other = type(model)()
    receipt = load_adapter(other, out, trainable=True)
    assert receipt.metadata["trained_on"] == "completion"
    assert 'trained_on: "completion"' in (out / "run.yaml").read_text()
    for a, b in zip(weights(model), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7)  # stored as float32


def test_metrics_are_on_disk_after_every_step(make_model, examples, tmp_path):
    for event in steps(make_model(), examples, TrainConfig(steps=3), out=tmp_path):
        if isinstance(event, Step):
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["step"] == event.step == len(lines)


def test_a_folder_that_is_not_empty_is_refused_and_untouched(make_model, examples, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"the output folder is not empty \(letter.txt\); a run never writes over"):
        run(make_model(), examples, steps=1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_folder_with_nothing_but_a_killed_runs_temporaries_is_swept_and_taken(make_model, examples, tmp_path):
    stale = tmp_path / ".minilora-0123456789abcdef.tmp"
    stale.write_bytes(b"half")
    with pytest.raises(ConfigError, match="the output folder is not empty"):  # it may belong to a live run
        run(make_model(), examples, steps=1, out=tmp_path)
    assert stale.exists()
    os.utime(stale, (0, 0))
    run(make_model(), examples, steps=1, out=tmp_path)
    assert not stale.exists()
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_file_in_the_way_is_named(make_model, examples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be the output folder"):
        run(make_model(), examples, steps=1, out=tmp_path / "file")


def test_nothing_to_train_on_is_refused(make_model, make_example):
    with pytest.raises(ConfigError, match="there are no examples"):
        run(make_model(), [], steps=1)
    with pytest.raises(ConfigError, match="no label of these examples is counted"):
        run(make_model(), [make_example([1, 2, 3], prompt=3)], steps=1)


# Trouble ---------------------------------------------------------------------------------------------


def poison(model, *, from_call: int):
    """Make the loss NaN from this call on, counted from 1."""
    calls, inner = 0, model.loss

    def loss(*args, **kwargs):
        nonlocal calls
        calls += 1
        value = inner(*args, **kwargs)
        return value * math.nan if calls >= from_call else value

    model.loss = loss


def state_after(make_model, examples, count):
    model = make_model()
    run(model, examples, steps=count) if count else None
    return weights(model)


@pytest.mark.parametrize(
    ("save_every", "at", "kept"),
    [
        (None, 4, 2),  # nothing was saved: the last good weights are
        (1, 4, 2),  # step 3 was saved, and gave the NaN: they go over it
        (2, 4, 2),  # step 2 was saved, and is good
        (4, 7, 5),  # step 4 was saved, and step 5 is good too
    ],
)
def test_a_nan_loss_stops_before_the_step_and_keeps_the_last_good_adapter(
    make_model, examples, tmp_path, save_every, at, kept
):
    model = make_model()
    poison(model, from_call=at)
    with pytest.raises(MiniloraError) as caught:
        run(model, examples, steps=9, save_every=save_every, out=tmp_path)
    assert str(caught.value) == (
        f"training stopped: the loss of step {at} is nan\n  the adapter of step {kept} is in {tmp_path}; "
        "try a lower lr (now 0.05), a longer warmup or a lower max_grad_norm"
    )
    want = state_after(make_model, examples, kept)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), want, strict=True))
    other = type(model)()
    load_adapter(other, tmp_path)
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(weights_of_file(other), want, strict=True))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == at - 1


def weights_of_file(model):
    return [part.data for layer in (model.hidden, model.head) for part in vars(layer.adapters["default"]).values()
            if hasattr(part, "grad")]  # fmt: skip


def test_a_nan_in_the_first_step_blames_the_model_or_data_and_saves_nothing(make_model, examples, tmp_path):
    model = make_model()
    poison(model, from_call=1)
    with pytest.raises(MiniloraError, match=r"loss of step 1 is nan\n  no adapter is saved; the model or these ex"):
        run(model, examples, steps=2, out=tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_gradient_norm_that_is_not_finite_stops_too(make_model, examples, monkeypatch):
    norms = iter([1.0, 1.0, math.inf])
    monkeypatch.setattr(loop, "clip_grad_norm", lambda params, limit: next(norms))
    model = make_model()
    with pytest.raises(MiniloraError, match=r"the norm of the gradients of step 3 is inf\n  no adapter is saved"):
        run(model, examples, steps=5, max_grad_norm=math.inf)
    assert all(np.isfinite(w).all() for w in weights(model))


def test_a_held_out_loss_that_is_not_finite_stops_with_the_step_before_on_disk(make_model, examples, tmp_path):
    model = make_model()
    poison(model, from_call=5)  # the held-out loss after step 3, the first one being call 1
    with pytest.raises(MiniloraError, match=r"held-out loss after step 3 is nan\n  the adapter of step 2 is in"):
        run(model, examples, steps=3, batch_size=12, eval_data=examples[:3], out=tmp_path)


def test_a_rate_beyond_reason_ends_in_the_message_not_in_warnings(make_model, examples, tmp_path, recwarn):
    # float64 bears what float32, in which adapters are saved, does not: the save is what finds it.
    with pytest.raises(MiniloraError, match=r"weights after step 1 are not finite\n  no adapter .*try a lower lr"):
        run(make_model(), examples, steps=9, lr=1e300, save_every=1, out=tmp_path)
    with pytest.raises(MiniloraError, match=r"the loss of step 2 is nan\n  no adapter .*lr \(now 1e\+300\)"):
        run(make_model(), examples, steps=9, lr=1e300)
    assert not recwarn.list


def test_a_failed_save_names_the_step_that_is_still_there(make_model, examples, tmp_path, monkeypatch):
    inner, calls = loop.save_adapter, []

    def save(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MiniloraError("adapter_model.safetensors: cannot write: No space left on device")
        inner(*args, **kwargs)

    monkeypatch.setattr(loop, "save_adapter", save)
    message = rf"after step 4: .*No space left.*\n  the adapter of step 2 is in {tmp_path}"
    with pytest.raises(MiniloraError, match=message):
        run(make_model(), examples, steps=6, save_every=2, out=tmp_path)
    load_adapter(type(make_model())(), tmp_path)


def test_a_save_that_fails_after_a_nan_hides_neither(make_model, examples, tmp_path, monkeypatch):
    def save(*args, **kwargs):
        raise MiniloraError("adapter_model.safetensors: cannot write: No space left on device")

    monkeypatch.setattr(loop, "save_adapter", save)
    model = make_model()
    poison(model, from_call=4)
    message = r"the loss of step 4 is nan\n  after step 2: .*No space left.*\n  no adapter is saved; try a lower lr"
    with pytest.raises(MiniloraError, match=message):
        run(model, examples, steps=6, out=tmp_path)


class Filling:
    """A file that takes so many lines and is full then."""

    def __init__(self, lines):
        self.lines = lines

    def write(self, data):
        self.lines -= 1
        if self.lines < 0:
            raise OSError(28, "No space left on device")
        return len(data)

    def close(self):
        pass


@pytest.mark.parametrize("save_every", [None, 1, 2])
def test_metrics_that_cannot_be_written_stop_the_run_with_what_was_trained_saved(
    make_model, examples, tmp_path, monkeypatch, save_every
):
    monkeypatch.setattr(output, "open", lambda *a, **k: Filling(2), raising=False)
    model = make_model()
    with pytest.raises(MiniloraError) as caught:
        run(model, examples, steps=9, save_every=save_every, out=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'metrics.jsonl'}: cannot be written: No space left on device; free some space\n"
        f"  the adapter of step 3 is in {tmp_path}"
    )
    monkeypatch.undo()
    assert_on_disk(tmp_path, model, state_after(make_model, examples, 3))


def test_metrics_and_adapter_that_cannot_be_written_are_both_named(make_model, examples, tmp_path, monkeypatch):
    def save(*args, **kwargs):
        raise MiniloraError("adapter_model.safetensors: cannot write: No space left on device")

    monkeypatch.setattr(output, "open", lambda *a, **k: Filling(2), raising=False)
    monkeypatch.setattr(loop, "save_adapter", save)
    message = r"metrics.jsonl: cannot be .*\n  after step 3: adapter_model.*No space left.*\n  no adapter is saved$"
    with pytest.raises(MiniloraError, match=message):
        run(make_model(), examples, steps=9, out=tmp_path)


def test_weights_that_are_not_finite_are_not_saved_when_metrics_fail(make_model, examples, tmp_path, monkeypatch):
    real = loop.AdamW.step

    def overflow(self):
        real(self)
        overflow.calls += 1
        if overflow.calls == 3:
            self.params[0].data[0] = math.inf

    overflow.calls = 0
    monkeypatch.setattr(output, "open", lambda *a, **k: Filling(2), raising=False)
    monkeypatch.setattr(loop.AdamW, "step", overflow)
    model = make_model()
    with pytest.raises(MiniloraError, match=r"metrics.jsonl: .*\n  the adapter of step 2 is in "):
        run(model, examples, steps=9, out=tmp_path)
    monkeypatch.undo()
    assert_on_disk(tmp_path, model, state_after(make_model, examples, 2))


def assert_on_disk(folder, model, want):
    """The adapter in the folder and the one in the model are this one."""
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), want, strict=True))
    other = type(model)()
    load_adapter(other, folder)
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(weights_of_file(other), want, strict=True))


def interrupt_call(function, number):
    """Call the function, and raise KeyboardInterrupt in place of this call's return, counted from 1."""

    def interrupted(*args, **kwargs):
        result = function(*args, **kwargs)
        interrupted.calls += 1
        if interrupted.calls == number:
            raise KeyboardInterrupt
        return result

    interrupted.calls = 0
    return interrupted


@pytest.mark.parametrize("out", [True, False])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("accumulate_gradients", 3),  # before step 4 moves anything
        ("remember", 3),  # the copies may be half made, the tensors are whole
        ("_move", 0),  # the first tensor of the first step has moved
        ("late _move", 3),  # a tensor of step 4 has moved, others have not
        ("save_adapter", 4),  # the save at the end
    ],
)
def test_ctrl_c_keeps_the_adapter_of_the_last_whole_step(make_model, examples, tmp_path, monkeypatch, where, kept, out):
    model = make_model()
    per_step = len(adapter_parameters(model))
    holder, name, call = {
        "accumulate_gradients": (loop, "accumulate_gradients", 4),
        "remember": (output.LastGood, "remember", 4),
        "_move": (loop.AdamW, "_move", 1),
        "late _move": (loop.AdamW, "_move", 3 * per_step + 2),
        "save_adapter": (loop, "save_adapter", 1),
    }[where]
    monkeypatch.setattr(holder, name, interrupt_call(getattr(holder, name), call))
    settings = TrainConfig(**QUICK, steps=4)
    if where == "save_adapter" and not out:
        train(model, examples, settings)  # nothing is saved, so nothing interrupts
    else:
        with pytest.raises(KeyboardInterrupt):
            train(model, examples, settings, out=tmp_path if out else None)
    monkeypatch.undo()
    want = state_after(make_model, examples, kept)
    if out and kept:
        assert_on_disk(tmp_path, model, want)
    else:
        assert all(np.array_equal(a, b) for a, b in zip(weights(model), want, strict=True))
        assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_request_to_stop_finishes_the_step_saves_and_tells_why(make_model, examples, tmp_path):
    asked = []
    events = []
    model = make_model()
    config = TrainConfig(**QUICK, steps=50)
    for event in steps(model, examples, config, out=tmp_path, should_stop=lambda: asked[0] if asked else None):
        events.append(event)
        if event == events[-1] and getattr(event, "step", 0) == 3:
            asked.append("SIGINT")
    assert kinds(events)[-3:] == [("Step", 3), ("Saved", 3), ("Stopped", 3)]
    assert events[-1].reason == "SIGINT"
    load_adapter(type(model)(), tmp_path)


def test_a_request_during_a_held_out_loss_ends_it_unreported(make_model, examples, tmp_path):
    model = make_model()
    calls, inner = [], model.loss
    model.loss = lambda *a, **k: (calls.append(1), inner(*a, **k))[1]
    events = run(
        model, examples, steps=9, batch_size=1, eval_data=examples, eval_every=2, out=tmp_path,
        should_stop=lambda: "SIGTERM" if len(calls) >= 12 + 2 + 3 else None,
    )  # fmt: skip
    assert kinds(events)[1:] == [("Evaluated", 0), ("Step", 1), ("Step", 2), ("Saved", 2), ("Stopped", 2)]
    assert len(calls) == 17


def test_a_request_before_the_first_step_saves_nothing(make_model, examples, tmp_path):
    events = run(make_model(), examples, steps=9, out=tmp_path, should_stop=lambda: "SIGINT")
    assert kinds(events) == [("Started", 0), ("Stopped", 0)]
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_an_adapter_is_needed(make_model, examples):
    with pytest.raises(MiniloraError, match="no active adapter to train"):
        run(type(make_model())(), examples, steps=1)
