"""Class shares where a model is used: read from a file, put into its probabilities, and measured."""
