"""Sealing: what is compressed or encrypted comes back, and whatever else stands there is a miss."""

import base64
import importlib
import json
import random
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from tidings.codec import Codec
from tidings.errors import ConfigurationError, DecodeError
from tidings.sealing import COMPRESSED, ENCRYPTED, EVERY_OTHER, SEALED, ZSTD_MODULE, Sealer
from tidings.settings import GivenSettings, Settings

zstd = importlib.import_module(ZSTD_MODULE)

KEY = "shop:cache:users:get_user:0123456789abcdef"
OTHER = "shop:cache:users:get_user:fedcba9876543210"
PLAIN = b'J{"name":"Ada Lovelace","roles":["admin","admin","admin","admin","admin","admin"]}'
OVERHEAD = 1 + 4 + 12 + 16
LIMIT = 64 * 1024


def a_key(of: int = 0, size: int = 32) -> str:
    return base64.b64encode(bytes([of] * size)).decode()


OLD, NEW = a_key(1), a_key(2)


def sealer(*, compress_bytes: int = 0, limit: int = LIMIT, **keys: list[str]) -> Sealer:
    """Keys by namespace; `other` stands for every other."""
    secrets = {
        EVERY_OTHER if name == "other" else name: [SecretStr(key) for key in given] for name, given in keys.items()
    }
    return Sealer(GivenSettings(compress_bytes=compress_bytes, encryption_keys=secrets, max_value_bytes=limit))


PLAINTEXT = sealer()
SEALERS = {
    "plain": PLAINTEXT,
    "compressed": sealer(compress_bytes=1),
    "encrypted": sealer(users=[NEW]),
    "compressed and encrypted": sealer(compress_bytes=1, users=[NEW]),
    "AES-128": sealer(users=[a_key(3, 16)]),
    "AES-192": sealer(users=[a_key(3, 24)]),
    "every other": sealer(other=[NEW], compress_bytes=20),
}
ENCRYPTING = [name for name, one in SEALERS.items() if one.encrypts("users")]

payloads = st.binary(max_size=300).map(lambda body: b"J" + body) | st.integers(1, 5000).map(lambda n: b"J" + b"x" * n)


@pytest.mark.parametrize("name", SEALERS)
@given(payload=payloads)
def test_what_is_sealed_for_an_entry_comes_back(name, payload):
    sealed = SEALERS[name].seal(payload, "users", KEY)
    assert SEALERS[name].unseal(sealed, "users", KEY) == payload


@pytest.mark.parametrize("name", SEALERS)
def test_the_first_byte_says_what_has_to_be_unsealed(name):
    sealed = SEALERS[name].seal(PLAIN, "users", KEY)
    assert (sealed[:1] in SEALED) == (sealed != PLAIN)
    assert (sealed[:1] == ENCRYPTED) == SEALERS[name].encrypts("users")


def test_the_codecs_own_forms_are_no_sealed_ones():
    assert Codec(bytes, "f").encode(b"x")[:1] not in SEALED
    assert Codec(bytes, "f").encode(b"\xff")[:1] not in SEALED


def test_without_compression_or_keys_payloads_pass_as_they_are():
    assert PLAINTEXT.seal(PLAIN, "users", KEY) is PLAIN
    assert PLAINTEXT.unseal(PLAIN, "users", KEY) is PLAIN
    assert not PLAINTEXT.encrypts("users")


# Compression


def test_values_from_the_size_on_are_compressed_and_smaller_ones_are_not():
    one = sealer(compress_bytes=len(PLAIN))
    assert one.seal(PLAIN, "users", KEY)[:1] == COMPRESSED
    assert one.seal(PLAIN[:-1], "users", KEY) == PLAIN[:-1]


def test_a_value_that_does_not_get_smaller_stays_as_it_is():
    noise = b"T" + random.Random(1).randbytes(2000)
    assert sealer(compress_bytes=1).seal(noise, "users", KEY) == noise


