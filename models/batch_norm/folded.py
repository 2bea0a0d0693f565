"""A backbone for evaluation alone: batch norm, which is linear there, folded into the convolution before it.

The output is the same but for rounding, and every activation is read and written once less. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
"""

from collections.abc import Callable

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.network import Network
from models.resnet import NarrowProjection

CONVOLUTIONS = (nn.Conv2d, NarrowProjection)


class _Tracer(fx.Tracer):
    """Follows a network down to its convolutions, our own as PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in CONVOLUTIONS or super().is_leaf_module(m, module_qualified_name)


class _Backbone(nn.Module):
    """The `features` of a network as a module's forward pass, which is what torch.fx follows."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def folded_features(network: Network) -> Callable[[Tensor], Tensor]:
    """Return what maps normalised images (B, 3, H, W) to the features (B, d) of a network in evaluation mode, with each
    batch norm folded into its convolution.

    The network is not changed. What is returned has the convolutions of now: it knows nothing of weights and statistics
    that change later. Layers without batch norm are shared. A batch norm stays where its input comes from no
    convolution, or where another layer reads that input too; so do all in a network that torch.fx cannot follow.
    """
    network.eval()
    if not any(_is_foldable(module) for module in network.modules()):
        return network.features
    try:
        backbone = _Backbone(network)
        traced = fx.GraphModule(backbone, _Tracer().trace(backbone))
    except (fx.proxy.TraceError, NotImplementedError, RuntimeError, TypeError, ValueError):  # its code asks for values
        return network.features
    layers = dict(traced.named_modules())
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not _is_foldable(layers[str(node.target)]):
            continue
        before = node.args[0]
        assert isinstance(before, fx.Node)
        name = str(before.target)
        followed = before.op == "call_module" and type(layers[name]) in CONVOLUTIONS and len(before.users) == 1
        if followed and calls.count(name) == 1:
            traced.set_submodule(name, fuse_conv_bn_eval(layers[name], layers[str(node.target)]))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced.eval()


def _is_foldable(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm over images that evaluates by its running statistics."""
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
