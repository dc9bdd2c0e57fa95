"""How many tokens a call took, in classes that never overlap, and how many images it made."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens by class, each counted in exactly one of them, so that each can have its own price.

    None means that the provider did not tell, which is not zero: an untold class is not charged and not
    shown. Two are exceptions to "disjoint", and left out of `total`. `reasoning` is the part of `output` that
    was thought and not said, kept for information. `cache_write_1h` is the part of `cache_write` that was
    written for an hour, and is dearer than the rest.

    Raises ValueError where a class is negative, or a part exceeds its whole.
    """

    input: int = 0
    """Text that was sent and neither read from nor written to a cache."""
    output: int = 0
    """Text that was generated, reasoning included."""
    cached_input: int | None = None
    cache_write: int | None = None
    audio_input: int | None = None
    image_input: int | None = None
    audio_output: int | None = None
    image_output: int | None = None
    reasoning: int | None = None
    cache_write_1h: int | None = None
    images: int | None = None
    """How many images were made: no tokens, and in no total."""

    def __post_init__(self) -> None:
        for field in fields(self):
            count = getattr(self, field.name)
            if count is None and field.name not in {"input", "output"}:
                continue
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"{field.name} must be a whole number, not {count!r}")
        if self.reasoning is not None and self.reasoning > self.output:
            raise ValueError(f"reasoning ({self.reasoning}) is a part of output ({self.output})")
        if self.cache_write_1h is not None and self.cache_write_1h > (self.cache_write or 0):
            raise ValueError(f"cache_write_1h ({self.cache_write_1h}) is a part of cache_write")

    @property
    def total_input(self) -> int:
        """All tokens that were sent: what OpenAI calls prompt_tokens."""
        return self.input + sum(
            count or 0 for count in (self.cached_input, self.cache_write, self.audio_input, self.image_input)
        )

    @property
    def total_output(self) -> int:
        """All tokens that were generated: what OpenAI calls completion_tokens."""
        return self.output + (self.audio_output or 0) + (self.image_output or 0)

    @property
    def total(self) -> int:
        """The sum of the disjoint classes."""
        return self.total_input + self.total_output

    def as_dict(self) -> dict[str, int]:
        """Return `input` and `output`, and of the other classes those that the provider told."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: count for name, count in counts.items() if count is not None}
