"""`make cluster` says in a line what it needs; what it tries is in tests/cluster, and takes minutes."""

import shutil

import pytest

from cluster import hosts
from cluster.__main__ import main


def test_missing_programs_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"pdsh", "/usr/sbin/sshd"}
    monkeypatch.setattr(shutil, "which", lambda name: None if name in absent else name)
    line = "openssh-server, pdsh missing: apt-get install openssh-server pdsh\n"
    assert main([]) == 2
    assert capsys.readouterr() == ("", f"error: {line}")
    assert main(["--if-possible"]) == 0
    assert capsys.readouterr() == (f"cluster: skipped, {line}", "")


def test_a_machine_without_namespaces_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(hosts, "_namespaces", lambda *command: ["sh", "-c", "echo not permitted >&2; exit 1"])
    assert hosts.missing_programs() == "no namespaces may be made here (root is needed): not permitted"
