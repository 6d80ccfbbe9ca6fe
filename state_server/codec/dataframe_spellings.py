"""How DataFrames, series, indexes and single values of pandas are written.

The forms are those of ``dataframes``, which makes the values again. Only what pandas
shows in public is asked for. Pickle and the way back may not enter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timezone
from typing import Any
from zoneinfo import ZoneInfo

from .contexts import WriteContext
from .dataframes import (
    FREQUENCY,
    SPAN,
    Steps,
    absent,
    categorical,
    check_clock,
    dataframe,
    dates,
    index,
    interval,
    intervals,
    masked,
    moment,
    multi_index,
    native_zone,
    pandas_here,
    period,
    periods,
    series,
    steps,
    strings,
)
from .dtypes import numpy_here
from .refusals import Foreign

_SUBCLASS = "send pandas.{0}(value)"
_OTHER_ARRAY = "send value.astype(object), or a dtype of numpy's or pandas' own"
_NUMPY_ARRAY = "send value.to_numpy()"
_OTHER_ZONE = "convert it to a time zone of zoneinfo, with tz_convert()"
_OTHER = "of pandas, only DataFrames, series, indexes, arrays and their values do"
_STOCK = (
    "values of pandas are for our own client: use state_server.connect() in place of a "
    "client that knows only the standard library"
)


def spelling(writer: WriteContext, value: Any) -> Any:
    """Return how a value of pandas is spelled; raise ``Foreign`` for other types."""
    pandas = pandas_here()
    if writer.stock:
        raise Foreign(value, _STOCK)
    if value is pandas.NaT or value is pandas.NA:
        return absent, (str(value),)
    spell = _spellings().get(type(value))
    if spell is not None:
        return spell(value)
    for name in ("DataFrame", "Series", "Index"):
        if isinstance(value, getattr(pandas, name)):
            raise Foreign(value, _SUBCLASS.format(name))
    if not isinstance(value, pandas.api.extensions.ExtensionArray):
        raise Foreign(value, _OTHER)
    if isinstance(value.dtype, pandas.StringDtype):
        return _spell_strings(value)
    is_numpy = isinstance(value, pandas.arrays.NumpyExtensionArray)
    raise Foreign(value, _NUMPY_ARRAY if is_numpy else _OTHER_ARRAY)


@functools.lru_cache(1)
def _spellings() -> dict[type, Callable[[Any], Any]]:
    """Return what spells the values of each type; pandas is there."""
    pandas = pandas_here()
    arrays = pandas.arrays
    plain_indexes = (
        pandas.Index, pandas.DatetimeIndex, pandas.TimedeltaIndex, pandas.PeriodIndex,
        pandas.CategoricalIndex, pandas.IntervalIndex,
    )  # fmt: skip
    masked_arrays = arrays.IntegerArray, arrays.FloatingArray, arrays.BooleanArray
    return {
        pandas.DataFrame: _spell_dataframe,
        pandas.Series: _spell_series,
        pandas.RangeIndex: lambda value: (steps, _steps_of(value)),
        pandas.MultiIndex: _spell_multi_index,
        **dict.fromkeys(plain_indexes, _spell_index),
        **dict.fromkeys(masked_arrays, _spell_masked),
        pandas.Categorical: _spell_categorical,
        arrays.DatetimeArray: _spell_dates,
        arrays.TimedeltaArray: _spell_dates,
        arrays.PeriodArray: _spell_periods,
        arrays.IntervalArray: _spell_intervals,
        pandas.Timestamp: _spell_moment,
        pandas.Timedelta: _spell_moment,
        pandas.Period: lambda value: (period, (_rhythm(value), value.ordinal)),
        pandas.Interval: lambda value: (
            interval,
            (value.left, value.right, value.closed),
        ),
    }


def _spell_dataframe(value: Any) -> Any:
    """Spell a DataFrame: all values as one array if they are alike, else by columns."""
    numpy = numpy_here()
    kinds = set(value.dtypes)
    whole = len(kinds) == 1 and value.shape[0] > 0 and value.shape[1] > 1
    if whole and isinstance(kind := kinds.pop(), numpy.dtype) and kind.kind != "O":
        values = value.to_numpy()
    else:
        values = [_values_of(value.iloc[:, i]) for i in range(value.shape[1])]
    labels = _index_part(value.columns), _index_part(value.index)
    return dataframe, (values, *labels, dict(value.attrs), _unique(value))


def _spell_series(value: Any) -> Any:
    """Spell a series."""
    labels = _index_part(value.index), value.name
    attributes = dict(value.attrs), _unique(value)
    return series, (_values_of(value), *labels, *attributes)


def _unique(value: Any) -> bool:
    """Tell whether two rows or columns of the same label are forbidden."""
    return not value.flags.allows_duplicate_labels


def _values_of(value: Any) -> Any:
    """Return the values of a series or an index: numpy's array, or pandas' own."""
    if isinstance(value.dtype, numpy_here().dtype):
        return value.to_numpy()
    return value.array


def _index_part(value: Any) -> Any:
    """Return an index as part of a DataFrame: equal steps are no index of their own.

    What they stand for is in the rows, so it need not be counted again.
    """
    return _steps_of(value) if type(value) is pandas_here().RangeIndex else value


def _steps_of(value: Any) -> Steps:
    return value.start, value.stop, value.step, value.name


def _spell_index(value: Any) -> Any:
    """Spell an index that has values."""
    return index, (_values_of(value), value.name, _frequency(value))


def _frequency(value: Any) -> str | None:
    """Return the frequency of dates, ``None`` for one that cannot be told by text."""
    pandas = pandas_here()
    if not isinstance(value, (pandas.DatetimeIndex, pandas.TimedeltaIndex)):
        return None
    text = value.freqstr
    if text is None or not FREQUENCY.fullmatch(text):
        return None
    if pandas.tseries.frequencies.to_offset(text) != value.freq:
        return None
    return str(text)


def _spell_multi_index(value: Any) -> Any:
    """Spell an index of several levels."""
    codes = [numpy_here().asarray(code) for code in value.codes]
    return multi_index, (list(value.levels), codes, list(value.names))


def _spell_categorical(value: Any) -> Any:
    """Spell categories, and the numbers that stand for them."""
    codes = numpy_here().asarray(value.codes)
    return categorical, (codes, value.categories, bool(value.ordered))


def _spell_masked(value: Any) -> Any:
    """Spell numbers or truths of which some are missing."""
    numpy = numpy_here()
    kind = value.dtype.numpy_dtype
    data = value.to_numpy(kind, na_value=kind.type(0))
    return masked, (data, numpy.asarray(value.isna()))


def _spell_strings(value: Any) -> Any:
    """Spell text of which some is missing, as a list."""
    dtype = value.dtype
    storage = "pyarrow" if "pyarrow" in dtype.storage else "python"
    is_nan = dtype.na_value is not pandas_here().NA
    texts = value.to_numpy(object, na_value=None).tolist()
    return strings, (storage, is_nan, texts)


def _spell_dates(value: Any) -> Any:
    """Spell points in time, or differences of time."""
    zone = getattr(value, "tz", None)
    if zone is None:
        return dates, (value.to_numpy(), None, False)
    values = value.tz_convert(None).to_numpy()
    check_clock(values)
    return dates, (values, *_zone_part(value, zone))


def _zone_part(value: Any, zone: Any) -> tuple[Any, bool]:
    """Return a time zone, and whether it is the one that pandas makes of its key."""
    if type(zone) is timezone:
        return zone, False
    if type(zone) is ZoneInfo:
        return zone, type(native_zone(zone.key)) is ZoneInfo
    if type(zone).__module__.partition(".")[0] == "pytz":
        key = getattr(zone, "zone", None)
        offset = zone.utcoffset(None)
        if key:
            return ZoneInfo(key), True
        if offset is not None:
            return timezone(offset), False
    raise Foreign(value, _OTHER_ZONE)


def _spell_periods(value: Any) -> Any:
    """Spell spans of time by their numbers."""
    numbers = value.view("i8")
    return periods, (numpy_here().asarray(numbers), _rhythm(value))


def _rhythm(value: Any) -> str:
    """Return the frequency of spans of time."""
    text = str(value.freqstr)
    if not SPAN.fullmatch(text):
        raise Foreign(value, f"its frequency {text!r} is not one that travels")
    return text


def _spell_intervals(value: Any) -> Any:
    """Spell intervals by their ends."""
    return intervals, (value.left, value.right, value.closed)


def _spell_moment(value: Any) -> Any:
    """Spell one point in time, or one difference of time."""
    zone = getattr(value, "tz", None)
    if zone is None:
        return moment, (value.asm8, None, False)
    check_clock(value.asm8)
    return moment, (value.asm8, *_zone_part(value, zone))
