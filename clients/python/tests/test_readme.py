"""What README.md shows works."""

import re
from pathlib import Path

import pytest
from conftest import Direct

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs(server: str, direct: Direct, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example
    code = (
        example[1]
        .replace("127.0.0.1:7411", server)
        .replace("order-17", "readme-order")
        .replace(', namespace="shop"', "")
    )
    assert len(code.strip().splitlines()) == 5
    for ran_here in (True, False):
        exec(compile(code, str(README), "exec"), {})
        assert (
            capsys.readouterr().out
            == f"{{'charged': 1000, 'by': {direct.lookup('readme-order').completed.fencing_token}}} {ran_here}\n"
        )
