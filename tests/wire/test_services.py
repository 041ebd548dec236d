"""The table of methods is what the descriptors say."""

from __future__ import annotations

import pytest

from cluster.wire.services import METHODS, method, methods_of
from proto.gen import meta_pb2, node_pb2, peer_pb2


def test_path_and_messages_come_from_the_descriptors() -> None:
    call = method("Node", "Call")
    assert call.path == "/tenfold.v1.Node/Call"
    assert (call.request, call.reply) == (node_pb2.CallRequest, node_pb2.CallReply)
    assert method("Node", "WatchMap").reply is meta_pb2.ShardMap


def test_streaming_sides() -> None:
    sides = {name: (m.client_streaming, m.server_streaming) for (_, name), m in METHODS.items()}
    assert sides["Call"] == (False, False)
    assert sides["Watch"] == (False, True)
    assert sides["Snapshot"] == (True, True)
    assert sides["Frames"] == (True, True)


def test_handler_names_are_snake_case() -> None:
    names = [m.attribute for m in methods_of("Node")]
    assert names == sorted(names) and {"call", "watch_map", "driver_status"} <= set(names)


def test_services_of_every_file_are_found() -> None:
    declared = {
        (service.name, each.name)
        for module in (node_pb2, peer_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for each in service.methods
    }
    assert declared <= set(METHODS)


def test_unknown_names_are_named() -> None:
    with pytest.raises(KeyError, match="Node/Fly"):
        method("Node", "Fly")
    with pytest.raises(KeyError, match="Bird"):
        methods_of("Bird")
