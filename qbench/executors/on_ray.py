"""Cells as tasks of a Ray cluster.

Ray places them by cores, GPUs and memory, and starts the task again elsewhere where a machine is
lost: what it had recorded stays, and the rest of its cell is done again. How far the cells are is
told to an actor on the machine that asked.
"""

from __future__ import annotations

import os
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qbench.errors import ConfigError, reason_of
from qbench.executors.driver import Driver
from qbench.executors.one_cell import Event, Request, Settled, settle
from qbench.experiment.plan import Plan
from qbench.experiment.store import Store
from qbench.experiment.view import View
from qbench.records import Cell, Record

POLL = 0.5  # seconds between two looks at what has happened
RETRIES = 3  # machines that a cell may lose


def require_ray() -> None:
    """ConfigError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError(
            "--executor ray needs Ray, which is not installed; run `pip install -e '.[ray]'` in "
            "the checkout of qbench"
        )


def run_on_ray(
    plan: Plan,
    store: Store,
    view: View,
    address: str | None = None,
    shared: bool = True,
) -> list[Record]:
    """Settle the cells of a plan on a Ray cluster; returns the records of all cells.

    address: of the cluster, as `ray.init` has it; None for the one of RAY_ADDRESS, or of this
    machine alone. shared: False where no machine is to write into the run's folder itself.
    ConfigError where Ray is not installed, there is no such cluster, or it has no GPU and cells
    want one; StoreError where results cannot be written.
    """
    require_ray()
    import ray
    import ray.util.scheduling_strategies

    mine = not ray.is_initialized()
    if mine:
        _join(ray, address, store)
    try:
        with store.at_work(), closing(Driver(plan, store, view, shared)) as driver:
            _settle_all(ray, driver)
            return driver.records()
    except ray.exceptions.RayError as error:
        last = str(error).strip().split("\n")[-1]
        raise ConfigError(
            f"Ray cannot run cells: {last}; install the same qbench on every machine, and see "
            "`ray status`"
        ) from None
    finally:
        if mine:
            ray.shutdown()


def _join(ray: Any, address: str | None, store: Store) -> None:
    """Join the cluster, or start one here.

    Ray puts the working directory before all packages of its workers, and the root of a checkout
    would hide them; so it is another one meanwhile.
    """
    place = Path.cwd()
    os.chdir(store.folder)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise ConfigError(
            f"no Ray cluster at {address or 'this machine'}: {reason_of(error)}; start one with "
            "`ray start --head`, or leave out --address; where Ray says InvalidAuthToken, there is "
            "one, and RAY_AUTH_TOKEN or ~/.ray/auth_token must hold its token here"
        ) from None
    finally:
        os.chdir(place)


class Mailbox:
    """What cells tell, until it is fetched; an actor."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def settle_on_ray(request: Request, mailbox: Any) -> Settled:
    """The task: settle a cell, and tell the mailbox of it."""
    return settle(request, mailbox.put.remote)


def needs(plan: Plan, cell: Cell, nodes: list[dict[str, float]]) -> dict[str, float]:
    """What Ray is to set aside for a cell: cores, a GPU where the plan is for one, and memory.

    nodes: the resources of each machine. Asked is what one of them has together, since Ray waits
    for ever for what none has: a cell that is estimated to take more memory than the largest may
    still fit, and is given one for itself, and threads may be more than cores. ConfigError where
    there is no GPU.
    """
    asked: dict[str, float] = {}
    if plan.device != "cpu":
        nodes = [node for node in nodes if node.get("GPU")]
        if not nodes:
            raise ConfigError(
                "the cells are for a GPU, and the Ray cluster has none; add machines that have, "
                "or give --device cpu"
            )
        asked["num_gpus"] = 1
    most = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    memory = int(min(plan.estimates[cell.id].peak_bytes, most))
    fitting = [node.get("CPU", 0.0) for node in nodes if node.get("memory", 0.0) >= memory]
    asked["num_cpus"] = min(plan.threads, max(fitting, default=0.0))
    return asked | {"memory": memory} if memory else asked


def _settle_all(ray: Any, driver: Driver) -> None:
    """Send the cells that are missing, --workers at a time, and keep what comes of them."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    strategies = ray.util.scheduling_strategies
    place = strategies.NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=place).remote()
    cells = driver.missing()
    at_once = driver.plan.grid.workers or len(cells)
    pending: dict[Any, Cell] = {}

    def send(count: int) -> None:
        for cell in cells[:count]:
            task = ray.remote(settle_on_ray).options(
                name=driver.plan.labels[cell.id],
                max_retries=RETRIES,
                **needs(driver.plan, cell, nodes),
            )
            pending[task.remote(driver.request(cell), mailbox)] = cell
        del cells[:count]

    try:
        send(at_once)
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL)
            driver.replay(ray.get(mailbox.take.remote()))
            for task in ready:
                _take(ray, driver, pending.pop(task), task)
            send(at_once - len(pending))
    finally:
        for task in pending:  # of a run that was interrupted
            ray.cancel(task, force=True)
        ray.kill(mailbox)


def _take(ray: Any, driver: Driver, cell: Cell, task: Any) -> None:
    try:
        settled = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        driver.fail(cell, f"Ray: {reason_of(error.cause)}")
    except ray.exceptions.RayError as error:
        first = str(error).strip().split("\n")[0]
        driver.fail(cell, f"Ray gave it up after {RETRIES + 1} tries: {first}")
    else:
        driver.take(cell, settled)
