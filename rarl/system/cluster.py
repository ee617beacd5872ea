"""Starting Ray on this machine, or joining the cluster of a job, without its noise."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data

from rarl.errors import UserError
from rarl.system.processes import Stopped, output_in
from rarl.system.ray_internals import REUSED_PROCESSES, listen_here_alone, own_sigterm

QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def ray_session(log_folder: Path) -> Iterator[None]:
    """Inside, Ray is up, and everything that Ray and the libraries print on the driver goes to
    `log_folder`/driver.log. A `Display` made before keeps the terminal."""
    with output_in(log_folder / "driver.log"):
        joined = ray.is_initialized()
        if not joined:
            with own_sigterm():
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


def start_or_join() -> None:
    """Joins the cluster that RAY_ADDRESS names, as in a job, or starts one. Raises UserError."""
    if not os.environ.get("RAY_ADDRESS"):
        return start_cluster()
    try:
        ray.init(**QUIET)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(f"Ray did not start: {str(error).splitlines()[0]}") from None


def start_cluster() -> None:
    """Starts a cluster of this process's own, which other machines cannot reach. Raises UserError
    when it does not come up at the second attempt either: a busy machine may miss Ray's limit of
    30 s once."""
    listen_here_alone()
    for attempts_left in (1, 0):
        try:
            # Two cores, since the actors' shares add up to more than one. "local", or Ray would
            # join any cluster of this machine. No dashboard: it slows starting and stopping.
            cores = max(2, os.cpu_count() or 2)
            ray.init("local", num_cpus=cores, include_dashboard=False, **REUSED_PROCESSES, **QUIET)
            return
        except Exception as error:  # Ray raises plain exceptions here
            ray.shutdown()
            if not attempts_left:
                reason = str(error).splitlines()[0]
                raise UserError(f"Ray did not start: {reason}; try again") from None
