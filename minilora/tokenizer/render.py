"""Renders a chat template in jinja2's sandbox; run as a script, it is the child process that does so under limits.

It imports nothing of minilora: the child starts with the standard library and jinja2 alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

CPU_SECONDS = 5.0  # for one request, in the child
WALL_SECONDS = 60.0  # the same, should the template find a way to sleep
MEMORY_BYTES = 768 << 20  # address space of the child, of which Python and jinja2 take some 50 MB
MAX_OUTPUT = 16 << 20  # characters of one rendered chat


class RenderError(Exception):
    """The template refused the messages, does not parse, or went over a limit; the message is one sentence."""


def render(request: dict[str, Any]) -> list[str]:
    """Render the chat of ``request``: as it is, and, where ``marks`` are given, once more with marked contents.

    request  {"template": source, "variables": {...}, "marks": {"chars": str, "base": int} or None}

    Returns [text] or [text, marked text]. Raises RenderError.
    """
    now = datetime.now()  # one clock for both renderings, or midnight could fall between them
    variables = {**request["variables"], "strftime_now": now.strftime}
    texts = [_render(request["template"], variables)]
    if request["marks"]:
        mark = marker(request["marks"]["chars"], request["marks"]["base"])
        variables["messages"] = [mark_message(message, mark) for message in variables["messages"]]
        texts.append(_render(request["template"], variables))
    return texts


def _render(source: str, variables: dict[str, Any]) -> str:
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    pieces, size = [], 0
    try:
        for piece in _compiled(source).generate(variables):
            size += len(piece)
            if size > MAX_OUTPUT:
                raise RenderError(f"the text grew over {MAX_OUTPUT} characters")
            pieces.append(piece)
    except RenderError:
        raise
    except TemplateSyntaxError as error:
        raise RenderError(f"line {error.lineno} does not parse: {error.message}") from None
    except TemplateError as error:
        raise RenderError(str(error.message or type(error).__name__)) from None
    except MemoryError:
        raise RenderError(f"it needs more than {MEMORY_BYTES >> 20} MB of memory") from None
    except Exception as error:  # a template can run into any error that an expression of Python can
        raise RenderError(f"{type(error).__name__}: {error}"[:500]) from None
    return "".join(pieces)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """Compile as transformers does (utils/chat_template_utils.py): same sandbox, blocks, filters and functions."""
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class TemplateNamespace(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works, as in jinja2
            self, attributes = args[0], dict(*args[1:], **kwargs)
            for name in attributes:
                _refuse_private(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")

    class TemplateDict:  # dict itself would open dict.mro and the like
        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_extension(), loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, dict=TemplateDict(), namespace=TemplateNamespace)
    return environment.from_string(source)


def _generation_extension() -> Any:
    """``{% generation %}…{% endgeneration %}`` marks the assistant's part for trainers; it renders its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """json.dumps without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        _escaped(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _escaped(value: Any) -> Any:
    """``value`` with marked text escaped beforehand: its quotes and backslashes are hidden from json by the marks."""
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value.escaped() if hasattr(value, "escaped") else value


def mark_tables(chars: str, base: int) -> tuple[dict[int, int], dict[int, int]]:
    """Tables for str.translate: from each of ``chars`` to a code point of its own from ``base`` on, and back."""
    there = {ord(char): base + i for i, char in enumerate(chars)}
    return there, {marked: plain for plain, marked in there.items()}


def marker(chars: str, base: int) -> Callable[[str], str]:
    """Return a function that marks a message's text so that it can be told from the template's own.

    Marked text holds a private code point in place of each of ``chars``, wherever the template may copy it
    to; but asked by the template (``==``, ``in``, ``split``, ``strip`` and so on) it answers as the plain
    text would, so that the template takes the same way. Where this does not succeed, the rendering
    differs from the plain one and the caller sees it.
    """
    there, back = mark_tables(chars, base)

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return str.translate(value, back)
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return Marked(value.translate(there))
        return type(value)(map(marked, value)) if isinstance(value, (list, tuple)) else value

    def answering_as_plain(name: str) -> Callable[..., Any]:
        method = getattr(str, name)

        def answer(self: str, *args: Any, **kwargs: Any) -> Any:
            return marked(method(plain(self), *map(plain, args), **kwargs))

        return answer

    class Marked(str):
        __slots__ = ()

        def __str__(self) -> str:
            return self

        def __iter__(self) -> Any:
            return iter([Marked(char) for char in str.__iter__(self)])

        def escaped(self) -> str:
            return str.__str__(marked(json.dumps(plain(self), ensure_ascii=False)[1:-1]))

    for name in _ANSWERS.split():
        setattr(Marked, name, answering_as_plain(name))
    return marked


_ANSWERS = """
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __contains__ __getitem__
    strip lstrip rstrip split rsplit splitlines partition rpartition replace removeprefix removesuffix
    startswith endswith find rfind index rindex count lower upper title capitalize casefold swapcase
    isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable istitle isupper
"""


def mark_message(value: Any, mark: Callable[[str], str], key: str = "") -> Any:
    """Mark every string of a message, keys included; a role that is one plain word stays the template's."""
    if isinstance(value, str):
        return value if key == "role" and value.isidentifier() else mark(value)
    if isinstance(value, dict):
        return {mark(name): mark_message(item, mark, name) for name, item in value.items()}
    return [mark_message(item, mark) for item in value] if isinstance(value, list) else value


def _limit_this_process() -> None:
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the pipe
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _serve() -> None:
    """Answer one JSON line with another until the parent closes the pipe; the timers kill a run that lasts."""
    import signal

    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.path[:] = json.loads(requests.readline())
    import jinja2.sandbox  # noqa: F401  before the limits: its import is ours, not the template's

    _limit_this_process()
    for line in iter(requests.readline, b""):
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        try:
            reply: dict[str, Any] = {"texts": render(json.loads(line))}
        except RenderError as error:
            reply = {"error": str(error)}
        except MemoryError:
            reply = {"error": f"it needs more than {MEMORY_BYTES >> 20} MB of memory"}
        answer = json.dumps(reply).encode() + b"\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(answer)
        replies.flush()


if __name__ == "__main__":
    _serve()
