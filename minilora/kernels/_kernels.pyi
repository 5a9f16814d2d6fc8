"""Types of the compiled wrapper, _kernels.pyx."""

import numpy as np

def allowed_threads(n_threads: int) -> int: ...
def compiler() -> str: ...
def has_openmp() -> bool: ...
def instruction_sets() -> list[str]: ...
def choose(name: str) -> None: ...
def chosen() -> str: ...
def lora_workspace(m: int, n: int, k: int, r: int, n_threads: int) -> int: ...
def lora_forward(
    y: np.ndarray,
    hidden: np.ndarray | None,
    x: np.ndarray,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    bias: np.ndarray | None,
    workspace: np.ndarray,
    scale: float,
    w_is_nk: bool,
    n_threads: int,
) -> None: ...
def lora_backward(
    grad_x: np.ndarray | None,
    grad_a: np.ndarray | None,
    grad_b: np.ndarray | None,
    grad: np.ndarray,
    x: np.ndarray | None,
    hidden: np.ndarray | None,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    workspace: np.ndarray,
    scale: float,
    accumulate: bool,
    w_is_nk: bool,
    n_threads: int,
) -> None: ...
def peak_fma(out: np.ndarray, n_threads: int) -> float: ...
def read_chunks(n: int) -> int: ...
def read(sums: np.ndarray, x: np.ndarray, n_threads: int) -> None: ...
