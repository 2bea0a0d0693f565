"""What `benchmarks.speed.scaling` measures, and how it is shown."""
