"""The checks of this host: real where they can be, and a failed one makes the command fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.cli.output import run_app
from cluster.local import doctor
from tenfold import compose


def test_a_host_that_runs_these_tests_can_run_a_cluster(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor.examine(tmp_path / "not" / "yet")}
    for name in ("python", "packages", "ports", "faults T0: signals"):
        assert found[name].state == doctor.OK, found[name]
    assert {check.state for check in found.values()} <= {doctor.OK, doctor.WARN, doctor.FAIL, doctor.ABSENT}
    assert "median" in found["fsync"].detail and str(tmp_path) in found["disk space"].detail
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["doctor", "--json", "--dir", str(tmp_path)]
    assert run_app(compose(arguments), arguments, "tenfold") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "no_such_module")
    assert run_app(compose(arguments), arguments, "tenfold") == 1
    written = capsys.readouterr()
    packages = next(check for check in json.loads(written.out)["checks"] if check["name"] == "packages")
    assert packages["state"] == "fail" and "no_such_module" in packages["detail"]
    assert written.err.splitlines()[-1] == "error: a cluster will not run well here: packages"


def test_a_place_that_cannot_be_written_fails_the_check_not_the_doctor() -> None:
    found = {check.name: check for check in doctor.examine(Path("/proc"))}
    assert found["fsync"].state == doctor.FAIL
