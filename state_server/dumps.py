"""A dump: objects as lines of JSON, for people and other tools, and read back.

What JSON lacks is marked (``{"$tuple": [1, 2]}``), and a value is read back exactly as
it was. What would run code when it is read (``$pickle``, ``$image``, journalled calls)
needs the operator's word. Files and folders are not known here.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from .errors import ConfigError
from .keeping import image, journal
from .messages import KEY_LENGTH_MAX
from .sharing import checked_name
from .store import StoredRow

#: Integers beyond this are written in hexadecimal: Python refuses to read very long
#: decimal ones.
_INTEGER_BITS_MAX = 8192

#: Characters of a ``repr`` beside what it cannot replace.
_SHOWN_MAX = 500


# Lines -------------------------------------------------------------------------------


def line_of(row: StoredRow, seed: int | None = None) -> str:
    """Return an object as one line of JSON.

    ``seed``: the hash seed under which its journalled calls were made, if known.
    """
    class_name, key = row.name
    fields: dict[str, Any] = {
        "class": class_name,
        "key": key,
        "version": row.version,
        "generation": row.generation,
        **_plain_image(row.image),
    }
    if row.entries:
        fields["calls"] = [
            {
                "generation": generation,
                "method": _method(entry),
                "$entry": _base64(entry),
            }
            for generation, entry in row.entries
        ]
        if seed is not None:
            fields["hash_seed"] = seed
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _plain_image(data: bytes) -> dict[str, Any]:
    """Return the fields that describe an image.

    Only ``state`` is always there; the others belong to objects that are containers
    themselves or that are built from arguments.
    """
    shown = "?"
    try:
        parts = image.parts_of(data)
        shown = _shown(parts.state)
        if not image.shares_values(parts):
            return _plain_parts(parts)
    except Exception as error:
        # The border to the code of the values' classes: not importable, most often.
        shown = f"{type(error).__name__}: {error}"[:_SHOWN_MAX]
    return {"state": {"$image": _base64(data), "repr": shown}}


def _plain_parts(parts: image.Parts) -> dict[str, Any]:
    fields = {"state": plain(parts.state)}
    if parts.args or parts.kwargs != {}:
        fields["args"] = plain(list(parts.args))
        fields["kwargs"] = plain(parts.kwargs)
    if parts.items is not None:
        fields["items"] = plain(parts.items)
    if parts.pairs is not None:
        fields["pairs"] = [[plain(key), plain(value)] for key, value in parts.pairs]
    return fields


def _method(entry: bytes) -> str:
    try:
        return journal.unpack(entry).method
    except Exception:
        # It is shown to people only; check is what looks for damage.
        return "?"


def rows_of(
    lines: Iterable[str], trust: bool, agree_on_hash_seed: Callable[[int], None]
) -> Iterator[StoredRow]:
    """Give the objects of a dump; raise ``ConfigError`` naming a line's fault.

    ``agree_on_hash_seed`` raises ``ValueError`` for a seed under which journalled calls
    could not be made again.
    """
    reader = Reader(trust)
    first_lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            row = _row_of(fields, reader)
            if row.entries and "hash_seed" in fields:
                agree_on_hash_seed(_number(fields, "hash_seed", 0))
        except Untrusted as error:
            raise ConfigError(
                f"Nothing was loaded: line {number} has {error}, which runs code when "
                "it is read. Say --trust if the file comes from nobody but you."
            ) from None
        except Exception as error:
            # Whatever somebody wrote into the file, or their classes raised.
            fault = f"{type(error).__name__}: {error}"
            if isinstance(error, KeyError):
                fault = f"the field {error} is missing"
            raise ConfigError(
                f"Nothing was loaded: line {number} does not fit: {fault}. It begins "
                f"{line[:60]!r}."
            ) from error
        first = first_lines.setdefault(row.name, number)
        if first != number:
            raise ConfigError(
                f"Nothing was loaded: lines {first} and {number} are both of "
                f"{'/'.join(row.name)}. Remove one."
            )
        yield row


def _row_of(fields: Any, reader: Reader) -> StoredRow:
    if not isinstance(fields, dict):
        raise ValueError("a line is one JSON object")
    class_name, key = checked_name(fields["class"]), fields["key"]
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise ValueError(f"a key is text of 1 to {KEY_LENGTH_MAX} characters")
    entries = []
    for call in fields.get("calls", ()):
        reader.need_trust("a journalled call ($entry)")
        entries.append((_number(call, "generation", 1), _from_base64(call["$entry"])))
    return StoredRow(
        (class_name, key),
        _number(fields, "version", 1),
        _number(fields, "generation", 0),
        _image(fields, reader),
        tuple(entries),
    )


def _number(fields: dict[str, Any], name: str, least: int) -> int:
    value = fields[name]
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is a whole number from {least}, not {value!r}")
    return value


def _image(fields: dict[str, Any], reader: Reader) -> bytes:
    state = fields["state"]
    if isinstance(state, dict) and "$image" in state:
        reader.need_trust("a pickled image ($image)")
        return _from_base64(state["$image"])
    items, pairs = fields.get("items"), fields.get("pairs")
    return image.image_of(
        image.Parts(
            tuple(reader.value(fields.get("args", []))),
            reader.value(fields.get("kwargs", {})),
            reader.value(state),
            None if items is None else reader.value(items),
            None
            if pairs is None
            else [(reader.value(key), reader.value(value)) for key, value in pairs],
        )
    )


# Values ------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value as JSON has it, with marks for what JSON lacks."""
    cls = type(value)
    if value is None or cls is bool:
        return value
    if cls is str:
        return value if _is_unicode(value) else {"$text": _surrogates(value)}
    if cls is int:
        small = value.bit_length() <= _INTEGER_BITS_MAX
        return value if small else {"$int": hex(value)}
    if cls is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if cls is list:
        return [plain(item) for item in value]
    if cls is dict:
        return _plain_dictionary(value)
    if value is image.ITSELF:
        return {"$itself": True}
    form = _FORMS.get(cls)
    if form is not None and not getattr(value, "__dict__", None):
        written = form.write(value)
        if written is not None:
            return {form.mark: plain(written)}
    return {"$pickle": _base64(image.pickled(value)), "repr": _shown(value)}


