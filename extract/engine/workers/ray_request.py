"""What is asked of Ray: which cluster, and how many actors of which size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmap_st.errors import RequestError, printable

_DEVICES = ("auto", "cpu", "cuda")
#: As of one process: more reading threads than this keep no device busier.
_MOST_CPUS = 16


@dataclass(frozen=True)
class RayRequest:
    """Where Ray is, and which actors embed.

    Attributes
    ----------
    address
        Of the cluster, or ``auto``; None: Ray is started on this machine, for this run.
    actors
        How many; None: as many as the cluster has GPUs for, or CPUs where it has no GPU.
    gpus_per_actor
        May be a part of one; None: one where the cluster has any, unless the device is the CPU.
    """

    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None


@dataclass(frozen=True)
class ActorPlan:
    """How many actors there are to be, and what each asks of Ray."""

    number: int
    cpus: int
    gpus: float

    def fits(self, node: Mapping[str, float]) -> bool:
        """Whether a node with these resources has room for one."""
        return _room(node, self.cpus, self.gpus) > 0

    def __str__(self) -> str:
        """What each asks for."""
        cpus = f"{self.cpus} CPU{'' if self.cpus == 1 else 's'}"
        return f"{cpus} and {self.gpus:g} GPU{'' if self.gpus <= 1 else 's'}" if self.gpus else cpus


def parse_engine(
    engine: str,
    address: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    device: str = "auto",
    *,
    gpus_option: str = "--gpus-per-actor",
) -> RayRequest | None:
    """What ``--engine`` and the options that belong to it ask for; None: no Ray.

    Parameters
    ----------
    gpus_option
        How the command calls the GPUs of each.

    Raises
    ------
    RequestError
        If they contradict each other, or ``--device``.
    """
    if engine not in ("local", "ray"):
        raise RequestError(f"--engine {printable(engine)} is not known; give local or ray.")
    if engine == "local":
        given = {"--address": address, "--actors": actors, gpus_option: gpus_per_actor}
        for option, value in given.items():
            if value is not None:
                raise RequestError(f"{option} is for --engine ray; give both, or neither.")
        return None
    if address is not None and not address.strip():
        raise RequestError("--address is empty; give HOST:PORT or auto, or leave it out.")
    if address is not None and address.startswith("ray://"):
        raise RequestError(
            f"--address {printable(address)}: give auto, on a machine of the cluster, or the HOST:PORT of its"
            " head; a Ray client cannot be used."
        )
    if actors is not None and actors < 1:
        raise RequestError(f"--actors {actors}: give at least one.")
    if device not in _DEVICES:
        raise RequestError(
            f"--device {printable(device)} names devices of one machine; with --engine ray give auto, cpu or"
            " cuda, and --actors for how many."
        )
    gpus = gpus_per_actor
    if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise RequestError(
            f"{gpus_option} {gpus:g}: give 0, a part of a GPU such as 0.5, or whole ones; Ray shares out"
            " no other."
        )
    if gpus is not None and (gpus > 0) != (device != "cpu") and device != "auto":
        raise RequestError(f"--device {device} and {gpus_option} {gpus:g} are at odds; give one.")
    return RayRequest(address, actors, gpus)


def plan_actors(
    request: RayRequest,
    nodes: Sequence[Mapping[str, float]],
    workers: int | None,
    device: str,
    slides: int,
) -> ActorPlan:
    """How many actors to start, and what each is to ask for.

    Where nothing is said, they take all GPUs of the cluster as it is now, or all CPUs where it has no GPU;
    each takes as many CPUs as leave room for all of them, up to 16.

    Parameters
    ----------
    nodes
        Resources of each node.
    workers
        CPUs of an actor, where that is said.
    device
        ``auto``, ``cpu`` or ``cuda``.
    slides
        There are no more actors than these.

    Raises
    ------
    RequestError
        If the cluster has nothing to take now, and what to ask for is not said.
    """
    gpus = request.gpus_per_actor
    if gpus is None:
        has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
        gpus = 1.0 if device == "cuda" or (device == "auto" and has_gpus) else 0.0

    def room(cpus: int) -> int:
        return sum(_room(node, cpus, gpus) for node in nodes)

    most = room(1)
    if workers is not None:
        cpus = workers
    elif request.actors is None and not gpus:
        cpus = min(_MOST_CPUS, max((int(node.get("CPU", 0)) for node in nodes), default=0))
    else:
        wanted = max(1, min(request.actors or most, slides))
        cpus = next((n for n in range(_MOST_CPUS, 1, -1) if room(n) >= wanted), 1)
    number = request.actors or (room(cpus) if cpus else 0)
    if not number:
        what = ActorPlan(1, max(cpus, 1), gpus)
        raise RequestError(
            f"--engine ray: no node of the cluster has {what} now; give --actors to ask for some and wait,"
            " or smaller --workers and --gpus-per-actor."
        )
    return ActorPlan(max(1, min(number, slides)), cpus, gpus)


def _room(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many actors a node has room for."""
    by_cpus = int(node.get("CPU", 0)) // cpus
    if not gpus:
        return by_cpus
    here = int(node.get("GPU", 0))
    return min(by_cpus, here * int(1 / gpus + 1e-9) if gpus <= 1 else here // int(gpus))
