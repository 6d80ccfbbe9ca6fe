"""DataFrames, series, indexes and single values of pandas, in forms of our own.

A DataFrame travels as its columns, its index and the values of each column; a series
or an index as its values and names; values are arrays of numpy, or one of pandas'
arrays in a form that says what is in it and not how pandas keeps it. That is why
releases 2 and 3 read each other. Each part is checked before pandas is asked to make
anything, and pandas is asked by its public constructors, never told how to fill its
insides.

pandas is imported when the first such value is met, and not before. Pickle and pandas'
own spelling may not enter; ``dataframe_spellings`` says how the forms are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timezone
from typing import Any
from zoneinfo import ZoneInfo

from ..errors import NotAllowed
from . import wire_names
from .contexts import ReadContext
from .dtypes import missing, numpy_here
from .entries import Entry
from .measures import measured_range

#: An index of equal steps: start, stop, step and name.
Steps = tuple[int, int, int, Any]

#: Kinds of numpy's dtypes that pandas keeps as they are. It makes objects of text and
#: bytes, each many times larger than it is in an array.
_COLUMN_KINDS = "biufcMmO"
_UNITS = ("s", "ms", "us", "ns")
_PARTS_MAX = 100
#: Rows in one reading whose frequency may be checked date by date, 10 µs each.
CALENDAR_ROWS_MAX = 20_000


def pandas_here() -> Any:
    """Return pandas; raise ``NotAllowed`` where it cannot be imported."""
    try:
        import pandas
    except ImportError as error:
        raise missing("pandas", error) from None
    return pandas


def dataframe(reader: ReadContext, *parts: Any) -> Any:
    """Make a DataFrame: values, columns, index, attributes, are labels unique."""
    values, columns, rows, attributes, unique = parts
    pandas, numpy = pandas_here(), numpy_here()
    if type(values) is numpy.ndarray:
        values = _column(values, 2)
        shape = values.shape
    elif type(values) is list:
        values = [_column(column, 1) for column in values]
        shape = len(values[0]) if values else None, len(values)
    else:
        raise NotAllowed("A DataFrame is not made of an array or a list of columns.")
    labels = _index_of(reader, columns, shape[1])
    index = _index_of(reader, rows, shape[0])
    copy = False
    if type(values) is list:
        if any(len(column) != len(index) for column in values):
            raise NotAllowed("The columns of a DataFrame are not as long as its index.")
        values = {
            place: _as_series(column, index) for place, column in enumerate(values)
        }
        # pandas warns about very many parts; so many are copied into few.
        copy = len(values) > _PARTS_MAX
    made = pandas.DataFrame(values, index=index, copy=copy)
    made.columns = labels
    return _labelled(made, attributes, unique)


def _as_series(values: Any, index: Any) -> Any:
    """Return a column as a series; text in an array of objects stays such."""
    dtype = object if values.dtype == object else None
    return pandas_here().Series(values, index=index, dtype=dtype, copy=False)


def series(reader: ReadContext, *parts: Any) -> Any:
    """Make a series: values, index, name, attributes, whether labels are unique."""
    values, rows, name, attributes, unique = parts
    values = _column(values, 1)
    made = _as_series(values, _index_of(reader, rows, len(values)))
    made.name = name
    return _labelled(made, attributes, unique)


def _labelled(made: Any, attributes: Any, unique: Any) -> Any:
    """Give a DataFrame or a series its attributes."""
    if type(attributes) is not dict or type(unique) is not bool:
        raise NotAllowed("A DataFrame or Series has attributes that are none.")
    if attributes:
        made.attrs = attributes
    if unique:
        made.flags.allows_duplicate_labels = False
    return made


def _column(values: Any, dimensions: int) -> Any:
    """Check that values can be those of a column, and may be written to."""
    pandas, numpy = pandas_here(), numpy_here()
    if type(values) is not numpy.ndarray:
        if dimensions == 1 and isinstance(values, pandas.api.extensions.ExtensionArray):
            return values
        raise NotAllowed(f"A column is a {type(values).__name__}.")
    if values.ndim != dimensions or values.dtype.kind not in _COLUMN_KINDS:
        raise NotAllowed(
            f"A column of {values.ndim} dimensions has the dtype {values.dtype!s:.100}."
        )
    if not values.flags.writeable:
        # A DataFrame is never read-only: half of what pandas does would fail on it.
        values = _writable(values)
    return values


def _writable(values: Any) -> Any:
    """Return values that may be written to, the same ones if their memory allows it."""
    try:
        values.flags.writeable = True
    except ValueError:
        values = values.copy(order="K")
    return values


def _index_of(reader: ReadContext, part: Any, length: int | None) -> Any:
    """Return the index that is part of a DataFrame, of as many labels as it needs."""
    if type(part) is tuple:
        made = _stepped(part)
        if length is None:
            measured_range(reader, range(made.start, made.stop, made.step))
    elif isinstance(part, pandas_here().Index):
        made = part
    else:
        raise NotAllowed(f"An index is a {type(part).__name__}.")
    if length is not None and len(made) != length:
        raise NotAllowed(f"An index has {len(made)} labels for {length} values.")
    return made


def steps(reader: ReadContext, *parts: Any) -> Any:
    """Make an index of equal steps, counting them."""
    made = _stepped(parts)
    measured_range(reader, range(made.start, made.stop, made.step))
    return made


def _stepped(parts: Any) -> Any:
    start, stop, step, name = parts
    if (type(start), type(stop), type(step)) != (int, int, int) or not step:
        raise NotAllowed("An index of equal steps is not made of numbers.")
    if max(abs(start), abs(stop), abs(step)) >= 2**63:
        raise NotAllowed("An index of equal steps has steps beyond all numbers.")
    return pandas_here().RangeIndex(start, stop, step, name=name)


def index(reader: ReadContext, *parts: Any) -> Any:
    """Make an index of its values, name and frequency."""
    values, name, frequency = parts
    values = _column(values, 1)
    dtype = object if values.dtype == object else None
    made = pandas_here().Index(values, dtype=dtype, name=name, copy=False)
    if frequency is not None:
        _set_frequency(reader, made, frequency)
    return made


#: The frequencies of dates, as pandas 2.2 and later call them; the first are even.
_EVEN = re.compile(r"-?[0-9]{0,9}(?:D|h|min|s|ms|us|ns)")
FREQUENCY = re.compile(
    _EVEN.pattern + r"|-?[0-9]{0,4}(?:B|MS|ME|BMS|BME|SMS(?:-[0-9]{1,2})?|"
    r"SME(?:-[0-9]{1,2})?|(?:W|QS|QE|BQS|BQE|YS|YE|BYS|BYE)(?:-[A-Z]{3})?)"
)
SPAN = re.compile(r"[0-9]{0,4}(?:(?:W|Q|Y)(?:-[A-Z]{3})?|M|D|h|min|s|ms|us|ns)")


def _set_frequency(reader: ReadContext, made: Any, frequency: Any) -> None:
    """Give dates their frequency, if they keep to it and checking that is cheap.

    A frequency that this release does not know is left away, no more: it is in the
    dates themselves.
    """
    if type(frequency) is not str or not FREQUENCY.fullmatch(frequency):
        raise NotAllowed(f"{frequency!r:.100} is no frequency of dates.")
    pandas = pandas_here()
    if not isinstance(made, (pandas.DatetimeIndex, pandas.TimedeltaIndex)):
        raise NotAllowed("An index without dates has a frequency.")
    if not _EVEN.fullmatch(frequency):
        reader.calendar_rows += len(made)
        if reader.calendar_rows > CALENDAR_ROWS_MAX:
            return
    try:
        made.freq = frequency
    except (ValueError, TypeError, ArithmeticError, NotImplementedError):
        return


def multi_index(_reader: ReadContext, *parts: Any) -> Any:
    """Make an index of several levels of its levels, codes and names."""
    levels, codes, names_of = parts
    pandas, numpy = pandas_here(), numpy_here()
    if not (type(levels) is list and type(codes) is list and type(names_of) is list):
        raise NotAllowed("An index of several levels is not made of lists.")
    if not len(levels) == len(codes) == len(names_of):
        raise NotAllowed("An index of several levels has not as many codes and names.")
    for level, numbers in zip(levels, codes, strict=True):
        if not isinstance(level, pandas.Index) or isinstance(level, pandas.MultiIndex):
            raise NotAllowed("A level of an index is no index.")
        if type(numbers) is not numpy.ndarray or numbers.dtype.kind != "i":
            raise NotAllowed("The codes of an index of several levels are no numbers.")
    return pandas.MultiIndex(
        levels=levels, codes=codes, names=names_of, verify_integrity=True
    )


def categorical(_reader: ReadContext, *parts: Any) -> Any:
    """Make an array of categories, their numbers, and whether they are in order."""
    codes, categories, ordered = parts
    pandas = pandas_here()
    if type(codes) is not numpy_here().ndarray or codes.dtype.kind != "i":
        raise NotAllowed("The codes of categories in the pickle are no numbers.")
    if not isinstance(categories, pandas.Index) or type(ordered) is not bool:
        raise NotAllowed("Categories in the pickle are no index.")
    dtype = pandas.CategoricalDtype(categories, ordered)
    return pandas.Categorical.from_codes(_column(codes, 1), dtype=dtype)


def masked(_reader: ReadContext, *parts: Any) -> Any:
    """Make an array of numbers or truths of which those under the mask are missing."""
    data, mask = parts
    arrays, ndarray = pandas_here().arrays, numpy_here().ndarray
    if type(data) is not ndarray or type(mask) is not ndarray:
        raise NotAllowed("Numbers with a mask in the pickle are no arrays.")
    kinds = {
        "b": arrays.BooleanArray,
        "i": arrays.IntegerArray,
        "u": arrays.IntegerArray,
        "f": arrays.FloatingArray,
    }
    make = kinds.get(data.dtype.kind)
    if make is None or data.shape != mask.shape or mask.dtype.kind != "b":
        raise NotAllowed("Numbers in the pickle do not fit their mask.")
    return make(_column(data, 1), _column(mask, 1))


def strings(_reader: ReadContext, *parts: Any) -> Any:
    """Make an array of text of which some is missing, of its storage and a list.

    Where this release has no such array, or no such storage, it becomes the nearest
    that it has.
    """
    storage, is_nan, texts = parts
    if type(texts) is not list or not {str, type(None)}.issuperset(map(type, texts)):
        raise NotAllowed("Text in the pickle is something else.")
    pandas, numpy = pandas_here(), numpy_here()
    values = numpy.fromiter(texts, object, len(texts))
    dtype = _string_dtype(pandas, numpy, storage == "pyarrow", bool(is_nan))
    if dtype is None:
        values[[text is None for text in texts]] = numpy.nan
        return values
    return pandas.array(values, dtype=dtype)


def _string_dtype(pandas: Any, numpy: Any, arrow: bool, is_nan: bool) -> Any:
    """Return the dtype of text, ``None`` where this release has none with NaN."""
    missing_value = {"na_value": numpy.nan} if is_nan else {}
    if arrow:
        try:
            return pandas.StringDtype("pyarrow", **missing_value)
        except (ImportError, TypeError):
            pass
    try:
        return pandas.StringDtype("python", **missing_value)
    except TypeError:
        # Before release 2.3 there was none; text was an array of objects.
        return None


def dates(_reader: ReadContext, *parts: Any) -> Any:
    """Make an array of points in time, or of differences, and perhaps a time zone."""
    values, zone, native = parts
    pandas = pandas_here()
    if type(values) is not numpy_here().ndarray or values.dtype.kind not in "Mm":
        raise NotAllowed("Dates in the pickle are none.")
    values = _column(values, 1)
    if values.dtype.kind == "m":
        return pandas.TimedeltaIndex(values, copy=False).array
    made = pandas.DatetimeIndex(values, copy=False)
    if zone is not None:
        check_clock(values)
        made = made.tz_localize("UTC").tz_convert(_zone(zone, native))
    return made.array


def check_clock(values: Any) -> None:
    """Refuse points in time that have no time of day in any zone.

    Time zones know the years from 1 to 9999; pandas fails outside, at times in silence.
    """
    numpy = numpy_here()
    if numpy.datetime_data(values.dtype)[0] == "ns":
        return
    first, last = map(numpy.datetime64, ("0001-01-02", "9999-12-30"))
    if (values < first).any() or (values > last).any():
        raise NotAllowed("Dates in a time zone are outside the years 1 to 9999.")


def _zone(zone: Any, native: Any) -> Any:
    """Return a time zone, as this pandas makes it of a key if the writer's did so."""
    if type(zone) not in (ZoneInfo, timezone):
        raise NotAllowed("Dates in the pickle have a time zone that is none.")
    made = native_zone(zone.key) if native and type(zone) is ZoneInfo else None
    return made or zone


