"""The real disk: gathered writes, what a full or failing disk does, where syncs run, and one process per directory."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ports import DiskFull, StorageFailed
from node.storage.disk import JOIN_BYTES_MAX, PIECES_MAX, DirectoryTaken, RealDisk, Syncer, boot_id


@pytest.fixture
def disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    disk = RealDisk(tmp_path)
    yield disk
    disk.close()


async def test_pieces_are_written_in_order_whatever_their_number_and_size(disk: RealDisk) -> None:
    small = [b"%d," % n for n in range(3 * PIECES_MAX + 7)]
    large = [os.urandom(1500) for _ in range(2 * PIECES_MAX)]
    assert sum(map(len, large)) > JOIN_BYTES_MAX
    file = disk.create("a")
    assert file.append(small) == len(b"".join(small))
    file.append(large)
    await file.sync()
    whole = b"".join(small + large)
    assert file.size() == len(whole) and file.read(0, len(whole) + 10) == whole
    assert file.read(5, 7) == whole[5:12] and file.read(len(whole), 5) == b""
    file.close()
    again = disk.open("a", writable=True)
    again.append([b"end"])
    assert again.read(len(whole), 10) == b"end"


async def test_short_writes_are_continued(disk: RealDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, pwrite = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, at: pwritev(fd, [b"".join(pieces)[:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:2], at))
    file = disk.create("a")
    file.append([b"hello", b" ", b"world"])
    assert file.append([b"!"]) == 12 and file.read(0, 20) == b"hello world!"


async def test_names(disk: RealDisk, tmp_path: Path) -> None:
    disk.make_directory("x/y")
    disk.create("x/y/b").close()
    disk.create("x/y/a").close()
    assert disk.list("x/y") == ["a", "b"] and disk.list("nowhere") == [] and disk.exists("x/y/a")
    with pytest.raises(FileExistsError):
        disk.create("x/y/a")
    with pytest.raises(FileNotFoundError):
        disk.open("x/y/c")
    disk.rename("x/y/a", "x/y/c")
    disk.remove("x/y/b")
    disk.sync_directory("x/y")
    assert disk.list("x/y") == ["c"]
    with pytest.raises(AssertionError, match="inside"):
        disk.open("../secret")
    with pytest.raises(StorageFailed, match="remove"):
        disk.remove("x/y/b")


async def test_truncate_cuts_and_the_next_append_follows(disk: RealDisk) -> None:
    file = disk.create("a")
    file.append([b"0123456789"])
    file.truncate(4)
    assert file.append([b"x"]) == 5
    await file.sync()
    assert file.read(0, 10) == b"0123x"
    with pytest.raises(AssertionError):
        file.truncate(6)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The size limit of a process gives the same short write and then an error as a full disk does."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            file = RealDisk(tmp_path).create("a")
            file.append([b"x" * 100])
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            try:
                file.append([b"y" * 9000])
            except DiskFull as error:
                assert str(tmp_path / "a") in str(error)
                assert file.size() == os.path.getsize(tmp_path / "a") == 100
                assert file.append([b"z" * 10]) == 110
                asyncio.run(file.sync())
                assert file.read(95, 100) == b"x" * 5 + b"z" * 10
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_failed_sync_poisons_the_file(disk: RealDisk, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Also for want of room: a sync that failed says nothing about what was written, so it is never a mere DiskFull."""
    file = disk.create("a")
    file.append([b"x"])

    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(StorageFailed) as failure:
            await file.sync()
        assert not isinstance(failure.value, DiskFull)
    for call in (lambda: file.append([b"y"]), lambda: file.read(0, 1), file.size, lambda: file.truncate(0)):
        with pytest.raises(StorageFailed, match="sync failed"):
            call()
    with pytest.raises(StorageFailed, match="sync failed"):
        await file.sync()
    file.close()


async def test_syncs_run_on_the_thread_when_the_disk_is_slow_and_fail_there_too(
    disk: RealDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = disk.create("a")
    disk.syncer.inline = False
    disk.syncer._thread_s.append(0.001)
    file.append([b"x"])
    async with asyncio.timeout(10):
        await file.sync()
    assert disk.syncer.counts == {"inline": 0, "thread": 1} and disk.last_sync_s > 0

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fails)
    async with asyncio.timeout(10):
        with pytest.raises(StorageFailed, match="broken"):
            await file.sync()


def test_where_a_sync_runs_follows_the_moving_median() -> None:
    syncer = Syncer()
    for _ in range(20):
        assert syncer.inline_next()
        syncer.observe(True, 0.0001)
    for _ in range(4):
        syncer.observe(True, 0.002)
    assert syncer.inline_next()
    syncer.observe(True, 0.002)
    assert not syncer.inline_next()
    syncs = probes = 0
    while not syncer.inline:
        inline = syncer.inline_next()
        syncs, probes = syncs + 1, probes + inline
        syncer.observe(inline, 0.0001 if inline else 0.0004)
    assert probes == 5, "five good probes of nine bring it back"
    assert syncs <= 5 * Syncer.PROBE_EVERY
    syncer.observe(True, Syncer.SLOW_S)
    assert not syncer.inline_next(), "one very slow sync is enough"
    for _ in range(10 * Syncer.PROBE_EVERY):
        assert not syncer.inline_next(), "no probe blocks the loop on a very slow disk"
        syncer.observe(False, 0.02)


def test_a_directory_is_one_processes(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    program = (
        "import sys; from pathlib import Path; from node.storage.disk import RealDisk; RealDisk(Path(sys.argv[1]))"
    )
    run = [sys.executable, "-c", program, str(tmp_path)]
    taken = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert taken.returncode == 1 and "DirectoryTaken" in taken.stderr and str(tmp_path) in taken.stderr
    with pytest.raises(DirectoryTaken):
        RealDisk(tmp_path)
    disk.close()
    RealDisk(tmp_path).close()


def test_the_boot_id_is_stable() -> None:
    assert boot_id() == boot_id()
