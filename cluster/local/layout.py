"""The directory of a local cluster.

    DIR/cluster.json        what was decided at birth, and the nodes there are (cluster_file.py)
    DIR/lock                flock: one command at a time starts or stops nodes here
    DIR/<node>/node.json    what the node needs to know (node/config.py reads it)
    DIR/<node>/incarnation  written by the node before it first serves: it has lived
    DIR/<node>/run.json     written by the node once it listens: pid, address, incarnation
    DIR/<node>/node.log     its log, JSON lines
    DIR/<node>/routes.json  of experiments only: what the node dials instead of an address

The laws: cluster.json is written last at birth and removed last by a purge, so a directory without it holds no cluster; a
purge removes what this layout names and nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from cluster.errors import Code, TenfoldError, invalid
from cluster.local.cluster_file import FOLDER, FORMAT, ClusterFile, NodeEntry
from cluster.types import node_name

NODE_FORMAT = 1  # of node.json
ROUTES = "routes.json"


class RunFile(msgspec.Struct):
    """run.json. `incarnation` grows at every start of the node."""

    pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    address: str
    incarnation: int


class Layout:
    """The files of one local cluster. Paths are absolute and resolved, since nodes are recognised by them."""

    def __init__(self, directory: str | Path) -> None:
        self.root = Path(directory).expanduser().resolve()

    @property
    def cluster_path(self) -> Path:
        return self.root / "cluster.json"

    @property
    def lock_path(self) -> Path:
        return self.root / "lock"

    def node_directory(self, node: str) -> Path:
        return self.root / node_name(node)

    def log_path(self, node: str) -> Path:
        return self.node_directory(node) / "node.log"

    def run_path(self, node: str) -> Path:
        return self.node_directory(node) / "run.json"

    def exists(self) -> bool:
        return self.cluster_path.exists()

    def read(self) -> ClusterFile:
        """TenfoldError InvalidArgument if there is no cluster here, or one this program cannot read."""
        try:
            text = self.cluster_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self.check_vacant()
            raise invalid("dir", f"{self.root} holds no cluster; `tenfold up --dir {self.root}` makes one") from None
        except OSError as error:
            raise invalid("dir", f"{self.cluster_path}: {error.strerror}") from None
        try:
            header = msgspec.json.decode(text, type=dict[str, object])
            number = header.get("format")
            if isinstance(number, int) and number > FORMAT:
                raise invalid("dir", f"{self.cluster_path} has format {number}, newer than this program's {FORMAT}")
            cluster = msgspec.json.decode(text, type=ClusterFile)
            cluster.check()
        except (msgspec.DecodeError, ValueError) as error:
            raise invalid("dir", f"{self.cluster_path}: {error}") from None
        return cluster

    def create(self, cluster: ClusterFile) -> None:
        """The birth. TenfoldError if the directory already holds a cluster, or the data of nodes."""
        if self.exists():
            raise TenfoldError(Code.ALREADY_EXISTS, f"{self.root} holds a cluster already")
        self.check_vacant()
        for entry in cluster.nodes:
            if newer := self._newer(entry.node):
                raise invalid("dir", newer)
        self.write(cluster)

    def check_vacant(self) -> None:
        """TenfoldError InvalidArgument if there is data of nodes here; for a directory without cluster.json."""
        for directory in sorted(self.root.glob("n*")):
            if FOLDER.fullmatch(directory.name) and directory.is_dir():
                found = sorted({path.name for path in directory.iterdir()} - {"node.json"})
                if found:
                    raise invalid(
                        "dir",
                        f"{directory} holds {found[0]}, but {self.cluster_path} is missing; put it back, or take "
                        "the folders of nodes away",
                    )

    def refusal(self, cluster: ClusterFile, node: str) -> str:
        """Why the node's folder is not this program's to write to; "" if it is, or is yet to be made."""
        directory = self.node_directory(node)
        if directory.exists() and not directory.is_dir():
            return f"{directory} is not a directory"
        told = self._told(node)
        if told and (told.get("cluster_id"), told.get("node")) != (cluster.cluster_id, node):
            return f"{directory / 'node.json'} is of node {told.get('node')!r} of cluster {told.get('cluster_id')!r}"
        return self._newer(node)

    def _newer(self, node: str) -> str:
        number = self._told(node).get("format")
        if isinstance(number, int) and number > NODE_FORMAT:
            path = self.node_directory(node) / "node.json"
            return f"{path} has format {number}, newer than this program's {NODE_FORMAT}"
        return ""

    def _told(self, node: str) -> dict[str, object]:
        """node.json as it is; {} if there is none that can be read, which a write then replaces."""
        try:
            return msgspec.json.decode((self.node_directory(node) / "node.json").read_bytes(), type=dict[str, object])
        except (OSError, msgspec.DecodeError):
            return {}

    def has_lived(self, node: str) -> bool:
        """Whether the node's folder shows that it has served, and may have voted."""
        return (self.node_directory(node) / "incarnation").exists()

    def has_content(self, node: str) -> bool:
        """Whether there is anything where the node's folder is, or would be."""
        directory = self.node_directory(node)
        return directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))

    def write(self, cluster: ClusterFile, keep: Collection[str] = ()) -> None:
        """Makes every node.json but those of `keep`, then cluster.json, say what `cluster` says; each file that differs is
        replaced as a whole and durable. Doing it again mends a write that was interrupted."""
        for entry in cluster.nodes:
            if entry.node in keep:
                continue
            self.node_directory(entry.node).mkdir(parents=True, exist_ok=True)
            _replace(self.node_directory(entry.node) / "node.json", msgspec.json.encode(_node_file(cluster, entry)))
        self.write_cluster(cluster)

    def write_cluster(self, cluster: ClusterFile) -> None:
        """cluster.json alone, as `write` does it; the next `write` brings each node.json up to it."""
        cluster.format = FORMAT
        _replace(self.cluster_path, msgspec.json.format(msgspec.json.encode(cluster)))

    def read_run(self, node: str) -> RunFile | None:
        """What the node wrote when it last listened; None if there is nothing whole. The process may be long dead."""
        try:
            return msgspec.json.decode(self.run_path(node).read_bytes(), type=RunFile)
        except (OSError, msgspec.DecodeError):
            return None

    def write_routes(self, node: str, routes: Mapping[str, str]) -> None:
        """What the node dials instead of an address of another, from its next start on."""
        self.node_directory(node).mkdir(parents=True, exist_ok=True)
        _replace(self.node_directory(node) / ROUTES, msgspec.json.encode(dict(routes)))

    def forget_run(self, node: str) -> None:
        self.run_path(node).unlink(missing_ok=True)

    def last_lines(self, node: str, count: int) -> list[str]:
        """The last `count` lines of the node's log; [] if it has none."""
        try:
            with self.log_path(node).open(encoding="utf-8", errors="replace") as log:
                return [line.rstrip("\n") for line in deque(log, maxlen=count)]
        except FileNotFoundError:
            return []

    def last_error(self, node: str) -> str:
        """The last line of the node's log if it tells of an error; "" otherwise."""
        line = "".join(self.last_lines(node, 1)).strip()
        try:
            told = msgspec.json.decode(line, type=dict[str, object])
        except msgspec.DecodeError:
            return line  # not of the logger: why the node could not start, or the end of a traceback
        return (
            f"{told.get('event')} {told.get('error', '')}".strip() if told.get("level") in ("error", "critical") else ""
        )

    def log_size(self, node: str) -> int:
        """Bytes in the node's log; 0 if it has none."""
        try:
            return self.log_path(node).stat().st_size
        except FileNotFoundError:
            return 0

    def lines_from(self, node: str, offset: int) -> tuple[list[str], int]:
        """The whole lines of the node's log from byte `offset` on, and where the next begins. From the start again if the
        log has become shorter."""
        size = self.log_size(node)
        if size == offset:
            return [], offset
        with self.log_path(node).open("rb") as log:
            log.seek(offset if offset < size else 0)
            content = log.read()
            end = log.tell()
        whole, _, rest = content.rpartition(b"\n")
        return whole.decode(errors="replace").split("\n") if whole else [], end - len(rest)

    def remove_folder(self, node: str) -> None:
        """The node's data, log and all, if there is any."""
        if self.node_directory(node).is_dir():
            shutil.rmtree(self.node_directory(node))

    def purge(self) -> list[str]:
        """Removes the cluster; the names of what else was found in the directory and stays."""
        cluster = self.read()
        for entry in [*cluster.nodes, *cluster.removed]:
            self.remove_folder(entry.node)
        self.cluster_path.unlink()
        self.lock_path.unlink(missing_ok=True)
        left = sorted(path.name for path in self.root.iterdir())
        if not left:
            self.root.rmdir()
        return left


def _node_file(cluster: ClusterFile, entry: NodeEntry) -> dict[str, object]:
    """What node.json tells: a node of the birth knows its first map from it, one that came later whom to ask."""
    told: dict[str, object] = {
        "format": NODE_FORMAT,
        "cluster_id": cluster.cluster_id,
        "node": entry.node,
        "address": entry.address,
        "zone": entry.zone,
        "born": entry.born,
    }
    if entry.joined:
        others = [each.address for each in cluster.nodes if each is not entry]
        told["join"] = others or [entry.address]
    else:
        told["shards"] = cluster.shards
        told["replication_factor"] = cluster.replication_factor
        told["members"] = [{"node": each.node, "address": each.address, "zone": each.zone} for each in cluster.birth]
    if cluster.repair_after_s is not None:
        told["repair_after_s"] = cluster.repair_after_s
    return told


def _replace(path: Path, content: bytes) -> None:
    """Puts `content` at `path` in one step, durable with its name, unless it is there already."""
    if path.exists() and path.read_bytes() == content:
        return
    scratch = path.with_name(path.name + ".new")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
