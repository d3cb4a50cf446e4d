"""What is said of an image or a PDF that is not taken."""

from __future__ import annotations

from mlx_router.errors import INSTALL_VISION


class Refused(Exception):
    """The client must send something else: ``message`` says what and why, ``code`` is OpenAI's.

    Whoever knows which part of the request it was makes an InvalidRequest of it.
    """

    def __init__(self, message: str, code: str = "invalid_image") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def not_installed(what: str) -> Refused:
    return Refused(
        f"this server cannot read it: {what} is not installed. Its operator can add it: "
        f"{INSTALL_VISION}.",
        "vision_not_installed",
    )
