"""How positions become rotations: the base frequencies, and what long-context training divided them by."""

from dataclasses import dataclass
from math import pi

import msgspec

SUPPORTED = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Rope:
    """Frequency i is theta ** (-2i / H) / divisors[i], where H widths of a head turn.

    H / 2 divisors, or none for 1.
    """

    theta: float
    divisors: tuple[float, ...] = ()


class RopeConfig(msgspec.Struct, frozen=True):
    """The rotary part of a checkpoint's config, in the spelling of any transformers release."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @property
    def kind(self) -> str:
        """The scaling rule by its name."""
        return self.rope_type or self.type or "default"


def rope(config: RopeConfig, theta: float, rotary_dim: int) -> Rope:
    """Work out the divisors that `config` asks for.

    Raises:
        ValueError: the rule is none of `SUPPORTED`.
    """
    match config.kind:
        case "default":
            return Rope(theta)
        case "linear":
            return Rope(theta, (config.factor,) * (rotary_dim // 2))
        case "llama3":
            return Rope(theta, _llama3(config, theta, rotary_dim))
        case other:
            raise ValueError(f"rope type {other!r} is not supported; supported: {', '.join(SUPPORTED)}")


def _llama3(config: RopeConfig, theta: float, rotary_dim: int) -> tuple[float, ...]:
    """Slow waves are stretched by `factor`, fast ones kept, those between are blended.

    Source: transformers, `_compute_llama3_parameters`.
    """
    low, high = config.low_freq_factor, config.high_freq_factor

    def divisor(i: int) -> float:
        wavelength: float = 2 * pi * theta ** (2 * i / rotary_dim)
        turns = config.original_max_position_embeddings / wavelength
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1.0 / (keep + (1.0 - keep) / config.factor)

    return tuple(divisor(i) for i in range(rotary_dim // 2))
