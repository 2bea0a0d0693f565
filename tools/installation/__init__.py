"""The project as one package: for pip, for torch.hub, and its one command."""
