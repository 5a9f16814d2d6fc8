"""Build the compiled kernel: csrc/ once per instruction set, and the Cython wrapper; metadata is in pyproject.toml.

Without a C compiler, Python.h or Cython the package installs all the same, on its NumPy backend, and
``minilora/kernels/_build.py`` says why.  ``MINILORA_REQUIRE_KERNELS=1`` makes that an error;
``MINILORA_DEBUG=1`` builds with bounds checks in the wrapper.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = ["team", "gemm", "pack", "dot", "lora", "roofline"]  # compiled once per instruction set; dispatch.c only once
CSRC = Path("csrc")
DEBUG = os.environ.get("MINILORA_DEBUG", "") == "1"
REQUIRED = os.environ.get("MINILORA_REQUIRE_KERNELS", "") == "1"

# Suffix of the symbols -> compiler flags.  Never -march=native: the package may run elsewhere.
INSTRUCTION_SETS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["v3"] = ["-march=x86-64-v3"]
    INSTRUCTION_SETS["v4"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]


class BuildKernels(build_ext):
    """Compile the kernel, or record why it could not be."""

    def run(self) -> None:
        inplace = self.inplace  # run() of the parent class changes it, and may not change it back
        try:
            check_tools()
            translate(self.extensions[0])
            super().run()
            reason = None
        except Exception as error:
            # Compilers fail in as many ways as there are compilers; none of them may stop the install.
            if REQUIRED:
                raise
            reason = " ".join(f"{error}".split()) or type(error).__name__
            if "No such file or directory" in reason:  # setuptools wraps the FileNotFoundError of the compiler
                reason = f"no C compiler was found; install gcc ({reason})"
            self.extensions = []
            print(f"minilora: the compiled kernel was not built: {reason}")
            print("minilora: installing with the NumPy backend; set MINILORA_REQUIRE_KERNELS=1 to make this an error")
        self.write_reason(reason, Path() if inplace else Path(self.build_lib))

    def build_extension(self, ext: Extension) -> None:
        # The compiler was set up by run(), so only here can it be asked what it understands.
        choices = ["-fopenmp"], ["-fopenmp-simd"]
        simd = next((flags for flags in choices if self.works(compile_flags=flags, link_flags=flags)), [])
        # ISO mode would switch the fused multiply-add off, which is half the speed. Nobody asks for errno or for the
        # exceptions that a comparison may raise, and caring for them keeps a loop with a choice in it scalar.
        strict = ["-std=c11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
        base = [*strict, "-O3", "-g0", *simd]
        for name, flags in INSTRUCTION_SETS.items():
            if name != "baseline":
                if not self.works(compile_flags=flags, link_flags=[]):
                    continue
                ext.define_macros.append((f"MINILORA_HAVE_{name.upper()}", "1"))
            ext.extra_objects += self.compiler.compile(
                [str(CSRC / f"{source}.c") for source in SOURCES],
                output_dir=os.path.join(self.build_temp, name),
                macros=[("MINILORA_SUFFIX", f"_{name}")],
                extra_postargs=base + flags,
                depends=ext.depends,
            )
        ext.extra_compile_args += base
        strip = ["-Wl,-s"] if self.works(compile_flags=[], link_flags=["-Wl,-s"]) else []
        ext.extra_link_args += [flag for flag in simd if flag == "-fopenmp"] + strip
        super().build_extension(ext)

    def works(self, *, compile_flags: list[str], link_flags: list[str]) -> bool:
        """Say whether a small program, which uses OpenMP where that is on, compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "try.c")
            source.write_text(
                "#ifdef _OPENMP\n#include <omp.h>\nint n(void) { return omp_get_max_threads(); }\n"
                "#else\nint n(void) { return 1; }\n#endif\nint main(void) { return n() < 1; }\n"
            )
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_flags)
                self.compiler.link_executable(objects, "try", output_dir=folder, extra_postargs=link_flags)
            except Exception:
                return False
            return True

    def write_reason(self, reason: str | None, folder: Path) -> None:
        target = folder / "minilora" / "kernels" / "_build.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            '"""Written by setup.py: why the compiled kernel was not built, or None."""\n\n'
            f"REASON: str | None = {reason!r}\n"
        )


class CopySources(build_py):
    """Carry csrc/ into the package, so that an installed minilora can hand out its header and its sources."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = Path(self.build_lib, "minilora", "kernels", "csrc")
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted([*CSRC.glob("*.c"), *CSRC.glob("*.h")]):
            shutil.copyfile(source, target / source.name)


def check_tools() -> None:
    """Name what is missing before a compiler's own message does, which is about something else."""
    if sys.platform == "win32":
        raise RuntimeError("the kernel is not built on Windows")
    headers = [Path(sysconfig.get_path(name), "Python.h") for name in ("include", "platinclude")]
    if not any(header.exists() for header in headers):
        raise RuntimeError(f"{headers[0]} is missing; install Python's headers (Debian: python3-dev)")


def translate(ext: Extension) -> None:
    """Turn the .pyx source into C; here and not at import, so that a missing Cython is reported like the rest."""
    try:
        from Cython.Build import cythonize
    except ImportError as error:
        raise RuntimeError("Cython is not installed (pip install 'Cython>=3.1')") from error
    checks = {"boundscheck": DEBUG, "wraparound": DEBUG, "overflowcheck": DEBUG, "initializedcheck": DEBUG}
    directives = {"language_level": "3", **checks}
    ext.sources = cythonize([ext], compiler_directives=directives, force=True)[0].sources


kernel = Extension(
    "minilora.kernels._kernels",
    [str(CSRC / "dispatch.c")],
    include_dirs=[str(CSRC)],
    depends=[str(path) for path in sorted([*CSRC.glob("*.c"), *CSRC.glob("*.h")])],
)
# Set afterwards: without Cython, Extension itself would rename it to a .c file that does not exist.
kernel.sources = ["minilora/kernels/_kernels.pyx", *kernel.sources]

setup(ext_modules=[kernel], cmdclass={"build_ext": BuildKernels, "build_py": CopySources})
