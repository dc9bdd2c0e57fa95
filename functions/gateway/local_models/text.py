"""Tokens as text, piece by piece: characters are never cut, and nothing of a stop sequence gets out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 6


class TokenText:
    """Decodes tokens as they come; the pieces add up to what decoding all of them at once gives.

    A tokenizer of bytes may need several tokens for one character: until it is whole, its bytes decode to a
    replacement character, which is held back. One that stays (the bytes were no UTF-8, or the answer ends in
    the middle of a character) is told in the end. Only the latest tokens are decoded anew, not the whole
    answer, with those before them, as a tokenizer may drop the space before the first of what it decodes.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._settled = len(self._window)
        self._told = len(decode(self._window))

    def feed(self, token: int) -> str:
        """Return the text that is certain now and was not before."""
        self._window.append(token)
        text = self._decode(self._window)
        open_end = text.endswith(REPLACEMENT)
        piece = self._tell(text[:-1] if open_end else text)
        if not open_end:
            del self._window[: self._settled]
            self._settled = len(self._window)
            self._told = len(self._decode(self._window))
        return piece

    def close(self) -> str:
        """Return what was held back."""
        return self._tell(self._decode(self._window))

    def _tell(self, certain: str) -> str:
        piece = certain[self._told :]
        self._told = max(self._told, len(certain))
        return piece


class StopScanner:
    """Lets text through up to the first of some stop sequences, wherever the pieces are cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found = False
        """Whether a stop sequence has come. What is fed after it is dropped."""

    def feed(self, text: str) -> str:
        """Return the text that can't be the beginning of a stop sequence any more."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        places = [(self._held.find(stop), len(stop)) for stop in self._stops]
        # The one that is complete first; of those that are so at once, the longest.
        ends = [(place + length, place) for place, length in places if place >= 0]
        if ends:
            self.found = True
            _, place = min(ends)
            return self._take(place)
        return self._take(len(self._held) - self._beginning())

    def close(self) -> str:
        """Return what was held back in vain."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        return piece

    def _beginning(self) -> int:
        """Return how many characters at the end may be the beginning of a stop sequence."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
