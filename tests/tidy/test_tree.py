"""What the tree as a whole must keep: capability stems, nothing of one machine, no promise left open, documents that hold."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

import pytest

from tests.tidy import tree

INTERNAL = frozenset({"meta"})
"""Machines that no user calls: they have a proto file, a machine and its test, and nothing above."""

# Written in pieces, or this file would be the first to fail.
OPEN_PROMISE = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
PACKAGE_INDEX = re.compile(
    "|".join(["py" + r"pi\.org", "pythonhosted" + r"\.org", "index" + "[-_]url", "find" + "-links", "/sim" + "ple/"]),
    re.IGNORECASE,
)
THIS_MACHINE = re.compile(r"(?<![\w.~])/(?:work|root|home)/|\.\./sha" + "red")


def found(pattern: re.Pattern[str], names: list[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name in names
        for number, line in enumerate(tree.read(name).splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_promise_is_left_open() -> None:
    assert not found(OPEN_PROMISE, tree.text_files())


def test_no_package_index_is_named() -> None:
    assert not found(PACKAGE_INDEX, tree.text_files())


def test_nothing_of_one_machine() -> None:
    assert not found(THIS_MACHINE, tree.text_files())


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (OPEN_PROMISE, "# TO" + "DO later"),
        (PACKAGE_INDEX, "--index" + "-url https://x"),
        (THIS_MACHINE, 'open("/home' + '/me/x")'),
        (THIS_MACHINE, "see ../sha" + "red/x.md"),
    ],
)
def test_patterns_see_their_breach(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def missing_stems(names: Set[str], services: Set[str]) -> list[str]:
    """A capability has the same stem in every layer. `services` are the stems whose module defines a `Service`."""
    protos = {Path(name).stem for name in names if re.fullmatch(r"proto/\w+\.proto", name)}
    machines = {Path(name).stem for name in names if re.fullmatch(r"node/machines/\w+\.py", name)}
    missing = []
    for stem in sorted((machines & protos) | services):
        wanted = [rf"proto/{stem}\.proto", rf"node/machines/{stem}\.py", rf"tests/machines/test_{stem}(_\w+)?\.py"]
        if stem not in INTERNAL:
            wanted += [rf"client/{stem}\.py", rf"chaos/workloads/{stem}\.py"]
        if stem not in services:
            missing.append(f"{stem}: node/services/{stem}.py defines no Service")
        missing += [
            f"{stem}: {path} is missing" for path in wanted if not any(re.fullmatch(path, name) for name in names)
        ]
    return missing


def test_capabilities_have_all_their_stems() -> None:
    names = set(tree.files())
    folder = [name for name in names if re.fullmatch(r"node/services/\w+\.py", name)]
    services = {Path(name).stem for name in folder if re.search(r"^class Service\b", tree.read(name), re.MULTILINE)}
    assert "kv" in services, "the rule has something to look at"
    assert not missing_stems(names, services)


WHOLE = frozenset(
    {"proto/kv.proto", "node/machines/kv.py", "client/kv.py", "chaos/workloads/kv.py", "tests/machines/test_kv.py"}
)


@pytest.mark.parametrize("layer", sorted(WHOLE))
def test_a_missing_stem_is_seen(layer: str) -> None:
    assert not missing_stems(WHOLE, {"kv"})
    assert missing_stems(WHOLE - {layer}, {"kv"})
    assert missing_stems(WHOLE, set())


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", tree.read("Makefile"), re.MULTILINE))
    named = [
        (name, target)
        for name in tree.markdown_files()
        for target in re.findall(r"(?:`|^\s*)make ([a-z][a-z-]*)", tree.read(name), re.MULTILINE)
    ]
    assert named, "the documents name targets"
    assert not [f"{name}: make {target}" for name, target in named if target not in targets]


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for name in tree.markdown_files():
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", tree.read(name)):
            if not (tree.ROOT / name).parent.joinpath(target).exists():
                broken.append(f"{name}: {target}")
    assert not broken


def test_heavy_folders_explain_themselves() -> None:
    for folder in [
        "cluster/raft",
        "cluster/ring",
        "cluster/wire",
        "cluster/local",
        "node",
        "node/storage",
        "node/machines",
        "node/transport",
        "client",
        "client/bench",
        "chaos",
    ]:
        assert (tree.ROOT / folder / "README.md").is_file(), f"{folder} has no README.md"


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    commands = [
        line for line in tree.read(".ci/run").splitlines() if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["exec make check"]
