"""The package's sources: what none of them does."""

import ast
from pathlib import Path

import llama_pynq


def test_no_source_reads_a_pickle():
    """torch.load must have weights_only=True, np.load no allow_pickle=True."""
    folder = Path(llama_pynq.__file__).parent
    sources = sorted(folder.rglob("*.py"))
    assert len(sources) > 20
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            where = f"{source.relative_to(folder)}:{getattr(node, 'lineno', 0)}"
            for name in _imported(node):
                assert name.split(".")[0] not in {"pickle", "dill", "joblib", "shelve"}, where
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("allow_pickle", "False") == "False", where
                if called == "torch.load":
                    assert options.get("weights_only") == "True", where


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
