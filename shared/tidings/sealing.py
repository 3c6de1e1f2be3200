"""Payloads between the codec and Redis: compressed above a size, encrypted where a namespace has keys.

The first byte of a payload names its form and the version of that form; a changed layout takes a new letter, so that
older readers miss instead of guessing. The codec's own forms are not sealed; above them stand

    Z   one zstd frame with a checksum, of a payload of the codec
    E   key id (4 bytes)   nonce (12)   AES-GCM ciphertext and tag (16) of a payload of the codec or of a Z

A value is compressed first and encrypted second, since ciphertext does not compress.

**What encryption gives.** In a namespace with keys, a value cannot be read, made or changed by somebody who has Redis
but no key. Form, key id and the entry's full key are authenticated with it, so it does not decrypt under another entry,
prefix, version or namespace. Plaintext is refused there, even where it would decode: a namespace that gets its first
key starts with misses.

**What it does not hide**: keys, tags and namespaces, when and by whom an entry was loaded (these facts stand in clear),
tokens, lifetimes, the size of a value. With compression the size depends on the content: where one value holds a secret
beside text that an attacker may choose, sizes tell about the secret; do not compress there. Whoever can write to Redis
can still delete entries, or put an earlier value of an entry back under the same key.

**Rotation.** Put the new key first and keep the old one behind it: the first encrypts, all decrypt, found by the key
id. Where several processes share a cache, first add the new key at the end everywhere, then move it to the front. When
the longest ttl has passed, nothing needs the old key any more. Nonces are random, which is safe for 2**32 encryptions
under one key (NIST SP 800-38D, 8.3), all namespaces and processes that share the key together: 1 000 fills a second
reach that in 49 days, so rotate before then.
"""

import base64
import binascii
import importlib
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from .errors import ConfigurationError, DecodeError
from .keys import check_namespace
from .settings import Settings

COMPRESSED = b"Z"
ENCRYPTED = b"E"

#: The first bytes of what has to be unsealed. Where `Sealer.encrypts` is false, everything else is a codec's payload.
SEALED = frozenset((COMPRESSED, ENCRYPTED))

#: Stands for every namespace that has no keys of its own.
EVERY_OTHER = "*"

#: Stands behind an entry's key where its call is encrypted: neither can be put in the other's place.
_CALL = "\0call"

_ID_BYTES = 4
_NONCE_BYTES = 12
_KEY_BYTES = (16, 24, 32)
_HEADER_BYTES = len(ENCRYPTED) + _ID_BYTES

#: What zstd accepts on every platform.
_LEAST_WINDOW_LOG, _LARGEST_WINDOW_LOG = 10, 30

#: Part of Python from 3.14 on; before that the same under another name, installed by tidings[zstd].
ZSTD_MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_AEAD = "cryptography.hazmat.primitives.ciphers.aead"


@dataclass(frozen=True, slots=True)
class _Ring:
    """The keys of one namespace: ciphers by header, the form and the key's id."""

    newest: bytes
    ciphers: Mapping[bytes, Any]