def native_zone(key: str) -> Any:
    """Return the time zone that this pandas makes of a key, ``None`` if it cannot.

    Release 2 makes most zones with pytz, release 3 with zoneinfo, and neither takes
    columns with the one and the other to be of one dtype.
    """
    try:
        return pandas_here().Timestamp(0, tz=key).tz
    except LookupError:
        return None


def periods(_reader: ReadContext, *parts: Any) -> Any:
    """Make an array of spans of time of their numbers and frequency."""
    numbers, rhythm = parts
    pandas = pandas_here()
    if type(numbers) is not numpy_here().ndarray or numbers.dtype.str[1:] != "i8":
        raise NotAllowed("Spans of time in the pickle are no numbers.")
    dtype = pandas.PeriodDtype(_checked_rhythm(rhythm))
    return pandas.arrays.PeriodArray(_column(numbers, 1), dtype=dtype)


def _checked_rhythm(rhythm: Any) -> str:
    """Check the frequency of spans of time."""
    if type(rhythm) is not str or not SPAN.fullmatch(rhythm):
        raise NotAllowed(f"{rhythm!r:.100} is no frequency of spans of time.")
    return rhythm


def intervals(_reader: ReadContext, *parts: Any) -> Any:
    """Make an array of intervals of their left and right ends."""
    left, right, closed = parts
    pandas = pandas_here()
    if not isinstance(left, pandas.Index) or not isinstance(right, pandas.Index):
        raise NotAllowed("The ends of intervals in the pickle are no index.")
    return pandas.arrays.IntervalArray.from_arrays(left, right, _closed(closed))


