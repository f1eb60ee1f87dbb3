"""How Sphinx builds the pages and the API reference: make docs."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
import types
from pathlib import Path
from typing import Any

import numpydoc.validate
from docutils import nodes
from docutils.parsers.rst import roles
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from llama_pynq import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
logger = logging.getLogger(__name__)

project = "llama_pynq"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["*.py"]
default_role = "name"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!llama_pynq\b).*")]  # links lead nowhere outside
# Of constructors that no caller calls: load_checkpoint does.
nitpick_ignore = [("py:class", "llama_pynq.checkpoint.base.Source")]

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

numpydoc_show_class_members = False
numpydoc_validation_checks = {
    *("SS01", "GL06", "GL07", "GL10"),  # no summary; sections unknown or misordered; a typo's ::
    *("PR01", "PR02", "PR03", "PR05", "PR10"),  # parameters missing, unknown, misordered, ill-typed
    *("RT02", "YD01"),  # a return value with a name, a generator without Yields
}

html_theme = "furo"
html_static_path = ["pages.css"]
html_css_files = ["pages.css"]
html_title = f"llama_pynq {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False


# ---- docstrings -----------------------------------------------------------------------


def is_record(kind: Any) -> bool:
    """Whether a class is a dataclass or a named tuple."""
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def is_never_called(kind: Any) -> bool:
    """Whether a class is an enumeration or an interface: no caller constructs it."""
    return isinstance(kind, enum.EnumMeta) or getattr(kind, "_is_protocol", False)


class Validator(numpydoc.validate.Validator):
    """numpydoc's checks; the fields of a record may be documented as attributes."""

    @property
    def doc_all_parameters(self) -> Any:
        found = super().doc_all_parameters
        return found or (self._doc_parameters(["Attributes"]) if is_record(self.obj) else found)

    @property
    def signature_parameters(self) -> tuple[str, ...]:
        if is_never_called(self.obj):
            return ()
        names = super().signature_parameters
        return tuple(name for name in names if not name.startswith("_"))


numpydoc.validate.Validator = Validator


def check_members(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Warn of a method to show that has no docstring: autodoc would leave it out."""
    kinds = (property, functools.cached_property, classmethod, types.FunctionType)
    for member, value in vars(obj).items() if inspect.isclass(obj) else ():
        if member.startswith("_") or not isinstance(value, kinds) or inspect.getdoc(value):
            continue
        if member in (options.members or ()) and member not in (options.exclude_members or ()):
            logger.warning("%s.%s has no docstring", name, member)


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, _: Any) -> bool | None:
    """Leave out the fields of a named tuple: its Attributes section has them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def hide_fields(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show no constructor of an enumeration, an interface, or a record that lists its fields."""
    text = inspect.getdoc(obj) or ""
    listed = is_record(obj) and "Attributes\n---" in text and "Parameters\n---" not in text
    return ("", returns) if listed or is_never_called(obj) else None


class NameRole(PyXRefRole):
    """A name between backticks: a link where the reference has the name, else code."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, *args: Any
    ) -> tuple[str, str]:
        title, target = super().process_link(env, refnode, *args)
        refnode["refdomain"], refnode["reftype"] = "py", "obj"
        if "." in target or target[:1].isupper():  # other names: of this class or module only
            refnode["refspecific"] = True
        return title, target


# ---- pages ----------------------------------------------------------------------------


class SourceLinks(SphinxTransform):
    """Show links to the repository's sources as code: the pages have no address for them."""

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.Element)):
            path = self._source(node)
            if path is None:
                continue
            text = node.astext()
            shown: list[nodes.Node] = [nodes.literal(text, text)]
            if not path.rstrip("/").removesuffix(".md").endswith(text.rstrip("/")):
                shown = [nodes.Text(f"{text} ("), nodes.literal(path, path), nodes.Text(")")]
            node.parent.replace(node, shown)

    def _source(self, node: nodes.Element) -> str | None:
        """Return the path of the source that a link leads to; None for any other node."""
        if not isinstance(node, (addnodes.download_reference, addnodes.pending_xref)):
            return None
        target = node["reftarget"]
        if node.get("reftype") != "myst" or target in self.env.found_docs:
            return None
        page = Path(self.env.doc2path(self.env.docname))
        for path in (page.parent / target, Path(f"{target}.md")):
            if path.exists():
                return str(path.resolve().relative_to(REPOSITORY))
        return None


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the contents of the tables of the index: each section's pages, under its heading."""
    if docname != "index":
        return
    for heading, section in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", source[0], re.MULTILINE):
        pages = re.findall(r"\]\(((?!\.\.)[\w/]+)\.md\)", section)
        lines = ["", "```{toctree}", ":hidden:", f":caption: {heading}", "", *pages, "```", ""]
        source[0] += "\n".join(lines)


def check_offline(app: Sphinx, error: Exception | None) -> None:
    """Warn of pages that load something from the network: labs have none."""
    loads = {
        ".html": re.compile(
            r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\W?((?:https?:)?//[^\s>]*)"
        ),
        ".css": re.compile(r"(?:@import|url\()\W*((?:https?:)?//[^\s)]*)"),
    }
    for path in [] if error else sorted(Path(app.outdir).rglob("*.*")):
        if path.suffix in loads:
            for address in loads[path.suffix].findall(path.read_text(encoding="utf-8")):
                logger.warning("%s loads %s", path.name, address)


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx."""
    roles.register_local_role("name", NameRole())
    app.add_transform(SourceLinks)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", check_members)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", check_offline)
