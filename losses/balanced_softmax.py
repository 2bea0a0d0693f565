"""Balanced softmax: the softmax that is right for a balanced test set when training on an imbalanced one."""
