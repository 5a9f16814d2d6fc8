"""Trains a tiny SentencePiece BPE on Python's docstrings and records its ids; needs `pip install sentencepiece`.

python make_sentencepiece.py sentencepiece.json.gz
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import io
import json
import random
import sys

import sentencepiece

MODULES = ["json", "re", "random", "statistics", "textwrap", "argparse", "collections", "functools", "itertools"]
MODULES += ["pathlib", "logging", "decimal"]


def training_lines() -> list[str]:
    lines = []
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            lines += [line for line in (inspect.getdoc(value) or "").splitlines() if line.strip()]
    return lines + ["naïve café über straße żółć", "if x == 1:", "    return  x", "        y = [1, 2, 3]"] * 30


def strings(lines: list[str], rng: random.Random) -> list[str]:
    made = ["", " ", "  ", "a", " a", "\n", "▁", "a▁b", "<s>", "</s>", "<unk>", "<0x41>", " leading", "trailing "]
    ranges = [(32, 127), (0xA0, 0x600), (0x4E00, 0x9000), (0x1F300, 0x1F700)]
    for _ in range(150):
        line = rng.choice(lines)
        place = rng.randrange(len(line))
        made.append(line[place : place + rng.randrange(1, 60)])
        made.append("".join(rng.choice(" \n\tab1.é€😀漢字ñ") for _ in range(rng.randrange(1, 20))))
        made.append("".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 25))))
        made.append("aab bab " * rng.randrange(1, 6) + " " * rng.randrange(9) + "x" + "\n\n" + rng.choice(lines))
    return list(dict.fromkeys(made))


def main(path: str) -> None:
    lines, model = training_lines(), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=1200,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(sp.get_piece_size())
    texts = strings(lines, random.Random(5))
    content = {
        "tokens": [sp.id_to_piece(i) for i in ids],
        "scores": [sp.get_score(i) for i in ids],
        "token_type": [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in ids],
        "texts": texts,
        "ids": [sp.encode(text) for text in texts],
    }
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    with open(path, "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
        packed.write(data)


if __name__ == "__main__":
    main(sys.argv[1])
