"""Long jobs: the papers' runs under a time limit, and the choice of the digits' stage-2 values."""
