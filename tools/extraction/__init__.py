"""Features of a whole data set, computed batch by batch and kept as they come."""