def test_what_others_compressed_is_read_by_a_process_that_does_not_compress():
    assert PLAINTEXT.unseal(sealer(compress_bytes=1).seal(PLAIN, "users", KEY), "users", KEY) == PLAIN


@pytest.mark.parametrize("says_its_size", [True, False])
@pytest.mark.parametrize("window_log", [10, 20])
@pytest.mark.parametrize("name", ["compressed", "compressed and encrypted"])
def test_a_value_that_unpacks_to_more_than_the_limit_is_a_decode_error(name, says_its_size, window_log):
    parameters = zstd.CompressionParameter
    options = {parameters.content_size_flag: int(says_its_size), parameters.window_log: window_log}
    bomb = COMPRESSED + zstd.compress(bytes(20_000_000), options=options)
    assert len(bomb) < 200_000
    if SEALERS[name].encrypts("users"):  # made by somebody who has the key
        bomb = sealer(users=[NEW]).seal(bomb, "users", KEY)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="more than 65536 bytes" if window_log == 10 else "more memory"):
            SEALERS[name].unseal(bomb, "users", KEY)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(bomb) + 5 * LIMIT
    finally:
        tracemalloc.stop()


def test_the_limit_is_exact():
    one = sealer(compress_bytes=1, limit=50_000)
    assert one.unseal(one.seal(b"J" * 50_000, "users", KEY), "users", KEY) == b"J" * 50_000
    with pytest.raises(DecodeError, match="more than 50000 bytes"):
        one.unseal(one.seal(b"J" * 50_001, "users", KEY), "users", KEY)


def test_a_frame_that_lies_about_its_size_is_a_decode_error():
    packed = bytearray(zstd.compress(bytes(40_000)))
    assert zstd.get_frame_info(packed).decompressed_size == 40_000
    packed[5:7] = (10).to_bytes(2, "little")
    with pytest.raises(DecodeError):
        PLAINTEXT.unseal(COMPRESSED + packed, "users", KEY)


def test_a_small_frame_that_asks_for_a_large_window_is_a_decode_error():
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    greedy = packer.compress(PLAIN) + packer.flush()
    assert zstd.decompress(greedy) == PLAIN
    with pytest.raises(DecodeError, match="more memory"):
        PLAINTEXT.unseal(COMPRESSED + greedy, "users", KEY)


@pytest.mark.parametrize("size", [1, 1000, LIMIT - 1, LIMIT])
@pytest.mark.parametrize("keys", [{}, {"users": [NEW]}])
def test_values_up_to_the_limit_come_back(size, keys):
    one = sealer(compress_bytes=1, **keys)
    for payload in (b"J" * size, random.Random(2).randbytes(size - 1) + b"J"):
        if payload[:1] not in SEALED:
            assert one.unseal(one.seal(payload, "users", KEY), "users", KEY) == payload


@pytest.mark.parametrize("tail", [b"x", zstd.compress(b"x"), b"\x50\x2a\x4d\x18\x00\x00\x00\x00"])
def test_a_frame_with_something_behind_it_is_a_decode_error(tail):
    sealed = sealer(compress_bytes=1).seal(PLAIN, "users", KEY)
    with pytest.raises(DecodeError):
        PLAINTEXT.unseal(sealed + tail, "users", KEY)


