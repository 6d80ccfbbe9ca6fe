"""Settings: who wins, what is refused in which words, keys and folders kept private."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest

from state_server import settings
from state_server.engine import EngineLimits
from state_server.errors import ConfigError
from state_server.host import HostLimits
from state_server.integrations import flask
from state_server.keeping import KeepingLimits
from state_server.settings import (
    APP_KEYS,
    SECRETS,
    ClientSettings,
    CommonSettings,
    ManagerSettings,
    WebSettings,
    checked_key,
    from_command_line,
    from_environment,
    read_address_file,
    read_authkey,
    read_key_file,
    unknown_variables,
    variable,
)

RECORDS = (ManagerSettings, WebSettings, ClientSettings)
needs_root_to_fail = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)


def parsed(*arguments: str, record: type[Any] = ManagerSettings, **environ: str) -> Any:
    """Return the record of a command line and an environment."""
    return from_command_line(
        record, arguments, environ, program="test", description="Test."
    )


# Who wins ----------------------------------------------------------------------------


def test_command_line_wins_over_environment_over_default() -> None:
    """Each source is used where the one before it says nothing."""
    given = parsed("--queue-max", "1", STATE_SERVER_QUEUE_MAX="2")
    from_env = parsed(STATE_SERVER_QUEUE_MAX="2")

    assert (given.queue_max, from_env.queue_max) == (1, 2)
    assert parsed().queue_max == ManagerSettings().queue_max


def test_given_values_win_over_the_environment() -> None:
    """What a program passes itself is not overruled from outside."""
    environ = {"STATE_SERVER_TIMEOUT_S": "7", "STATE_SERVER_ADDRESS": "tcp://a:1"}
    record = from_environment(ClientSettings, environ, timeout_s=3.0)

    assert (record.timeout_s, record.address) == (3.0, "tcp://a:1")


@pytest.mark.parametrize("record", RECORDS)
def test_defaults_need_neither(record: type[CommonSettings]) -> None:
    """An empty command line and environment give the defaults."""
    assert parsed(record=record) == record() == from_environment(record, {})


@pytest.mark.parametrize("record", RECORDS)
def test_every_setting_says_everything_about_itself(
    record: type[CommonSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    """Help shows each option with its text, its default and its variable."""
    with pytest.raises(SystemExit) as ended:
        parsed("--help", record=record)
    shown = " ".join(capsys.readouterr().out.split())

    assert ended.value.code == 0
    for field in dataclasses.fields(record):
        assert "--" + field.name.replace("_", "-") in shown
        assert field.metadata["help"] in re.sub(r"- ", "-", shown) or (
            field.metadata["help"] in shown
        )
        assert variable(field.name) in shown


@pytest.mark.parametrize("record", RECORDS)
def test_defaults_fit_their_own_rules(record: type[CommonSettings]) -> None:
    """Each default, written as text, is read as the same value."""
    for field in dataclasses.fields(record):
        if field.default not in (None, ()):
            name = variable(field.name)
            read = from_environment(record, {name: str(field.default)})
            assert getattr(read, field.name) == field.default, name


def test_limits_of_the_rooms_are_settings_of_the_same_name() -> None:
    """Each limit of host, engine and keepers can be set, and has the same default."""
    defaults = ManagerSettings()
    for limits in (HostLimits(), EngineLimits(), KeepingLimits()):
        for name, value in limits._asdict().items():
            assert getattr(defaults, name) == value, name


def test_calls_have_room_for_the_largest_one() -> None:
    """A manager that could take no call of the largest size is not started."""
    with pytest.raises(ConfigError, match=r"pending_bytes_max is 4096 .* 8192"):
        ManagerSettings(pending_bytes_max=4096, frame_bytes_max=8192)
    ManagerSettings(pending_bytes_max=8192, frame_bytes_max=8192)


def test_longest_deadline_is_below_the_retention() -> None:
    """By default a call has ended before its lane can be forgotten."""
    defaults = ManagerSettings()
    assert defaults.call_timeout_max_s < defaults.lane_retention_s


def test_records_never_change() -> None:
    """A record of settings is made once."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ManagerSettings().queue_max = 3  # type: ignore[misc]


