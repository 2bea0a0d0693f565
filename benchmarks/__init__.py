"""Benchmarks: `python -m benchmarks.speed.throughput` and its neighbours; README.md here lists them."""
