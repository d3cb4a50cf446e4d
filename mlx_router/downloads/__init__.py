"""Models fetched from the Hugging Face Hub into the model directory, when a request asks for one or
a person does.

The only package that knows the Hub. ``downloads`` is the part on the event loop, ``job`` the work
on a thread, ``hub`` what the Hub says, ``transfer`` one file, ``selection`` which files and names.
"""

from mlx_router.downloads.downloads import Downloads
from mlx_router.downloads.job import Job, Rules
from mlx_router.downloads.selection import is_repository_name
from mlx_router.downloads.transfer import Stopped

__all__ = ["Downloads", "Job", "Rules", "Stopped", "is_repository_name"]
