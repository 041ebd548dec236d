"""Every file carries what it is, in which format, and whose: magic, format version, cluster id, node and boot id.

A file of another format, cluster or node is refused before anything of it is used. The layout of this head
is the same in every format, so that a newer one is told from a damaged one. `Sealed` keeps small facts (the incarnation, the
last map) in two copies that are replaced whole, one after the other: temporary name, sync, rename, directory sync.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from zlib import crc32

from cluster.errors import Code, TenfoldError
from cluster.ports import Disk, File, StorageFailed
from node.storage.failpoints import failpoint

LOG = b"TENFLOG\n"
SEALED = b"TENFSEAL"
STATE = b"TENFSTAT"
FORMATS = {LOG: 2, SEALED: 1, STATE: 2}
"""The one format of each kind that this program reads and writes. Log 2: configurations instead of voters; state 2: headers
with the replica's id."""

_LAYOUT = struct.Struct("<8sI33p33p65p")
_CHECK = struct.Struct("<I")
BYTES = _LAYOUT.size + _CHECK.size


class ForeignFile(TenfoldError):
    """A file of another format, cluster or node. Nothing was changed."""


class DamagedIdentity(StorageFailed):
    """The identity at the head of a file cannot be read."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`cluster_id` up to 32 bytes, `node` up to 32 and `boot_id` up to 64 characters of ASCII."""

    cluster_id: bytes
    node: str
    boot_id: str = ""

    def __post_init__(self) -> None:
        assert len(self.cluster_id) <= 32 and len(self.node) <= 32 and len(self.boot_id) <= 64, f"{self}: too long"

    def encode(self, kind: bytes) -> bytes:
        head = _LAYOUT.pack(kind, FORMATS[kind], self.cluster_id, self.node.encode(), self.boot_id.encode())
        return head + _CHECK.pack(crc32(head))


def read_identity(kind: bytes, data: bytes, path: str, expected: Identity) -> Identity:
    """The identity at the head of `data`. ForeignFile names the path, what was found and what was expected;
    DamagedIdentity. The boot id may differ: it tells whether the machine restarted since."""
    if (
        len(data) < BYTES
        or data[:8] != kind
        or crc32(data[: _LAYOUT.size]) != _CHECK.unpack_from(data, _LAYOUT.size)[0]
    ):
        raise DamagedIdentity(f"{path}: the identity at its head is damaged")
    version = int.from_bytes(data[8:12], "little")
    if version != FORMATS[kind]:
        age = "newer" if version > FORMATS[kind] else "older"
        raise ForeignFile(
            Code.INVALID_ARGUMENT,
            f"{path}: format {version} is {age} than {FORMATS[kind]}, the one this program reads",
            path=path,
            found=version,
            expected=FORMATS[kind],
        )
    _, _, cluster_id, node, boot_id = _LAYOUT.unpack_from(data)
    found = Identity(cluster_id, node.decode(), boot_id.decode())
    if found.cluster_id != expected.cluster_id:
        raise _foreign(path, "cluster", found.cluster_id.hex(), expected.cluster_id.hex())
    if found.node != expected.node:
        raise _foreign(path, "node", found.node, expected.node)
    return found


def _foreign(path: str, what: str, found: str, expected: str) -> ForeignFile:
    message = f"{path}: belongs to {what} {found!r}, not to {expected!r}"
    return ForeignFile(Code.WRONG_CLUSTER, message, path=path, found=found, expected=expected)


class Sealed:
    """One small value, replaced whole and durably. It lies in two files, of which one may rot: the other mends it."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._copies = (path, f"{path}.twin")

    def read(self, identity: Identity) -> bytes | None:
        """The body; None where there is no file. ForeignFile; StorageFailed when no copy is whole.

        A copy that is damaged, gone or older is made anew, without a sync: the other one is durable."""
        found: dict[str, bytes] = {}
        damage: StorageFailed | None = None
        for path in self._copies:
            try:
                if self._disk.exists(path):
                    found[path] = self._read_copy(path, identity)
            except StorageFailed as error:
                damage = error
        if not found:
            if damage is not None:
                raise damage
            return None
        body = next(iter(found.values()))  # they are written in this order
        for path in self._copies:
            if found.get(path) != body:
                with suppress(StorageFailed):
                    self._create_copy(path, identity, body).close()
                    self._disk.rename(f"{path}.tmp", path)
        return body

    def _read_copy(self, path: str, identity: Identity) -> bytes:
        file = self._disk.open(path)
        try:
            data = file.read(0, file.size())
        finally:
            file.close()
        read_identity(SEALED, data, path, identity)
        body = data[BYTES + _CHECK.size :]
        if len(data) < BYTES + _CHECK.size or crc32(body) != _CHECK.unpack_from(data, BYTES)[0]:
            raise StorageFailed(f"{path}: damaged")
        return body

    async def write(self, identity: Identity, body: bytes) -> None:
        """Durable when it returns; after a crash each copy holds the old or the new body, never a mixture."""
        for path in self._copies:
            file = self._create_copy(path, identity, body)
            try:
                await file.sync()
            finally:
                file.close()
            failpoint("sealed.written")
            self._disk.rename(f"{path}.tmp", path)
            failpoint("sealed.renamed")
        self._disk.sync_directory(self._path.rpartition("/")[0])

    def _create_copy(self, path: str, identity: Identity, body: bytes) -> File:
        """Under a temporary name."""
        temporary = f"{path}.tmp"
        if self._disk.exists(temporary):
            self._disk.remove(temporary)
        file = self._disk.create(temporary)
        try:
            file.append([identity.encode(SEALED), _CHECK.pack(crc32(body)), body])
        except BaseException:
            file.close()
            raise
        return file