class Sealer:
    """Seals and unseals payloads as the settings say. Safe to share between threads.

    Raises ConfigurationError, which lists every problem and shows no key, for keys that are no base64 of 16, 24 or 32
    bytes, a namespace without keys or with a name that cannot be one, and an extra that is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        problems: list[str] = []
        self._limit = settings.max_value_bytes
        self._compress_from = settings.compress_bytes
        # Others may have compressed what is read here, so the library is used to read wherever it is installed.
        self._zstd = _import(ZSTD_MODULE)
        if self._compress_from and self._zstd is None:
            problems.append("TIDINGS_COMPRESS_BYTES: compression needs zstd: install tidings[zstd]")
        if self._zstd is not None:
            writing, reading = self._zstd.CompressionParameter, self._zstd.DecompressionParameter
            self._writing = {writing.compression_level: 3, writing.checksum_flag: 1}
            # A frame says how much memory its window needs: no more than the largest value has bytes.
            window = max(_LEAST_WINDOW_LOG, min((self._limit - 1).bit_length(), _LARGEST_WINDOW_LOG))
            self._reading = {reading.window_log_max: window}
        self._rings = _rings(settings.encryption_keys, problems)
        self._other = self._rings.pop(EVERY_OTHER, None)
        if problems:
            raise ConfigurationError("settings are not valid:\n  " + "\n  ".join(problems))

    def encrypts(self, namespace: str) -> bool:
        """Say whether a namespace has keys. If not, only what begins with one of SEALED needs `unseal`."""
        return self._other is not None or namespace in self._rings

    def seal(self, payload: bytes, namespace: str, key: str) -> bytes:
        """Return what to store under an entry's full key for a payload of at most `max_value_bytes`.

        What exceeds that limit cannot be unsealed again; compressed, it may look as if it fitted.
        """
        if self._compress_from and len(payload) >= self._compress_from:
            compressed: bytes = COMPRESSED + self._zstd.compress(payload, options=self._writing)
            if len(compressed) < len(payload):
                payload = compressed
        ring = self._rings.get(namespace, self._other)
        if ring is None:
            return payload
        nonce = secrets.token_bytes(_NONCE_BYTES)
        ciphertext: bytes = ring.ciphers[ring.newest].encrypt(nonce, payload, ring.newest + key.encode())
        return ring.newest + nonce + ciphertext

    def unseal(self, data: bytes, namespace: str, key: str) -> bytes:
        """Return the payload that was sealed for this entry.

        Raises DecodeError, and nothing else, for bytes that were not: they are a miss.
        """
        ring = self._rings.get(namespace, self._other)
        if ring is not None:
            data = self._decrypt(data, ring, key)
        elif data[:1] == ENCRYPTED:
            raise DecodeError(f"an encrypted value in the namespace {namespace}, which has no keys here")
        return self._decompress(data) if data[:1] == COMPRESSED else data

    def seal_call(self, text: str, namespace: str, key: str) -> str:
        """Return the text of a call as it may stand among an entry's facts: encrypted where the namespace has keys."""
        if not self.encrypts(namespace):
            return text
        return base64.b64encode(self.seal(text.encode(), namespace, key + _CALL)).decode("ascii")

    def unseal_call(self, sealed: str, namespace: str, key: str) -> str:
        """Return the text of a call that was sealed for this entry. Raises DecodeError for what was not."""
        if not self.encrypts(namespace):
            return sealed
        try:
            return self.unseal(base64.b64decode(sealed), namespace, key + _CALL).decode()
        except ValueError:  # binascii's error and UnicodeDecodeError are of this kind
            raise DecodeError("the call of an entry that was not sealed for it, or was changed") from None

    def _decrypt(self, data: bytes, ring: _Ring, key: str) -> bytes:
        header, body = data[:_HEADER_BYTES], _HEADER_BYTES + _NONCE_BYTES
        if header[:1] != ENCRYPTED:
            raise DecodeError("a value that is not encrypted, in a namespace that has keys")
        cipher = ring.ciphers.get(header)
        if cipher is None:
            raise DecodeError("an encrypted value, under a key that is not known here")
        try:
            plain: bytes = cipher.decrypt(data[_HEADER_BYTES:body], data[body:], header + key.encode())
        except Exception as error:  # its InvalidTag, importable only with the extra; others for what is cut short
            raise DecodeError("an encrypted value that was not sealed for this entry, or was changed") from error
        return plain

    def _decompress(self, data: bytes) -> bytes:
        if self._zstd is None:
            raise DecodeError("a compressed value, and zstd is not installed here: install tidings[zstd]")
        frame = memoryview(data)[len(COMPRESSED) :]
        try:
            whole = self._zstd.get_frame_size(frame) == len(frame)
            # Stopped one byte beyond the limit: what a frame says of its own size may be a lie.
            plain: bytes = self._zstd.ZstdDecompressor(options=self._reading).decompress(frame, self._limit + 1)
        except self._zstd.ZstdError as error:
            raise DecodeError("a compressed value that is damaged, or asks for more memory than it may") from error
        if not whole or len(plain) > self._limit:
            raise DecodeError(f"a compressed value of more than one frame, or of more than {self._limit} bytes")
        return plain


def _import(module: str) -> Any:
    """Return a module of an extra, or None where that is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _rings(keys: Mapping[str, Sequence[SecretStr]], problems: list[str]) -> dict[str, _Ring]:
    if not keys:
        return {}
    where = "TIDINGS_ENCRYPTION_KEYS"
    library = _import(_AEAD)
    if library is None:
        problems.append(f"{where}: encryption needs cryptography: install tidings[encryption]")
    rings = {}
    for number, (namespace, given) in enumerate(keys.items(), start=1):
        if not _is_namespace(namespace):
            # Not shown: whoever swapped name and key would find the key in the log.
            problems.append(f"{where}: name {number} is neither a namespace nor {EVERY_OTHER!r}")
        if not given:
            problems.append(f"{where}: namespace {number} has no key; name one, or leave the namespace out")
        ciphers = {}
        for position, secret in enumerate(given, start=1):
            place = f"{where}: key {position} of namespace {number}"
            raw = _decoded(secret)
            header = ENCRYPTED + sha256(raw).digest()[:_ID_BYTES]
            if len(raw) not in _KEY_BYTES:
                problems.append(f"{place} is not the base64 of 16, 24 or 32 bytes (`openssl rand -base64 32`)")
            elif header in ciphers:
                problems.append(f"{place} stands there already, or has the id of another: take it out")
            else:
                ciphers[header] = library and library.AESGCM(raw)
        rings[namespace] = _Ring(next(iter(ciphers), b""), ciphers)
    return rings


def _is_namespace(name: str) -> bool:
    try:
        return name == EVERY_OTHER or bool(check_namespace(name))
    except ConfigurationError:
        return False


def _decoded(secret: SecretStr) -> bytes:
    """Return a key's bytes, none for what is not base64."""
    try:
        return base64.b64decode(secret.get_secret_value().strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
