"""What the local stack keeps: secrets, made once, for their owner alone; ports, while they are free."""

from __future__ import annotations

import base64
import json
import socket
import stat
from typing import TYPE_CHECKING

import jwt
import pytest

from gateway import auth
from infra.local.processes import StackError
from infra.local.stack import StackOptions, database_url
from infra.local.state import FILE_NAME, StackState

if TYPE_CHECKING:
    from pathlib import Path

AVOID = 8000


def test_a_second_run_keeps_what_the_first_made(tmp_path: Path) -> None:
    first = StackState.load(tmp_path, avoid=AVOID)
    assert StackState.load(tmp_path, avoid=AVOID) == first
    assert auth.is_key(first.admin_key)
    assert auth.is_key(first.demo_key)
    assert first.admin_key != first.demo_key
    assert [len(base64.b64decode(key)) for key in first.master_keys.values()] == [32]
    claims = jwt.decode(first.service_key, first.jwt_secret, algorithms=["HS256"])
    assert claims["role"] == "service_role"


def test_the_secrets_are_readable_by_their_owner_alone_and_never_shown(tmp_path: Path) -> None:
    state = StackState.load(tmp_path, avoid=AVOID)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    for secret in (state.admin_key, state.postgres_password, state.jwt_secret, state.service_key):
        assert secret not in repr(state)


def test_a_port_that_is_taken_is_changed_and_the_others_stay(tmp_path: Path) -> None:
    first = StackState.load(tmp_path, avoid=AVOID)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.postgrest_port))
        taken.listen()
        second = StackState.load(tmp_path, avoid=AVOID)
    assert second.postgrest_port != first.postgrest_port
    assert (second.postgres_port, second.simulator_port) == (first.postgres_port, first.simulator_port)
    assert second.jwt_secret == first.jwt_secret
    assert StackState.load(tmp_path, avoid=second.simulator_port).simulator_port != second.simulator_port


@pytest.mark.parametrize("kept", ["{", "[]", '{"postgres_port": 1}'])
def test_a_state_that_can_not_be_read_is_not_replaced(tmp_path: Path, kept: str) -> None:
    (tmp_path / FILE_NAME).write_text(kept, encoding="utf-8")
    with pytest.raises(StackError, match="can't be read"):
        StackState.load(tmp_path, avoid=AVOID)
    assert (tmp_path / FILE_NAME).read_text(encoding="utf-8") == kept


def test_data_without_its_secrets_is_not_opened_with_new_ones(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(StackError, match="is gone"):
        StackState.load(tmp_path, avoid=AVOID)


def test_the_options_come_from_the_environment(tmp_path: Path) -> None:
    key = auth.new_key()
    options = StackOptions.from_environment({"PORT": "9000", "DATA_DIR": str(tmp_path), "ADMIN_KEY": key})
    assert (options.port, options.data_dir, options.admin_key) == (9000, tmp_path, key)
    assert options.hosted is False
    defaults = StackOptions.from_environment({"PORT": "", "ADMIN_KEY": " "})
    assert (defaults.port, defaults.data_dir.name, defaults.admin_key) == (8000, ".sluice", None)
    assert StackOptions.from_environment({"SUPABASE_URL": "https://x.supabase.co"}).hosted is True


def test_an_admin_key_may_be_chosen_freely_but_not_short() -> None:
    chosen = "chosen-by-the-operator"
    assert StackOptions.from_environment({"ADMIN_KEY": chosen}).admin_key == chosen
    with pytest.raises(StackError, match="16 to 128"):
        StackOptions.from_environment({"ADMIN_KEY": "short"})


@pytest.mark.parametrize("port", ["0", "65536", "-1", "web", "80.5"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(StackError, match="PORT must be"):
        StackOptions.from_environment({"PORT": port})


def test_the_commands_work_on_the_given_database_or_on_the_local_one(tmp_path: Path) -> None:
    assert database_url({"DATABASE_URL": "postgresql://elsewhere/db"}) == "postgresql://elsewhere/db"
    with pytest.raises(StackError, match="DATABASE_URL"):
        database_url({"DATA_DIR": str(tmp_path)})
    state = StackState.load(tmp_path, avoid=AVOID)
    assert f":{state.postgres_port}/sluice" in database_url({"DATA_DIR": str(tmp_path)})
    assert (
        json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))["postgres_port"] == state.postgres_port
    )
