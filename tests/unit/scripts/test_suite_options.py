"""`pytest --no-skips`, which CI uses, and `--all`: see tests/conftest.py."""

from __future__ import annotations

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


def test_slow_tests_are_left_out_and_that_is_said(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", "no:xdist", pytester.makepyfile(SLOW))
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["tests marked slow were left out: ./scripts/test all"])


def test_with_all_the_slow_tests_run_too(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", "no:xdist", "--all", pytester.makepyfile(SLOW))
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*were left out*")
