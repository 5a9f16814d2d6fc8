"""A file is replaced whole or not at all: full disks, limits, errors, Ctrl-C and kill -9."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from minilora.errors import MiniloraError
from minilora.formats import atomic
from minilora.formats.atomic import remove_stale_temporaries, write_atomically

OLD, NEW = b"old" * 1000, [b"new", b"", memoryview(b"er"), np.arange(4, dtype="<u4").data, np.empty(0).data]
NEW_BYTES = b"newer" + np.arange(4, dtype="<u4").tobytes()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    return tmp_path / "file"


def alone(path):
    return list(path.parent.iterdir()) == [path]


def test_the_new_bytes_are_there_and_no_temporary(path):
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW_BYTES
    assert alone(path)
    write_atomically(str(path), [])
    assert path.read_bytes() == b""


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(path, mask):
    path.chmod(0o400)
    before = os.umask(mask)
    try:
        write_atomically(path, [b"x"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_link_is_followed_and_stays(path):
    link = path.parent / "link"
    link.symlink_to(path.name)
    write_atomically(link, [b"x"])
    assert link.is_symlink()
    assert path.read_bytes() == b"x"


def test_short_writes_are_continued(path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    content = os.urandom(1000)
    write_atomically(path, [content])
    assert path.read_bytes() == content


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), RuntimeError("producer"), OSError(5, "producer")])
def test_an_error_of_the_producer_passes_and_leaves_the_old_file(path, error):
    def chunks():
        yield b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(path, chunks())
    assert caught.value is error
    assert path.read_bytes() == OLD
    assert alone(path)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_failing_call_leaves_the_old_file_and_names_the_cause(path, monkeypatch, call, code):
    real = getattr(os, call)

    def fail(*args, **kwargs):
        if call == "close":
            real(*args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(MiniloraError) as caught:
        write_atomically(path, NEW)
    monkeypatch.undo()
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot write: {os.strerror(code)}; ")
    assert "What was there before is unchanged." in message
    if code == errno.ENOSPC:
        assert "free some space or choose another disk" in message
    assert path.read_bytes() == OLD
    assert alone(path)


def test_an_interrupt_in_every_call_leaves_the_old_or_the_new_file(path, monkeypatch):
    for call in ("open", "write", "fsync", "close", "replace"):
        for late in (False, True):
            path.write_bytes(OLD)
            real = getattr(os, call)

            def interrupted(*args, real=real, late=late, **kwargs):
                result = real(*args, **kwargs) if late else None
                raise KeyboardInterrupt(result)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    write_atomically(path, NEW)
            assert path.read_bytes() == (NEW_BYTES if call == "replace" and late else OLD)
            assert alone(path)


def test_everything_is_synced_before_the_rename_and_the_folder_after(path, monkeypatch):
    log = []

    def logged(name):
        real = getattr(os, name)

        def call(first, *args, **kwargs):
            kind = ""
            if name == "fsync":
                kind = " folder" if stat.S_ISDIR(os.fstat(first).st_mode) else " file"
            log.append(name + kind)
            return real(first, *args, **kwargs)

        return call

    for name in ("write", "fsync", "replace"):
        monkeypatch.setattr(os, name, logged(name))
    write_atomically(path, [b"a", b"b"])
    assert log == ["write", "write", "fsync file", "replace", "fsync folder"]


def test_a_folder_that_cannot_be_synced_is_no_error_but_a_broken_disk_is(path, monkeypatch):
    real = os.fsync

    def fsync(code):
        def call(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            real(descriptor)

        return call

    monkeypatch.setattr(os, "fsync", fsync(errno.EINVAL))
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW_BYTES
    monkeypatch.setattr(os, "fsync", fsync(errno.EIO))
    with pytest.raises(MiniloraError, match="Input/output error; check the disk"):
        write_atomically(path, [b"newest"])


def test_bad_targets_are_refused(path):
    with pytest.raises(MiniloraError, match="No such file or directory; the folder does not exist: create it first"):
        write_atomically(path.parent / "no" / "file", NEW)
    with pytest.raises(MiniloraError, match="a part of the path is a file"):
        write_atomically(path / "file", NEW)
    with pytest.raises(MiniloraError, match="this is a folder; choose another name"):
        write_atomically(path.parent, NEW)
    with pytest.raises(MiniloraError, match="not a regular file"):
        write_atomically("/dev/null", NEW)
    assert alone(path)


def child(code, *arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )


def test_a_real_file_size_limit_leaves_the_old_file(path):
    process = child(
        """
        import resource, sys
        from minilora.errors import MiniloraError
        from minilora.formats.atomic import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_atomically(sys.argv[1], [b"n" * 4000, b"n" * 4000])
        except MiniloraError as error:
            print(error)
    """,
        path,
    )
    output = process.communicate(timeout=60)[0].decode()
    assert output.startswith(f"{path}: cannot write: File too large; the file-size limit is reached (ulimit -f)")
    assert path.read_bytes() == OLD
    assert alone(path)


def test_processes_killed_while_they_write_leave_a_whole_file(path):
    for kill in range(8):
        process = child(
            """
            import itertools, sys
            from minilora.formats.atomic import write_atomically
            for i in itertools.count():
                write_atomically(sys.argv[1], [bytes([i % 256]) * 50_000 for _ in range(8)])
                print("written", flush=True)
        """,
            path,
        )
        assert process.stdout.readline() == b"written\n"
        time.sleep(0.003 * kill)
        process.kill()
        process.communicate()
        content = path.read_bytes()
        assert len(content) == 400_000
        assert len(set(content)) == 1
    left = [file for file in path.parent.iterdir() if file != path]
    assert sorted(remove_stale_temporaries(path.parent, age=-1)) == sorted(left)
    assert alone(path)


def test_stale_temporaries_are_swept_and_young_ones_kept(path):
    stale, young, other = (path.parent / name for name in (".minilora-1.tmp", ".minilora-2.tmp", ".other-3.tmp"))
    for file in (stale, young, other):
        file.write_bytes(b"x")
    os.utime(stale, (time.time() - 7200,) * 2)
    os.utime(other, (time.time() - 7200,) * 2)
    folder = path.parent / ".minilora-4.tmp"
    folder.mkdir()
    os.utime(folder, (time.time() - 7200,) * 2)
    assert remove_stale_temporaries(path.parent) == [stale]
    assert sorted(path.parent.iterdir()) == sorted([path, young, other, folder])
    assert remove_stale_temporaries(path.parent / "nowhere") == []


def test_the_temporarys_name_is_one_the_sweeper_knows(path, monkeypatch):
    def interrupted(source, target):
        raise SystemExit(os.path.basename(source))

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(SystemExit) as caught:
        write_atomically(path, NEW)
    name = caught.value.code
    assert name.startswith(atomic._PREFIX)
    assert name.endswith(atomic._SUFFIX)
