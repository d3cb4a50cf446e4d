"""What a KV cache of fewer bits saves, and what it changes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.client import PATIENCE_SECONDS
from benchmarks.measures import GROUPS, Plan, Say
from benchmarks.processes import ROOT, Process, environment
from benchmarks.report import Result, number

_DEMO = ROOT / "mlx_router" / "demo" / "model"


def kv(folder: Path, say: Say, plan: Plan) -> list[Result]:
    """On the demo model, which was trained: to a random one every error is the same. In process,
    without a clock."""
    say("answering")
    arguments = ["-m", "benchmarks.kv_quality", str(_DEMO), str(plan.kv_tokens)]
    with Process("kv", arguments, environment(folder), folder, json_lines=True) as process:
        found = process.read_json(PATIENCE_SECONDS)
    whole = found.pop("whole")
    group = GROUPS["kv"]
    results = []
    for bits, quality in found.items():
        size, tokens = quality["bytes_per_token"], quality["tokens"]
        divergences = [1e3 * value for value in quality["divergences"]]
        results += [
            Result(
                group,
                f"{bits} bits: bytes of a token ÷ without kv_bits",
                size / whole,
                "x",
                detail=f"{number(size)} ÷ {number(whole)} bytes, demo model (bfloat16)",
            ),
            Result(
                group,
                f"{bits} bits: same greedy token",
                100 * quality["agreeing"] / tokens,
                "%",
                detail=f"{quality['agreeing']} of {tokens}, each after the same tokens",
            ),
            Result(
                group,
                f"{bits} bits: mean Kullback-Leibler divergence",
                sum(divergences) / len(divergences),
                "millinats",
                detail=f"the largest {number(max(divergences))}",
                samples={"millinats": divergences},
            ),
        ]
    return results
