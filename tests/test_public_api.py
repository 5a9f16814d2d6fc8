"""The public surface: what `import minilora` gives, what it imports, and how fast it stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import minilora as ml

PUBLIC = {
    "AdapterError", "ConfigError", "FormatError", "FrozenWeight", "LoraConfig", "MiniloraError", "ShapeError", "Tensor",
    "TrainConfig", "adapter_parameters", "adapters_disabled", "add_adapter", "checkpoint", "draw", "generate",
    "get_include", "grad", "load_adapter", "load_model", "load_tokenizer", "lora_matmul", "nn", "no_grad", "ops",
    "optim", "save_adapter", "set_adapter", "set_num_threads", "tensor", "testing", "trace", "train", "training",
    "value_and_grad",
}  # fmt: skip


def test_public_names_are_exactly_these():
    assert set(ml.__all__) == PUBLIC
    assert len(PUBLIC) <= 40
    for name in PUBLIC:
        assert getattr(ml, name) is not None


def test_testing_is_imported_only_when_it_is_asked_for():
    code = (
        "import sys, minilora as ml; assert 'minilora.testing' not in sys.modules\n"
        "ml.testing.gradcheck; assert not hasattr(ml, 'other')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_needs_nothing_but_numpy_and_the_standard_library():
    """Run in a process of its own, since this one has the test tools loaded."""
    code = (
        "import sys, sysconfig; before = set(sys.modules); import minilora\n"
        "roots = {n.split('.')[0] for n in set(sys.modules) - before}\n"
        "print(sorted(r for r in roots if r not in sys.stdlib_module_names and r not in ('minilora', 'numpy')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Cython's runtime registers itself under names of its own; it is part of the compiled kernel.
    found = [root for root in eval(run.stdout) if not root.startswith(("cython_runtime", "_cython"))]
    assert found == []


def test_installed_files_are_at_most_5_megabytes():
    folder = Path(ml.__file__).parent
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    assert total <= 5_000_000


def test_package_is_marked_as_typed():
    assert (Path(ml.__file__).parent / "py.typed").exists()
