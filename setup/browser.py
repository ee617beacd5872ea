"""Makes sure that the report's tests have a browser: Chromium with its driver.

    python3 setup/browser.py

As root on Debian or Ubuntu, what is missing is installed; elsewhere one line says what to install.
Only the standard library is used.
"""

import os
import shutil
import subprocess
import sys

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVERS = ("chromedriver", "chromium.chromedriver")
PACKAGES = ("chromium", "chromium-driver")  # Debian's names


def main() -> None:
    if is_complete():
        return
    if can_install():
        print(f"Installing {' and '.join(PACKAGES)} for the browser tests …", flush=True)
        install()
    if not is_complete():
        sys.exit(
            "The report's tests need a headless browser: install Chromium and chromedriver "
            f"(on Debian: apt-get install {' '.join(PACKAGES)}) so that both are on PATH"
        )


def is_complete() -> bool:
    return find(BROWSERS) is not None and find(DRIVERS) is not None


def find(names: tuple[str, ...]) -> str | None:
    """The first that is on PATH."""
    return next((path for path in map(shutil.which, names) if path), None)


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install() -> None:
    """Failures show in what is missing afterwards; apt's own words come before it."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        subprocess.run(
            ["apt-get", *arguments], env=environment, stdout=subprocess.DEVNULL, check=False
        )


if __name__ == "__main__":
    main()
