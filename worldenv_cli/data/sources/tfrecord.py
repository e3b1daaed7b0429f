"""TFRecord files of tf.train.Example, without tensorflow: framing with its checksums, and the three kinds of list that an Example holds.

A record is: length (8 bytes, little endian), masked CRC-32C of it (4), the bytes, masked CRC-32C of them (4). An Example is a protocol buffer
whose field 1 maps names to a list of bytes (field 1), of floats (2) or of integers (3).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import UserError

LARGEST = 2**31  # bytes in one record: an episode of pictures is far smaller
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x78\x01": "zlib", b"\x78\x9c": "zlib", b"\x78\xda": "zlib", b"\x28\xb5": "zstd"}  # by first bytes
Values = list[bytes] | np.ndarray


def records(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of every record's bytes; their own checksum is left for `read_record`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at < size:
            head = file.read(12)
            if len(head) < 12:
                raise UserError(f"{path}: ends inside a record's head at byte {at}; copy or download it again")
            length, check = struct.unpack("<QI", head)
            if not at and head[:2] in COMPRESSED:
                raise UserError(f"{path}: compressed as a whole ({COMPRESSED[head[:2]]}), expected plain TFRecords; unpack the shards first")
            if _masked(head[:8]) != check:
                raise UserError(f"{path}: not a TFRecord, or damaged, at byte {at} (checksum of the length); copy or download it again")
            if length > LARGEST or at + 16 + length > size:
                raise UserError(f"{path}: a record of {length} bytes at byte {at}, but the file ends at {size}; copy or download it again")
            yield at + 12, length
            at += 16 + length
            file.seek(at)


def read_record(path: Path, offset: int, length: int) -> dict[str, Values]:
    """The Example at a place that `records` gave."""
    with path.open("rb") as file:
        file.seek(offset)
        body, check = file.read(length), file.read(4)
    if len(body) < length or len(check) < 4 or struct.unpack("<I", check)[0] != _masked(body):
        raise UserError(f"{path}: the record at byte {offset} is damaged (checksum); copy or download the file again")
    try:
        return dict(_entry(entry) for features in _fields(body, 1) for entry in _fields(features, 1))
    except (IndexError, ValueError, struct.error) as error:
        raise UserError(f"{path}: the record at byte {offset} is no tf.train.Example ({error}); is it another kind of dataset?") from error


def _entry(entry: bytes) -> tuple[str, Values]:
    """One name of the map and its list."""
    name, feature = next(_fields(entry, 1), b"").decode(), next(_fields(entry, 2), b"")
    for kind in (1, 2, 3):
        for values in _fields(feature, kind):
            if kind == 1:
                return name, list(_fields(values, 1))
            if kind == 2:
                return name, np.frombuffer(b"".join(_fields(values, 1)), "<f4")  # packed, or one by one
            return name, _varints(b"".join(_fields(values, 1)))
    return name, []


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of every field of that number; a single integer comes as the bytes of its varint."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        start = at
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, start = _varint(message, at)
            at = start + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("a field reaches past the end")
        if number == wanted:
            yield message[start:at]


def _varints(packed: bytes) -> np.ndarray:
    """(N,) int64: seven bits a byte, the lowest first, the last byte of a number below 128."""
    data = np.frombuffer(packed, np.uint8)
    if not len(data):
        return np.zeros(0, np.int64)
    last = data < 128
    ends = np.flatnonzero(last)
    starts = np.append(0, ends[:-1] + 1)
    if not last[-1] or (ends - starts).max() > 9:
        raise ValueError("a number of more than ten bytes, or one that is cut off")
    place = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    bits = (data & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts).view(np.int64)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, the place behind it)."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number & (2**64 - 1), at
    raise ValueError("a number of more than ten bytes")


def _table() -> np.ndarray:
    """CRC-32C (Castagnoli) of every byte: (256,)."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(0x82F63B78), crc >> 1)
    return crc


TABLE = _table()
LANES = 1024  # pieces whose checksums are taken side by side


def crc32c(data: bytes) -> int:
    """The checksum, of large data in many pieces at once: byte after byte Python would need a second a megabyte."""
    piece = len(data) // LANES
    if piece < 64:
        return _serial(data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    lanes = np.frombuffer(data, np.uint8, piece * LANES).reshape(LANES, piece)
    crc = np.zeros(LANES, np.uint32)
    crc[0] = 0xFFFFFFFF
    for column in lanes.T:
        crc = (crc >> 8) ^ TABLE[(crc ^ column) & 255]
    whole = int(crc[0])
    shift = _shift_matrix(piece)
    for lane in crc[1:]:
        whole = _apply(shift, whole) ^ int(lane)
    return _serial(data[piece * LANES :], whole) ^ 0xFFFFFFFF


def _serial(data: bytes, crc: int) -> int:
    for byte in data:
        crc = (crc >> 8) ^ int(TABLE[(crc ^ byte) & 255])
    return crc


def _shift_matrix(length: int) -> list[int]:
    """What `length` zero bytes do to a checksum: the image of each of its 32 bits (a linear map over GF(2))."""
    one = [_serial(b"\0", 1 << bit) for bit in range(32)]
    result = [1 << bit for bit in range(32)]
    while length:
        if length & 1:
            result = [_apply(one, column) for column in result]
        one = [_apply(one, column) for column in one]
        length >>= 1
    return result


def _apply(matrix: list[int], vector: int) -> int:
    result = 0
    for bit in range(32):
        if vector >> bit & 1:
            result ^= matrix[bit]
    return result


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
