"""Hooks of mkdocs.yml. A page may load nothing from elsewhere: the site is read from disk and in closed networks."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload)\b)[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]*"""
    r"""|(?:@import\s*|url\()["']?(?:https?:)?//[^"')\s]*"""
)


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError for a page or style sheet that would load something from the network."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css") and (found := LOADS.search(file.read_text(encoding="utf-8"))):
            raise PluginError(f"{file}: loads from the network: {found[0]}")
