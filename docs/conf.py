"""How Sphinx makes the site of these pages: `make docs`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "extensions"))

from atomcsi import __version__

project = "atomcsi"
author = "The atomcsi developers"
copyright = author
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxarg.ext",
    "config_entry",
]
exclude_patterns = ["_build"]
# sphinx-argparse cannot resolve the kind of links that MyST tries first.
suppress_warnings = ["myst.domains"]

html_theme = "furo"
html_title = "atomcsi"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
# Headings as targets of links, down to this level.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
