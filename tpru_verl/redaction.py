"""Passwords and keys do not appear in results, pages, logs and messages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 8  # characters of a value of a variable or a URL that is looked for elsewhere; less are words
_SECRET = re.compile(r"key|secret|passw|pwd|passphrase|auth|credential|cookie|bearer|jwt")
# Settings of a trainer end in the word; those that name a column of the data or a token hold no secret.
_SECRET_SETTING = re.compile(
    r"(?:^|_)(?:(?:api)?keys?|tokens?|secrets?|passw\w*|pwd|passphrase|auth|authorization|credentials?|cookies?"
    r"|bearer|jwt)$"
)
_COLUMN = re.compile(
    r"(?:prompt|problem|answer|response|messages|images?|videos?|audios?|data_source|reward(?:_fn|_model)?"
    r"|gdpo_reward|teacher|tools|enable_thinking)_keys?|(?:bos|eos|pad|unk|mask|sep|cls|image|video|audio|stop|special)_tokens?"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # apiKey
# `{api_key: VALUE}` in an override.
_PAIR = re.compile(
    r"""(?P<quote>["']?)(?P<name>[\w.-]+)(?P=quote)\s*:\s*(?P<value>"[^"]*"|'[^']*'|[^\s,{}\[\]"'][^,{}\[\]]*)"""
)
# With bounds: a long line of a log is searched in time that grows with its length.
_USER_INFO = re.compile(r"([a-z][a-z0-9+.-]{0,30}://)([^/?#\s]*)@", re.IGNORECASE)
_QUERY = re.compile(r"(?P<begin>[?&#](?P<name>[^=&?#\s]{1,120})=)(?P<value>[^&#\s'\"]+)")
# A word of a parameter's name: `monkey` and `author` are none of these. A signature opens what it signs.
_SECRET_WORD = re.compile(
    r"(?:api|access|account|auth|client|license|master|private|secret|service|session|shared|subscription|user)?keys?"
    r"|\w*tokens?|\w*secrets?|\w*pass(?:w\w*)?|pwd|passphrase|o?auth\d?|authorization|authentication|credentials?"
    r"|cookies?|bearer|jwt|sas|sig|signature"
)

# Keys that their makers let one know by their beginning: Hugging Face, OpenAI and others, GitHub, AWS, Slack.
# Long runs of letters and digits: names of folders have hyphens and underscores.
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-(?:proj|ant|or|svcacct)-[\w-]{16,}|sk-[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{10,})"
    r"|(?<=\bBearer )[\w.~+/=-]{8,}"
)


def looks_secret(text: str) -> bool:
    """Whether a text holds what looks like a token, or a password in an address."""
    return bool(_TOKEN.search(text) or _USER_INFO.search(text))


def is_secret(name: str, value: object = "") -> bool:
    """Whether an option of this name holds a secret. `stop_token_ids`, `tokenizer` and budgets hold none."""
    name = re.sub(r"tokeniz\w*", "", name.lower())
    if _SECRET.search(name):
        return True
    if isinstance(value, (int, float)):  # a budget of tokens, or a PIN
        return name.endswith("token")
    return "token" in name and (isinstance(value, str) or not re.search(r"tokens|token_ids?", name))


def is_secret_setting(key: str, value: object = "") -> bool:
    """Whether a setting such as `reward.kwargs.api_key` holds a secret. `data.image_key` holds none.

    Switches hold none, and neither do numbers of tokens.
    """
    if isinstance(value, (list, tuple)):
        return any(is_secret_setting(key, inner) for inner in value)
    leaf = _CAMEL.sub("_", key.lstrip("+~").rpartition(".")[2]).lower().replace("-", "_")
    if value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and "token" in leaf):
        return False
    return bool(_SECRET_SETTING.search(leaf)) and not _COLUMN.fullmatch(leaf)


def redact_setting(override: str) -> str:
    """`KEY=VALUE` with `***` for a secret that was typed; a reference such as `${oc.env:NAME}` stays.

    A secret is the value of a key named like one, or a text that looks like a token.
    """
    key, sign, value = override.partition("=")
    if sign and _typed(value) and is_secret_setting(key, _parsed(value.lower())):
        return f"{redact_urls(key)}={HIDDEN}"  # of a URL, the sign may be the first of its query
    if sign and "{" in value:
        value = _PAIR.sub(_redacted_entry, value)
    return redact_urls(_TOKEN.sub(HIDDEN, f"{key}{sign}{value}"))


def _typed(value: str) -> bool:
    return value.strip().lower() not in ("", "null", "none") and "${" not in value


def _redacted_entry(entry: re.Match[str]) -> str:
    name, value, whole = entry["name"], entry["value"], entry[0]
    refers = entry.string[entry.end() :].startswith("{")  # the rest of ${oc.env:NAME}
    if refers or not (is_secret_setting(name, _parsed(value.strip().lower())) and _typed(value)):
        return whole
    return f"{whole[: entry.start('value') - entry.start()]}{HIDDEN}"


def redact_options(options: Mapping[str, object]) -> dict[str, object]:
    """The options, with `***` for each secret: the value of a secret name, and passwords in URLs."""
    return {
        name: HIDDEN if is_secret(str(name), value) else _redacted(value) for name, value in options.items()
    }


def _redacted(value: object) -> object:
    if isinstance(value, Mapping):
        return redact_options(value)
    if isinstance(value, (list, tuple)):
        return [_redacted(inner) for inner in value]
    return redact_urls(value) if isinstance(value, str) else value


def redact_urls(text: str) -> str:
    """`http://user:password@host/v1?key=x` as `http://***@host/v1?key=***`, wherever it stands in `text`."""
    return _QUERY.sub(_redacted_parameter, _USER_INFO.sub(rf"\1{HIDDEN}@", text))


def _redacted_parameter(found: re.Match[str]) -> str:
    return f"{found['begin']}{HIDDEN}" if _holds_secret(found) else found[0]


def _holds_secret(parameter: re.Match[str]) -> bool:
    """Whether a parameter of a URL holds a secret. `author=tpru` and `max_tokens=1024` hold none."""
    name = _CAMEL.sub("_", unquote(parameter["name"])).lower()
    value = parameter["value"].rstrip(".,:;)]}").lower()  # without the marks of the sentence around it
    if value in ("true", "false", "null", "none") or _COLUMN.fullmatch(name):
        return False
    if "token" in name and value.isdecimal() and len(value) < SHORTEST:  # a number of tokens
        return False
    # Azure's functions take a key as `code`, which is none as a word: `country_code`.
    return name == "code" or any(_SECRET_WORD.fullmatch(word) for word in re.findall(r"[^\W_]+", name))


def redact_command(words: Iterable[str]) -> list[str]:
    """The words of a command line, with `***` for the values of secret options."""
    shown: list[str] = []
    before = ""
    for word in words:
        option, sign, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if option and value and is_secret(option, _parsed(value)):
            value = HIDDEN
        shown.append(
            f"{option}{sign}{_redacted_pair(value)}" if word.startswith("--") else _redacted_pair(value)
        )
        before = word if word.startswith("--") and not sign else ""
    return shown


def _redacted_pair(text: str) -> str:
    """`NAME=VALUE`, the value of which may be JSON, a trainer's setting, a URL, or any other word."""
    name, sign, value = text.partition("=")
    if sign and "://" not in name:  # else the sign is one of a URL's query
        shown = redact_options({name: _parsed(value)})[name]
        if shown != _parsed(value):
            return f"{name}={shown if isinstance(shown, str) else json.dumps(shown)}"
    return redact_setting(text)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def secrets_in(*values: object) -> Iterator[str]:
    """Each secret text in options and URLs, to be cut out of messages that others wrote."""
    for value in values:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if is_secret(str(name), inner) and isinstance(inner, (str, int, float)):
                    yield str(inner)
                else:
                    yield from secrets_in(inner)
        elif isinstance(value, (list, tuple)):
            yield from secrets_in(*value)
        elif isinstance(value, str):
            yield from _secrets_of_urls(value)


