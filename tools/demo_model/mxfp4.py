"""MXFP4: 32 values along the input dimension share a power of two; each is one of 0, 0.5, 1, 1.5, 2, 3,
4, 6 times it, with a sign. Of the two powers that fit the largest value, the one with the smaller
error is taken. `rounded` and `encode` round alike."""

import torch

BLOCK = 32
_LIMIT = 6.0


def _to_e2m1(scaled):
    """The nearest magnitudes, float32; ties to even multiples of the step."""
    size = scaled.abs().clamp(max=_LIMIT)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.round(size / step) * step


def _exponents(blocks, dim):
    largest = blocks.abs().amax(dim=dim, keepdim=True).clamp_min(2.0**-100)
    return torch.floor(torch.log2(largest)) - 2


def _choose(blocks, dim):
    """(exponent, magnitudes)."""
    low = _exponents(blocks, dim)
    errors, magnitudes = [], []
    for exponent in (low, low + 1):
        scale = torch.exp2(exponent)
        size = _to_e2m1(blocks / scale)
        errors.append(((size * scale - blocks.abs()) ** 2).sum(dim=dim, keepdim=True))
        magnitudes.append(size)
    take = errors[1] < errors[0]
    return torch.where(take, low + 1, low), torch.where(take, magnitudes[1], magnitudes[0])


def rounded(weights):
    """[experts, inputs, outputs] float32 -> the values that MXFP4 keeps of it."""
    experts, inputs, outputs = weights.shape
    blocks = weights.view(experts, inputs // BLOCK, BLOCK, outputs)
    exponent, size = _choose(blocks, 2)
    return (torch.copysign(size, blocks) * torch.exp2(exponent)).view(weights.shape)


def encode(weights):
    """[experts, outputs, inputs] float32 -> blocks [.., inputs / 32, 16] and scales [.., inputs / 32]."""
    experts, outputs, inputs = weights.shape
    blocks = weights.reshape(experts, outputs, inputs // BLOCK, BLOCK)
    exponent, size = _choose(blocks, 3)
    values = torch.tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
    codes = torch.bucketize(size.contiguous(), values).to(torch.uint8)
    codes |= torch.signbit(blocks).to(torch.uint8) << 3
    packed = codes[..., 0::2] | codes[..., 1::2] << 4  # low nibble first
    return packed.contiguous(), (exponent.squeeze(-1) + 127).to(torch.uint8).contiguous()
