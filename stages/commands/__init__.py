"""What the four commands do once their command line is settled. Their scripts alone need no PyTorch."""