@given(st.data())
def test_a_changed_byte_of_a_compressed_value_never_gives_another_value(data):
    sealed = bytearray(sealer(compress_bytes=1).seal(PLAIN, "users", KEY))
    place = data.draw(st.integers(1, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with suppress(DecodeError):  # one bit of the header means nothing to zstd
        assert PLAINTEXT.unseal(bytes(sealed), "users", KEY) == PLAIN


# Encryption


@pytest.mark.parametrize("name", ENCRYPTING)
@given(data=st.data())
def test_any_changed_byte_of_an_encrypted_value_is_a_decode_error(name, data):
    sealed = bytearray(SEALERS[name].seal(PLAIN, "users", KEY))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError):
        SEALERS[name].unseal(bytes(sealed), "users", KEY)


@pytest.mark.parametrize("name", [name for name in SEALERS if name != "plain"])
def test_a_value_that_is_cut_short_anywhere_is_a_decode_error_or_no_payload(name):
    sealed = SEALERS[name].seal(PLAIN, "users", KEY)
    start = 0 if SEALERS[name].encrypts("users") else 1
    for length in range(start, len(sealed)):
        with pytest.raises(DecodeError):
            SEALERS[name].unseal(sealed[:length], "users", KEY)
    assert SEALERS["compressed"].unseal(b"", "users", KEY) == b""  # what the codec then refuses


@pytest.mark.parametrize("name", SEALERS)
@given(form=st.sampled_from([b"", COMPRESSED, ENCRYPTED, COMPRESSED + b"\x28\xb5\x2f\xfd", b"J"]), body=st.binary())
def test_no_bytes_whatsoever_raise_anything_but_a_decode_error(name, form, body):
    # Behind the id of the key that is in use, too, so that decryption itself is reached.
    header = SEALERS[name].seal(PLAIN, "users", KEY)[:5] if form == ENCRYPTED else form
    for data in (form + body, header + body):
        with suppress(DecodeError):
            found = SEALERS[name].unseal(data, "users", KEY)
            assert not SEALERS[name].encrypts("users")
            assert found == data or data[:1] == COMPRESSED


def test_the_same_value_is_never_encrypted_to_the_same_bytes():
    one = sealer(users=[NEW])
    assert len({one.seal(PLAIN, "users", KEY) for _ in range(100)}) == 100


def test_an_encrypted_value_shows_nothing_of_itself_and_costs_33_bytes():
    sealed = sealer(users=[NEW]).seal(PLAIN, "users", KEY)
    assert b"Ada" not in sealed
    assert len(sealed) == len(PLAIN) + OVERHEAD


def test_a_value_moved_to_another_entry_is_a_decode_error():
    one = sealer(users=[NEW], orders=[NEW])
    here, there = one.seal(b"J1", "users", KEY), one.seal(b"J2", "users", OTHER)
    for sealed, namespace, key in [(here, "users", OTHER), (there, "users", KEY), (here, "users", f"v2:{KEY}")]:
        with pytest.raises(DecodeError):
            one.unseal(sealed, namespace, key)
    assert one.unseal(here, "users", KEY) == b"J1"
    assert one.unseal(there, "users", OTHER) == b"J2"


@pytest.mark.parametrize("injected", [PLAIN, SEALERS["compressed"].seal(PLAIN, "users", KEY), b"", b"T1"])
def test_a_value_that_is_not_encrypted_is_refused_where_there_are_keys(injected):
    with pytest.raises(DecodeError, match="not encrypted"):
        sealer(users=[NEW]).unseal(injected, "users", KEY)


def test_an_encrypted_value_is_refused_where_there_are_no_keys():
    sealed = sealer(users=[NEW]).seal(PLAIN, "users", KEY)
    for one in (PLAINTEXT, sealer(orders=[NEW])):
        with pytest.raises(DecodeError, match="no keys here"):
            one.unseal(sealed, "users", KEY)


def test_a_namespace_uses_its_own_keys_and_every_other_those_of_the_star():
    one = sealer(users=[OLD], other=[NEW])
    assert one.encrypts("users")
    assert one.encrypts("anything")
    assert sealer(users=[OLD]).unseal(one.seal(PLAIN, "users", KEY), "users", KEY) == PLAIN
    assert sealer(stats=[NEW]).unseal(one.seal(PLAIN, "stats", KEY), "stats", KEY) == PLAIN
    with pytest.raises(DecodeError, match="not known here"):
        one.unseal(sealer(users=[NEW]).seal(PLAIN, "users", KEY), "users", KEY)


def test_keys_rotate_without_a_miss():
    old, added, moved, new = (sealer(users=keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW]))
    under_old = old.seal(PLAIN, "users", KEY)
    for one in (old, added, moved):
        assert one.unseal(under_old, "users", KEY) == PLAIN
    with pytest.raises(DecodeError, match="not known here"):
        new.unseal(under_old, "users", KEY)
    assert old.unseal(added.seal(PLAIN, "users", KEY), "users", KEY) == PLAIN
    under_new = moved.seal(PLAIN, "users", KEY)
    for one in (added, moved, new):
        assert one.unseal(under_new, "users", KEY) == PLAIN
    with pytest.raises(DecodeError, match="not known here"):
        old.unseal(under_new, "users", KEY)


