"""The loops: epochs of training, fitting with checkpoints, many heads at once, frozen features."""
