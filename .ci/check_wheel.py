"""Check what a wheel holds: ``python .ci/check_wheel.py dist/spectok-0.1.0-py3-none-any.whl``."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
SOURCES = ("core", "plugins", "generation")


def expected_files() -> set[str]:
    """Return what must be in the wheel: every file of every package, and every recipe."""
    packages = [init.parent for source in SOURCES for init in ROOT.glob(f"{source}/*/__init__.py")]
    found = {
        path: path.relative_to(package.parent) for package in packages for path in walk(package)
    }
    recipes = {f"spectok/{path.relative_to(ROOT).as_posix()}" for path in walk(ROOT / "configs")}
    return {name.as_posix() for name in found.values()} | recipes


def walk(folder: Path) -> list[Path]:
    """Return the files below a folder that are not made by Python itself."""
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def problems(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel, one line each."""
    names = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    metadata = {name for name in names if name.parts[0].endswith(".dist-info")}
    held = {name.as_posix() for name in names - metadata}
    top = sorted({name.parts[0] for name in names - metadata})
    found = [f"missing: {name}" for name in sorted(expected_files() - held)]
    found += [f"not in the sources: {name}" for name in sorted(held - expected_files())]
    found += [f"top level: {name}" for name in top if not name.startswith("spectok")]
    found += [f"a part called core: {name}" for name in sorted(held) if "core" in name.split("/")]
    licensed = any(name.name == "LICENSE" for name in metadata)
    return found if licensed else [*found, "missing: LICENSE"]


def main() -> None:
    """Print the top level, or what is wrong."""
    wheel = Path(sys.argv[1])
    found = problems(wheel)
    for line in found:
        print(f"{wheel.name}: {line}", file=sys.stderr)
    if found:
        sys.exit(1)
    top = sorted({name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()})
    print(f"{wheel.name}: {', '.join(top)}")


if __name__ == "__main__":
    main()
