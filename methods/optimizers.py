"""PyTorch's optimisers without its compiler.

Some methods of `torch.optim.Optimizer` are wrapped so that compiled code calls them as they are. The wrapper imports
the compiler at the first call, which takes as long as importing PyTorch. Nothing here compiles an optimiser, so these
classes have the methods without the wrapper; what they compute is the same.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


class Eager(Optimizer):
    """The base of optimisers that are never compiled; it stands before PyTorch's class."""

    add_param_group: Any = inspect.unwrap(Optimizer.add_param_group)
    zero_grad: Any = inspect.unwrap(Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(Optimizer.load_state_dict)


class SGD(Eager, torch.optim.SGD):
    """`torch.optim.SGD`, whose steps are never differentiated."""

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class LBFGS(Eager, torch.optim.LBFGS):
    """`torch.optim.LBFGS`."""
