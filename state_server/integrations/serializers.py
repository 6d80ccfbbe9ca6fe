"""How a cached value is packed: with the package's codec instead of pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from cachelib.serializers import BaseSerializer
from markupsafe import Markup

from .. import codec

# What templates render and messages are flashed as; Flask brings it with it.
codec.allow(Markup)

#: What makes a handle of a class name and key found in a value, as ``Client.get`` does.
MakeHandle = Callable[[str, str], Any]


class CodecSerializer(BaseSerializer):
    """Packs values with the codec of the package instead of pickle.

    Takes what may travel to a shared object: plain values, containers, and classes
    given to ``state_server.allow``. ``reference`` makes a handle of the class name and
    key of a shared object that a value refers to.
    """

    def __init__(self, reference: MakeHandle | None = None) -> None:
        self._reference = reference

    def dumps(self, value: Any, *_: Any) -> bytes:
        """Return the value as bytes; raises ``NotAllowed`` and ``TooLarge``."""
        return codec.encode(value)

    def loads(self, bvalue: bytes) -> Any:
        """Return the value of the bytes; raises ``NotAllowed`` and ``TooLarge``."""
        if self._reference is None:
            return codec.decode(bvalue)
        return codec.decode(bvalue, reference=self._reference)

    def dump(self, value: Any, f: IO[bytes], *_: Any) -> None:
        """Write the value to a file."""
        f.write(self.dumps(value))

    def load(self, f: IO[bytes]) -> Any:
        """Return the value that a file holds."""
        return self.loads(f.read())

    def referring(self, reference: MakeHandle) -> CodecSerializer:
        """Return a serializer like this one that makes handles with ``reference``."""
        return type(self)(reference)
