"""Benchmarks: `python -m benchmarks.speed` and its neighbours; README.md here says what each shows."""
