"""The training loop of the vision model and the export of its result."""

# torch is no dependency of the project, so mypy sees its classes as Any.
# mypy: disable-error-code="misc, untyped-decorator, no-any-return"
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from .optimizer import Muon
from .tokenizer import token_id
from .training import _replace
from .vision_batches import (
    CELL,
    CONTROL,
    LEAST_PIXELS,
    MOST_PIXELS,
    TEMPLATE_FILE,
    VISION,
    Batch,
    Encoder,
    batches,
)
from .vision_colours import NAMES
from .vision_network import Network, Shape
from .vision_scenes import PATCH, SHAPES
from .vision_text import CHARACTERS

WARMUP_STEPS = 40
HEADS_FIRST = 50  # steps until new heads may move the tower below them
STEADY_UNTIL = 0.3  # of the steps: after that the rate falls in a line to almost nothing
CLIP = 1.0
CONTEXT = 4096
HEADS = {
    "letter": len(CHARACTERS) + 1,
    "order": 16,
    "shape": len(SHAPES) + 1,
    "colour": len(NAMES),
}
# How much each label of a patch counts beside the answers.
HEAD_WEIGHTS = {"letter": 1.0, "order": 0.4, "shape": 0.4, "colour": 0.3}


class Batches(torch.utils.data.IterableDataset[Batch]):
    """The batches, made in a process of its own."""

    def __init__(self, tokenizer: str, seed: int, start: int, steps: int, fonts: list[str]) -> None:
        self.given = tokenizer, seed, start, steps, fonts

    def __iter__(self) -> Iterator[Batch]:
        from . import vision_text

        tokenizer, seed, start, steps, fonts = self.given
        torch.set_num_threads(1)
        vision_text.FONTS[:] = fonts
        yield from batches(Encoder(Tokenizer.from_str(tokenizer)), seed, start, steps)


@dataclass(frozen=True)
class Progress:
    """What a progress line tells."""

    step: int
    steps: int
    losses: dict[str, float]
    pictures: int
    seconds: float

    def line(self) -> str:
        """step, losses, pictures per second, time left."""
        left = self.seconds / self.step * (self.steps - self.step)
        losses = "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        return (
            f"step {self.step}/{self.steps}  {losses}  {self.pictures} pictures, "
            f"{self.pictures / self.seconds:.0f}/s  elapsed {self.seconds / 60:.1f} min  "
            f"left {left / 60:.1f} min"
        )


def rate(progress: float, step: int) -> float:
    """The learning rate as a share of its peak: warm-up, steady, then a line down."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, max(0.005, (1 - progress) / (1 - STEADY_UNTIL)))


def part_of(name: str) -> str:
    """Which steps train a parameter: those with pictures, with words, or with both."""
    if "merger.linear" in name:
        return "telling"
    if name.startswith("heads."):
        return "naming"
    return "speaking" if name.startswith("language_model.") else "looking"


def make_optimizers(named: list[tuple[str, nn.Parameter]]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; peak rates in ``peak``."""
    words = [p for n, p in named if "embed_tokens" in n]
    apart = [p for n, p in named if p.dim() == 2 and ("patch_embed" in n or "heads" in n)]
    single = {id(p) for p in words + apart}
    matrices = [p for _, p in named if p.dim() == 2 and id(p) not in single]
    adam: list[dict[str, Any]] = [
        {"params": words, "lr": 1.5e-3, "weight_decay": 0.01},
        {"params": apart, "lr": 1.5e-3, "weight_decay": 0.01},
        {"params": [p for _, p in named if p.dim() == 1], "lr": 1e-3, "weight_decay": 0.0},
    ]
    some = [group for group in adam if group["params"]]
    optimizers = [
        *([Muon(matrices, lr=0.005, decay=0.1)] if matrices else []),
        *([torch.optim.AdamW(some, betas=(0.9, 0.98))] if some else []),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def patch_losses(network: Network, normed: Tensor, labels: dict[str, Any]) -> dict[str, Tensor]:
    """How well the patches know what they show; patches with nothing count a third."""
    losses = {}
    for name, head in network.heads.items():
        target = torch.from_numpy(labels[name]).reshape(-1)
        each = functional.cross_entropy(
            head(normed.reshape(-1, normed.shape[-1])), target, ignore_index=-1, reduction="none"
        )
        if name == "colour":
            losses[name] = each.mean()
            continue
        something = (target > 0).float()
        nothing = 1 - something
        losses[name] = (each * something).sum() / something.sum().clamp(min=1) + (
            each * nothing
        ).sum() / nothing.sum().clamp(min=1)
    return losses


def losses_of(network: Network, batch: Batch, image_token: int) -> dict[str, Tensor]:
    """The loss of the answers and of the patches' labels."""
    pictures = [torch.from_numpy(p) for p in batch.pictures]
    losses: dict[str, Tensor] = {}
    if batch.ids.size:
        ids, targets = torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)
        hidden, seen = network(
            ids, torch.from_numpy(batch.positions), pictures, batch.grids, image_token
        )
        keep = targets >= 0
        losses["answer"] = functional.cross_entropy(network.logits(hidden[keep]), targets[keep])
    else:
        seen = [network.vision_tower(p, g)[1] for p, g in zip(pictures, batch.grids, strict=True)]
    for normed, labels in zip(seen, batch.labels, strict=True):
        for name, loss in patch_losses(network, normed, labels).items():
            losses[name] = losses.get(name, 0.0) + loss / len(seen)
    return losses


