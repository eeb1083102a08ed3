"""Commands in the process of the tests: quick, since what they import is there already."""

import importlib

import pytest


def printed_by(capsys: pytest.CaptureFixture[str], *words: object, status: int) -> str:
    """Runs a command line that must end with an exit status, and returns what it printed on both streams."""
    name, *rest = map(str, words)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"jobs.{name.replace('-', '_')}").main(rest)
    assert (end.value.code or 0) == status
    captured = capsys.readouterr()
    return captured.out + captured.err
