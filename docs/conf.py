"""Configuration of Sphinx; `make docs` builds the site into outputs/docs."""

from experiments import __version__

project = "experiments"
author = "the experiments contributors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # single backticks in docstrings
autodoc_preserve_defaults = True
napoleon_use_ivar = True
maximum_signature_line_length = 100
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # some pages have bold run-in headings
html_theme = "furo"
html_title = "experiments"
html_show_copyright = False
html_static_path: list[str] = []
