"""Starting Ray on this machine, or joining the cluster that a job was submitted to, without its
noise."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data

from rarl.errors import UserError
from rarl.system.signals import Stopped


@contextmanager
def ray_session(log_folder: Path) -> Iterator[None]:
    """Within it Ray is up, and everything that Ray and the libraries print on the driver goes to
    `log_folder`/driver.log. A `Display` made before keeps the terminal."""
    log_folder.mkdir(parents=True, exist_ok=True)
    with output_in(log_folder / "driver.log"):
        joined = ray.is_initialized()
        if not joined:
            start_or_join()
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            # After Ctrl-C or SIGTERM the threads of Ray Data are still at work, and shutting Ray
            # down then can crash the process. It ends at once instead (`cli.interruptible`), and a
            # cluster of its own ends with it.
            if not joined and not isinstance(sys.exc_info()[1], KeyboardInterrupt | Stopped):
                ray.shutdown()


@contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Sends standard output and error, those of native code too, to the end of a file for a
    while."""
    with path.open("ab") as log:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(log.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in kept:
                os.dup2(original, number)
                os.close(original)


QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_or_join() -> None:
    """Joins the cluster named by RAY_ADDRESS (`ray job submit` sets it), or starts one here."""
    if not os.environ.get("RAY_ADDRESS"):
        return start_cluster()
    try:
        ray.init(**QUIET)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(f"Ray did not start: {str(error).splitlines()[0]}") from None


# Idle processes stay: each data stream finds those of the last one, which have transformers
# imported. Ray compares the environments of processes as text, and writes that of a job without one
# otherwise than that of its actors' tasks.
REUSED_PROCESSES: dict[str, Any] = {
    "_system_config": {
        "num_workers_soft_limit": max(16, os.cpu_count() or 1),
        "prestart_worker_first_driver": False,  # they would not have this environment
    },
    "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
}


def start_cluster() -> None:
    """A cluster of this process's own. Raises UserError when it does not come up at the second
    attempt either: a busy machine may miss Ray's limit of 30 s once."""
    for attempts_left in (1, 0):
        try:
            # At least two: the actors' shares add up to more than one, and a machine with one core
            # would wait forever. "local": without it Ray would join whatever cluster somebody
            # started on this machine. No dashboard: it only slows starting and stopping a cluster
            # that nobody else looks at.
            ray.init(
                "local",
                num_cpus=max(2, os.cpu_count() or 2),
                include_dashboard=False,
                **REUSED_PROCESSES,
                **QUIET,
            )
            return
        except Exception as error:  # Ray raises plain exceptions here
            ray.shutdown()
            if not attempts_left:
                raise UserError(
                    f"Ray did not start: {str(error).splitlines()[0]}; try again"
                ) from None
