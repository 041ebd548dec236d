"""The registry: a capability is a module in `node/services` that defines `Service`. The folder listing is the list."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import node.services as services_package
from cluster.limits import Limits


def discover(limits: Limits) -> dict[str, Any]:
    """Capability name -> its service, for every module of the folder that defines one, in the order of the names."""
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(services_package.__path__), key=lambda each: each.name):
        module = importlib.import_module(f"{services_package.__name__}.{info.name}")
        make = getattr(module, "Service", None)
        if make is not None:
            service = make(limits)
            assert service.name == info.name, f"{info.name} names itself {service.name}"
            found[service.name] = service
    return found
