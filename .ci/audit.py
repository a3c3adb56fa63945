"""Asks a database of known vulnerabilities about the packages of requirements.lock; exit code 1 if one has any.

    python .ci/audit.py [OPTION OF PIP-AUDIT ...]

Where the database cannot be reached, it says so and ends well: then the digests in the lock, to which pip holds every
package, are all there is.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"


def main(options: list[str]) -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", LOCK, "--disable-pip", "--require-hashes",
               "--format", "json", "--progress-spinner", "off", *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        print(f"audit: no answer ({said[:200]}); packages are held to the digests of {LOCK.name}")
        return 0
    asked = [package for package in packages if "vulns" in package]
    found = [(package, known) for package in asked for known in package["vulns"]]
    for package, known in found:
        mended = ", ".join(known["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {known['id']}, mended in {mended}")
    print(f"audit: {len(asked)} of {len(packages)} packages are known to the database, {len(found)} vulnerabilities; "
          f"all are held to the digests of {LOCK.name}")  # fmt: skip
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
