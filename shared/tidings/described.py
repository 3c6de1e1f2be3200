"""What a cached function knows without asking Redis: its options, and the names, keys and tags of its calls."""

import inspect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import update_wrapper
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, get_type_hints

from .codec import UNTYPED, Codec
from .errors import ArgumentError, ConfigurationError
from .keys import qualified
from .policy import Policy
from .signature import Signature, memorable
from .targets import Call, Request, Target
from .templates import Template

if TYPE_CHECKING:
    from .cache import Cache

P = ParamSpec("P")
R = TypeVar("R")

#: Targets that a function remembers; then it begins anew.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """What `cached` was given, checked."""

    namespace: str
    key: Template | None
    tags: tuple[Template, ...] | Callable[..., Iterable[str]]
    policy: Policy
    result_tags: Callable[[Any], Iterable[str]] | None
    when: Callable[..., object] | None
    #: whether it is a classmethod, and so bound to a class and not to an instance
    of_class: bool = False


class Described(Generic[P, R]):
    """What cached functions of both kinds know without Redis: the names, keys, tags and codec of their calls."""

    #: The function itself, for a caller that must not be served from the cache.
    uncached: Callable[P, Any]

    def __init__(
        self, function: Callable[P, Any], options: Options, signature: Signature, cache: "Callable[[], Cache]"
    ) -> None:
        update_wrapper(cast("Callable[..., Any]", self), function)
        self.options = options
        self.signature = signature
        self.identity = qualified(function)
        self._function = function
        self._cache = cache
        self._codec: Codec[R] | None = None
        self._codec_lock = threading.Lock()
        self._when = options.when
        self._identify = signature.identify if self._is_memorable() else None
        #: the cache for which targets are remembered, and they by their arguments
        self._known: tuple[Cache | None, dict[tuple[Any, ...], Target]] = (None, {})

    def key(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the Redis key for these arguments."""
        return self._cache().key_of(self.call_of(*args, **kwargs))

    def call_of(self, /, *args: Any, **kwargs: Any) -> Call:
        """Bind arguments and name the entry. Raises TypeError as the function would, ArgumentError for a bad one."""
        bound = self.signature.bind(*args, **kwargs)
        value_of = dict(zip(self.signature.names, bound, strict=True)).__getitem__
        options = self.options
        try:
            if options.key is None:
                name = self.signature.entry_name(bound)
            else:
                name = self.signature.named_entry(options.key, bound)
        except RecursionError:
            raise ArgumentError(f"{self.identity}: an argument is nested too deep, or contains itself") from None
        if callable(options.tags):
            tags = self._called_tags("tags", options.tags(**self.signature.arguments(bound)))
        else:
            tags = tuple(template.render(value_of) for template in options.tags)
        return Call(self.identity, options.namespace, name, tags, options.policy)

    def __reduce__(self) -> str:
        """Pickle by the name under which other processes import it; a copy is itself."""
        return cast("Any", self).__qualname__  # type: ignore[no-any-return]

    @property
    def cache(self) -> "Cache":
        """The cache that a call made now would use."""
        return self._cache()

    @property
    def codec(self) -> Codec[R]:
        """How results become bytes. Made at decoration, or at the first call when a name was not defined before.

        Raises ConfigurationError for an annotation whose names are not there, or that cannot be kept.
        """
        if self._codec is None:
            with self._codec_lock:
                if self._codec is None:
                    try:
                        annotation = return_annotation(self._function)
                    except NameError as error:
                        raise ConfigurationError(f"{self.identity}: the return annotation: {error}") from error
                    self._codec = Codec(annotation, self.identity)
        return self._codec

    def request(self, load: Callable[[], Any], /, *args: Any, **kwargs: Any) -> Request:
        """Return what a reader needs for these arguments; `load` runs the function, or something in its place."""
        return self._request(self.target(self._cache(), args, kwargs), load, args, kwargs)

    def target(self, cache: "Cache", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """Return where the entry for these arguments is."""
        if self._identify is None:
            return cache.target(self.call_of(*args, **kwargs))
        identity = self._identify(*args, **kwargs)
        known_of, known = self._known
        try:
            found = known.get(identity) if known_of is cache else None
        except TypeError:  # an argument that cannot be hashed
            return cache.target(self.call_of(*args, **kwargs))
        if found is None:
            found = cache.target(self.call_of(*args, **kwargs))
            if memorable(identity):
                if known_of is not cache or len(known) >= _REMEMBERED:
                    known = {}
                    self._known = (cache, known)
                known[identity] = found
        return found

    def _request(
        self, wanted: Target, load: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Request:
        result_tags = None if self.options.result_tags is None else self._tags_of_result
        return Request(wanted, load, self.codec, result_tags, (self, args, kwargs))

    def _tags_of_result(self, result: R) -> tuple[str, ...]:
        assert self.options.result_tags is not None  # noqa: S101 for the type checker: asked where this is handed out
        return self._called_tags("result_tags", self.options.result_tags(result))

    def _called_tags(self, option: str, found: Iterable[str]) -> tuple[str, ...]:
        return listed_tags(option, found, self.identity)

    def applies(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Say what `when` says of these arguments."""
        if self._when is None:
            return True
        return bool(self._when(**self.signature.arguments(self.signature.bind(*args, **kwargs))))

    def _is_memorable(self) -> bool:
        """Whether the same arguments always have the same entry and tags.

        A callable may tell different tags tomorrow, and so may the attributes of ``self``.
        """
        templates = [] if callable(self.options.tags) else list(self.options.tags)
        templates += [] if self.options.key is None else [self.options.key]
        uses_self = any(template.names & {"self", "cls"} for template in templates)
        return not callable(self.options.tags) and not (self.signature.is_method and uses_self)

    def __repr__(self) -> str:
        return f"<cached {self.identity}>"


def listed_tags(option: str, found: Iterable[str], where: str) -> tuple[str, ...]:
    """Return the tags that a callable gave. Raises ArgumentError for what is no list of them.

    Nor is a string: it would be taken letter by letter.
    """
    if isinstance(found, str):
        raise ArgumentError(f"{where}: {option} returned the string {found!r} where a list of tags belongs")
    if not isinstance(found, Iterable):
        raise ArgumentError(f"{where}: {option} returned {found!r:.100} where a list of tags belongs")
    tags = tuple(found)
    for tag in tags:
        if not isinstance(tag, str):
            raise ArgumentError(f"{where}: {option} returned {tag!r:.100} among its tags, which is no string")
    return tags


def return_annotation(function: Callable[..., Any]) -> Any:
    """Return what a function promises to return, or UNTYPED. Raises NameError for a name that is not defined (yet).

    Only that: the other annotations may name what exists for the type checker alone.
    """
    annotation = getattr(function, "__annotations__", {}).get("return", UNTYPED)
    if annotation is UNTYPED:
        return UNTYPED
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    stub = SimpleNamespace(__annotations__={"return": annotation})
    return get_type_hints(stub, namespace, include_extras=True)["return"]
