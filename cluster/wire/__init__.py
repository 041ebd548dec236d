"""Connections to nodes, on grpc.

grpc's C core writes to stderr on its own: a line per fork beside it (we never use grpc after a fork), per GOAWAY, per
taken port. All of that reaches us as exceptions, so it is told to be quiet before it is first imported; whoever debugs
it sets the two variables otherwise.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
