"""AdamW: Adam with decoupled weight decay, by the very rule of ``torch.optim.AdamW``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minilora import kernels
from minilora.errors import ConfigError, ShapeError

if TYPE_CHECKING:  # an optimiser needs .data and .grad of a Tensor and nothing of the engine
    from minilora.autograd import Tensor


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).

    params        Tensors to train; each ``.data`` is updated in place
    lr            learning rate, >= 0; may be changed between steps: ``optimizer.lr = ...``
    betas         decay of the running mean of gradients and of their squares, each in [0, 1)
    eps           added to the root of the mean square, > 0
    weight_decay  share of a weight that one step takes away, times ``lr``; >= 0

    The running means have the parameter's dtype. A parameter whose ``.grad`` is None is skipped
    whole, weight decay and step count included, as in torch.

    Raises ConfigError for a value out of range, no parameter, or one that is given twice.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.params = list(params)
        self.lr = lr
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.weight_decay = weight_decay
        _check_settings(lr, self.betas, eps, weight_decay)
        _check_params(self.params)
        self._count = [0] * len(self.params)
        self._mean = [np.zeros_like(p.data, order="C") for p in self.params]
        self._square = [np.zeros_like(p.data, order="C") for p in self.params]

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for param in self.params:
            param.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient by one step.

        Raises ShapeError, before anything moves, where a gradient does not have its parameter's shape.
        """
        for i, param in enumerate(self.params):
            if param.grad is not None and param.grad.shape != param.data.shape:
                raise ShapeError(
                    f"AdamW.step: the gradient of parameter {i} has shape {param.grad.shape}, the parameter "
                    f"has {param.data.shape}; was its .data replaced after backward()?"
                )
        grads = {i: param.grad for i, param in enumerate(self.params) if param.grad is not None}
        weights = {i: self.params[i].writable() for i in grads}
        together = self._taken_by_kernel(weights, grads) if kernels.use_native() else []
        if together:
            self._move_together(together, weights, grads)
        for i in grads.keys() - set(together):
            self._move(i, weights[i], grads[i])

    def _taken_by_kernel(self, weights: dict[int, np.ndarray], grads: dict[int, np.ndarray]) -> list[int]:
        """The parameters that the compiled kernel moves, all at once: float32, contiguous, each in its own memory."""
        native = kernels.compiled()
        taken = [
            i for i in grads
            if self._mean[i].dtype == np.float32
            and native.takes(weights[i], writable=True) and native.takes(grads[i], writable=False)
        ]  # fmt: skip
        return [] if native.overlap([arrays[i] for arrays in (weights, grads) for i in taken]) else taken

    def _move_together(self, taken: list[int], weights: dict[int, np.ndarray], grads: dict[int, np.ndarray]) -> None:
        """What ``_move`` does, for many parameters in one call."""
        beta1, beta2 = self.betas
        for i in taken:
            self._count[i] += 1
        corrections = [(1.0 - beta1 ** self._count[i], 1.0 - beta2 ** self._count[i]) for i in taken]
        factors = [[self.lr / first for first, _ in corrections], [math.sqrt(second) for _, second in corrections]]
        kernels.compiled().adamw(
            *([arrays[i] for i in taken] for arrays in (weights, self._mean, self._square, grads)),
            np.array(factors, np.float32),
            keep=1.0 - self.lr * self.weight_decay, mean_share=1.0 - beta1,
            square_keep=beta2, square_share=1.0 - beta2, eps=self.eps, n_threads=kernels.threads(),
        )  # fmt: skip

    def _move(self, i: int, weight: np.ndarray, grad: np.ndarray) -> None:
        beta1, beta2 = self.betas
        mean, square = self._mean[i], self._square[i]
        self._count[i] += 1
        count = self._count[i]
        # Python floats do not promote float32 arrays (NumPy >= 2), so every product keeps the dtype.
        weight *= 1.0 - self.lr * self.weight_decay
        mean += (grad - mean) * (1.0 - beta1)
        square *= beta2
        square += grad * grad * (1.0 - beta2)
        root = np.sqrt(square) / math.sqrt(1.0 - beta2**count)
        weight -= (self.lr / (1.0 - beta1**count)) * (mean / (root + self.eps))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that the next steps depend on.

        ``state[i]`` holds ``step``, ``exp_avg`` and ``exp_avg_sq`` of parameter i, torch's names.
        """
        return {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "state": {
                i: {
                    "step": self._count[i],
                    "exp_avg": self._mean[i].copy(),
                    "exp_avg_sq": self._square[i].copy(),
                }
                for i in range(len(self.params))
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned, for the same parameters in the same order.

        Raises ConfigError or ShapeError, before anything changes, where it does not fit.
        """
        names = ("lr", "betas", "eps", "weight_decay", "state")
        missing = [name for name in names if name not in state_dict]
        if missing:
            raise ConfigError(f"AdamW.load_state_dict: {', '.join(missing)} missing; wanted what state_dict() gave")
        state = state_dict["state"]
        if sorted(state) != list(range(len(self.params))):
            raise ConfigError(
                f"AdamW.load_state_dict: the state is of {len(state)} parameters, this optimiser has "
                f"{len(self.params)}; give it the parameters it was saved with"
            )
        for i, param in enumerate(self.params):
            for name in ("exp_avg", "exp_avg_sq"):
                found = np.shape(state[i][name])
                if found != param.data.shape:
                    raise ShapeError(
                        f"AdamW.load_state_dict: {name} of parameter {i} has shape {found}, the parameter "
                        f"has {param.data.shape}; give the parameters in the order they were saved in"
                    )
        _check_settings(state_dict["lr"], state_dict["betas"], state_dict["eps"], state_dict["weight_decay"])
        self.lr, self.eps = float(state_dict["lr"]), float(state_dict["eps"])
        self.betas = (float(state_dict["betas"][0]), float(state_dict["betas"][1]))
        self.weight_decay = float(state_dict["weight_decay"])
        for i in range(len(self.params)):
            self._count[i] = int(state[i]["step"])
            self._mean[i][...] = state[i]["exp_avg"]
            self._square[i][...] = state[i]["exp_avg_sq"]


def _check_settings(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    wrong = []
    if not (lr >= 0 and math.isfinite(lr)):
        wrong.append(f"lr is {lr}, wanted a finite number >= 0")
    wrong += [f"betas[{i}] is {beta}, wanted 0 <= beta < 1" for i, beta in enumerate(betas) if not 0.0 <= beta < 1.0]
    if not (eps > 0 and math.isfinite(eps)):
        wrong.append(f"eps is {eps}, wanted a finite number > 0")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        wrong.append(f"weight_decay is {weight_decay}, wanted a finite number >= 0")
    if wrong:
        raise ConfigError("AdamW: " + "; ".join(wrong))


def _check_params(params: list[Tensor]) -> None:
    if not params:
        raise ConfigError("AdamW: nothing to train; pass at least one Tensor, as adapter_parameters(model) gives them")
    for i, param in enumerate(params):
        if not (hasattr(param, "writable") and hasattr(param, "grad")):
            raise ConfigError(
                f"AdamW: parameter {i} is a {type(param).__name__}, wanted a Tensor; of named_parameters() "
                "take the second item of each pair"
            )
        if param.data.dtype not in (np.float32, np.float64):
            raise ConfigError(f"AdamW: parameter {i} holds {param.data.dtype}, wanted float32 or float64")
    if len({id(param) for param in params}) != len(params):
        raise ConfigError("AdamW: a parameter is given twice and would move twice a step; pass each one once")
