"""Digests of the code a stage runs, so that a changed formula reruns its stage and a reworded comment does not."""

import ast
import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
HANDED_ON = "PLM_DEPTH_CODE"


def code_of(stage: str) -> str:
    """Return a digest of a stage's module and of every module of this package that it imports, directly or not.

    Comments, docstrings and layout do not count, nor do modules that cannot change a result (progress).

    Args:
        stage: dotted name below the package, e.g. "metrics.contributions".
    Raises:
        FileNotFoundError: there is no such module.
    """
    seen: dict[str, str] = {}
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name in seen or name == "progress":
            continue
        seen[name], imported = _read(name)
        waiting.extend(imported)
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(seen.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def within_run(*, is_job: bool) -> Callable[[str], str]:
    """Return ``code_of`` for the rules of a run, whose jobs take the digests from the environment of the run.

    Jobs in processes of their own evaluate every rule, two processes each on a cluster; most of a second of that was
    spent on digests that the run had made already.

    Args:
        is_job: whether this process runs a job of a run. One that does not takes nothing from the environment.
    """
    known: dict[str, str] = json.loads(os.environ.get(HANDED_ON, "{}")) if is_job else {}

    def code_of_stage(stage: str) -> str:
        if stage not in known:
            known[stage] = code_of(stage)
            os.environ[HANDED_ON] = json.dumps(known)
        return known[stage]

    return code_of_stage


@cache
def _read(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of one module's code and the modules of this package it names in import statements."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == PACKAGE.name:
            base = node.module.removeprefix(PACKAGE.name).removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                imported.append(inner if _exists(inner) else base)
        elif isinstance(node, ast.Import):
            imported += [a.name.split(".", 1)[1] for a in node.names if a.name.startswith(f"{PACKAGE.name}.")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _starts_with_text(
            node
        ):
            node.body = node.body[1:]
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return digest, tuple(name for name in imported if name)


def _starts_with_text(node: ast.AST) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _path(name: str) -> Path:
    return PACKAGE.joinpath(*name.split("."))


def _exists(name: str) -> bool:
    return _path(name).with_suffix(".py").is_file() or (_path(name) / "__init__.py").is_file()


def _file(name: str) -> Path:
    module = _path(name).with_suffix(".py")
    return module if module.is_file() else _path(name) / "__init__.py"
