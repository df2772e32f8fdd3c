"""Configuration of Sphinx; `make docs` builds the site into outputs/docs."""

from importlib.metadata import version as version_of

project = "experiments"
author = "the experiments contributors"
release = version = version_of("experiments")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # some pages have bold run-in headings
html_theme = "furo"
html_title = "experiments"
html_static_path: list[str] = []
