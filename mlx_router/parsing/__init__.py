"""From a model's text to content, reasoning and tool calls: incremental, and in linear time."""

from mlx_router.parsing.output import OutputParser
from mlx_router.parsing.sink import Parsed, new_call_id
from mlx_router.parsing.tools import CHANNELLED, get_parser, known_formats

__all__ = ["CHANNELLED", "OutputParser", "Parsed", "get_parser", "known_formats", "new_call_id"]
