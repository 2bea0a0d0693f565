"""Ways to re-train a classifier: one row a method, classifiers that are computed, the linear probe."""