def train(
    network: Network,
    data: Iterator[Batch],
    steps: int,
    image_token: int,
    report: Callable[[Progress], None],
    checkpoint: Callable[[], None],
    every: int = 500,
    minutes: float | None = None,
) -> Progress:
    """Trains in place. Calls ``report`` every 50 steps and ``checkpoint`` every ``every`` ones.

    With ``minutes`` it ends after that time at the latest, with a falling rate all the same.
    """
    named = list(network.named_parameters())
    naming, looking, telling, speaking = (
        make_optimizers([(n, p) for n, p in named if part_of(n) == part])
        for part in ("naming", "looking", "telling", "speaking")
    )
    recent: dict[str, deque[float]] = {}
    begin = time.monotonic()
    pictures = 0
    state = Progress(0, steps, {}, 0, 0.0)
    for step in range(steps):
        spent = (time.monotonic() - begin) / (60 * minutes) if minutes else 0.0
        if spent >= 1:
            break
        batch = next(data)
        # A part that a batch leaves out has no gradient, and must not move.
        seen, said = bool(batch.pictures), bool(batch.ids.size)
        optimizers = naming * seen + telling * (seen and said) + speaking * said
        if step >= HEADS_FIRST:
            optimizers += looking * seen
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(max(spent, step / steps), step)
        losses = losses_of(network, batch, image_token)
        loss = sum(HEAD_WEIGHTS.get(name, 1.0) * value for name, value in losses.items())
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
        pictures += sum(map(len, batch.pictures))
        for name, value in losses.items():
            recent.setdefault(name, deque(maxlen=50)).append(float(value.detach()))
        means = {name: sum(values) / len(values) for name, values in recent.items()}
        state = Progress(step + 1, steps, means, pictures, time.monotonic() - begin)
        if state.step % 50 == 0 or state.step == 5:
            report(state)
        if state.step % every == 0:
            checkpoint()
    checkpoint()
    return state


def export_weights(network: Network, folder: Path) -> None:
    """model.safetensors in float16."""
    tensors = {k: v.detach().to(torch.float16).contiguous() for k, v in network.exported().items()}
    _replace(
        folder / "model.safetensors",
        lambda path: save_file(tensors, str(path), metadata={"format": "mlx"}),
    )


def export_rest(tokenizer: Tokenizer, shape: Shape, folder: Path) -> None:
    """All files but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ids = {token: token_id(tokenizer, token) for token in CONTROL + VISION}
    eos, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    limits = {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS}
    files: dict[str, dict[str, Any]] = {
        "config.json": shape.config(ids, CONTEXT),
        "generation_config.json": {
            "do_sample": False, "temperature": 0.0, "eos_token_id": eos, "pad_token_id": pad,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "additional_special_tokens": VISION,
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
            "patch_size": PATCH,
            "merge_size": CELL // PATCH,
            "temporal_patch_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "min_pixels": LEAST_PIXELS,
            "max_pixels": MOST_PIXELS,
            "size": limits,
        },
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
