"""The training loop and the export of its result."""

import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional

from .encoding import TEMPLATE_FILE, Batch
from .network import Network, Shape
from .optimizer import make_optimizers
from .tokenizer import save_tokenizer, token_id

WARMUP_STEPS = 60
PROMPT_LOSS_UNTIL = 0.3  # of the steps: what users write teaches the words, then only noise
STEADY_UNTIL = 0.4  # of the steps: after that the rate falls in a line to almost nothing
CLIP = 1.0


@dataclass(frozen=True)
class Progress:
    """What a progress line tells."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float

    def line(self) -> str:
        """step, loss, tokens per second, time left."""
        left = self.seconds / self.step * (self.steps - self.step)
        return (
            f"step {self.step}/{self.steps}  answer loss {self.loss:.4f}  "
            f"{self.tokens / self.seconds:.0f} tok/s  {self.tokens / 1e6:.2f}M tokens  "
            f"elapsed {self.seconds / 60:.1f} min  left {left / 60:.1f} min"
        )


def rate(progress: float, step: int) -> float:
    """The learning rate as a share of its peak: warm-up, steady, then a line down."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, max(0.005, (1 - progress) / (1 - STEADY_UNTIL)))


def train(
    network: Network,
    data: Iterator[Batch],
    steps: int,
    report: Callable[[Progress], None],
    checkpoint: Callable[[], None],
    every: int = 300,
    compiled: bool = False,
) -> Progress:
    """Trains in place. Calls ``report`` every 20 steps and ``checkpoint`` every ``every`` ones."""
    optimizers = make_optimizers(network)
    forward = torch.compile(network, dynamic=True) if compiled else network
    recent: deque[float] = deque(maxlen=50)
    begin = time.monotonic()
    tokens = 0
    state = Progress(0, steps, 0.0, 0, 0.0)
    for step in range(steps):
        progress = step / steps
        ids_array, weights_array = next(data)
        ids, weights = torch.from_numpy(ids_array), torch.from_numpy(weights_array)[:, 1:]
        if progress > PROMPT_LOSS_UNTIL:
            weights = weights * (weights == 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(progress, step)
        keep = weights.reshape(-1) > 0
        hidden = forward(ids)[:, :-1].reshape(-1, network.shape.hidden)[keep]
        target, weight = ids[:, 1:].reshape(-1)[keep], weights.reshape(-1)[keep]
        losses = functional.cross_entropy(network.logits(hidden), target, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
        tokens += int((ids != 0).sum())
        recent.append(losses.detach()[weight == 1.0].mean().item())
        mean = sum(recent) / len(recent)
        state = Progress(step + 1, steps, mean, tokens, time.monotonic() - begin)
        if state.step % 20 == 0 or state.step == 5:
            report(state)
        if state.step % every == 0:
            checkpoint()
    checkpoint()
    return state


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the path and renames: a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    write(Path(temporary))
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def export_weights(network: Network, folder: Path) -> None:
    """model.safetensors in bfloat16."""
    tensors = {
        k: v.detach().to(torch.bfloat16).contiguous() for k, v in network.state_dict().items()
    }
    _replace(
        folder / "model.safetensors",
        lambda path: save_file(tensors, str(path), metadata={"format": "mlx"}),
    )


def export_rest(tokenizer: Tokenizer, shape: Shape, folder: Path) -> None:
    """All files but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    eos, pad = token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")
    generation = {"do_sample": False, "temperature": 0.0, "eos_token_id": eos, "pad_token_id": pad}
    for name, value in (
        ("config.json", shape.config(eos, pad)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