def test_one_sealer_serves_many_threads():
    one = sealer(users=[NEW, OLD], compress_bytes=500)

    def there_and_back(number: int) -> bool:
        payload = b"J" + str(number).encode() * (number % 400 + 1)
        return one.unseal(one.seal(payload, "users", f"{KEY}{number}"), "users", f"{KEY}{number}") == payload

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(2000)))


# Configuration

#: Stands for key material in what must not be shown.
MARK = "c2VjcmV0"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"users": []}, "namespace 1 has no key"),
        ({"users": [MARK]}, "key 1 of namespace 1 is not the base64 of 16, 24 or 32 bytes"),
        ({"users": [a_key(), f"{MARK}!"]}, "key 2 of namespace 1 is not the base64"),
        ({"users": [f"{MARK}é"]}, "key 1 of namespace 1 is not the base64"),
        ({"users": [""]}, "key 1 of namespace 1 is not the base64"),
        ({"users": [a_key(), a_key()]}, "key 2 of namespace 1 stands there already"),
        ({f"{MARK}+/=": [a_key()]}, r"name 1 is neither a namespace nor '\*'"),
        ({"": [a_key()]}, r"name 1 is neither a namespace nor '\*'"),
    ],
)
def test_wrong_keys_are_an_error_at_construction_that_shows_none(keys, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        sealer(**keys)
    assert MARK not in str(caught.value)
    assert caught.value.__context__ is None


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        sealer(**{"a b": [a_key(size=31), "!"], "users": [], "other": [a_key(1)]})
    assert str(caught.value).count("TIDINGS_ENCRYPTION_KEYS") == 4


@pytest.mark.parametrize(
    ("module", "options", "cure"),
    [
        (ZSTD_MODULE, {"compress_bytes": 1}, r"TIDINGS_COMPRESS_BYTES: .*tidings\[zstd\]"),
        (
            "cryptography.hazmat.primitives.ciphers.aead",
            {"users": [a_key()]},
            r"TIDINGS_ENCRYPTION_KEYS: .*tidings\[encryption\]",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named(monkeypatch, module, options, cure):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=cure):
        sealer(**options)


def test_without_zstd_a_compressed_value_is_a_miss_and_the_rest_works(monkeypatch):
    sealed = sealer(compress_bytes=1).seal(PLAIN, "users", KEY)
    monkeypatch.setitem(sys.modules, ZSTD_MODULE, None)
    one = sealer(users=[NEW])
    assert one.unseal(one.seal(PLAIN, "users", KEY), "users", KEY) == PLAIN
    with pytest.raises(DecodeError, match=r"tidings\[zstd\]"):
        one.unseal(sealed, "orders", KEY)


def test_keys_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TIDINGS_ENCRYPTION_KEYS", json.dumps({"*": [NEW, OLD]}))
    monkeypatch.setenv("TIDINGS_COMPRESS_BYTES", "1")

    one = Sealer(Settings.load(development_server=False))
    assert sealer(users=[NEW]).unseal(one.seal(PLAIN, "users", KEY), "users", KEY) == PLAIN
    assert NEW not in repr(vars(one))