def _plain_dictionary(value: dict[Any, Any]) -> Any:
    if all(
        type(key) is str and not key.startswith("$") and _is_unicode(key)
        for key in value
    ):
        return {key: plain(item) for key, item in value.items()}
    return {"$dict": [[plain(key), plain(item)] for key, item in value.items()]}


class Untrusted(Exception):
    """The dump holds something that runs code when it is read."""


class Reader:
    """Reads what ``plain`` has written. ``trust``: pickles, too, which runs code."""

    def __init__(self, trust: bool) -> None:
        self._trust = trust

    def need_trust(self, what: str) -> None:
        """Raise an error unless the operator has given their word."""
        if not self._trust:
            raise Untrusted(what)

    def value(self, written: Any) -> Any:
        """Return the value; raise ``Untrusted``, or ``ValueError`` for what is none."""
        if type(written) is list:
            return [self.value(item) for item in written]
        if type(written) is not dict:
            return written
        marks = [name for name in written if name.startswith("$")]
        if not marks:
            return {key: self.value(item) for key, item in written.items()}
        mark = marks[0]
        if mark == "$pickle":
            self.need_trust("a pickled value ($pickle)")
            return image.unpickled(_from_base64(written[mark]))
        read = _READ_BY_MARK.get(mark)
        if read is None or len(written) != 1:
            raise ValueError(f"{json.dumps(written)[:80]} has no mark that is known")
        return read(self.value(written[mark]))


class _Form(NamedTuple):
    """How values of one type are written: as other values, under a mark.

    ``write`` returns ``None`` for a value that the form cannot tell in full.
    """

    mark: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _shown(value: object) -> str:
    """Return the repr of a value, for people; it is not read again."""
    try:
        return repr(value)[:_SHOWN_MAX]
    except Exception as error:
        # The border to the value's own code.
        return f"<repr failed: {type(error).__name__}>"


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _surrogates(text: str) -> str:
    return _base64(text.encode("utf-8", "surrogatepass"))


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Return the items of a set in an order that is the same for every dump."""
    return sorted(values, key=lambda item: json.dumps(plain(item)))


def _is_plain_zone(zone: Any) -> bool:
    """Tell whether a time zone is an offset without a name, which ISO 8601 tells."""
    if zone is None:
        return True
    return type(zone) is timezone and zone.tzname(None) == (
        timezone(zone.utcoffset(None)).tzname(None)
    )


def _moment(value: Any) -> Any:
    """Return the ISO text of a moment, with its zone beside it if that tells more."""
    if not value.fold and _is_plain_zone(value.tzinfo):
        return value.isoformat()
    return [
        value.replace(tzinfo=None, fold=0).isoformat(),
        value.tzinfo,
        value.fold,
    ]


def _read_moment(cls: Any) -> Callable[[Any], Any]:
    def read(written: Any) -> Any:
        if isinstance(written, str):
            return cls.fromisoformat(written)
        text, zone, fold = written
        return cls.fromisoformat(text).replace(tzinfo=zone, fold=fold)

    return read


def _uuid(value: UUID) -> str | None:
    return str(value) if value.is_safe is SafeUUID.unknown else None


_FORMS: dict[type, _Form] = {
    tuple: _Form("$tuple", list, tuple),
    set: _Form("$set", _in_order, set),
    frozenset: _Form("$frozenset", _in_order, frozenset),
    bytes: _Form("$bytes", _base64, _from_base64),
    bytearray: _Form("$bytearray", _base64, lambda text: bytearray(_from_base64(text))),
    complex: _Form("$complex", lambda v: [v.real, v.imag], lambda v: complex(*v)),
    Decimal: _Form("$decimal", str, Decimal),
    Fraction: _Form(
        "$fraction", lambda v: [v.numerator, v.denominator], lambda v: Fraction(*v)
    ),
    datetime: _Form("$datetime", _moment, _read_moment(datetime)),
    date: _Form("$date", date.isoformat, date.fromisoformat),
    time: _Form("$time", _moment, _read_moment(time)),
    timedelta: _Form(
        "$timedelta",
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda v: timedelta(*v),
    ),
    timezone: _Form(
        "$timezone",
        lambda v: list(v.__getinitargs__()),
        lambda v: timezone(*v),
    ),
    ZoneInfo: _Form("$zone", lambda v: v.key, ZoneInfo),
    UUID: _Form("$uuid", _uuid, UUID),
    deque: _Form("$deque", lambda v: [list(v), v.maxlen], lambda v: deque(*v)),
    OrderedDict: _Form(
        "$ordered_dict", lambda v: list(map(list, v.items())), OrderedDict
    ),
    Counter: _Form(
        "$counter", lambda v: list(map(list, v.items())), lambda v: Counter(dict(v))
    ),
}

_READ_BY_MARK: dict[str, Callable[[Any], Any]] = {
    **{form.mark: form.read for form in _FORMS.values()},
    "$dict": dict,
    "$float": float,
    "$int": lambda text: int(text, 16),
    "$itself": lambda _: image.ITSELF,
    "$text": lambda text: _from_base64(text).decode("utf-8", "surrogatepass"),
}
