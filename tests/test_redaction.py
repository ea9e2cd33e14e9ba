"""Secrets are replaced, and nothing else is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpru_verl.redaction import (
    keys_of_settings,
    redact_command,
    redact_options,
    redact_setting,
    redact_settings,
    redact_urls,
)

SECRETS = ["api_key", "API-KEY", "apikey", "token", "hf_token", "client_secret", "Password", "Authorization"]
HARMLESS = {
    "top_k": 20,
    "max_completion_tokens": 512,
    "thinking_token_budget": 512,
    "stop_token_ids": [1, 2],
    "skip_special_tokens": False,
    "tokenizer": "Qwen/Qwen2.5-VL-7B-Instruct",
    "tokenizer_mode": "slow",
    "limit_mm_per_prompt": {"image": 4},
}


@given(st.sampled_from(SECRETS), st.text(min_size=1) | st.integers())
def test_secret_options_are_hidden_at_every_depth(name: str, value: object) -> None:
    assert redact_options({name: value}) == {name: "***"}
    assert redact_options({"body": [{name: value, "n": 1}]}) == {"body": [{name: "***", "n": 1}]}


def test_harmless_options_stay() -> None:
    assert redact_options(HARMLESS) == HARMLESS


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:hidden@host:8000/v1", "http://***@host:8000/v1"),
        ("https://hidden@host/v1", "https://***@host/v1"),
        ("socks5h://u:p@hidden@host", "socks5h://***@host"),
        ("http://host/v1?api_key=hidden&n=1", "http://host/v1?api_key=***&n=1"),
        ("http://host/v1?n=1&access_token=hidden&n=1", "http://host/v1?n=1&access_token=***&n=1"),
        ("http://host/v1?accessToken=hidden&n=1", "http://host/v1?accessToken=***&n=1"),
        ("http://host/v1?X-Amz-Security-Token=hidden&n=1", "http://host/v1?X-Amz-Security-Token=***&n=1"),
        ("http://host/v1?sessionkey=hidden&n=1", "http://host/v1?sessionkey=***&n=1"),
        ("http://host/v1?token=12345678&n=1", "http://host/v1?token=***&n=1"),
        ("http://host/f?code=hidden&country_code=de", "http://host/f?code=***&country_code=de"),
        ("https://host/cb#access_token=hidden&n=1", "https://host/cb#access_token=***&n=1"),
        ("http://host/v1?author=tpru&max_tokens=1024", "http://host/v1?author=tpru&max_tokens=1024"),
        ("http://host/v1?monkey=tpru&use_auth=true", "http://host/v1?monkey=tpru&use_auth=true"),
        ("http://host/v1", "http://host/v1"),
        ("see http://host/@user and a@b.c", "see http://host/@user and a@b.c"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert redact_urls(url) == shown
    assert redact_urls(f"{url}: no answer") == f"{shown}: no answer"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("+a={api_key: 123456789, n: 2}", "+a={api_key: ***, n: 2}"),
        ("a={password: hunter2}", "a={password: ***}"),
        ("a={b: {'token': 'x, y'}, c: [1]}", "a={b: {'token': ***}, c: [1]}"),
        ('a=[{"api-key":"x"},{n:1}]', 'a=[{"api-key":***},{n:1}]'),
        ("a={api_key: ${oc.env:MINE}, token: null}", "a={api_key: ${oc.env:MINE}, token: null}"),
        ("a={image_key: images, max_tokens: 3}", "a={image_key: images, max_tokens: 3}"),
    ],
)
def test_a_setting_in_braces(typed: str, shown: str) -> None:
    assert redact_setting(typed) == shown


TOKENS = ["hf_" + "a1" * 17, "sk-proj-" + "b2" * 10, "sk-" + "e5" * 20, "ghp_" + "c3" * 18, "AKIA" + "D4" * 8]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("text", ["+a.model={}", "a={{headers: {{X: '{}'}}}}", "a=[{}, b]", "a=say {} twice"])
def test_a_text_that_looks_like_a_token_is_hidden_whatever_its_setting_is_called(
    token: str, text: str
) -> None:
    assert redact_setting(text.format(token)) == text.format("***")
    assert [*keys_of_settings({"a": {"model": [f"x {token}"]}, "b": token})] == [token, token]


def test_what_follows_bearer_is_hidden_and_the_word_alone_is_not() -> None:
    assert redact_setting("a.headers='Bearer abc.def-ghi123'") == "a.headers='Bearer ***'"
    for plain in (
        "a.b=Bearer",
        "a.b=the Bearer of",
        "model.path=sk-learn",
        "data.train_files=hf_rows.parquet",
        "model.path=/models/hf_qwen2_5_vl_7b_instruct_of_mine",
        "model.path=/runs/sk-grpo-run-2026-11-26-with-a-long-name",
        "model.path=/runs/ghp_rows_of_a_very_long_name_of_a_folder",
    ):
        assert redact_setting(plain) == plain


def test_command() -> None:
    words = ["eval", "m", "--base-url", "http://u:hidden@h/v1", "--base-url=http://u:hidden@h/v1", "--n", "2"]
    words += [
        "--option",
        "api_key=hidden",
        "--option=api_key=hidden",
        '--option=h={"Authorization": "hidden"}',
    ]
    words += ["--option", "top_k=20", "--api-key", "hidden", "--api-key=hidden", "--max-tokens", "32"]
    shown = redact_command(words)
    assert "hidden" not in " ".join(shown)
    assert len(shown) == len(words)
    assert shown[-2:] == ["--max-tokens", "32"]
    assert [shown[i] for i in (0, 1, 5, 6, 12)] == ["eval", "m", "--n", "2", "top_k=20"]


PARAMETERS = ["pwd", "passwd", "password", "pass", "sig", "code", "signature", "sas", "jwt", "key", "token"]
PARAMETERS += ["X-Amz-Signature", "X-Goog-Signature", "X-Amz-Credential", "SharedAccessSignature"]
SECRET = st.text("abcXYZ0123456789._~%-", min_size=4).map(lambda text: f"s3cr3t{text}")
BEFORE = st.sampled_from(["", "a=1&", "x=&", "api-version=2024&"])


@given(st.sampled_from(PARAMETERS), SECRET, SECRET, BEFORE, st.booleans())
def test_no_secret_of_an_address_is_in_a_shown_command(
    name: str, secret: str, password: str, before: str, joined: bool
) -> None:
    """Wherever the first `=` of a word stands."""
    for user in ("", f"user:{password}@", f"{password}@"):
        for url in (
            f"http://{user}h/v1?{before}{name}={secret}",
            f"http://{user}h/v1?{before}{name}={secret}#x=1",
        ):
            for word in (url, f"tpru-test={url}", f'h={{"url": "{url}"}}', f"+a={{url: {url}}}"):
                words = [f"--base-url={word}"] if joined else ["--base-url", word]
                assert "s3cr3t" not in " ".join(redact_command(words)), word
                assert "s3cr3t" not in redact_setting(word)


@given(SECRET, st.sampled_from(["http://user:{}@h/v1?api-version=2024", "http://{}@h/v1?x=1#y=2"]))
def test_the_user_of_an_address_with_a_query_is_hidden(secret: str, url: str) -> None:
    shown = url.replace("user:", "").format("***")
    assert redact_command(["--base-url", url.format(secret), "+a={api_key: s3cr3t}"]) == [
        "--base-url",
        shown,
        "+a={api_key: ***}",
    ]


@pytest.mark.parametrize(
    ("settings", "secrets"),
    [
        (
            {"api_key": 123456789012, "db_pwd": 4711, "password": "hunter2"},
            ["123456789012", "4711", "hunter2"],
        ),
        ({"access_tokens": ["tok1"], "clientSecret": "s", "auth": {"user": "u"}}, ["tok1", "s", "u"]),
        ({"url": "https://me:p4ss%21@h/v1"}, ["p4ss!", "p4ss%21"]),
        ({"a": [["postgres://h/db?password=abcd&n=1"]]}, ["abcd"]),
        ({"max_tokens": 512, "token_budget": 8, "rollout": {"max_num_batched_tokens": 8192}}, []),
        ({"stop_tokens": ["</s>"], "pad_token": "x", "image_key": "images", "token_ids": [1, 2]}, []),
        ({"use_auth": True, "password": None, "api_key": "", "n_keys": 3.5}, ["3.5"]),
    ],
)
def test_the_secrets_of_settings(settings: dict[str, object], secrets: list[str]) -> None:
    assert sorted(keys_of_settings({"reward": settings})) == sorted(secrets)


def test_a_secret_of_a_url_is_cut_out_of_other_texts_where_it_is_long() -> None:
    url = "http://judge/score?author=tpru&max_tokens=1024&key=disk&api_key=hidden-and-long"
    settings = {"url": url, "api_key": "named"}
    assert [*keys_of_settings(settings, urls=8)] == ["hidden-and-long", "named"]
    assert [*keys_of_settings(settings, urls=None)] == ["named"]
    shown = url.replace("=disk", "=***").replace("hidden-and-long", "***")
    words = [f"url={url}", "files=/disk/tpru/train.parquet"]
    assert redact_settings(words, settings) == [f"url={shown}", words[1]]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("+a.access_tokens=[tok1234567]", "+a.access_tokens=***"),
        ("+a.db_pwd=SuperSecret99", "+a.db_pwd=***"),
        ("+a.hfToken=abc", "+a.hfToken=***"),
        ("+a.api_key=123456789012", "+a.api_key=***"),
        ("+a={clientSecret: 1234, max_tokens: 5}", "+a={clientSecret: ***, max_tokens: 5}"),
        ("a.max_tokens=512", "a.max_tokens=512"),
        ("a.max_num_batched_tokens=8192", "a.max_num_batched_tokens=8192"),
        ("a.stop_tokens=[1,2]", "a.stop_tokens=[1,2]"),
        ("a.use_auth=True", "a.use_auth=True"),
    ],
)
def test_settings_as_they_are_typed(typed: str, shown: str) -> None:
    assert redact_setting(typed) == shown


def test_a_long_line_is_searched_at_once() -> None:
    text = "a" * 200_000 + "?" + "key" * 50_000
    started = time.monotonic()
    assert redact_urls(text) == text
    assert time.monotonic() - started < 5
