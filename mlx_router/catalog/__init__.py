"""What models there are on this machine, read from their files without running anything."""

from mlx_router.catalog.catalog import Catalog, ModelOverride
from mlx_router.catalog.inspect import inspect_folder

__all__ = ["Catalog", "ModelOverride", "inspect_folder"]
