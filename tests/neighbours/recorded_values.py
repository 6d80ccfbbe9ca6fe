"""Values of numpy and pandas as bytes, recorded by one release and read by another.

    python -m tests.neighbours.recorded_values write tests/data/values-NAME.json
    python -m tests.neighbours.recorded_values check tests/data/values-NAME.json

Run ``write`` in an environment with the releases to be recorded; the tests read every
file, and ``check`` does the same in an environment that has no pytest. The expressions
name every dtype, so that each release makes the same value of them.
"""

from __future__ import annotations

import base64
import datetime
import inspect
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandas.testing as tm

from state_server import codec

#: What is spelled in numpy's own way as well, as stock clients send it.
ARRAYS = [
    "np.arange(3.0)",
    "np.arange(6, dtype='>i4').reshape(2, 3).T",
    "np.arange(24).reshape(2, 3, 4)[::2, ::-1]",
    "np.array(True)",
    "np.zeros((0, 3), 'f2')",
    "np.array(['a', 'ü'])",
    "np.array([b'x', b''], 'S3')",
    "np.array(['2020', 'NaT'], 'M8[25us]')",
    "np.array([1, -1], 'm8[D]')",
    "np.array([(1, [2, 3], 'x')], [('a', '<i2'), ('b', '>f4', (2,)), ('c', 'U2')])",
    "np.zeros(2, np.dtype([('a', 'i1'), ('b', [('c', 'f8')])], align=True))",
    "np.array([1, None, 'a', [2.5], {'k': (b'v',)}], object)",
    "np.float64(1.5)",
    "np.int8(-1)",
    "np.complex64(1j)",
    "np.bool_(True)",
    "np.str_('ü')",
    "np.bytes_(b'x')",
    "np.datetime64('2020-01-01', 's')",
    "np.timedelta64(3, 'W')",
]
DAYS = "pd.date_range('2020-10-23', periods=4, freq='D', unit='ns', tz={})"
DTYPE_WITH_NAN = "pd.StringDtype('python', na_value=np.nan)"
TEXT_WITH_NAN = f"pd.array(['a', None, '', 'ü'], dtype={DTYPE_WITH_NAN})"
#: The same before pandas 2.3, which has no such dtype.
TEXT_AS_OBJECTS = "np.array(['a', np.nan, '', 'ü'], object)"
COLUMNS = [
    "np.arange(4)",
    "np.array([True, False] * 2)",
    "np.linspace(0, 1, 4)",
    "np.array(['a', None, 1, (2,)], object)",
    "pd.array(['a', None, '', 'ü'], dtype=pd.StringDtype('python'))",
    TEXT_WITH_NAN,
    "pd.array([1, None, 2, 3], dtype='Int16')",
    "pd.array([1.5, None, 2, 3], dtype='Float64')",
    "pd.array([True, None, False, True], dtype='boolean')",
    "pd.Categorical.from_codes([0, 1, -1, 0],"
    " pd.Index(['a', 'b'], dtype=object), ordered=True)",
    "np.array(['2020', 'NaT', '1960', '2100'], 'M8[s]')",
    "np.array(['2020', 'NaT', '1960', '2100'], 'M8[ns]')",
    "np.array([1, 2, -1, 0], 'm8[ms]')",
    DAYS.format("None"),
    DAYS.format("'UTC'"),
    DAYS.format("'Europe/Berlin'"),
    DAYS.format("datetime.timezone(datetime.timedelta(hours=2))"),
    "pd.period_range('2020', periods=4, freq='M')",
    "pd.interval_range(0, 4, closed='left')",
]
DATAFRAMES = [
    f"pd.concat([pd.Series(c) for c in [{', '.join(COLUMNS)}]], axis=1)"
    f".set_axis(pd.RangeIndex({len(COLUMNS)}), axis=1)",
    "pd.DataFrame(np.eye(3), columns=pd.Index(['a', 'b', 'c'], dtype=object))",
    f"pd.DataFrame(np.eye(2), columns=pd.Index(['a', 'b'], dtype={DTYPE_WITH_NAN}))",
    "pd.DataFrame(np.eye(2), index=pd.MultiIndex("
    "levels=[pd.Index(['u', 'v'], dtype=object), pd.Index([1, 2])],"
    " codes=[[0, 1], [1, -1]], names=['l', None]))",
    "pd.DataFrame(index=pd.RangeIndex(9, 0, -2, name='r'))",
]
OTHERS = [
    "pd.RangeIndex(3)",
    "pd.date_range('2020', periods=4, freq='ME', unit='s', name='when')",
    "pd.Timestamp('2020-10-25 00:30', tz='UTC').as_unit('ns')"
    ".tz_convert('Europe/Berlin')",
    "pd.Timestamp('2020').as_unit('s')",
    "pd.Timedelta('1h').as_unit('ms')",
    "pd.Period('2020Q1')",
    "pd.Interval(0, 1.5, 'both')",
    "[pd.NaT, pd.NA]",
]
OURS = [
    *ARRAYS,
    *(f"pd.Series({column}, index=range(4), name=('n', 1))" for column in COLUMNS),
    *(f"pd.Index({column})" for column in COLUMNS),
    *DATAFRAMES,
    *OTHERS,
]


def value_of(expression: str) -> Any:
    """Return the value that an expression stands for in this release."""
    if "na_value" not in inspect.signature(pd.StringDtype).parameters:
        expression = expression.replace(TEXT_WITH_NAN, TEXT_AS_OBJECTS)
        expression = expression.replace(DTYPE_WITH_NAN, "object")
    return eval(expression, {"np": np, "pd": pd, "datetime": datetime})


def assert_same(left: Any, right: Any) -> None:
    """Check that a recorded value is the one that this release makes."""
    assert type(left) is type(right), (type(left), type(right))
    if isinstance(left, pd.DataFrame):
        tm.assert_frame_equal(left, right, check_freq=True)
        tm.assert_index_equal(left.index, right.index, exact=True)
        tm.assert_index_equal(left.columns, right.columns, exact=True)
    elif isinstance(left, pd.Series):
        tm.assert_series_equal(left, right, check_freq=True)
    elif isinstance(left, pd.Index):
        tm.assert_index_equal(left, right, exact=True)
    elif isinstance(left, (np.ndarray, np.generic)):
        assert left.dtype == right.dtype
        assert repr(left) == repr(right)
    else:
        assert repr(left) == repr(right)


def recorded(path: Path) -> list[tuple[str, bytes]]:
    """Return the expressions and the bytes in a file."""
    told = json.loads(path.read_text(encoding="utf-8"))
    return [(text, base64.b64decode(data)) for text, data in told["values"]]


def write(path: Path) -> None:
    """Record every value as this release of numpy and pandas writes it."""
    values = [(text, codec.encode(value_of(text))) for text in OURS]
    values += [
        (text, pickle.dumps(value_of(text), protocol))
        for text in ARRAYS
        for protocol in (2, 3, 4, 5)
    ]
    told = {
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "values": [(text, base64.b64encode(data).decode()) for text, data in values],
    }
    path.write_text(json.dumps(told, indent=0) + "\n", encoding="utf-8")


def check(path: Path) -> int:
    """Read every value in a file; return how many there were."""
    values = recorded(path)
    for text, data in values:
        assert_same(value_of(text), codec.decode(data))
    return len(values)


if __name__ == "__main__":
    verb, name = sys.argv[1:]
    if verb == "write":
        write(Path(name))
    else:
        print(check(Path(name)), "values are the same.")
