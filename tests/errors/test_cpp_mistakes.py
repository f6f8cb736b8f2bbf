"""Every mistake of mistakes.cpp: the whole message that C++ gives for it, against cpp_messages.txt.

``TORCHCC_UPDATE=1 pytest tests/errors/test_cpp_mistakes.py`` writes the messages anew; read the difference.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parent / "cpp_messages.txt"


def normalised(text: str, files: Path) -> str:
    """Without what differs between machines and versions: folders, versions, the CPU, names that contain a hash."""
    text = text.replace(str(files), "FILES")
    for pattern, replacement in (
        (r"\S*/torchcc-test-\w+", "TEMPORARY"),
        (r"aotinductor/model/\w+", "aotinductor/model/HASH"),
        (r"torchcc \d[\w.]*", "torchcc VERSION"),
        (r"this is torch \S+", "this is torch VERSION"),
        (r"cpu-[\w-]+:", "TARGET:"),
        (r"reason: .*", "reason: ..."),  # the compiled code's own words
    ):
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture(scope="module")
def messages(cpp_build: Callable[[str], Path], files: Path) -> str:
    ran = subprocess.run(
        [cpp_build("release") / "mistakes"],
        env={"TORCHCC_TEST_FILES": str(files), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return normalised(ran.stdout, files)


def test_messages(messages: str) -> None:
    if os.environ.get("TORCHCC_UPDATE"):
        GOLDEN.write_text(messages)
    assert messages == GOLDEN.read_text()


def test_every_message_says_what_to_do(messages: str) -> None:
    for entry in messages.strip().split("\n\n"):
        title, text = entry.split("\n", 1)
        assert re.match(r"(ArgumentError|CaptureError|PackageError|Error): ", text), title
        assert "\n  fix: " in text or ": assign" in text or "\n  expected: one of: " in text, title
