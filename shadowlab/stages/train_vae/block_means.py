"""A start for an autoencoder of colours: latents that are the mean colours of blocks of 8 x 8 pixels.

Group normalisation takes the level out of what it sees, so a fresh autoencoder needs long to tell a red ground from a
green one. Here three channels carry red, green and blue through all residual branches unchanged, and before each last
normalisation two constants of opposite sign stand next to each of them: they set the deviation of their group, so that
the normalisation hardly depends on the picture, and their mean gives the level back.

Legend: n channels of a layer, in 4 groups.
"""

from typing import Any

import torch
from torch import Tensor, nn

_GROUPS, _COLOURS = 4, 3
_KEPT = 3  # channels of a group that are set: a colour, and places for two constants
_CONSTANT = 5.0  # large against colours in [-1, 1]
_OFFSET = 8.0  # beyond the constants, where SiLU is a straight line
_SMOOTH = torch.tensor([1.0, 4.0, 1.0]) / 6  # of what is enlarged, along rows and along columns
_QUIET = -6.0  # log variance of the posterior


@torch.no_grad()
def start_as_block_means(model: Any) -> None:
    """Set the weights of a small `AutoencoderKL` (4 groups, no attention) so; all other channels stay as drawn."""
    encoder, decoder = model.encoder, model.decoder
    _carry_in(encoder.conv_in)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            _pass(resnet)
        for sampler in block.downsamplers or ():
            _filter(sampler.conv, torch.tensor([0.5, 0.5, 0.0]))
    _through_middle_and_out(encoder.mid_block, encoder.mid_block.resnets[-1], encoder)
    encoder.conv_out.weight[4:] = 0
    encoder.conv_out.bias[4:] = _QUIET
    for mixing in (model.quant_conv, model.post_quant_conv):
        mixing.weight.copy_(torch.eye(len(mixing.weight))[:, :, None, None])
        mixing.bias.zero_()
    _carry_in(decoder.conv_in)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            _pass(resnet)
        for sampler in block.upsamplers or ():
            _filter(sampler.conv, _SMOOTH)
    _through_middle_and_out(decoder.mid_block, decoder.up_blocks[-1].resnets[-1], decoder)


def _place(channels: int, colour: int) -> int:
    """The channel of n that carries a colour: the first of a group of its own."""
    return colour * (channels // _GROUPS)


def _carry_in(conv: nn.Conv2d) -> None:
    for colour in range(_COLOURS):
        row = _place(conv.out_channels, colour)
        conv.weight[row : row + _KEPT] = 0
        conv.weight[row, colour, 1, 1] = 1
        _bias(conv)[row : row + _KEPT] = 0


def _pass(resnet: Any) -> None:
    """Colours go by the residual branch, and change channel where the layer changes its width."""
    for colour in range(_COLOURS):
        row = _place(resnet.out_channels, colour)
        resnet.conv2.weight[row : row + _KEPT] = 0
        resnet.conv2.bias[row : row + _KEPT] = 0
        if resnet.conv_shortcut is not None:
            resnet.conv_shortcut.weight[row : row + _KEPT] = 0
            resnet.conv_shortcut.weight[row, _place(resnet.in_channels, colour)] = 1
            resnet.conv_shortcut.bias[row : row + _KEPT] = 0


def _filter(conv: nn.Conv2d, taps: Tensor) -> None:
    """taps: (3,), along rows and along columns."""
    for colour in range(_COLOURS):
        row = _place(conv.out_channels, colour)
        conv.weight[row : row + _KEPT] = 0
        conv.weight[row, row] = taps[:, None] * taps[None]
        _bias(conv)[row : row + _KEPT] = 0


def _through_middle_and_out(middle: Any, last: Any, half: Any) -> None:
    """last: the residual block before the last normalisation of `half`, encoder or decoder."""
    for resnet in middle.resnets:
        _pass(resnet)
    norm, out = half.conv_norm_out, half.conv_out
    width = norm.num_channels // _GROUPS
    for colour in range(_COLOURS):
        row = _place(norm.num_channels, colour)
        for number, sign in ((1, 1.0), (2, -1.0)):
            last.conv2.bias[row + number] = sign * _CONSTANT
        norm.weight[row : row + _KEPT] = _CONSTANT * (2 / width) ** 0.5
        norm.bias[row : row + _KEPT] = _OFFSET
        out.weight[colour] = 0
        out.bias[colour] = 0
    for colour in range(_COLOURS):
        row = _place(norm.num_channels, colour)
        out.weight[colour, row, 1, 1] = 1
        out.weight[colour, row + 1 : row + _KEPT, 1, 1] = -0.5


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
