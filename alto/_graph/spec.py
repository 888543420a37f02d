"""Records of a declaration: what reading a pipeline makes, and the runtime works with."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, overload

import attrs

from alto._graph.plan import Plan
from alto.errors import ResourceError
from alto.model import StageInfo
from alto.protocols import Executor, Router

__all__ = ("Declaration", "GroupOrder", "HasDeclaration", "InputSpec", "NodeSpec", "OwnExecutor", "ParamSpec",
           "PerReplica", "ResourceSpec", "RunsIn", "StageSpec", "per_replica")  # fmt: skip

GroupOrder: TypeAlias = Literal["ancestry", "arrival"]
"""Order in which pieces of a group, or results of a request, are handed out."""

RunsIn: TypeAlias = Literal["loop", "thread", "process"]
"""Short names of alto's own executors: where the function of a stage runs."""


class OwnExecutor:
    """An executor of alto's own: declarations know what functions it takes."""

    __slots__ = ()
    short: ClassVar[RunsIn]
    """Short name of the executor, as in ``runs_in=``."""

    def __init_subclass__(cls, short: RunsIn | None = None) -> None:
        if short is not None:  # attrs makes the class a second time, for its slots.
            cls.short = short

    def replica(
        self, stage: StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AbstractAsyncContextManager[Callable[..., Any]]:
        """Make a replica, as ``alto.protocols.Executor.replica``."""
        raise NotImplementedError


T_co = TypeVar("T_co", covariant=True)

Made: TypeAlias = (
    T_co | Awaitable[T_co] | AbstractContextManager[T_co] | AbstractAsyncContextManager[T_co]
)
"""Types that a factory of a resource may return."""


@attrs.frozen(repr=False)
class PerReplica(Generic[T_co]):
    """A resource that every replica of a stage makes for itself; made by :func:`per_replica`."""

    factory: Callable[..., Any]
    numbered: bool
    """True where the factory takes the number of the replica."""

    def __repr__(self) -> str:
        return f"per_replica({getattr(self.factory, '__qualname__', self.factory)})"

    def make(self, number: int) -> Made[T_co]:
        """Call the factory for replica *number*."""
        made: Made[T_co] = self.factory(number) if self.numbered else self.factory()
        return made


# Not one signature with a union: mypy would not look into what a factory of a manager manages.
@overload
def per_replica(
    factory: Callable[..., AbstractAsyncContextManager[T_co]], /
) -> PerReplica[T_co]: ...
@overload
def per_replica(factory: Callable[..., AbstractContextManager[T_co]], /) -> PerReplica[T_co]: ...
@overload
def per_replica(factory: Callable[..., Awaitable[T_co]], /) -> PerReplica[T_co]: ...
@overload
def per_replica(factory: Callable[..., T_co], /) -> PerReplica[T_co]: ...
def per_replica(factory: Callable[..., Made[T_co]], /) -> PerReplica[T_co]:
    """Make a resource for each replica of a stage, and give it back when the replica is removed.

    Given to ``open()`` or ``Stage.bind`` in the place of the resource::

        @asynccontextmanager
        async def connection(number: int) -> AsyncIterator[Connection]: ...

        async with pipeline.open(db=alto.per_replica(connection)) as app: ...

    Args:
        factory: Called once per replica, when the app opens or is scaled up. It returns an async or
            a plain context manager, which is left when the replica is removed; or an awaitable; or the
            resource itself. Where it has a parameter without a default, it gets the number of the
            replica: 0, 1, ...; numbers are not reused when replicas are removed and others added. For a stage with
            ``runs_in="thread"`` a plain factory is called in a thread of the replica; of one with
            ``runs_in="process"`` in its process, where it must be a plain function or context
            manager that can be imported there.

    Raises:
        ResourceError: It cannot be called, or takes more than one argument.
    """
    given: object = factory
    if not callable(given):
        msg = (
            f"per_replica(...) takes a function that makes the resource, not {factory!r}; "
            f"a resource that replicas share is given to open() as it is"
        )
        raise ResourceError(msg)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # A builtin without a signature.
        return PerReplica(factory, numbered=False)
    required = [p for p in parameters if p.default is p.empty
                and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]  # fmt: skip
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        msg = (
            f"per_replica(...): the factory may take the number of the replica, and nothing else, "
            f"but {getattr(factory, '__qualname__', factory)} asks for "
            f"{', '.join(p.name for p in required)}; fix them with functools.partial"
        )
        raise ResourceError(msg)
    return PerReplica(factory, numbered=bool(required))


@attrs.frozen
class ParamSpec:
    """A stream parameter: positional in the stage's signature."""

    name: str
    group: bool
    """True where it is annotated ``Group[...]``."""
    type: Any
    """The annotation; for a group the type inside the brackets."""


@attrs.frozen
class ResourceSpec:
    """A resource parameter: keyword-only in the stage's signature."""

    name: str
    type: Any
    """The annotation."""
    required: bool
    """False where the signature has a default."""
    default: Any = attrs.field(default=inspect.Parameter.empty, eq=False)
    """The default of the signature, if it has one."""


@attrs.frozen(kw_only=True, eq=False)
class StageSpec:
    """A stage, read from its signature."""

    name: str
    fn: Callable[..., Any]
    """The plain function."""
    generator: bool
    """True for an async generator function."""
    params: tuple[ParamSpec, ...]
    resources: tuple[ResourceSpec, ...]
    output: Any
    """Type of one output."""
    concurrency: int
    """Most calls that run at once, per replica."""
    order: GroupOrder
    """Order in which its groups hand out their pieces."""
    replicas: int = 1
    """Number of its replicas when it is opened."""
    router: Router | None = None
    """Assigns items and groups to replicas; None: ``LeastWork``."""
    runs_in: RunsIn | Executor = "loop"
    """Executor of its function, or its short name."""
    plain: bool = False
    """True for a plain function: neither a coroutine function nor a generator."""


@attrs.frozen(kw_only=True, eq=False)
class NodeSpec:
    """One call of a stage in a pipeline."""

    name: str
    """The stage's name, numbered where it is used more than once."""
    stage: StageSpec
    bound: Mapping[str, object]
    """Resources given with ``stage.bind``."""


@attrs.frozen(kw_only=True)
class InputSpec:
    """An input of a pipeline."""

    name: str
    type: Any
    """Type inside ``Stream[...]``."""


@attrs.frozen(kw_only=True, eq=False)
class Declaration:
    """A pipeline, as its function declares it."""

    name: str
    inputs: tuple[InputSpec, ...]
    nodes: tuple[NodeSpec, ...]
    """Calls of stages, in the order of ``plan.nodes``."""
    plan: Plan
    output: Any
    """Type of one result."""


class HasDeclaration:
    """Base of ``alto.Pipeline``, by which the modules below that one recognise it."""

    __slots__ = ()

    @property
    def declaration(self) -> Declaration:
        """The pipeline's declaration."""
        raise NotImplementedError
