"""For `make docs`: docstrings' reStructuredText as Markdown, as far as they use it, and links from
a page to the sources as links to the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

LINK = re.compile(r'(?<=\]\()(\.\./[^)\s]+)(?=\))')
ROLE = re.compile(r':(?:class|func|meth|mod|attr|data|exc):`([^`]+)`')


def markdown(text: str) -> str:
    """Roles and double backquotes as code, ``::`` before a block as a colon."""
    text = ROLE.sub(lambda found: f'`{_short(found.group(1))}`', text)
    text = re.sub(r'``([^`]+)``', r'`\1`', text)
    return re.sub(r'::(?=\n\n {4})', ':', text)


def _short(target: str) -> str:
    return target.rpartition('.')[2] if target[0] in '~.' else target


class Roles(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once per module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **kwargs: Any) -> str:
    """A hook of MkDocs: what lies outside docs/ is not part of the site."""
    docs = Path(config['docs_dir'])

    def outside(found: re.Match[str]) -> str:
        path = (Path(page.file.abs_src_path).parent / found.group(1)).resolve()
        if path.is_relative_to(docs) or not path.is_relative_to(docs.parent):
            return found.group(1)
        return f'{config["repo_url"]}/blob/main/{path.relative_to(docs.parent).as_posix()}'

    return LINK.sub(outside, markdown)
