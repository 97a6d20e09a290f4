"""Sphinx: pages in MyST, the reference from docstrings, and notebooks that are executed as they are read.

Nothing is fetched, neither by the build nor by the pages: no inventories, no fonts, and MathML in place of MathJax.
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
from notebooks import execute

project = "sciddiff"
author = project_copyright = "sciddiff developers"
version = release = installed("sciddiff")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
# a .py below notebooks/ is a page: `notebook` hands its executed text to the parser of the others
source_suffix = {
    ".rst": "restructuredtext",
    ".md": "markdown",
    ".py": "markdown",
}
templates_path = ["_templates"]
exclude_patterns = [
    "_build",
    "_templates",
    "conf.py",
    "figures",
    "notebooks/execute.py",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "sciddiff"
html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_static_path = ["_static"]
html_css_files = ["sciddiff.css"]

# in docstrings, `name` is a link where there is such a name, and code where there is not
default_role = "py:obj"
add_module_names = False
autoclass_content = "class"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autosummary_imported_members = True
autosummary_ignore_module_all = False
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"


def notebook(app, docname, source):
    """Execute a notebook, and hand on its cells and outputs as MyST."""
    if docname.startswith("notebooks/"):
        path = Path(app.env.doc2path(docname))
        source[0] = execute.page(path, Path(app.doctreedir) / "notebooks")


def by_last_names(app, env, node, contnode):
    """Find ``Posterior.sample``, or ``sciddiff.MMPS``, wherever it is documented: at the least depth, if there once."""
    if node.get("refdomain") != "py":
        return None
    wanted = "." + node["reftarget"].removesuffix("()").removeprefix("sciddiff.")
    found = {
        (name.count("."), entry.docname, entry.node_id)
        for name, entry in env.get_domain("py").objects.items()
        if name.endswith(wanted) and entry.objtype != "module"
    }
    nearest = [place for place in found if place[0] == min(found)[0]]
    if len(nearest) != 1:
        return None
    ((_, page, anchor),) = nearest
    return make_refnode(
        app.builder, node["refdoc"], page, anchor, contnode, node["reftarget"]
    )


def formula(self, node):
    """Put a formula as MathML."""
    self.body.append(
        tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    )
    raise nodes.SkipNode


def setup(app):
    """Connect them."""
    app.connect("source-read", notebook)
    app.connect("missing-reference", by_last_names)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
