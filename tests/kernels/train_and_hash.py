"""Train an adapter on the model in a folder: a program for a test.

Prints the SHA-256 of the adapter's weights, the kernel's threads, the first and the last loss.

train_and_hash.py FOLDER clean|dirty
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import nullcontext

import numpy as np
from dirty_memory import dirty_memory

import minilora as ml
from minilora import kernels
from minilora.data import Example

LENGTHS = (57, 43, 30, 51, 22, 49, 57)  # batches of three are padded, to an odd number of rows
IGNORED = -100


def examples(vocabulary: int) -> list[Example]:
    """Make sequences in which the next token follows from the last."""
    rng = np.random.default_rng(0)
    made = []
    for length in LENGTHS:
        ids = ((rng.integers(vocabulary) + 7 * np.arange(length)) % vocabulary).astype(np.int32)
        made.append(Example(ids, np.where(np.arange(length) < 5, IGNORED, ids).astype(np.int32), "made:1"))
    return made


def main(folder: str, memory: str) -> None:
    config = ml.TrainConfig(steps=20, batch_size=3, r=17, lr=2e-3, max_grad_norm=0.5, weight_decay=0.01)
    model = ml.load_model(folder)
    with dirty_memory() if memory == "dirty" else nullcontext() as counts:
        result = ml.train(model, examples(model.config.vocab_size), config)
    if counts is not None and not all(counts.values()):
        raise SystemExit(f"the memory was not made dirty: {counts}")
    digest = hashlib.sha256()
    for parameter in ml.adapter_parameters(model):
        digest.update(parameter.data.tobytes())
    print(digest.hexdigest(), kernels.info().threads, result.losses[0], result.losses[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