# Values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("allow_md5", "no", False),
        ("allow_md5", " TRUE ", True),
        ("allow_md5", "1", True),
        ("allow_md5", "off", False),
        ("threads_max", "3", 3),
        ("remembered_bytes_max", "0", 0),
        ("slice_s", "0.25", 0.25),
        ("slice_s", "1e-3", 0.001),
        ("log_level", "debug", "DEBUG"),
        ("data_dir", "/srv/x", Path("/srv/x")),
        ("objects", "shop, hotel:Room", ("shop", "hotel:Room")),
        ("objects", "", ()),
        ("objects", "shop,,", ("shop",)),
        ("parent_fd", "5", 5),
    ],
)
def test_values_are_read(name: str, text: str, value: object) -> None:
    """Text from the environment becomes the value that it spells."""
    record = from_environment(ManagerSettings, {variable(name): text})

    assert getattr(record, name) == value
    assert type(getattr(record, name)) is type(value)


def test_repeatable_options_add_up() -> None:
    """``--objects`` may be given several times; it replaces the environment's."""
    given = parsed("--objects", "a", "--objects", "b:C", STATE_SERVER_OBJECTS="x,y")

    assert given.objects == ("a", "b:C")
    assert parsed(STATE_SERVER_OBJECTS="x,y").objects == ("x", "y")


def test_lists_are_separated_by_commas_wherever_they_stand() -> None:
    """On the command line as in the environment; what is between them is left away."""
    assert parsed("--objects", "a,b", "--objects", "c").objects == ("a", "b", "c")
    assert parsed(STATE_SERVER_OBJECTS=" a, b,,c ").objects == ("a", "b", "c")


BAD = [
    ("allow_md5", "maybe"),
    ("allow_md5", ""),
    ("threads_max", "2"),
    ("threads_max", "many"),
    ("threads_max", "3.5"),
    ("queue_max", "0"),
    ("queue_max", "-1"),
    ("slice_s", "0"),
    ("slice_s", "-1"),
    ("slice_s", "nan"),
    ("slice_s", "inf"),
    ("slice_s", "soon"),
    ("log_level", "loud"),
    ("parent_fd", "x"),
    ("parent_fd", "-1"),
    ("busy_poll_s", "0.2"),
    ("frame_bytes_max", "1023"),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_variable_is_named_with_its_value(name: str, text: str) -> None:
    """A value from the environment that does not fit names variable and value."""
    with pytest.raises(ConfigError) as caught:
        from_environment(ManagerSettings, {variable(name): text})
    message = str(caught.value)

    assert message.startswith(f"{variable(name)} is {text!r}, which does not fit:")
    help_text = ManagerSettings.__dataclass_fields__[name].metadata["help"]
    assert message.endswith(f"It means: {help_text}.")


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_option_is_named_with_its_value(name: str, text: str) -> None:
    """A value from the command line that does not fit names option and value."""
    option = "--" + name.replace("_", "-")

    with pytest.raises(ConfigError, match=f"^{option} is "):
        parsed(f"{option}={text}", STATE_SERVER_QUEUE_MAX="5")


def test_bad_variable_is_refused_even_if_the_option_is_good() -> None:
    """A mistake in the environment does not hide until the option goes away."""
    with pytest.raises(ConfigError, match="STATE_SERVER_QUEUE_MAX"):
        parsed("--queue-max", "5", STATE_SERVER_QUEUE_MAX="zero")


def test_unknown_option_ends_with_a_usage_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """argparse does what every command does: exit code 2 and the usage."""
    with pytest.raises(SystemExit) as ended:
        parsed("--no-such-option", "1")

    assert ended.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


# Unknown variables -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("STATE_SERVER_QEUE_MAX", "STATE_SERVER_QUEUE_MAX"),
        ("STATE_SERVER_DATADIR", "STATE_SERVER_DATA_DIR"),
        ("STATE_SERVER_AUTH_KEY", "STATE_SERVER_AUTHKEY"),
        ("STATE_SERVER_TIMEOUT", "STATE_SERVER_TIMEOUT_S"),
    ],
)
def test_unknown_variable_is_told_with_the_nearest(name: str, nearest: str) -> None:
    """A misspelled variable has no effect; one sentence says so and helps."""
    (sentence,) = unknown_variables({name: "x", "PATH": "/bin"})

    assert sentence.startswith(f"The environment variable {name} is not a setting")
    assert sentence.endswith(f"did you mean {nearest}?")


