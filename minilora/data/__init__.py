"""From files to token batches: records, examples with labels, padded batches in a seeded order."""

from minilora.data.batches import (
    Batch,
    TrainingBatches,
    evaluation_batches,
    left_pad,
    rows_by_length,
)
from minilora.data.examples import IGNORED, Dataset, Example, encode_examples
from minilora.data.records import Record, read_examples

__all__ = [
    "IGNORED",
    "Batch",
    "Dataset",
    "Example",
    "Record",
    "TrainingBatches",
    "encode_examples",
    "evaluation_batches",
    "left_pad",
    "read_examples",
    "rows_by_length",
]
