"""Every service and method of the protocol, found through the descriptors in `proto.gen`.

One table serves both ends: a channel reads path and serialisers from it, a server its handlers. A new proto file is
found by its presence; nothing is registered, and no stub code is generated.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import proto.gen


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `request` and `reply` are the generated message classes."""

    service: str  # "Node"
    name: str  # "WatchMap"
    service_full_name: str  # "tenfold.v1.Node"
    request: Any
    reply: Any
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        return f"/{self.service_full_name}/{self.name}"

    @property
    def attribute(self) -> str:
        """The handler's name for it: "watch_map"."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name).lower()


def discover() -> Mapping[tuple[str, str], Method]:
    """All methods by (service, method). AssertionError where two files define one service name."""
    table: dict[tuple[str, str], Method] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(proto.gen.__path__) if m.name.endswith("_pb2")):
        descriptor = importlib.import_module(f"proto.gen.{module}").DESCRIPTOR
        for service in descriptor.services_by_name.values():
            for each in service.methods:
                key = (service.name, each.name)
                assert key not in table, f"{service.full_name}/{each.name} is defined twice"
                table[key] = Method(
                    service=service.name,
                    name=each.name,
                    service_full_name=service.full_name,
                    request=each.input_type._concrete_class,
                    reply=each.output_type._concrete_class,
                    client_streaming=each.client_streaming,
                    server_streaming=each.server_streaming,
                )
    return MappingProxyType(table)


METHODS: Mapping[tuple[str, str], Method] = discover()


def method(service: str, name: str) -> Method:
    """The method of that name; KeyError names what is missing."""
    try:
        return METHODS[service, name]
    except KeyError:
        raise KeyError(f"no method {service}/{name} in the protocol") from None


def methods_of(service: str) -> list[Method]:
    """The methods of one service, by name; KeyError where there is no such service."""
    found = [each for (owner, _), each in sorted(METHODS.items()) if owner == service]
    if not found:
        raise KeyError(f"no service {service} in the protocol")
    return found
