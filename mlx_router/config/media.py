"""Settings for the images and PDFs of requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mlx_router.config.fields import Seconds, Section

Pixels = Annotated[int, Field(ge=4096, le=1_000_000_000)]
Megabytes = Annotated[float, Field(gt=0, le=100_000)]


class MediaSettings(Section):
    """Limits for images and PDFs: each keeps one request from taking the machine."""

    max_images: int = Field(
        default=64, ge=1, le=10_000, description="Images of a request, PDF pages included."
    )
    max_file_mb: Megabytes = Field(default=32.0, description="Size of one image or PDF, in MB.")
    max_pixels: Pixels = Field(
        default=50_000_000, description="Pixels of an image as it was sent: width times height."
    )
    low_detail_pixels: Pixels = Field(
        default=262_144,
        description="Pixels that a model is shown of an image sent with `detail: low`; a larger "
        "one is scaled down.",
    )
    auto_detail_pixels: Pixels = Field(
        default=1_048_576, description="The same for `detail: auto`, or no word about it."
    )
    high_detail_pixels: Pixels = Field(
        default=2_359_296, description="The same for `detail: high`, and for pages of PDFs."
    )
    max_total_pixels: Pixels = Field(
        default=50_000_000,
        description="Pixels of all images of a request together, as they are shown to the model.",
    )
    max_pixels_at_once: Pixels = Field(
        default=100_000_000,
        description="The same for all requests under way; one that would go beyond gets a 503. A "
        "pixel takes up to 27 bytes until the answer is there.",
    )
    fetch_urls: bool = Field(
        default=True, description="Fetch images and PDFs that are named by an http(s) URL."
    )
    allow_private_addresses: bool = Field(
        default=False,
        description="Fetch from addresses of this machine and of private networks as well.",
    )
    fetch_timeout: Seconds = Field(default=15.0, description="Seconds to fetch one URL.")
    max_redirects: int = Field(default=3, ge=0, le=20, description="Redirects of one URL.")
    pdf_pages: int = Field(
        default=20, ge=1, le=1000, description="Pages read of a PDF; a request may name others."
    )
    pdf_dpi: int = Field(
        default=150, ge=36, le=600, description="Resolution that PDF pages are drawn with."
    )
    pdf_timeout: Seconds = Field(default=60.0, description="Seconds to draw the pages of one PDF.")
    pdf_memory_mb: Megabytes = Field(
        default=1024.0, description="Memory for drawing a PDF, in MB (not enforced by macOS)."
    )
