"""Settings for computed prompts that are kept."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mlx_router.config.fields import Section, Text, expand

_DEFAULT_SHARE = 0.05  # of the machine's memory


class PrefixCacheSettings(Section):
    """Computed prompts, kept so that a chat that goes on is not computed anew."""

    memory_gb: float | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Memory for the computed prompts of one model, in GB; 0: none; absent: a "
        "twentieth of the machine's memory. It is freed when memory is short.",
    )
    disk_gb: float = Field(
        default=8.0,
        ge=0,
        le=100_000,
        description="Disk space for computed prompts of all models, in GB, so that they outlive an "
        "unload and a restart; 0: none.",
    )
    directory: Text = Field(
        default="$HOME/.cache/mlx-router/prompts",
        description="Folder of the computed prompts on disk, for this user alone; ~ and variables "
        "expand.",
    )
    shared: bool = Field(
        default=False,
        description="Let requests with different API keys reuse each other's prompts: how soon an "
        "answer begins then tells one client what another one asked.",
    )

    def folder(self) -> Path:
        """The folder, absolute, with ~ and variables expanded. It may not exist yet."""
        return expand(self.directory)

    def memory_bytes(self, total: int) -> int:
        """Of a machine with ``total`` bytes."""
        if self.memory_gb is None:
            return int(total * _DEFAULT_SHARE)
        return int(self.memory_gb * 2**30)