def test_a_key_of_an_app_is_told_where_it_belongs() -> None:
    """A name that is like none of ours gets no wrong hint."""
    (sentence,) = unknown_variables({"STATE_SERVER_SESSIONS": "true"})

    assert sentence.endswith("settings of a Flask app are read from app.config.")


def test_a_key_of_an_app_may_be_told_or_not() -> None:
    """Where apps run, their keys are no mistake; they are those of the extension."""
    documented = re.findall(r"^    STATE_SERVER_(\w+)", str(flask.__doc__), re.M)
    names = {field.name.upper() for field in dataclasses.fields(ClientSettings)}

    assert set(APP_KEYS) == set(documented) - names - set(SECRETS)
    environ = dict.fromkeys(map(variable, APP_KEYS), "x")
    assert unknown_variables(environ, APP_KEYS) == []
    assert len(unknown_variables(environ)) == len(APP_KEYS)


def test_a_key_file_that_was_named_and_is_not_there_is_a_config_error(
    tmp_path: Path,
) -> None:
    """Whoever names a file means that one; the data folder's is not taken instead."""
    (tmp_path / "authkey").write_bytes(b"another key")
    settings = ClientSettings(data_dir=tmp_path, authkey_file=tmp_path / "nope")

    with pytest.raises(ConfigError, match="nope is not there"):
        read_authkey(settings, {})


def test_known_variables_are_not_told() -> None:
    """No setting of any record, no secret, and nothing of others is told."""
    names = {variable(f.name) for record in RECORDS for f in dataclasses.fields(record)}
    environ = dict.fromkeys(names, "x")
    environ |= {"STATE_SERVER_AUTHKEY": "k", "HOME": "/", "STATE": "x"}

    assert unknown_variables(environ) == []


def test_several_unknown_variables_are_told_in_order() -> None:
    """One sentence each, sorted by name."""
    told = unknown_variables({"STATE_SERVER_B": "", "STATE_SERVER_A": ""})

    assert [sentence.split()[3] for sentence in told] == [
        "STATE_SERVER_A",
        "STATE_SERVER_B",
    ]


def test_what_the_parent_has_told_is_not_told_by_its_children() -> None:
    """A variable that is set for them later is."""
    environ = settings.as_told({"STATE_SERVER_QEUE_MAX": "1", "PATH": "/bin"})
    assert environ["PATH"] == "/bin"
    assert unknown_variables(environ) == []
    (sentence,) = unknown_variables({**environ, "STATE_SERVER_B": ""})
    assert "STATE_SERVER_B" in sentence


def test_secrets_are_no_options() -> None:
    """A key cannot stand on a command line, where every user can read it."""
    for record in RECORDS:
        names = {field.name for field in dataclasses.fields(record)}
        assert not names & {name.lower() for name in settings.SECRETS}


