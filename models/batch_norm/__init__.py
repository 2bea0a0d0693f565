"""Batch norm: of a batch that lies on many processes, and folded into convolutions where nothing is trained."""
