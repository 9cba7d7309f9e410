"""The site: `make docs` builds docs/ into build/site. Sphinx, because it checks every link, picture and place in the
navigation, and because its pages need nothing from anybody's network, nor a server."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

project = "Clickwake"
copyright = "the authors of Clickwake, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["_static"]
myst_heading_anchors = 3  # headings may be linked to as on GitHub
myst_links_external_new_tab = False
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # an ellipsis in an example of JSON is meant

html_theme = "pydata_sphinx_theme"
html_title = "Clickwake"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "tutorial": []}
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def generate(app: Sphinx) -> None:
    """The reference, and the list of decisions: from the code, each time."""
    from reference import pages

    pages.write(DOCS / "reference")
    (DOCS / "adr" / "index.md").write_text(pages.decisions(DOCS / "adr"), encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", generate)
