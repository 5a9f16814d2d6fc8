"""A Llama's loss: the cross-entropy of each label given the tokens before it, counted as it says."""

from __future__ import annotations

import numpy as np
import pytest
from models.double import load_double
from models.tiny import tiny_config, tiny_weights, write_folder

from minilora import ConfigError, FrozenWeight, MiniloraError, ShapeError, kernels, ops
from minilora.graph import trace
from minilora.lora import LoraConfig, add_adapter
from minilora.models import load_model

IDS = np.array([[0, 0, 9, 4, 30, 9, 2], [11, 7, 5, 3, 2, 1, 0]])
MASK = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
LABELS = np.array([[-100, -100, -100, -100, 30, 9, 2], [11, -100, 5, 3, -100, 1, 0]])
COUNTED = 3 + 4  # the 11 that begins its row follows no token, so it is not counted


@pytest.fixture
def folder(tmp_path):
    config = tiny_config()
    return write_folder(tmp_path, config, tiny_weights(config))


def losses(logits, labels):
    """Negative log-likelihoods by hand, one label at a time."""
    found = []
    for row, wanted in zip(logits, labels, strict=True):
        for before, label in zip(row[:-1], wanted[1:], strict=True):
            if label != -100:
                shares = np.exp(before - before.max())
                found.append(-np.log(shares[label] / shares.sum()))
    return np.array(found)


def test_the_loss_is_the_mean_over_shifted_counted_labels(folder):
    model = load_double(folder)
    wanted = losses(model(IDS, attention_mask=MASK).data, LABELS)
    assert len(wanted) == model.count_labels(LABELS) == COUNTED
    mean = model.loss(IDS, LABELS, attention_mask=MASK)
    total = model.loss(IDS, LABELS, attention_mask=MASK, reduction="sum")
    assert mean.shape == total.shape == ()
    assert mean.item() == pytest.approx(wanted.mean(), rel=1e-13)
    assert total.item() == pytest.approx(wanted.sum(), rel=1e-13)


def test_sums_over_parts_of_a_batch_divided_by_their_count_are_the_mean(folder):
    model = load_double(folder)
    total = sum(
        model.loss(IDS[r : r + 1], LABELS[r : r + 1], MASK[r : r + 1], reduction="sum").item() for r in range(2)
    )
    count = sum(model.count_labels(LABELS[r : r + 1]) for r in range(2))
    assert total / count == pytest.approx(model.loss(IDS, LABELS, MASK).item(), rel=1e-13)


def test_ignored_labels_and_the_first_of_a_row_change_nothing(folder):
    model = load_model(folder)
    wanted = model.loss(IDS, LABELS, MASK).item()
    changed = LABELS.copy()
    changed[:, 0] = 36
    assert model.loss(IDS, changed, MASK).item() == wanted
    changed[0, 4] = 31
    assert model.loss(IDS, changed, MASK).item() != wanted


def test_the_loss_of_no_label_is_zero_and_its_gradient_too(folder):
    model = load_model(folder)
    assert model.loss(IDS, np.full(IDS.shape, -100)).item() == 0
    assert model.loss(IDS[:, :1], IDS[:, :1]).item() == 0
    add_adapter(model, LoraConfig(r=2, target_modules=["o_proj", "lm_head"]))
    loss = model.loss(IDS, np.full(IDS.shape, -100))
    loss.backward()
    assert loss.item() == 0
    for path, tensor in model.named_parameters():
        assert tensor.grad is None or not tensor.grad.any(), path


def test_the_head_is_computed_only_where_a_label_is_counted(folder, monkeypatch):
    """Both ways: as one operator with the loss, and with an adapter of its own."""
    rows = []

    class Counted(FrozenWeight):
        def __rmatmul__(self, x):
            rows.append(x.shape[0])
            return super().__rmatmul__(x)

    monkeypatch.setattr(kernels, "use_native", lambda: False)
    model = load_model(folder)
    model.lm_head.weight = Counted(model.lm_head.weight.dequantize())
    with trace() as t:
        plain = model.loss(IDS, LABELS, MASK).item()
    assert [row.calls for row in t.rows if row.name == "linear_cross_entropy"] == [1]
    add_adapter(model, LoraConfig(r=2, target_modules=["lm_head"]))  # B is zero
    with trace() as t:
        assert model.loss(IDS, LABELS, MASK).item() == pytest.approx(plain, rel=1e-6)
    assert not [row for row in t.rows if row.name == "linear_cross_entropy"]
    assert rows == [COUNTED, COUNTED]


def test_float32_loss_agrees_with_float64(folder):
    wanted = load_double(folder).loss(IDS, LABELS, MASK).item()
    found = load_model(folder).loss(IDS, LABELS, MASK)
    assert found.dtype == np.float32
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_what_does_not_fit_is_refused_by_name(folder):
    model = load_model(folder)
    cases = [
        (lambda: model.loss(IDS, LABELS, reduction="none"), ConfigError,
         "loss: reduction is 'none', expected 'mean' or 'sum'"),
        (lambda: model.loss(IDS, LABELS[:, 1:]), ShapeError, "loss: labels has shape (2, 6), but input_ids has (2, 7)"),
        (lambda: model.loss(IDS[0], LABELS[0]), ShapeError, "input_ids has shape (7,)"),
        (lambda: model.loss(IDS, LABELS.astype(float)), ShapeError, "labels has dtype float64, expected integers"),
        (lambda: model.loss(IDS, np.full(IDS.shape, 37)), ShapeError, "labels holds 37, expected 0 to 36 or -100"),
        (lambda: model.loss(IDS, np.full(IDS.shape, -1)), ShapeError, "labels holds -1, expected 0 to 36 or -100"),
        (lambda: model.count_labels(LABELS[0]), ShapeError,
         "count_labels: labels has shape (7,), expected (batch, time)"),
    ]  # fmt: skip
    for call, kind, text in cases:
        with pytest.raises(kind) as error:
            call()
        assert text in str(error.value)
        assert isinstance(error.value, MiniloraError)


def test_the_loss_is_cross_entropy_of_the_models_own_logits(folder):
    model = load_double(folder)
    logits = model(IDS, attention_mask=MASK).data
    wanted = ops.cross_entropy(logits[:, :-1], LABELS[:, 1:])
    assert model.loss(IDS, LABELS, MASK).item() == pytest.approx(float(wanted), rel=1e-13)
