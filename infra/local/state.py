"""What the local stack keeps between its runs: ports and secrets, in DATA_DIR/stack.json (mode 0600)."""

from __future__ import annotations

import base64
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Self

from gateway import auth
from infra.local.postgrest import sign_token
from infra.local.processes import StackError, free_port

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "stack.json"
_MODE = 0o600
_TEN_YEARS = 10 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class StackState:
    """The stack's ports and secrets; its repr shows none. `master_keys` is key id → 32 bytes in base64."""

    postgres_port: int
    postgrest_port: int
    simulator_port: int
    postgres_password: str
    authenticator_password: str
    jwt_secret: str
    service_key: str
    master_keys: dict[str, str]
    simulator_key: str
    admin_key: str
    demo_key: str

    def __repr__(self) -> str:
        return f"StackState({self.postgres_port=}, {self.postgrest_port=}, {self.simulator_port=})"

    @classmethod
    def create(cls) -> Self:
        """Make fresh secrets and choose free ports."""
        jwt_secret = secrets.token_urlsafe(48)
        now = int(time.time())
        return cls(
            postgres_port=0,
            postgrest_port=0,
            simulator_port=0,
            postgres_password=secrets.token_urlsafe(24),
            authenticator_password=secrets.token_urlsafe(24),
            jwt_secret=jwt_secret,
            service_key=sign_token(
                jwt_secret, "service_role", iss="sluice-local", iat=now, exp=now + _TEN_YEARS
            ),
            master_keys={"local-1": base64.b64encode(secrets.token_bytes(32)).decode()},
            simulator_key=f"sk-simulator-{secrets.token_hex(16)}",
            admin_key=auth.new_key(),
            demo_key=auth.new_key(),
        )

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """Read what an earlier run kept; None when there was none. StackError when it can't be read."""
        path = data_dir / FILE_NAME
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: kept[field.name] for field in fields(cls)})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StackError(
                f"{path} can't be read: restore it, or remove {data_dir} to begin anew without its data"
            ) from error

    @classmethod
    def load(cls, data_dir: Path, *, avoid: int) -> Self:
        """Return the kept state, or a new one, with ports that are free now and are not `avoid`; keep it."""
        kept = cls.read(data_dir)
        if kept is None and (data_dir / "postgres").exists():
            raise StackError(
                f"{data_dir / FILE_NAME} is gone, and with it the database's password: restore it, "
                f"or remove {data_dir} to begin anew without its data"
            )
        state = cls.create() if kept is None else kept
        chosen = [avoid]
        for preferred in (state.postgres_port, state.postgrest_port, state.simulator_port):
            chosen.append(free_port(preferred or None, avoid=chosen))
        _, postgres_port, postgrest_port, simulator_port = chosen
        state = replace(
            state, postgres_port=postgres_port, postgrest_port=postgrest_port, simulator_port=simulator_port
        )
        if state != kept:
            state.write(data_dir)
        return state

    def write(self, data_dir: Path) -> None:
        """Replace the file whole, readable by its owner alone from its first byte on."""
        path = data_dir / FILE_NAME
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
            file.write("\n")
        partial.replace(path)
