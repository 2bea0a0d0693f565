"""Benchmarks: `python -m benchmarks.speed.throughput` and its neighbours; README.md here says what each shows."""
