# SPDX-License-Identifier: Apache-2.0
"""`python .ci/bare.py WHEEL DIR`: a new virtual environment that holds a wheel and what it asks for, and nothing else.

The packages are those of the environment that runs this, linked instead of copied: what pip would install from scratch,
in two seconds instead of minutes. A package that the wheel uses and does not ask for is missing there.
"""

import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def wanted(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Every distribution that the requirements need, and those they need in turn, extras and markers followed."""
    found: dict[str, metadata.Distribution] = {}
    seen, queue = set(), [(Requirement(text), frozenset()) for text in requirements]
    while queue:
        requirement, extras = queue.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            continue
        key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        here = metadata.distribution(requirement.name)
        if not requirement.specifier.contains(here.version, prereleases=True):
            raise SystemExit(f"{requirement} is asked for, {here.version} is installed")
        found[key[0]] = here
        queue += [(Requirement(text), key[1]) for text in here.requires or []]
    return found


def main(wheel: Path, target: Path) -> None:
    """Make the environment."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = archive.read(name).decode()
    requirements = [line.partition(": ")[2] for line in message.splitlines() if line.startswith("Requires-Dist: ")]
    venv.create(target, with_pip=False, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = target / "lib" / version / "site-packages"
    for distribution in wanted(requirements).values():
        home = Path(str(distribution.locate_file("")))
        for part in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / part).exists():
                (site / part).symlink_to(home / part)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(target / "bin" / "python"),
        "install",
        "--quiet",
        "--no-deps",
    ]
    subprocess.run([*command, str(wheel)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
