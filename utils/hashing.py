"""Randomness as a function of (seed, epoch, image): hashes, and the salts of every stream of draws."""

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1

# Salts of the seed: what they draw is independent of the crops, which are drawn with the seed itself. Every recorded
# run depends on these numbers. Images in memory and images on disk are never in one run, so some are used by both.
POLICY_STREAM, HOLE_STREAM, JITTER_IN_MEMORY_STREAM = 1, 2, 3
MIRROR_ON_DISK_STREAM, JITTER_ON_DISK_STREAM = 3, 4
SAMPLING_STREAM = 3  # mixed with the epoch alone, where the others are mixed with each image too


def mix64(value: int) -> int:
    """Scramble a 64-bit integer (the finaliser of SplitMix64; Steele et al., OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def signed64(value: int) -> int:
    """Reinterpret an unsigned 64-bit integer as the signed one of the same bits, which is what tensors hold."""
    return value - (1 << 64) if value >= 1 << 63 else value


def hash_ids(ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Return one well-mixed integer in [0, 2**62) for every id (B,) int64, a function of (seed, epoch, id) alone."""
    value = ids + signed64(mix64(mix64(seed & MASK64) ^ epoch))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        logical_shift = (value >> shift) & ((1 << (64 - shift)) - 1)
        value = (value ^ logical_shift) * signed64(factor)
    return (value ^ ((value >> 31) & ((1 << 33) - 1))) & ((1 << 62) - 1)


def split_draws(draws: Tensor, *bases: int) -> list[Tensor]:
    """Split integers (N,) >= 0 into independent ones below each of `bases`, whose product must be far below 2**62."""
    parts = []
    for base in bases:
        parts.append(draws % base)
        draws = draws // base
    return parts


def stream_seed(seed: int, stream: int) -> int:
    """Return the seed of a further stream of draws, independent of those of `seed` and of its other streams."""
    return mix64(mix64(stream) ^ (seed & MASK64))


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the shuffled positions 0..count-1 (int64, CPU) of one epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(mix64(mix64(seed & MASK64) ^ epoch))
    return torch.randperm(count, generator=generator)
