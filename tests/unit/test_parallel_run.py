"""`make test` runs every test once, in two parts, and fails if either does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests import __main__ as parts
from tests.fixtures.collection import longest_first, name_each

if TYPE_CHECKING:
    from collections.abc import Iterator

OK, FAILED, INTERRUPTED, NONE = 0, 1, 2, 5


def told(monkeypatch: pytest.MonkeyPatch, first: int, second: int) -> int:
    statuses: Iterator[int] = iter([first, second])
    monkeypatch.setattr(parts, "run", lambda *_arguments: next(statuses))
    return parts.main(["tests"])


@pytest.mark.parametrize(("first", "second"), [(OK, OK), (OK, NONE), (NONE, OK), (NONE, NONE)])
def test_a_part_without_tests_is_no_failure_unless_both_are(
    monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    assert told(monkeypatch, first, second) == (NONE if first == second == NONE else OK)


@pytest.mark.parametrize("other", [OK, NONE])
@pytest.mark.parametrize("status", [FAILED, INTERRUPTED, 3, 4, -9])
def test_a_failure_of_either_part_is_one_of_the_run(
    monkeypatch: pytest.MonkeyPatch, status: int, other: int
) -> None:
    assert told(monkeypatch, status, other) > 0
    assert told(monkeypatch, other, status) > 0


def test_each_test_runs_in_one_part(tmp_path: Path) -> None:
    """By pytest itself, with a test of each kind. Each fails where it runs twice."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n serial: x\n chaos: x\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import pathlib, pytest\n"
        "def note(name): (pathlib.Path(__file__).parent / name).touch(exist_ok=False)\n"
        "def test_parallel(): note('parallel')\n"
        "@pytest.mark.serial\ndef test_serial(): note('serial')\n"
        "@pytest.mark.chaos\ndef test_chaos(): note('chaos')\n"
        "@pytest.mark.serial\n@pytest.mark.chaos\ndef test_both(): note('both')\n",
        encoding="utf-8",
    )
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "schemathesis", "hypothesispytest", "httpx")]
    assert parts.main(["-c", str(tmp_path / "pytest.ini"), *plugins, str(tmp_path), "-q"]) == OK
    assert {path.name for path in tmp_path.iterdir()} >= {"parallel", "serial"}
    assert not {path.name for path in tmp_path.iterdir()} & {"chaos", "both"}


def test_two_tests_of_one_name_are_refused(request: pytest.FixtureRequest) -> None:
    def item(operation: str | None = None) -> pytest.Function:
        made = pytest.Function.from_parent(request.node.parent, name="name", callobj=lambda: None)
        if operation:
            made.operation_label = operation  # type: ignore[attr-defined]
        return made

    items = [item("GET /"), item("PUT /"), item()]
    name_each(items)
    assert [made.nodeid.rpartition("::")[2] for made in items] == ["name[GET /]", "name[PUT /]", "name"]
    with pytest.raises(pytest.UsageError, match="::name"):
        name_each([*items, item()])


def test_the_longest_files_are_first_and_none_is_torn_or_lost() -> None:
    def tests(path: str, count: int = 1, *, slow: bool = False) -> list[Any]:
        def marker(_name: str, number: int = 0) -> bool:
            return slow and number == 0

        return [
            SimpleNamespace(path=Path(path), number=number, get_closest_marker=marker)
            for number in range(count)
        ]

    quick, many = tests("tests/unit/test_a.py"), tests("tests/unit/test_b.py", 3)
    browser, elsewhere = tests("tests/browser/test_c.py", 2), tests("elsewhere/test_d.py", 9)
    package = tests("tests/unit/test_e.py", slow=True)
    items = [*quick, *many[:1], *browser, *elsewhere, *many[1:], *package]
    assert longest_first(items) == [*package, *browser, *many, *quick, *elsewhere]
