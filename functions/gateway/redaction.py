"""What looks like a secret never leaves: not in a log line, not in an error that a client sees."""

from __future__ import annotations

import re

REDACTED = "[redacted]"

# Each alternative keeps a lead that says what kind of secret stood there. The lengths are those below which
# a match is more likely a word than a key; a key's display prefix (sk_ and six characters) stays readable.
# No alternative matches a quote or a backslash, so that JSON text stays JSON.
# Each begins where a word does, or after an escape: in JSON text a line break before it reads \n.
_SECRET = re.compile(
    r"""(?x) (?:\b|(?<=\\[nrtbf]))
    (?:
      (?P<bearer>(?i:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{16,}
    | (?P<url>[a-z][a-z0-9+.-]{1,20}://)[^\s/@:"'\\]{0,200}:[^\s/@"'\\]{1,400}@    # credentials in a URL
    | (?P<supabase>sb_(?:secret|publishable)_)[A-Za-z0-9_-]{8,}
    | (?P<sk>(?:sk|rk|pk|gsk|xai|whsec|hf|r8|pplx|csk|nvapi)[_-])[A-Za-z0-9_-]{12,}
    | (?P<google>AIza)[A-Za-z0-9_-]{20,}
    | (?P<aws>A(?:KIA|SIA))[A-Z0-9]{16}
    | (?P<jwt>eyJ)[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+){0,4}
    | (?P<sealed>v1\.[A-Za-z0-9_-]{1,64}\.)[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]{16,}
    )
    | (?P<query>[?&](?i:key|api[_-]?key|token|access_token|password|secret|signature)=)[^&\s"'\#\\]{4,}
    """
)


def redact(text: str) -> str:
    """Return `text` with everything that looks like a secret replaced, its lead kept."""
    return _SECRET.sub(_replace, text)


def _replace(match: re.Match[str]) -> str:
    lead = match.group(match.lastgroup) if match.lastgroup else ""
    return f"{lead}{REDACTED}"
