"""Chat templates of strangers are bounded in time, memory and output, and leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minilora.errors import ConfigError
from minilora.tokenizer import Tokenizer, render, worker

Make = Callable[[str], Tokenizer]
MESSAGES = [{"role": "user", "content": "hi"}]
MEMORY = "it needs more than 768 MB of memory"
DOUBLING = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
GREEDY = {
    "{{ 'a' * 10**10 }}": MEMORY,
    "{{ 'a'.center(10**10) }}": MEMORY,
    "{{ 'a' | center(10**10) }}": MEMORY,
    "{{ '%10000000000d' % 1 }}": MEMORY,
    "{{ '{:>10000000000}'.format(1) }}": MEMORY,
    "{{ ['a'] * 10**10 }}": MEMORY,
    "{% set x = 'a' | indent(10**10) %}": MEMORY,
    DOUBLING: MEMORY,
    "{% for i in range(1000) %}{{ 'a' * 10**5 }}{% endfor %}": "the text grew over 16777216 characters",
    "{{ range(10**12) }}": "Range too big",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{" + "(" * 50_000 + "1" + ")" * 50_000 + "}}": "RecursionError",
    "{{ ''.__class__.__mro__ }}": "access to attribute '__class__' of 'str' object is unsafe",
    "{{ cycler.__init__.__globals__ }}": "is unsafe",
    "{{ raise_exception.__globals__['x'] }}": "is unsafe",
    "{% set ns = namespace(__class__='x') %}": "a namespace may not hold '__class__'",
    "{{ messages.append(1) }}": "is unsafe|not safely callable",
    "{% include '/etc/passwd' %}": "no loader for this environment",
    "{% import 'os' as os %}": "no loader for this environment",
}
ENDLESS = {
    "a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "one operation": "{% set x = (10 ** 10 ** 7) ** 9 %}{% set x = 3 ** (10 ** 9) %}",
}


@pytest.mark.parametrize("template", GREEDY, ids=range(len(GREEDY)))
def test_a_greedy_template_is_an_error(template: str, chat_tokenizer: Make) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"^.*tokenizer\.json: chat template: .*({GREEDY[template]})"):
        chat_tokenizer(template).apply_chat_template(MESSAGES)
    assert time.monotonic() - began < 30


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A child of its own that allows half a second, so that tests need not wait."""
    source = Path(render.__file__).read_text(encoding="utf-8")
    quick = tmp_path_factory.mktemp("quick") / "render.py"
    quick.write_text(source.replace("CPU_SECONDS = 5.0", "CPU_SECONDS = 0.5"), encoding="utf-8")
    assert quick.read_text(encoding="utf-8") != source
    monkeypatch.setattr(render, "__file__", str(quick))
    child = worker.Worker()
    monkeypatch.setattr(worker, "_WORKER", child)
    yield
    child.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_is_stopped_and_the_next_one_served(name: str, chat_tokenizer: Make) -> None:
    with pytest.raises(ConfigError, match=r"chat template: rendering did not finish within 5 s and 768 MB"):
        chat_tokenizer(ENDLESS[name]).apply_chat_template(MESSAGES)
    assert chat_tokenizer("{{ 1 + 1 }}").apply_chat_template(MESSAGES) == "2"


def test_one_child_serves_many_chats(chat_tokenizer: Make) -> None:
    tokenizer = chat_tokenizer("{{ messages[0].content }}")
    tokenizer.apply_chat_template(MESSAGES)
    first = worker._WORKER._child
    assert [tokenizer.apply_chat_template([{"content": str(i)}]) for i in range(50)] == list(map(str, range(50)))
    assert worker._WORKER._child is first


def test_threads_get_their_own_answers(chat_tokenizer: Make) -> None:
    tokenizer = chat_tokenizer("{{ messages[0].content }}")
    wrong: list[str] = []

    def ask(number: int) -> None:
        for i in range(20):
            text = f"{number} {i}"
            if tokenizer.apply_chat_template([{"content": text}]) != text:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_killed_child_is_replaced(chat_tokenizer: Make) -> None:
    tokenizer = chat_tokenizer("{{ messages[0].content }}")
    tokenizer.apply_chat_template(MESSAGES)
    assert worker._WORKER._child is not None
    worker._WORKER._child.kill()
    worker._WORKER._child.wait()
    assert tokenizer.apply_chat_template(MESSAGES) == "hi"


def test_an_answer_that_was_interrupted_is_not_given_to_the_next(
    chat_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = worker.Worker()
    monkeypatch.setattr(worker, "_WORKER", child)
    tokenizer = chat_tokenizer("{{ messages[0].content }}")
    with monkeypatch.context() as patch:
        patch.setattr(worker.json, "loads", _interrupt)  # after the answer came, before it was understood
        with pytest.raises(KeyboardInterrupt):
            tokenizer.apply_chat_template([{"content": "old"}])
    assert tokenizer.apply_chat_template([{"content": "new"}]) == "new"
    child.close()


def _interrupt(_: bytes) -> None:
    raise KeyboardInterrupt


def _render_in_fork(tokenizer: Tokenizer, queue: multiprocessing.Queue) -> None:
    queue.put([tokenizer.apply_chat_template([{"content": str(i)}]) for i in range(20)])


def test_a_forked_process_starts_a_child_of_its_own(chat_tokenizer: Make) -> None:
    tokenizer = chat_tokenizer("{{ messages[0].content }}")
    tokenizer.apply_chat_template(MESSAGES)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    fork = context.Process(target=_render_in_fork, args=(tokenizer, queue))
    fork.start()
    ours = [tokenizer.apply_chat_template([{"content": f"p{i}"}]) for i in range(20)]
    assert queue.get(timeout=60) == list(map(str, range(20)))
    fork.join(60)
    assert fork.exitcode == 0
    assert ours == [f"p{i}" for i in range(20)]


def test_a_forked_process_does_not_keep_the_child_alive(chat_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    chat_tokenizer("x").apply_chat_template(MESSAGES)
    child = worker._WORKER._child
    assert child is not None
    assert child.stdin is not None
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    fork.start()
    try:
        child.stdin.close()
        assert child.wait(timeout=30) == 0
    finally:
        fork.kill()
        fork.join()
    assert chat_tokenizer("y").apply_chat_template(MESSAGES) == "y"


def test_importing_registers_nothing_and_the_first_request_registers_once() -> None:
    code = """
import atexit, os
made = []
def recording(register):
    def record(*callbacks, **named):
        made.extend(c.__name__ for c in (*callbacks, *named.values()) if c.__module__.startswith("minilora"))
        return register(*callbacks, **named)
    return record
atexit.register, os.register_at_fork = recording(atexit.register), recording(os.register_at_fork)
from minilora.tokenizer import worker
print(made)
for text in "ab":
    print(worker.render(text, {"messages": []}, None, "x"))
print(made)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[]", "['a']", "['b']", "['close', 'after_fork']"], done.stderr


@pytest.mark.model
def test_a_known_template_needs_no_child(smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_WORKER", None)
    assert "hi" in smollm2.apply_chat_template(MESSAGES)
