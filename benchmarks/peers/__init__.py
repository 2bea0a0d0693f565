"""What others would run: the released code of LOS as a plain loop, other libraries' loops, and ours beside them."""
