"""The fused blocks in the form that other runtimes run fastest."""

from torch import Tensor, nn

from backbones.fast.fused_block import FusedBlock


class ConvBlock(nn.Module):
    """A fused block without a row norm whose two products are 1 x 1 convolutions.

    Runtimes keep convolutions in their own layout; between matrix products they would transpose every map twice.

    Args:
        block: Its weights are shared.
    """

    def __init__(self, block: FusedBlock) -> None:
        super().__init__()
        self.mixer, self.act = block.mixer, block.act
        self.fc1, self.fc2 = _convolution(block.fc1), _convolution(block.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return x + self.fc2(self.act(self.fc1(self.mixer(x))))


def _convolution(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
    conv.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
    return conv


def use_convolutions(model: nn.Module) -> None:
    """Replace the blocks of a fused model that have no row norm, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FusedBlock) and isinstance(child.row_norm, nn.Identity):
                setattr(module, name, ConvBlock(child))
