"""Generates `proto/gen` from `proto/*.proto`.

`python -m proto.generate` rewrites it; `--check` fails if what is checked in differs (continuous integration).
The path mapping `-Iproto/gen=proto` makes the generated modules import each other as `proto.gen.*`.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent


def generate(target: Path) -> None:
    """Writes `<stem>_pb2.py` and `.pyi` for every proto file below `target`/proto/gen."""
    names = sorted(f"proto/gen/{path.name}" for path in PROTO.glob("*.proto"))
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    arguments = ["protoc", f"--plugin=protoc-gen-mypy={plugin}", f"-Iproto/gen={PROTO}"]
    arguments += [f"--python_out={target}", f"--mypy_out=quiet:{target}", *names]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m proto.generate [--check]", file=sys.stderr)
        return 64
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        made = Path(scratch) / "proto" / "gen"
        names = sorted(path.name for path in made.iterdir())
        if arguments:
            here = sorted(p.name for p in (PROTO / "gen").glob("*_pb2.py*"))
            differing = [
                n for n in names if n not in here or not filecmp.cmp(made / n, PROTO / "gen" / n, shallow=False)
            ]
            differing += [n for n in here if n not in names]
            if differing:
                print(
                    f"proto/gen differs from proto/*.proto: {', '.join(differing)}; run `make proto`", file=sys.stderr
                )
                return 1
            return 0
        for old in (PROTO / "gen").glob("*_pb2.py*"):
            old.unlink()
        for name in names:
            (PROTO / "gen" / name).write_bytes((made / name).read_bytes())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
