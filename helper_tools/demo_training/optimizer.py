"""Muon for the matrices of the layers, AdamW for the embedding and the norms."""

# torch is no dependency of the project, so mypy sees its classes as Any.
# mypy: disable-error-code="misc, untyped-decorator"
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix to each matrix of a stack, by Newton-Schulz steps.

    In float32 on purpose: bfloat16 products are slow on a CPU.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = -4.7750 * a + 2.0315 * (a @ a)
        x = 3.4445 * x + b @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of one size are handled as a stack."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, decay: float) -> None:
        stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for p in parameters:
            stacks.setdefault(tuple(p.shape), []).append(p)
        groups = [{"params": stack} for stack in stacks.values()]
        super().__init__(groups, {"lr": lr, "decay": decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            params = group["params"]
            grads = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            state["momentum"].lerp_(grads, 1 - group["momentum"])
            update = orthogonalize(torch.lerp(grads, state["momentum"], group["momentum"]))
            scale = group["lr"] * max(1.0, grads.shape[-2] / grads.shape[-1]) ** 0.5
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - group["lr"] * group["decay"]).sub_(u, alpha=scale)


def make_optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimizers; each group keeps its peak rate in ``peak``."""
    matrices = [p for n, p in network.named_parameters() if p.dim() == 2 and "embed" not in n]
    embedding = [p for n, p in network.named_parameters() if "embed" in n]
    norms = [p for p in network.parameters() if p.dim() == 1]
    adam: list[dict[str, Any]] = [
        {"params": embedding, "lr": 4e-3, "weight_decay": 0.01},
        {"params": norms, "lr": 3e-3, "weight_decay": 0.0},
    ]
    optimizers = [
        Muon(matrices, lr=0.02, decay=0.1),
        torch.optim.AdamW(adam, betas=(0.9, 0.98), fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
