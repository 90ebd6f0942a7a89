"""`pytest --no-skips`, which CI uses, and `--all`: see tests/conftest.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import tests.conftest

SKIPPING = """
import pytest

def test_that_runs(): pass
def test_without_a_tool(): pytest.skip("there is no node")
@pytest.mark.skip(reason="not today")
def test_marked(): pass
def test_elsewhere(): pytest.skip("platform: this is no Mac")
@pytest.mark.xfail
def test_that_is_known_to_fail(): raise KeyError
"""
MISSING = "import pytest; pytest.importorskip('a_library_that_is_not_here')"


@pytest.fixture(autouse=True)
def suite(pytester: pytest.Pytester) -> None:
    source = Path(tests.conftest.__file__).read_text()
    pytester.makeconftest(source.replace('pytest_plugins = ["pytester"]', ""))
    pytester.makepyfile(test_skipping=SKIPPING, test_missing=MISSING)


def test_skips_pass_by_default(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1, skipped=4, xfailed=1)
    assert result.ret == 0


def test_with_no_skips_only_another_platform_is_a_reason(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "-p", "no:xdist", "--no-skips", "--continue-on-collection-errors"
    )
    result.assert_outcomes(passed=1, skipped=1, xfailed=1, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*skipped, which --no-skips allows only for*there is no node*"])
    assert result.ret == 1


SLOW = """
import pytest

def test_quick(): pass
@pytest.mark.slow
def test_of_minutes(): pass
"""


def test_slow_tests_are_left_out_and_counted(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", "no:xdist", pytester.makepyfile(SLOW))
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["slow tests left out: 1; ./scripts/test all runs them"])


def test_those_that_are_left_out_are_counted_where_several_processes_run_the_tests(
    pytester: pytest.Pytester,
) -> None:
    result = pytester.runpytest_subprocess("-n", "2", pytester.makepyfile(SLOW))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["slow tests left out: 1; ./scripts/test all runs them"])


def test_with_all_the_slow_tests_run_too(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", "no:xdist", "--all", pytester.makepyfile(SLOW))
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*left out*")


def test_temporary_files_are_kept_in_memory_where_there_is_room(tmp_path: Path) -> None:
    keeps_files = tests.conftest.keeps_files
    assert not keeps_files(tmp_path / "nowhere")
    tmp_path.chmod(0o755)
    assert not keeps_files(tmp_path), "others cannot write there"
    tmp_path.chmod(0o1777)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.conftest, "ENOUGH_MEMORY", 1 << 10)
        assert keeps_files(tmp_path)
        patch.setattr(tests.conftest, "ENOUGH_MEMORY", 1 << 60)
        assert not keeps_files(tmp_path)


def test_a_folder_of_ones_own_choice_is_kept(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = str(pytester.mkdir("mine"))
    monkeypatch.setenv("TMPDIR", mine)
    source = f"import tempfile\n\ndef test_folder(): assert tempfile.gettempdir() == {mine!r}"
    result = pytester.runpytest_subprocess("-p", "no:xdist", pytester.makepyfile(source))
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
@pytest.mark.parametrize("number_of_others", [0, 40, 97])
def test_each_worker_gets_its_share_of_the_modules_that_wait_whole_and_first(
    workers: int, number_of_others: int
) -> None:
    modules = [[f"waits {module}.{test}" for test in range(module % 3 + 1)] for module in range(18)]
    others = [f"other {number}" for number in range(number_of_others)]
    order = tests.conftest.deal_out(modules, others, workers)
    assert sorted(order) == sorted([*itertools.chain(*modules), *others])
    for module in modules:
        first = order.index(module[0])
        assert order[first : first + len(module)] == module
    if not others:
        return
    rest, shares = order, []
    for left in range(workers, 0, -1):  # as xdist deals them out
        part, rest = rest[: len(rest) // left], rest[len(rest) // left :]
        kinds = [kind for kind, _ in itertools.groupby(part, lambda each: each.split()[0])]
        assert kinds == ["waits", "other"]
        shares.append(sum(test.endswith(".0") for test in part))
    assert set(shares) == {len(modules) // workers}
