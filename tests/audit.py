"""`python -m tests.audit`: known vulnerabilities of every pinned package, as CI asks for them. One that is found fails, and
so does an audit that breaks; where nobody can be asked, the advisory database or the tool itself being out of reach, that is
said.

>>> passes(0, "No known vulnerabilities found"), passes(1, "Found 2 known vulnerabilities in 1 package")
(True, False)
>>> passes(1, "ERROR:pip_audit._cli:torch: Dependency not found on PyPI and could not be audited: torch (2.9.0)")
True
>>> unreached = "HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded with url: /pypi/torch/2.9.0/json"
>>> passes(1, unreached), passes(2, "error: Failed to fetch: `https://pypi.org/simple/pip-audit/`")
(True, True)
>>> passes(2, "make: *** No rule to make target 'audit'")
False

What is merely called after a network does not stand for one that is out of reach:

>>> [passes(1, f"ERROR: {name} is not pinned") for name in ("clickhouse-connect", "dnspython", "proxy-tools", "certifi")]
[False, False, False, False]
>>> passes(1, "Failed to download `clickhouse-connect`: Hash mismatch"), passes(1, "invalid certificate in tool.toml")
(False, False)
"""

from __future__ import annotations

import re
import subprocess
import sys

FOUND = re.compile(r"Found \d+ known vulnerabilit")
NOBODY_TO_ASK = re.compile(
    r"not found on PyPI and could not be audited|PyPI is not redirecting|could not connect to \S+ vulnerability feed|"
    r"max retries exceeded with url|(operation|read) timed out|\b50\d server error|"
    r"was not found in the package registry|failed to fetch: `http|error sending request for url|due to network timeout",
    re.IGNORECASE)  # fmt: skip  # the last line: uv, which fetches the tool


def passes(code: int, said: str) -> bool:
    """By the exit code of an audit and what it said."""
    return code == 0 or (not FOUND.search(said) and NOBODY_TO_ASK.search(said) is not None)


def main() -> int:
    done = subprocess.run(["make", "audit"], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    print(said)
    if not passes(done.returncode, said):
        return 1
    if done.returncode != 0:
        print("NOT AUDITED: see above why nobody could be asked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
