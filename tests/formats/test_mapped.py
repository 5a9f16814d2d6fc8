"""Opening a hostile file: only regular ones, only up to a limit, and nothing raw in a message."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from minilora.errors import FormatError, MiniloraError
from minilora.formats.mapped import map_file, printable, read_file


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_file(path) == read_file(path, limit=5) == bytes(map_file(path)) == b"12345"
    with pytest.raises(FormatError, match="f: 5 bytes, expected at most 4; is this the right file"):
        read_file(path, limit=4)


def test_an_empty_file_can_be_read_but_not_mapped(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"")
    assert read_file(path) == b""
    with pytest.raises(FormatError, match="the file is empty; was the download or copy interrupted"):
        map_file(path)


def test_a_mapping_cannot_be_written(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    with pytest.raises(TypeError):
        map_file(path)[0] = 0


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    real = os.fstat

    def stat_then_grow(descriptor):
        status = real(descriptor)
        with open(path, "ab") as file:
            file.write(b"6")
        return status

    monkeypatch.setattr(os, "fstat", stat_then_grow)
    with pytest.raises(FormatError, match="changed while it was read; try again"):
        read_file(path)


def test_a_file_that_cannot_be_opened_or_mapped_is_named(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"12345")

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse)
        with pytest.raises(MiniloraError, match=r"f: cannot map 5 bytes into memory: .*Cannot allocate memory"):
            map_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(MiniloraError, match="f: cannot open: Cannot allocate memory"):
            map_file(path)


def test_no_descriptor_stays_open(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        map_file(path).close()
        read_file(path)
        with pytest.raises(FormatError):
            read_file(path, limit=1)
        with pytest.raises(FormatError):
            map_file(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "'plain'"),
        ("☃", "'☃'"),
        ("a\x1b[2J\n\0", r"'a\x1b[2J\n\x00'"),
        ("\u202eexe", r"'\u202eexe'"),
        ("\ud800", r"'\ud800'"),
        (b"\xff\xc3\xa9", r"'\\xffé'"),
        ("x" * 80, repr("x" * 80)),
        ("x" * 81, repr("x" * 80) + "..."),
        (b"\0" * 10**6, repr("\0" * 80) + "..."),
    ],
)
def test_a_strangers_text_is_escaped_and_cut(text, shown):
    assert printable(text) == shown
