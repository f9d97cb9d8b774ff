"""A result (schema 2) for people: text for a terminal, Markdown for a README, and one HTML page with pictures.

`terminal(data)`, `markdown(data)`, `page(data)` return text; `picture(data, path)` writes one picture. All take the
content of a result file. The pictures need matplotlib, nothing else does.
"""

from __future__ import annotations

from .markdown import markdown
from .page import page
from .picture import picture
from .tables import aligned
from .terminal import terminal

__all__ = ["aligned", "markdown", "page", "picture", "terminal"]
