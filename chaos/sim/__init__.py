"""A whole cluster in one deterministic process: virtual time, every fault drawn from a seed, oracles that watch."""
