"""Types of the compiled wrapper, _kernels.pyx."""

import numpy as np

STORAGES: dict[str, int]

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
    storage: int,
    w_is_nk: bool,
    n_threads: int,
) -> None: ...
def span_bytes(count: int) -> int: ...
def mixed_lora_forward(
    y: np.ndarray,
    hidden: list[np.ndarray],
    x: np.ndarray,
    w: np.ndarray,
    a: list[np.ndarray],
    b: list[np.ndarray],
    bias: np.ndarray | None,
    rows: list[tuple[int, int]],
    scales: list[float],
    space: np.ndarray,
    workspace: np.ndarray,
    max_r: int,
    storage: int,
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
    storage: int,
    w_is_nk: bool,
    n_threads: int,
) -> None: ...
def attention_workspace(
    b: int, t: int, s: int, h: int, g: int, d: int, pairs: int, backward: bool, n_threads: int
) -> int: ...
def attention_forward(
    y: np.ndarray,
    stats: np.ndarray | None,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    workspace: np.ndarray,
    first: int,
    last: int,
    window: int,
    causal: bool,
    scale: float,
    n_threads: int,
) -> None: ...
def attention_backward(
    grad_q: np.ndarray | None,
    grad_k: np.ndarray | None,
    grad_v: np.ndarray | None,
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray | None,
    y: np.ndarray | None,
    stats: np.ndarray,
    mask: np.ndarray | None,
    workspace: np.ndarray,
    first: int,
    last: int,
    window: int,
    causal: bool,
    scale: float,
    n_threads: int,
) -> None: ...
def norm_workspace(rows: int, d: int) -> int: ...
def rms_norm_forward(
    y: np.ndarray, inv_rms: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float, n_threads: int
) -> None: ...
def rms_norm_backward(
    grad_x: np.ndarray | None,
    grad_weight: np.ndarray | None,
    grad: np.ndarray,
    x: np.ndarray,
    inv_rms: np.ndarray,
    weight: np.ndarray,
    workspace: np.ndarray,
    accumulate: bool,
    n_threads: int,
) -> None: ...
def layer_norm_forward(
    y: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    n_threads: int,
) -> None: ...
def layer_norm_backward(
    grad_x: np.ndarray | None,
    grad_weight: np.ndarray | None,
    grad_bias: np.ndarray | None,
    grad: np.ndarray,
    x: np.ndarray | None,
    mean: np.ndarray | None,
    inv_std: np.ndarray | None,
    weight: np.ndarray | None,
    workspace: np.ndarray,
    accumulate: bool,
    n_threads: int,
) -> None: ...
def silu_forward(y: np.ndarray, x: np.ndarray, n_threads: int) -> None: ...
def silu_backward(grad_x: np.ndarray, grad: np.ndarray, x: np.ndarray, n_threads: int) -> None: ...
def swiglu_forward(y: np.ndarray, gate: np.ndarray, up: np.ndarray, n_threads: int) -> None: ...
def swiglu_backward(
    grad_gate: np.ndarray | None,
    grad_up: np.ndarray | None,
    grad: np.ndarray,
    gate: np.ndarray,
    up: np.ndarray,
    n_threads: int,
) -> None: ...
def gelu_forward(y: np.ndarray, x: np.ndarray, by_tanh: bool, n_threads: int) -> None: ...
def gelu_backward(grad_x: np.ndarray, grad: np.ndarray, x: np.ndarray, by_tanh: bool, n_threads: int) -> None: ...
def rotary(y: np.ndarray, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, back: bool, n_threads: int) -> None: ...
def embedding_forward(y: np.ndarray, weight: np.ndarray, ids: np.ndarray, n_threads: int) -> None: ...
def embedding_backward(grad_weight: np.ndarray, grad: np.ndarray, ids: np.ndarray, n_threads: int) -> None: ...
def cross_entropy_forward(
    losses: np.ndarray, peaks: np.ndarray, others: np.ndarray, logits: np.ndarray, labels: np.ndarray, n_threads: int
) -> None: ...
def cross_entropy_backward(
    grad_logits: np.ndarray,
    logits: np.ndarray,
    peaks: np.ndarray,
    others: np.ndarray,
    factors: np.ndarray,
    labels: np.ndarray,
    n_threads: int,
) -> None: ...
def linear_cross_entropy_workspace(m: int, n: int, k: int, n_threads: int) -> int: ...
def linear_cross_entropy(
    losses: np.ndarray,
    grad_x: np.ndarray | None,
    grad_w: np.ndarray | None,
    x: np.ndarray,
    w: np.ndarray,
    factors: np.ndarray | None,
    labels: np.ndarray,
    workspace: np.ndarray,
    accumulate: bool,
    storage: int,
    w_is_nk: bool,
    n_threads: int,
) -> None: ...
def addresses(arrays: list[np.ndarray], at: np.ndarray, sizes: np.ndarray, writable: bool) -> None: ...
def adamw(
    at: np.ndarray,
    factors: np.ndarray,
    sizes: np.ndarray,
    keep: float,
    mean_share: float,
    square_keep: float,
    square_share: float,
    eps: float,
    n_threads: int,
) -> None: ...
def square_sum_workspace(sizes: np.ndarray) -> int: ...
def square_sum(at: np.ndarray, workspace: np.ndarray, sizes: np.ndarray, n_threads: int) -> float: ...
def scale(at: np.ndarray, sizes: np.ndarray, factor: float, n_threads: int) -> None: ...
def peak_fma(out: np.ndarray, n_threads: int) -> float: ...
def read_chunks(n: int) -> int: ...
def read(sums: np.ndarray, x: np.ndarray, n_threads: int) -> None: ...
