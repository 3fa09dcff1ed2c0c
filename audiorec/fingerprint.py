"""Fingerprints (design 5): inputs + settings that change results + code that computes them.

A task's code is what its file imports inside the project, transitively (by grimp), the SQL that those
modules read, and the pinned versions of the libraries they use. Comments and docstrings do not count;
neither does plumbing, which decides where and how a task runs, never what comes out.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grimp

PACKAGES = ("audiorec", "tasks", "models", "expectations", "sql")

PLUMBING = frozenset(
    {
        "audiorec.runner",  # resolves inputs, commits outputs
        "audiorec.chain",  # the graph of tasks; the edges themselves enter through `inputs`
        "audiorec.settings",  # the values enter through the settings slice
        "audiorec.store",  # moves bytes, never changes them
        "audiorec.fingerprint",
        "audiorec.errors",
        "audiorec.progress",
        "audiorec.tracking",  # curves sent to MLflow
    }
)


def digest(value: Any) -> str:
    """A short, stable hash of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(inputs: Mapping[str, str], settings: Mapping[str, Any], code: str) -> str:
    """The name of a result: what it was made from, by which settings and code."""
    return digest({"inputs": dict(inputs), "settings": dict(settings), "code": code})


@cache
def _import_graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)


def project_modules(module: str) -> list[str]:
    """The module and all project modules that it imports, transitively, less the plumbing; sorted."""
    graph = _import_graph()
    seen: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in seen or name in PLUMBING:
            continue
        seen.add(name)
        pending.extend(graph.find_modules_directly_imported_by(name))
    return sorted(seen)


def _source(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source file for {module}")
    return Path(spec.origin)


class _Strip(ast.NodeTransformer):
    """Remove docstrings: words that explain do not change results."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            node.body = body[1:]
        return node


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(_source(module).read_text(encoding="utf-8"))


@cache
def module_hash(module: str) -> str:
    """Hash of what a module does: its syntax tree without comments and docstrings."""
    tree = _Strip().visit(ast.parse(_source(module).read_text(encoding="utf-8")))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


_SQL_COMMENT = re.compile(r"""('[^']*'|"[^"]*")|--[^\n]*""")


def sql_hash(query: str) -> str:
    """Hash of a query without its comments and empty lines; text in quotes counts as it is."""
    bare = _SQL_COMMENT.sub(lambda found: found.group(1) or "", query)
    lines = [line.rstrip() for line in bare.splitlines() if line.strip()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def sql_files(module: str) -> list[str]:
    """Names of the SQL files that a module reads with `read_sql("NAME")`."""
    names = []
    for node in ast.walk(_parsed(module)):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) == "read_sql"
        ):
            argument = node.args[0] if len(node.args) == 1 else None
            if not isinstance(argument, ast.Constant):
                raise TypeError(
                    f"{module}: read_sql needs a literal name, so that the fingerprint can follow it"
                )
            names.append(str(argument.value))
    return sorted(set(names))


_BENEATH = {"sentence_transformers": {"torch", "transformers", "tokenizers"}, "torch_geometric": {"torch"}}
"""Libraries that do another's arithmetic, though our own code may not import them."""


def _libraries(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_parsed(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    found |= {below for name in found for below in _BENEATH.get(name, ())}
    return {name for name in found if name not in PACKAGES and name not in sys.stdlib_module_names}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@cache
def code_parts(module: str) -> dict[str, dict[str, str]]:
    """What the code fingerprint of a task's module is made of: modules, SQL files, libraries."""
    modules = project_modules(module)
    names = sorted({name for m in modules for name in sql_files(m)})
    libraries = sorted({library for m in modules for library in _libraries(m)})
    return {
        "modules": {name: module_hash(name) for name in modules},
        "sql": {
            name: sql_hash(files("sql").joinpath(f"{name}.sql").read_text(encoding="utf-8")) for name in names
        },
        "libraries": {
            distribution: importlib.metadata.version(distribution)
            for library in libraries
            for distribution in sorted(set(_distributions().get(library, [])))
        },
    }


def code_fingerprint(module: str) -> str:
    """Hash of the code behind a task, e.g. `code_fingerprint("tasks.extract")`."""
    return digest(code_parts(module))
