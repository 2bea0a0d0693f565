"""What the commands share: an opened run, its data, the checkpoint it starts from, prediction."""
