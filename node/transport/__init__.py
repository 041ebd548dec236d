"""How nodes hear clients and each other."""

import cluster.wire  # noqa: F401 - quiets grpc before anything here imports it
