"""The optimiser: AdamW for everything, or with a lazy Adam for embedding tables far larger than a batch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from conversion_retrieval.training.config import TrainingConfig

# With more rows a step over the whole table costs a CPU more than finding the rows that a batch touched
# (``benchmarks/training_throughput.py --items``).
MAX_DENSE_ROWS: Final = 100_000


def choose_optimizer(
    config: TrainingConfig, device: torch.device, *, processes: int, full_softmax: bool, table_rows: int
) -> str:
    """``adamw`` or ``adamw_sparse``, what ``auto`` means here.

    The full softmax touches every row of a table in every step, and several processes exchange whole tables.
    """
    if config.optimizer != "auto":
        return config.optimizer
    pays = device.type == "cpu" and processes == 1 and not full_softmax and table_rows > MAX_DENSE_ROWS
    return "adamw_sparse" if pays else "adamw"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One or two torch optimisers that step together; ``parameters`` by name.

    Sparse tables (``adamw_sparse``) are updated by ``torch.optim.SparseAdam``, which touches a row's moments only in
    steps that touch the row, and applies no weight decay; nor are they averaged (``training.averaging``).
    """

    parameters: dict[str, nn.Parameter]
    parts: tuple[torch.optim.Optimizer, ...]
    config: TrainingConfig
    total_steps: int

    def step(self, number: int) -> None:
        """Update with the learning rate of step ``number`` (from 0) and clear the gradients."""
        factor = learning_rate_factor(number, self.total_steps, self.config)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["initial_lr"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Scale gradients down to ``max_gradient_norm``; returns their norm before, a scalar."""
        gradients = [_values(p) for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_gradient_norm > 0:
            factor = (self.config.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and counters as tensors called ``parameter/name``."""
        return {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for part in self.parts
            for key, value in part.state.get(parameter, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for key, value in state.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            part = next(p for p in self.parts if any(parameter is q for g in p.param_groups for q in g["params"]))
            sparse = isinstance(part, torch.optim.SparseAdam)
            part.state[parameter][field] = int(value) if field == "step" and sparse else value.to(parameter.device)


def make_optimizer(modules: Iterable[tuple[str, nn.Module]], config: TrainingConfig, total_steps: int) -> Optimizer:
    """The optimiser of named modules' parameters, but for frozen ones."""
    modules = list(modules)
    named = ((f"{owner}.{name}", p) for owner, module in modules for name, p in module.named_parameters())
    parameters = {name: p for name, p in named if p.requires_grad}
    tables = {id(m.weight): m for _, module in modules for m in module.modules() if isinstance(m, nn.Embedding)}
    sparse = [p for p in parameters.values() if id(p) in tables and tables[id(p)].sparse]
    return Optimizer(
        parameters=parameters,
        parts=_parts(parameters, set(tables), sparse, config),
        config=config,
        total_steps=total_steps,
    )


def _parts(
    parameters: dict[str, nn.Parameter], tables: set[int], sparse: list[nn.Parameter], config: TrainingConfig
) -> tuple[torch.optim.Optimizer, ...]:
    table_rate = config.embedding_learning_rate or config.learning_rate
    lazily = {id(p) for p in sparse}
    dense = [p for p in parameters.values() if id(p) not in lazily]
    groups = [
        _group([p for p in dense if id(p) in tables], table_rate, config.weight_decay),
        _group([p for p in dense if id(p) not in tables and p.ndim > 1], config.learning_rate, config.weight_decay),
        _group([p for p in dense if id(p) not in tables and p.ndim <= 1], config.learning_rate, 0.0),
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)
    if not sparse:
        return (adamw,)
    return adamw, torch.optim.SparseAdam([{"params": sparse, "lr": table_rate, "initial_lr": table_rate}])


def _group(parameters: list[nn.Parameter], rate: float, decay: float) -> dict[str, object]:
    return {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}


def _values(parameter: nn.Parameter) -> Tensor:
    """The numbers of its gradient. A sparse one is coalesced first: rows looked up several times count as their sum."""
    assert parameter.grad is not None
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad._values()


def learning_rate_factor(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up to 1, then half a cosine down to 0 at ``total_steps``, or constant.

    The warm-up takes at most half of the steps: a short training would else end before it began.
    """
    warmup = min(config.warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    if config.decay == "constant":
        return 1.0
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
