"""The result of a run as JUnit XML, which CI servers show. No I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element, SubElement, tostring

import attrs

from relay.load.measures.generator_usage import GeneratorResult, OneGenerator
from relay.load.measures.results import RunResult
from relay.load.report.words.comparison import in_one_line

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 forbids even as a reference."""


def junit_xml(result: RunResult) -> str:
    """A test suite with a test case for each check, and one for the run itself.

    A run that could not finish is an error, a check that was not kept a failure. Each figure that
    was compared with a baseline is a test case as well; it is skipped if nothing can be told.
    """
    case_class = f"relay load.{result.scenario}"
    changes = [] if result.comparison is None else result.comparison.changes
    worse = [each for each in changes if each.verdict == "worse"]
    suite = Element(
        "testsuite",
        name=_clean(result.scenario),
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(result.started)),
        hostname=_clean(result.machine),
        time=f"{result.seconds:.3f}",
        tests=str(1 + len(result.checks) + len(changes)),
        failures=str(sum(not check.kept for check in result.checks) + len(worse)),
        errors="0" if result.problem is None else "1",
        skipped=str(sum(each.verdict == "cannot tell" for each in changes)),
    )
    if result.generator is not None:
        properties = SubElement(suite, "properties")
        for name, value in _properties(result.generator, result.generators):
            SubElement(properties, "property", name=_clean(name), value=f"{value:.6g}")
    run = _case(suite, case_class, "the run ends as planned", result.seconds)
    if result.problem is not None:
        SubElement(run, "error", message=_clean(result.problem))
    for check in result.checks:
        case = _case(suite, case_class, check.line)
        if not check.kept:
            message = _clean(f"measured: {check.measured}")
            SubElement(case, "failure", message=message, type="check")
    for each in changes:
        case = _case(suite, f"{case_class}.baseline", f"{each.name} is not worse than before")
        message = _clean(in_one_line(each))
        if each.verdict == "worse":
            SubElement(case, "failure", message=message, type="baseline")
        elif each.verdict == "cannot tell":
            SubElement(case, "skipped", message=f"cannot tell: {message}")
    suites = Element("testsuites", name="relay load")
    suites.append(suite)
    for key in ("tests", "failures", "errors", "skipped", "time"):
        suites.set(key, suite.get(key, "0"))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(suites, encoding="unicode")}\n'


def _properties(
    generator: GeneratorResult, generators: Mapping[str, OneGenerator]
) -> Iterator[tuple[str, float]]:
    for name, value in attrs.asdict(generator).items():
        yield f"generator.{name}", value
    for which, each in generators.items():
        values = attrs.asdict(each.usage) | {"sent": each.sent, "received": each.received}
        if each.clock_error is not None:
            values["clock_error"] = each.clock_error
        for name, value in values.items():
            yield f"generator.{which}.{name}", value


def _case(suite: Element, case_class: str, name: str, seconds: float = 0.0) -> Element:
    return SubElement(
        suite, "testcase", classname=_clean(case_class), name=_clean(name), time=f"{seconds:.3f}"
    )


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
