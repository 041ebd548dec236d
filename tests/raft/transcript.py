"""Transcripts: a text of commands, and below each what the cluster did. After etcd's interaction tests.

A line that starts with "> " is a command, one with "#" a comment; the rest is the trace, which a rewrite replaces.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.raft.configuration import Configuration
from cluster.raft.messages import MessageKind
from tests.raft.network import Cluster, Replica


class Transcript:
    def __init__(self) -> None:
        self.cluster = Cluster(3)
        self.trace: list[str] = []

    def run(self, text: str) -> str:
        """The text with the trace as it is now."""
        result: list[str] = []
        for line in text.splitlines():
            if line.startswith("#") or (not line and result and result[-1].startswith("#")):
                if line and result and result[-1] and not result[-1].startswith("#"):
                    result.append("")
                result.append(line)
            elif line.startswith("> "):
                if result and not result[-1].startswith("#") and result[-1]:
                    result.append("")
                result.append(line)
                result += self._command(line[2:].split())
        return "\n".join(result) + "\n"

    def _command(self, words: list[str]) -> list[str]:
        name, *arguments = words
        commands: dict[str, Callable[..., None]] = {
            "cluster": self._cluster,
            "elect": self._elect,
            "campaign": lambda replica, *force: self._one(replica).core.campaign(force=bool(force)),
            "tick": lambda count, *only: self.cluster.tick(int(count), only=[int(each) for each in only]),
            "begin": lambda replica: self._happened(self._one(replica).begin()),
            "finish": lambda replica: self._happened(self._one(replica).finish()),
            "round": lambda: self._happened(self.cluster.work()),
            "settle": self.cluster.settle,
            "propose": lambda replica, *texts: self._taken(self._one(replica).propose(*(t.encode() for t in texts))),
            "read": lambda replica: self._taken(self._one(replica).read() is not None),
            "lease-read": lambda replica: self.trace.append(f"lease: {self._one(replica).core.lease_read_index()}"),
            "transfer": lambda replica, target: self._one(replica).core.transfer_leadership(int(target)),
            "wake": lambda replica: self._one(replica).core.wake(),
            "join": lambda: self.trace.append(f"replica {self.cluster.join()}"),
            "reconfigure": self._reconfigure,
            "retire": lambda replica: self.cluster.retire(int(replica)),
            "crash": lambda replica, *kept: self._one(replica).crash(*(int(each) for each in kept)),
            "start": lambda replica: self._one(replica).start(),
            "compact": lambda replica, index: self._one(replica).compact(int(index)),
            "isolate": lambda replica: self.cluster.isolate(int(replica)),
            "cut": lambda sender, receiver: self.cluster.cut.add((int(sender), int(receiver))),
            "lose": self._lose,
            "heal": self.cluster.heal,
            "promises-expire": self.cluster.expire_promises,
            "status": self._status,
        }
        self.trace.clear()
        self.cluster.trace = self.trace
        commands[name](*arguments)
        self.cluster.check()
        return list(self.trace)

    def _one(self, replica: str) -> Replica:
        return self.cluster.replicas[int(replica)]

    def _elect(self, replica: str) -> None:
        """Without a trace: there are transcripts of elections."""
        self.cluster.trace = None
        self.cluster.elect(int(replica))

    def _happened(self, done: bool) -> None:
        if not done:
            self.trace.append("nothing")

    def _taken(self, taken: bool) -> None:
        if not taken:
            self.trace.append("refused: not the leader, or handing over")

    def _cluster(self, voters: str, *settings: str) -> None:
        pairs = [each.split("=") for each in settings]
        self.cluster = Cluster(int(voters), **{name: int(value) for name, value in pairs})

    def _reconfigure(self, replica: str, *lists: str) -> None:
        """`voters=1,2,4 learners=5 outgoing=1,2,3 version=2`; what is not named is empty, but the voters stay."""
        core = self._one(replica).core
        named = dict(each.split("=") for each in lists)
        ids = {
            name: tuple(int(each) for each in text.split(",") if each)
            for name, text in named.items()
            if name != "version"
        }
        version = int(named.get("version", core.configuration.version))
        self._one(replica).reconfigure(Configuration(**({"voters": core.configuration.voters} | ids), version=version))

    def _lose(self, *kinds: str) -> None:
        lost = [MessageKind[kind] for kind in kinds]
        self.cluster.lose = lambda message: message.kind in lost

    def _status(self) -> None:
        for each in self.cluster.replicas.values():
            core = each.core
            if not each.up:
                self.trace.append(f"{each.replica} down")
                continue
            line = f"{each.replica} {core.role.value} term={core.term} leader={core.leader} {core.log!r}"
            line += f" commit={core.commit_index} applied={core.applied_index}" + (" silent" if core.silent else "")
            if core.configuration != self.cluster.configuration:
                line += f" {core.configuration}"
            self.trace.append(line)
            self.trace += [f"    {peer}: {core.progress[peer]!r}" for peer in core.peers if core.progress]
