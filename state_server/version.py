"""The version of the package, in the one place that packaging reads."""

VERSION = "0.1.0"
