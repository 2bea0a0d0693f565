"""What `benchmarks.robustness.kill_and_resume` is made of: commands, children, kills, other disturbances, tables."""
