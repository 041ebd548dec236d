"""The files of the tree that the rules look at."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY_SUFFIXES = frozenset({".png", ".ico", ".gz"})


@cache
def files() -> tuple[str, ...]:
    """Paths, relative to the root, of every file that is or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file()))


def text_files() -> list[str]:
    return [name for name in files() if Path(name).suffix not in BINARY_SUFFIXES]


def python_files() -> list[str]:
    """Without generated code."""
    return [name for name in files() if name.endswith(".py") and not name.startswith("proto/gen/")]


def markdown_files() -> list[str]:
    return [name for name in files() if name.endswith(".md")]


@cache
def syntax(name: str) -> ast.Module:
    """Parsed once for all rules."""
    return ast.parse(read(name), name)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