def _secrets_of_urls(text: str) -> Iterator[str]:
    """Passwords and keys of the URLs in a text, as they stand there and as they are meant."""
    passwords = [found[2].partition(":")[2] for found in _USER_INFO.finditer(text)]
    values = [found["value"] for found in _QUERY.finditer(text) if _holds_secret(found)]
    for part in (*passwords, *values):
        yield from filter(None, {part, unquote(part)})


def without(text: str, secrets: Iterable[str]) -> str:
    """The text, with `***` for each secret of four characters or more."""
    for secret in sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return redact_urls(text)


def keys_of_environment() -> Iterator[str]:
    """The values of the variables whose names say that they hold a secret, such as `HF_TOKEN`."""
    return (value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret(name, value))


def keys_of_settings(settings: Mapping[str, object], *, urls: int | None = 1) -> Iterator[str]:
    """The secrets in a trainer's composed configuration, at every depth.

    `urls`: how many characters a secret of a URL has at least, None for those of settings alone.
    """
    for name, value in settings.items():
        yield from _keys_under(str(name), value, urls)


def _keys_under(name: str, value: object, urls: int | None, *, secret: bool = False) -> Iterator[str]:
    """`secret`: a setting above is named like one."""
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _keys_under(name, inner, urls, secret=secret)
        return
    secret = secret or is_secret_setting(name, value)
    if isinstance(value, Mapping):
        for inner_name, inner in value.items():
            yield from _keys_under(str(inner_name), inner, urls, secret=secret)
    elif secret and not isinstance(value, bool) and _typed(str(value)):
        yield str(value)
    elif isinstance(value, str):
        yield from _TOKEN.findall(value)
        if urls is not None:
            yield from (part for part in _secrets_of_urls(value) if len(part) >= urls)


def redact_settings(words: Iterable[str], settings: Mapping[str, object]) -> list[str]:
    """Overrides, or a trainer's command, with `***` for each secret of the composed configuration.

    A secret of a URL is one in the word that has the URL: elsewhere it may be a part of a path.
    """
    secrets = [*keys_of_settings(settings, urls=None)]
    return [without(redact_setting(word), [*secrets, *secrets_in(word)]) for word in words]
