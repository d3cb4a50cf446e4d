"""Config files of neighbouring tools: the config of MLX Router that they make, and a report.

``yaml_lines`` reads YAML and remembers lines, ``known`` lists the keys, ``convert`` makes the
config, ``merge`` joins it with one that is there.
"""

from mlx_router.config.importing.convert import Imported, import_file
from mlx_router.config.importing.merge import merged
from mlx_router.config.importing.notes import Note, Outcome

__all__ = ["Imported", "import_file", "merged", "Note", "Outcome"]
