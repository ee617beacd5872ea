"""Makes `.venv`: installs RARL with the right build of vLLM and repairs what the plain install
breaks.

    python3 setup/environment.py [VENV_DIR]

1. The extra is `gpu` when an NVIDIA driver answers, `cpu` otherwise.
2. uv installs, from where pip is configured to look, in a tenth of pip's time; where it cannot, pip
   does. The CPU build of vLLM needs a CPU build of torch. Where the machine offers none, uv repeats
   the install with `--torch-backend cpu`, which adds PyTorch's own CPU index for torch's packages
   alone.
3. torchaudio and torchcodec are dependencies of vLLM that RARL does not use; where they do not
   import they are removed. torchvision is needed; where it does not import,
   `torchvision_schemas.py` (see there) is installed beside it.

Only the standard library is used: this runs before anything is installed.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
STAMP = "rarl-environment-complete"


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY / ".venv").resolve()
    # This runs before pip could refuse.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"RARL needs Python 3.11 or newer, this is {sys.version.split()[0]}: "
            "run `make PYTHON=python3.12 …`"
        )
    started = time.time()
    extra = "gpu" if has_nvidia_driver() else "cpu"
    print(
        f"Installing RARL with the `{extra}` extra into {directory} (a few minutes, about 4 GB) …",
        flush=True,
    )
    python = directory / "bin" / "python"
    if not python.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(directory)], check=False)
        if made.returncode != 0:
            sys.exit(
                "Python could not make a virtual environment; on Debian and Ubuntu, "
                "install python3-venv"
            )
    install(python, f"{REPOSITORY}[{extra},dev]", cpu=extra == "cpu", log=directory / "install.log")
    repair_companions(python)
    (directory / STAMP).touch()
    print(f"Environment ready after {time.time() - started:.0f} s.", flush=True)


def has_nvidia_driver() -> bool:
    """True when `nvidia-smi` exists and lists at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def install(python: Path, requirement: str, cpu: bool, log: Path) -> None:
    """Exits with the end of the log where nothing can."""
    with log.open("w") as output:

        def run(*arguments: str) -> bool:
            command = [str(python), "-m", *arguments, "-e", requirement]
            return (
                subprocess.run(
                    command, stdout=output, stderr=subprocess.STDOUT, check=False
                ).returncode
                == 0
            )

        if (
            subprocess.run(
                [str(python), "-m", "pip", "install", "uv"], stdout=output, stderr=output
            ).returncode
            == 0
        ):
            # Compiled as pip does, for where Python may not write what it compiles, each process
            # would begin anew.
            uv = [
                "uv",
                "pip",
                "install",
                "--compile-bytecode",
                "--python",
                str(python),
                *sources(python),
            ]
            if run(*uv):
                return
            # named in the complaint alone
            if cpu and re.search(r"torch==[\d.]+\+cpu", log.read_text()):
                print(
                    "No CPU build of torch found: installing with PyTorch's CPU index …", flush=True
                )
                if run(*uv, "--torch-backend", "cpu"):
                    return
        if run("pip", "install", "--progress-bar", "off"):
            return
    tail = "\n".join(log.read_text().splitlines()[-15:])
    sys.exit(f"{tail}\n\nThe installation failed; the whole log is {log}")


def sources(python: Path) -> list[str]:
    """Where pip's settings (files and variables) say that packages are, for uv, which does not read
    them."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings: dict[str, list[str]] = {}
    lines = [line for line in listed.stdout.splitlines() if "=" in line]
    # variables hold over files
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"").split()
    flags = ["--index-strategy", "unsafe-best-match"]  # as pip: the best version of all sources
    for key in ("index-url", "extra-index-url", "find-links"):
        flags += [part for value in settings.get(key, []) for part in (f"--{key}", value)]
    return flags + ["--no-index"] * (settings.get("no-index") in (["true"], ["1"]))


def imports(python: Path, module: str) -> bool:
    return (
        subprocess.run(
            [str(python), "-c", f"import {module}"], capture_output=True, check=False
        ).returncode
        == 0
    )


def repair_companions(python: Path) -> None:
    """Removes or mends the CUDA-built companions of torch that cannot be imported beside a CPU
    torch."""
    for module in ("torchaudio", "torchcodec"):
        if not imports(python, module):
            subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", module], check=True)
    if not imports(python, "torchvision"):
        where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = Path(
            subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
        )
        shutil.copy(
            REPOSITORY / "setup" / "torchvision_schemas.py", site / "rarl_torchvision_schemas.py"
        )
        (site / "rarl_torchvision_schemas.pth").write_text("import rarl_torchvision_schemas\n")
        if not imports(python, "torchvision"):
            sys.exit(
                "torchvision cannot be imported beside the installed torch, and declaring its "
                "operators did not help"
            )


if __name__ == "__main__":
    main()
