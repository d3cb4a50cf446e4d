"""What the demo model knows about MLX Router: one fixed answer and many wordings per fact.

``{r}`` stands for the product ("MLX Router", "the router", "this server", ...).
"""

from dataclasses import dataclass

from .facts_clients import CLIENTS
from .facts_features import FEATURES
from .facts_models import MODELS
from .facts_running import RUNNING
from .words import Rng, noisy

PRODUCT = [
    "MLX Router",
    "MLX Router",
    "mlx-router",
    "the router",
    "this server",
    "the server",
    "it",
]


@dataclass(frozen=True)
class Fact:
    """A thing worth knowing: its topic (for the reasoning), the answer, and how people ask."""

    topic: str
    answer: str
    asked: tuple[str, ...]


def _fact(topic: str, answer: str, asked: str) -> Fact:
    """Wordings are written one a line; that reads better than tuples of strings."""
    return Fact(topic, answer, tuple(line.strip() for line in asked.strip().splitlines()))


FACTS: list[Fact] = [_fact(*entry) for entry in RUNNING + CLIENTS + MODELS + FEATURES]


def ask(r: Rng, fact: Fact) -> str:
    """One wording of a fact's question, as a hurried person may type it."""
    return noisy(r, r.choice(fact.asked).replace("{r}", r.choice(PRODUCT)))