def _closed(closed: Any) -> str:
    """Check which ends belong to an interval."""
    if closed not in ("left", "right", "both", "neither"):
        raise NotAllowed(f"{closed!r:.100} are no ends of an interval.")
    return str(closed)


def moment(_reader: ReadContext, *parts: Any) -> Any:
    """Make a point in time, or a difference, of numpy's and perhaps a time zone."""
    value, zone, native = parts
    pandas, numpy = pandas_here(), numpy_here()
    if type(value) not in (numpy.datetime64, numpy.timedelta64):
        raise NotAllowed("A point in time in the pickle is none.")
    if numpy.datetime_data(value.dtype)[0] not in _UNITS or numpy.isnat(value):
        raise NotAllowed("A point in time in the pickle has a unit that is none.")
    if type(value) is numpy.timedelta64:
        return pandas.Timedelta(value)
    made = pandas.Timestamp(value)
    if zone is not None:
        check_clock(value)
        made = made.tz_localize("UTC").tz_convert(_zone(zone, native))
    return made


def period(_reader: ReadContext, *parts: Any) -> Any:
    """Make a span of time of its frequency and number."""
    rhythm, ordinal = parts
    if type(ordinal) is not int or not -(2**63) < ordinal < 2**63:
        raise NotAllowed("A span of time in the pickle has no number.")
    return pandas_here().Period(ordinal=ordinal, freq=_checked_rhythm(rhythm))


def interval(_reader: ReadContext, *parts: Any) -> Any:
    """Make an interval of its ends."""
    left, right, closed = parts
    return pandas_here().Interval(left, right, _closed(closed))


def absent(_reader: ReadContext, *parts: Any) -> Any:
    """Return what pandas puts in the place of a missing value."""
    (name,) = parts
    found = {"NaT": pandas_here().NaT, "<NA>": pandas_here().NA}.get(name)
    if found is None:
        raise NotAllowed(f"There is no missing value {name!r:.100}.")
    return found


#: What the functions are called in pickles, for good: the name is not the function's.
_NAMED = {
    "frame": dataframe,
    "series": series,
    "index": index,
    "steps": steps,
    "multi_index": multi_index,
    "categorical": categorical,
    "masked": masked,
    "strings": strings,
    "dates": dates,
    "periods": periods,
    "intervals": intervals,
    "moment": moment,
    "period": period,
    "interval": interval,
    "absent": absent,
}
wire_names.keep(wire_names.DATAFRAMES, _NAMED)


def names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the names in pickles that stand for the functions of this room."""
    for name, make in _NAMED.items():
        yield wire_names.DATAFRAMES, name, Entry(make, call=True, bound=True)