@pytest.mark.parametrize("spelling", [["--authkey", "hush"], ["--authkey=hush"]])
def test_a_key_that_is_given_as_an_option_is_not_shown(
    spelling: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is taken for no other option, and the error names the nearest without it."""
    with pytest.raises(SystemExit) as caught:
        parsed(*spelling)
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert "there is no option '--authkey'. Did you mean --authkey-file?" in told
    assert "hush" not in told


def test_a_mistyped_option_is_told_in_two_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sentence that helps is not hidden below a page of all options."""
    with pytest.raises(SystemExit):
        parsed("--data-dri", "var")
    assert len(capsys.readouterr().err.splitlines()) == 2


# Keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n"])
def test_empty_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty key is no key: file and remedy are named."""
    path = tmp_path / "authkey"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=f"{path} is empty; delete the file"):
        read_key_file(path)
    with pytest.raises(ConfigError, match="STATE_SERVER_AUTHKEY is empty"):
        read_authkey(
            ManagerSettings(), {"STATE_SERVER_AUTHKEY": content.decode("ascii")}
        )


def test_line_end_is_no_part_of_a_key(tmp_path: Path) -> None:
    """A key that an editor saved is the same key; blanks in it are its own."""
    path = tmp_path / "authkey"
    path.write_bytes(b" a key \r\n")

    assert read_key_file(path) == b" a key "


def test_line_end_is_no_part_of_a_key_that_is_given_as_text() -> None:
    """Bytes are the key as they are, as with a stock client; text is read as a file."""
    assert checked_key("secret\r\n") == checked_key("secret") == b"secret"
    assert checked_key(b"secret\n") == b"secret\n"
    for wrong, said in (("\n", "empty"), (b"", "empty"), (5, "type int")):
        with pytest.raises(ConfigError, match=said):
            checked_key(wrong)  # type: ignore[arg-type]


def test_missing_key_file_is_no_key(tmp_path: Path) -> None:
    """A file that is not there means that there is no key, not an error."""
    assert read_key_file(tmp_path / "authkey") is None
    assert read_authkey(ManagerSettings(data_dir=tmp_path), {}) is None


def test_key_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    """A folder in place of the file, for one, is named with the system's reason."""
    with pytest.raises(ConfigError, match=r"cannot be read: .*directory"):
        read_key_file(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_what_is_no_file_is_not_read_as_a_key(tmp_path: Path) -> None:
    """A FIFO, which is waited for, and a device, which may never end, are named."""
    os.mkfifo(tmp_path / "authkey")
    for path in (tmp_path / "authkey", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"key file {path} is no regular file"):
            read_key_file(path)


@needs_root_to_fail
def test_key_file_of_somebody_else_is_a_config_error(tmp_path: Path) -> None:
    """A file without the right to read it is named."""
    path = tmp_path / "authkey"
    path.write_bytes(b"k")
    path.chmod(0)

    with pytest.raises(ConfigError, match="Permission denied"):
        read_key_file(path)


def test_key_comes_from_variable_then_file_then_folder(tmp_path: Path) -> None:
    """The variable wins over the file that is named, that over the folder's own."""
    (tmp_path / "authkey").write_bytes(b"of the folder")
    named = tmp_path / "named"
    named.write_bytes(b"of the file")
    plain = ManagerSettings(data_dir=tmp_path)
    with_file = ManagerSettings(data_dir=tmp_path, authkey_file=named)
    environ = {"STATE_SERVER_AUTHKEY": "of the environment"}

    assert read_authkey(with_file, environ) == b"of the environment"
    assert read_authkey(with_file, {}) == b"of the file"
    assert read_authkey(plain, {}) == b"of the folder"


def test_key_in_the_environment_may_be_any_bytes(tmp_path: Path) -> None:
    """A random one is no text, whatever Python makes of it there."""
    environ = {"STATE_SERVER_AUTHKEY": os.fsdecode(b"\xff\xfe\xc3\xbc")}
    settings = ManagerSettings(data_dir=tmp_path)

    assert read_authkey(settings, environ) == b"\xff\xfe\xc3\xbc"


@pytest.mark.parametrize(
    ("content", "expected"),
    [("tcp://h:1\n", "tcp://h:1"), ("", None), (" \n", None), (None, None)],
)
def test_address_file_holds_a_url_or_nothing(
    tmp_path: Path, content: str | None, expected: str | None
) -> None:
    """A client finds the address of the manager in its folder, if it runs."""
    if content is not None:
        (tmp_path / "address").write_text(content)

    assert read_address_file(tmp_path) == expected


def test_an_address_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    """Who may not look is not told that no manager runs there."""
    (tmp_path / "address").mkdir()

    with pytest.raises(ConfigError, match=r"cannot be read.*STATE_SERVER_ADDRESS"):
        read_address_file(tmp_path)


# What contradicts itself -------------------------------------------------------------


def test_a_retention_below_the_longest_deadline_is_refused() -> None:
    """Limits that would let a repeat run twice name both settings."""
    with pytest.raises(ConfigError, match="lane_retention_s is 100"):
        settings.ManagerSettings(lane_retention_s=100.0)


def test_an_empty_folder_name_is_refused() -> None:
    """An empty path does not silently mean the current folder."""
    with pytest.raises(ConfigError, match="STATE_SERVER_DATA_DIR"):
        settings.from_environment(
            settings.ClientSettings, {"STATE_SERVER_DATA_DIR": ""}
        )
