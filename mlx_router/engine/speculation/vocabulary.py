"""Whether two models read and write the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "tokenizer.json"


def differs(first: Path, second: Path) -> str | None:
    """How the vocabularies of two model folders differ in the ids that both have; None: in none.

    Tokens that were added later may differ, since models of one family rename those they reserve:
    a wrong guess of one costs a little time, and nothing else. Raises OSError or ValueError if a
    tokenizer.json cannot be read.
    """
    contents = [(folder / FILE).read_bytes() for folder in (first, second)]
    if contents[0] == contents[1]:
        return None
    ours, theirs = (_tokens(json.loads(content)) for content in contents)
    for token_id in sorted(ours.keys() & theirs.keys()):
        if ours[token_id] != theirs[token_id]:
            return f"token {token_id} is {ours[token_id]!r} and {theirs[token_id]!r}"
    return None if ours.keys() & theirs.keys() else "they have no token id in common"


def _tokens(tokenizer: Any) -> dict[int, str]:
    """Each id's token, but for those that were added."""
    try:
        vocabulary = tokenizer["model"]["vocab"]
        added = {each["id"] for each in tokenizer.get("added_tokens") or []}
        if isinstance(vocabulary, dict):
            tokens = {int(token_id): str(token) for token, token_id in vocabulary.items()}
        else:  # of a unigram model: pairs of a token and its score
            tokens = {token_id: str(token) for token_id, (token, _) in enumerate(vocabulary)}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{FILE} has no vocabulary ({type(error).__name__})") from None
    return {token_id: token for token_id, token in tokens.items() if token_id not in added}
