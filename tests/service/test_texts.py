"""Texts of every kind: each is answered or refused as documented, and alone as in company."""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.service.running import Service

ADAPTER = "tone"
_LETTERS_OF_A_SCRIPT = 8

ODD = {
    "empty": "",
    "spaces": " " * 100,
    "every kind of space": "\t\n\v\f\r\x1c\x85\xa0\u1680\u2000\u2028\u2029\u202f\u205f\u3000\ufeff",
    "NUL": "\0",
    "NUL inside": "a fine\0film",
    "control characters": "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "no characters": "\ufffe\uffff\U0010ffff\ufdd0",
    "private use": "\ue000\U000f0000",
    "emoji of several": "👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇦 👍🏽 🙂‍↔️ 1️⃣",
    "joiners alone": "\u200d" * 50,
    "variation selectors alone": "\ufe0f\ufe0e" * 50,
    "right to left": "הסרט היה נהדר، كان الفيلم رائعا",
    "direction overrides": "\u202efilm\u202c \u2066\u2067\u2068\u2069\u200e\u200f",
    "combining marks": "e" + "\u0301" * 500,
    "combining marks alone": "\u0300\u20dd\u093f" * 50,
    "decomposed": unicodedata.normalize("NFD", "Ångström, naïve café, 한국어"),
    "compatibility forms": "\ufb01lm \u2167 \uff46\uff55\uff4c\uff4c \u338f \ufdfa",
    "a word of 3,000 letters": "a" * 3_000,
    "special tokens": "[CLS] a fine film [SEP] [PAD] [MASK] [UNK] </s> <pad>",
    "markup": "<b>&amp;</b> {{7*7}} %s ${x} '; drop table",
    "JSON": '{"text": ["\\u0000"]}',
}
MEBIBYTE = 2**20
LARGE = {
    "one word": "a" * MEBIBYTE,
    "short words": "a " * (MEBIBYTE // 2),
    "ideographs": "字" * (MEBIBYTE // 3),
    "combining marks": "\u0301" * (MEBIBYTE // 2),
    "NUL": "\0" * (MEBIBYTE // 6),  # six bytes each in JSON
    "emoji": "🙂" * (MEBIBYTE // 12),
}

ANY_CHARACTER = st.characters(categories=None, codec=None)
"""Halves of surrogate pairs, too."""
TEXT = st.one_of(
    st.text(max_size=60),
    st.text(ANY_CHARACTER, max_size=20),
    st.text(st.characters(categories=("Mn", "Me", "Mc", "Cf", "Cc", "Zs", "Zl", "Zp")), max_size=40),
    st.text(st.sampled_from("👩👨👧🏽‍️🏳🌈🇺🇦❤"), max_size=20),
    st.sampled_from(list(ODD.values())),
)


def post(service: Service, text: str | Sequence[str]) -> httpx.Response:
    """As JSON in ASCII, which can write half a surrogate pair."""
    content = json.dumps({"text": text, "logits": True})
    headers = {"Content-Type": "application/json", "X-Adapter": ADAPTER}
    return service.client.post("/classify", content=content, headers=headers)


def whole(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def check(item: dict[str, Any]) -> None:
    assert sum(item["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert item["label"] == max(item["scores"], key=item["scores"].__getitem__)
    assert 2 <= item["tokens"] <= 128


def same(item: dict[str, Any], alone: dict[str, Any]) -> None:
    assert item["logits"] == pytest.approx(alone["logits"], abs=1e-4)
    assert (item["tokens"], item["truncated"]) == (alone["tokens"], alone["truncated"])


@settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXT, min_size=1, max_size=6), data=st.data())
@example(texts=["\ud800"], data=None)
@example(texts=["fine", "a\udfff"], data=None)
@example(texts=["\ud83d\ude42"], data=None)  # a pair in two halves is one character in JSON
def test_any_text(service: Service, texts: list[str], data: Any) -> None:
    sent: list[str] = json.loads(json.dumps(texts))
    together = post(service, texts)
    at = 0 if data is None else data.draw(st.integers(0, len(texts) - 1))
    alone = post(service, texts[at])
    for response, good in ((together, all(map(whole, sent))), (alone, whole(sent[at]))):
        assert response.status_code == (200 if good else 422), response.text
        if not good:
            assert response.headers["Content-Type"] == "application/problem+json"
            assert "half a surrogate pair" in response.json()["detail"]
    if together.status_code == 200:
        items = together.json()["results"]
        assert len(items) == len(texts)
        for item in items:
            check(item)
    if alone.status_code == 200:
        check(alone.json())
    if together.status_code == alone.status_code == 200:
        same(together.json()["results"][at], alone.json())


def test_odd_texts_alone_and_in_company(service: Service) -> None:
    items = post(service, list(ODD.values())).json()["results"]
    for text, item in zip(ODD.values(), items, strict=True):
        alone = post(service, text).json()
        check(alone)
        same(item, alone)


def test_every_script(service: Service) -> None:
    """Unicode names its letters after their scripts: GEORGIAN CAPITAL LETTER AN."""
    scripts: dict[str, str] = {}
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lm", "Lo"):
            script = unicodedata.name(chr(code), "CJK").partition(" ")[0]
            if len(scripts.setdefault(script, "")) < _LETTERS_OF_A_SCRIPT:
                scripts[script] += chr(code)
    assert len(scripts) > 150
    texts = list(scripts.values())
    forwards, backwards = (post(service, order).json()["results"] for order in (texts, texts[::-1]))
    for one, other in zip(forwards, reversed(backwards), strict=True):
        check(one)
        same(one, other)
    for at in range(0, len(texts), 20):
        same(forwards[at], post(service, texts[at]).json())


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_a_mebibyte(service: Service, text: str) -> None:
    response = post(service, [text, "a fine film"])
    assert response.status_code == 200
    large, small = response.json()["results"]
    check(large)
    same(small, post(service, "a fine film").json())
    same(large, post(service, text).json())
