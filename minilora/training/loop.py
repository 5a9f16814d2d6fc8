"""The training loop: a generator that trains step by step, yields what happened and prints nothing."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minilora import __version__, kernels
from minilora.autograd import Tensor, no_grad
from minilora.data import Batch, Dataset, Example, TrainingBatches, evaluation_batches
from minilora.errors import ConfigError, MiniloraError
from minilora.lora import LoraConfig, active_adapter, adapter_parameters, save_adapter
from minilora.optim import AdamW, clip_grad_norm, learning_rate
from minilora.training.config import TrainConfig
from minilora.training.events import Evaluated, Event, Saved, Started, Step, Stopped
from minilora.training.output import LastGood, MetricsFile, prepare_folder
from minilora.training.runfile import write_run

Stop = Callable[[], str | None]


def steps(
    model: Any,
    data: Dataset | Sequence[Example],
    config: TrainConfig,
    *,
    eval_data: Dataset | Sequence[Example] = (),
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    should_stop: Stop | None = None,
) -> Iterator[Event]:
    """Train the adapter that ``model`` carries, and yield an event for each thing that happens.

    data         examples, all of them in each epoch, in a seeded order
    eval_data    held-out examples: their loss is taken before the first step, every ``config.eval_every``
                 steps and after the last
    out          a folder that is empty or does not exist yet: gets the adapter, metrics.jsonl and
                 run.yaml; None: nothing is written
    settings     what run.yaml is to hold beside ``config``, such as the model's path
    should_stop  asked after each step and between held-out batches; an answer other than None ends the
                 run there, with the adapter saved, and becomes the reason in Stopped

    A Dataset's kind is noted as ``trained_on`` in run.yaml and in the adapter's metadata.

    Raises, at the first event, ConfigError for settings or an output folder that cannot work; later
    MiniloraError where a loss or gradient is not finite (the last good weights are put back, and are the
    ones on disk) or a file cannot be written (what was trained is saved if that can be, else the last save
    stays). KeyboardInterrupt goes on to the caller once the adapter of the last whole step is saved, or put
    back where there is no ``out``.
    """
    # Whole steps are drawn and then taken apart, so that accumulating changes nothing but memory and time.
    together = config.batch_size * config.accumulate
    stream = TrainingBatches(examples_of(data), batch_size=together, seed=config.seed)
    params, name = adapter_parameters(model), active_adapter(model) or ""
    config = _describing(model.adapter_choice.configs[name], config.resolved(stream.batches_per_epoch))
    if config.gradient_checkpointing and not hasattr(model, "gradient_checkpointing"):
        raise ConfigError(f"settings: {type(model).__name__} has no gradient_checkpointing; leave it out")
    folder = None if out is None else prepare_folder(out)
    notes = {"trained_on": data.kind} if isinstance(data, Dataset) else {}
    good = LastGood(params, lambda path: save_adapter(model, path, name, metadata=notes), folder)
    started = Started(config, len(data), sum(param.data.size for param in params))
    events = _events(model, stream, examples_of(eval_data), started, params, good, should_stop or (lambda: None))
    kernels.keep_freed_memory()
    metrics = None
    if folder is not None:
        resolved = {**(settings or {}), **dataclasses.asdict(config)}
        write_run(folder / "run.yaml", resolved, {"minilora": __version__, **notes})
        metrics = MetricsFile(folder / "metrics.jsonl")
    was_training, was_checkpointing = model.training, getattr(model, "gradient_checkpointing", False)
    if config.gradient_checkpointing:
        model.gradient_checkpointing = True
    try:
        for event in events:
            if metrics is not None:
                try:
                    metrics.write(event)
                except MiniloraError as error:
                    raise MiniloraError(f"{error}\n  {good.rescue()}") from error
            yield event
    except KeyboardInterrupt:
        good.rescue()
        raise
    finally:
        model.train(was_training)
        if config.gradient_checkpointing:
            model.gradient_checkpointing = was_checkpointing
        if metrics is not None:
            metrics.close()


def _describing(adapter: LoraConfig, config: TrainConfig) -> TrainConfig:
    """Return the settings with those of the adapter that is trained, which may have come before the run."""
    return dataclasses.replace(
        config,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        target_modules=adapter.target_modules or config.target_modules,
        lora_dropout=adapter.lora_dropout,
        use_rslora=adapter.use_rslora,
    )


def _events(
    model: Any,
    stream: Iterator[Batch],
    eval_examples: Sequence[Example],
    started: Started,
    params: Sequence[Tensor],
    good: LastGood,
    should_stop: Stop,
) -> Iterator[Event]:
    config = started.config
    optimizer = AdamW(params, lr=config.lr, weight_decay=config.weight_decay)
    total, reason = config.steps or 0, None
    yield started
    for step in range(total + 1):
        if step > 0:
            yield _step(model, optimizer, next(stream), config, step, good)
        last = step == total
        if good.folder is not None and step > 0 and (last or _due(step, config.save_every)):
            yield _save(step, config, good)
        if eval_examples and not should_stop() and (step == 0 or last or _due(step, config.eval_every)):
            yield from _held_out(model, eval_examples, config, step, good, should_stop)
        if (reason := should_stop()) is not None:
            if good.folder is not None and step > 0 and good.saved != step:
                yield _save(step, config, good)
            break
    yield Stopped(step, reason or "finished")


def _step(model: Any, optimizer: AdamW, batch: Batch, config: TrainConfig, step: int, good: LastGood) -> Step:
    began = time.perf_counter()
    optimizer.zero_grad()
    optimizer.lr = learning_rate(
        step, lr=config.lr, steps=config.steps or 0, warmup=int(config.warmup), schedule=config.schedule
    )
    with np.errstate(all="ignore"):  # what is not finite is looked for and explained below
        loss, tokens = accumulate_gradients(model, parts_of(batch, config.batch_size))
        norm = clip_grad_norm(optimizer.params, config.max_grad_norm)
        for name, value in (("loss", loss), ("norm of the gradients", norm)):
            if not math.isfinite(value):
                raise good.give_up(f"the {name} of step {step} is {value}", _cure(step, config))
        good.remember(step - 1)
        good.at = None
        optimizer.step()
        good.at = step
    return Step(step, loss, optimizer.lr, norm, tokens, time.perf_counter() - began, batch.token_count)


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """Take a batch apart into batches of at most ``size`` rows, each without columns that are all padding."""
    parts = []
    for start in range(0, len(batch.rows), size):
        rows = slice(start, start + size)
        width = int(batch.attention_mask[rows].sum(axis=1).max())
        parts.append(
            Batch(
                batch.input_ids[rows, :width],
                batch.labels[rows, :width],
                batch.attention_mask[rows, :width],
                batch.rows[rows],
            )
        )
    return parts


def examples_of(data: Dataset | Sequence[Example]) -> Sequence[Example]:
    """Return the examples of a Dataset, or those that are given as they are."""
    return data.examples if isinstance(data, Dataset) else data


def accumulate_gradients(model: Any, micro_batches: Sequence[Batch]) -> tuple[float, int]:
    """Add the gradients of the mean loss over all counted tokens of the batches together.

    Returns that mean and the number of tokens. Every token weighs the same whatever batch it is in, so
    that the result is that of one large batch. Stops early, with no gradients of later batches, where a
    loss is not finite.
    """
    counts = [model.count_labels(batch.labels) for batch in micro_batches]
    tokens = sum(counts)
    if tokens == 0:
        raise ConfigError("training: no label of these examples is counted; give each a token to learn")
    model.train()
    total = 0.0
    for batch in micro_batches:
        loss = model.loss(batch.input_ids, batch.labels, batch.attention_mask, reduction="sum")
        total += loss.item() / tokens
        if not math.isfinite(total):
            break
        loss.backward(np.asarray(1.0 / tokens, loss.dtype))
    return total, tokens


def evaluate(
    model: Any, data: Dataset | Sequence[Example], *, batch_size: int = 8, should_stop: Stop = lambda: None
) -> tuple[float, int]:
    """Return the mean loss over all counted tokens of the examples, in nats, and their number.

    should_stop  asked before each batch; an answer other than None ends there: the result is of a part
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        with no_grad(), np.errstate(all="ignore"):
            for batch in evaluation_batches(examples_of(data), batch_size=batch_size):
                if should_stop() is not None:
                    break
                tokens += model.count_labels(batch.labels)
                total += model.loss(batch.input_ids, batch.labels, batch.attention_mask, reduction="sum").item()
    finally:
        model.train(was_training)
    return total / max(tokens, 1), tokens


def _held_out(
    model: Any, examples: Sequence[Example], config: TrainConfig, step: int, good: LastGood, should_stop: Stop
) -> Iterator[Event]:
    began = time.perf_counter()
    loss, tokens = evaluate(model, examples, batch_size=config.batch_size, should_stop=should_stop)
    if not math.isfinite(loss):
        raise good.give_up(f"the held-out loss after step {step} is {loss}", _cure(step + 1, config))
    if should_stop() is None:  # else it is of a part
        yield Evaluated(step, loss, tokens, time.perf_counter() - began)


def _save(step: int, config: TrainConfig, good: LastGood) -> Saved:
    if not good.finite():
        raise good.give_up(f"the weights after step {step} are not finite", _cure(step + 1, config))
    return good.save(step)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _cure(step: int, config: TrainConfig) -> str:
    if step == 1:  # nothing was trained yet
        return "the model or these examples are the cause, not a setting of the training"
    return f"try a lower lr (now {config.lr:g}), a longer warmup or a lower max_grad_norm"
