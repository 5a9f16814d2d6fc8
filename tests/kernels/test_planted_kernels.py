"""The C tests notice every planted fault of planted_kernels.py, and nothing where there is none."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from kernels.planted_kernels import CSRC, FAULTS, Fault, build_all, build_with, plant, run

pytestmark = pytest.mark.compiler

# How a C test, or a sanitizer in its stead, says that something is wrong. A program may also die of it.
COMPLAINTS = {
    "plain": r"^FAIL",
    "sanitize": r"^FAIL|ERROR: AddressSanitizer|runtime error:",
    "threads": r"WARNING: ThreadSanitizer: data race",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def outcomes(request, built, tmp_path_factory):
    """Each selected fault's run, by the fault's name; they are built and run beside each other."""
    selected = [item.callspec.params["fault"] for item in request.session.items if "outcomes" in item.fixturenames]

    def outcome(fault: Fault):
        folder = tmp_path_factory.mktemp("wrong")
        try:
            return run(build_with(fault, built, folder), fault.test, fault.variant)
        finally:
            shutil.rmtree(folder)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {fault.name: pool.submit(outcome, fault) for fault in selected}


@pytest.mark.parametrize(("test", "variant"), sorted({(fault.test, fault.variant) for fault in FAULTS}))
def test_the_sources_as_they_are_pass(built, test, variant):
    done = run(built, test, variant)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_noticed(outcomes, fault):
    done = outcomes[fault.name].result()
    said = re.search(COMPLAINTS[fault.variant], done.stdout + done.stderr, re.M)
    assert done.returncode != 0, f"{fault.test} passes though {fault.name}"
    assert said or done.returncode < 0, f"{fault.test} stopped for another reason:\n{done.stdout}{done.stderr}"


def test_faults_have_names_of_their_own_and_change_something():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    assert all(fault.old != fault.new for fault in FAULTS)
    assert all((CSRC / "tests" / f"{fault.test}.c").exists() for fault in FAULTS)


def test_a_fault_that_the_sources_have_left_behind_says_so():
    fault = Fault("nothing", "gemm.c", "there is no such text", "")
    for source in ("", fault.old * 2):
        with pytest.raises(AssertionError, match="the source has changed: change the fault's old and new text"):
            plant(source, fault)
