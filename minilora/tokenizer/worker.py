"""The child process in which chat templates of strangers are rendered, bounded in time, memory and output."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

from minilora.errors import ConfigError, MiniloraError
from minilora.tokenizer import render as rendering

# Templates read by us: linear in the messages, so they may run in this process. SHA-256 of the source.
KNOWN_TEMPLATES = frozenset({"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"})


def render(template: str, variables: dict[str, Any], marks: dict[str, Any] | None, where: str) -> list[str]:
    """Render a chat, see ``rendering.render``; a template that is not known to be harmless, in the child.

    where  the file that the template came from, for messages

    Raises ConfigError with the template's own words where it refuses the messages or goes over a limit.
    """
    request = {"template": template, "variables": variables, "marks": marks}
    _require_jinja2()
    try:
        if hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest() in KNOWN_TEMPLATES:
            return rendering.render(request)
        return _WORKER.ask(request)
    except rendering.RenderError as error:
        raise ConfigError(f"{where}: chat template: {error}") from None


def _require_jinja2() -> None:
    try:
        import jinja2
    except ImportError:
        raise MiniloraError('chat templates need jinja2\n  pip install "minilora[models]"') from None
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit()) < (3, 1, 6):
        raise MiniloraError(
            f"chat templates need jinja2 3.1.6 or later, found {jinja2.__version__}: older ones let a template "
            'out of the sandbox\n  pip install --upgrade "minilora[models]"'
        )


class Worker:
    """One child that answers requests in turn; started when first asked, and anew after a limit or a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._registered = False

    def ask(self, request: dict[str, Any]) -> list[str]:
        """Return the rendered texts. Raises RenderError."""
        self._register()  # before the lock: a fork that finds it held must find after_fork registered
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            child = self._running()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(line)
                child.stdin.flush()
                answer = child.stdout.readline()
                reply = json.loads(answer) if answer else {}
            except (OSError, ValueError):
                reply = {}
            except BaseException:  # interrupted: the answer still to come belongs to nobody
                self.close()
                raise
            if "texts" in reply:
                return list(reply["texts"])
            if not reply or "memory" in reply["error"]:
                self.close()
        raise rendering.RenderError(
            reply.get("error")
            or f"rendering did not finish within {rendering.CPU_SECONDS:g} s and {rendering.MEMORY_BYTES >> 20} MB"
        )

    def _register(self) -> None:
        """Have the child end with this process and let go of in a fork, from the first request on."""
        if not self._registered:  # two threads at once may both register, which does no harm
            atexit.register(self.close)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self.after_fork)
            self._registered = True

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        self.close()
        try:
            import resource  # noqa: F401  what the child limits itself with
        except ImportError:
            raise rendering.RenderError(
                "this system cannot limit a process, so only known templates are rendered; "
                "use plain prompts instead of messages"
            ) from None
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", str(rendering.__file__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a child out of memory would print its traceback
            )
            assert child.stdin is not None
            child.stdin.write(json.dumps([os.path.abspath(entry) for entry in sys.path]).encode() + b"\n")
        except OSError as error:
            raise rendering.RenderError(f"cannot start {sys.executable!r} to render it: {error}") from None
        self._child, self._owner = child, os.getpid()
        return child

    def close(self) -> None:
        """End the child, if this process started one."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was still to be written to a dead child
                pass
        if self._owner == os.getpid():
            child.kill()
            child.wait()
        else:
            child.returncode = 0  # the parent's child: not ours to wait for

    def after_fork(self) -> None:
        """Let go of the parent's child; its lock may be held by a thread that does not exist here."""
        self._lock = threading.Lock()
        self.close()


_WORKER = Worker()
