"""`ciliate` in a process of its own, as a person would run it, on one sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CILIATE = (sys.executable, "-m", "services.cli")


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands on the sandbox of that name."""

    sandbox: str

    @property
    def environment(self) -> dict[str, str]:
        """Of the commands."""
        return {**os.environ, "CILIATE_SANDBOX": self.sandbox}

    def __call__(
        self, *arguments: str, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; `text` is its input. It must succeed unless `check` is off, and never end in a traceback."""
        result = subprocess.run(
            [*CILIATE, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            input=text,
            check=False,
            timeout=170,
        )
        assert not check or result.returncode == 0, f"{arguments}: {result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr, result.stderr
        return result
