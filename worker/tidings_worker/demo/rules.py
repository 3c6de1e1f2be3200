"""The rules of the demo's worker: a package that was ingested again makes its trees wrong, and is read next."""

from collections.abc import Iterator

from tidings_worker import Invalidate, Rules, Warm

from .service import IngestionCompleted, get_function_tree

rules = Rules()


@rules.on(IngestionCompleted)
def package_ingested(event: IngestionCompleted) -> Iterator[Invalidate | Warm]:
    """Invalidate every tree of the package, and load the one that people look at."""
    yield Invalidate(tags=[f"package:{event.package}"])
    yield Warm(get_function_tree, package=event.package, as_of=event.as_of)
