"""Frozen records with slots, for the processes that must start quickly.

``dataclasses`` imports inspect, ast, dis and tokenize, which costs a fresh interpreter 10 ms and more; the warden is
started with every run. The decorator below gives what the package needs of it and imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs as much as dataclasses do; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from typing_extensions import dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_options):
        return lambda function: function


class FrozenRecordError(AttributeError):
    """An attempt to change a record."""


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen record of its annotated names, in their order, by position or by keyword.

    Records compare, hash, print, copy and pickle by value; ``replace`` gives a changed copy. Defaults must be
    immutable, since they are shared. Fields of a base record are not inherited.
    """
    return _build(cls, kw_only=False)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def keyword_record(cls: type[T]) -> type[T]:
    """As ``record``, with every field by keyword only."""
    return _build(cls, kw_only=True)


def replace(instance: T, /, **changes: Any) -> T:
    """A copy of ``instance`` with some fields changed; TypeError for a field that it does not have."""
    values = {name: getattr(instance, name) for name in fields(type(instance))}
    return type(instance)(**{**values, **changes})


def fields(cls: type) -> tuple[str, ...]:
    """The names of a record's fields, in order; TypeError for any other class."""
    names: tuple[str, ...] | None = getattr(cls, "__record_fields__", None)
    if names is None:
        raise TypeError(f"{cls.__name__} is not a record")
    return names


def _build(cls: type[T], *, kw_only: bool) -> type[T]:
    names = tuple(cls.__annotations__)
    space = {key: value for key, value in cls.__dict__.items() if key not in ("__dict__", "__weakref__")}
    defaults = {name: space.pop(name) for name in names if name in space}
    space.update(
        __slots__=names,
        __record_fields__=names,
        __match_args__=() if kw_only else names,
        __setattr__=_refuse_set,
        __delattr__=_refuse_delete,
        __eq__=_equal,
        __hash__=_hash,
        __reduce__=_reduce,
        __replace__=replace,
    )
    space.setdefault("__repr__", _show)
    metaclass: Any = type(cls)
    made: type[T] = metaclass(cls.__name__, cls.__bases__, space)

    # Compiling one takes 0.1 ms, and a process makes records of few of the classes that it knows.
    def compile_first(self: Any, *values: Any, **named: Any) -> None:
        type.__setattr__(made, "__init__", _init(names, defaults, kw_only=kw_only))
        type(self).__init__(self, *values, **named)

    type.__setattr__(made, "__init__", compile_first)
    return made


def _init(names: tuple[str, ...], defaults: dict[str, Any], *, kw_only: bool) -> Callable[..., None]:
    # A written-out signature gives Python's own errors for wrong arguments, and is the fastest.
    parameters = ", ".join(f"{name}=_defaults[{name!r}]" if name in defaults else name for name in names)
    lines = [f"def __init__(self, {'*, ' if kw_only and names else ''}{parameters}):"]
    lines += [f"    _set(self, {name!r}, {name})" for name in names] or ["    pass"]
    space: dict[str, Any] = {"_defaults": defaults, "_set": object.__setattr__}
    exec("\n".join(lines), space)  # only field names of our own classes come in
    made: Callable[..., None] = space["__init__"]
    return made


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__record_fields__])


def _equal(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self is other or _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _show(self: Any) -> str:
    pairs = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__record_fields__)
    return f"{type(self).__name__}({pairs})"


def _refuse_set(self: object, name: str, _value: object) -> None:
    raise FrozenRecordError(f"{type(self).__name__} is frozen: cannot set {name!r}")


def _refuse_delete(self: object, name: str) -> None:
    raise FrozenRecordError(f"{type(self).__name__} is frozen: cannot delete {name!r}")


def _rebuild(cls: type[T], values: tuple[Any, ...]) -> T:
    return cls(**dict(zip(fields(cls), values, strict=True)))


def _reduce(self: Any) -> tuple[Any, ...]:
    return _rebuild, (type(self), _values(self))
