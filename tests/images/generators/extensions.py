#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Header extensions: too long, twice, malformed; and backing names outside their room."""

from kinds import broken
from qcow2image import (
    BACKING_NAME_AT, BACKING_OFFSET, BACKING_SIZE, EXT_BACKING_FORMAT, EXT_CRYPTO, EXT_END,
    EXT_FEATURE_NAMES, Image)

UNKNOWN = 0x11223344
FIRST = 112
CHECK_FAILED = (1,)


def save(folder, image):
    return image.save(folder / "image.qcow2")


@broken("extension-twice", "an unknown extension twice",
        r"header extension 0x11223344 twice \(second at byte 128\)", check=CHECK_FAILED)
def extension_twice(folder):
    return save(folder, Image(extensions=[(UNKNOWN, b"one"), (UNKNOWN, b"two")]))


@broken("backing-format-twice", "two backing formats that contradict each other",
        r"header extension 0xe2792aca twice", check=CHECK_FAILED)
def backing_format_twice(folder):
    formats = [(EXT_BACKING_FORMAT, b"qcow2"), (EXT_BACKING_FORMAT, b"raw")]
    return save(folder, Image(extensions=formats))


@broken("extension-past-cluster", "an extension one byte longer than the first cluster has room",
        r"header extension 0x11223344 at byte 112 too long \(65417 bytes\), "
        r"must end by byte 65536", check=CHECK_FAILED)
def extension_past_cluster(folder):
    image = Image()
    image.put_extension(FIRST, UNKNOWN, b"", length=65536 - FIRST - 8 + 1)
    return save(folder, image)


@broken("extension-length-bomb", "an extension of 4 GiB",
        r"header extension 0x11223344 at byte 112 too long \(4294967295 bytes\)",
        check=CHECK_FAILED)
def extension_length_bomb(folder):
    image = Image()
    image.put_extension(FIRST, UNKNOWN, b"", length=0xFFFFFFFF)
    return save(folder, image)


@broken("extension-length-wraps", "an extension whose padded length is 0 in 32 bits",
        r"header extension 0x11223344 at byte 112 too long \(4294967289 bytes\)",
        check=CHECK_FAILED)
def extension_length_wraps(folder):
    image = Image()
    image.put_extension(FIRST, UNKNOWN, b"", length=0xFFFFFFF9)
    return save(folder, image)


@broken("extension-into-backing-name", "an extension that runs into the backing name",
        r"header extension 0x11223344 at byte 112 too long \(1000 bytes\), must end by byte 1024",
        check=CHECK_FAILED)
def extension_into_backing_name(folder):
    image = Image()
    image.set_backing("base.raw")
    image.put_extension(FIRST, UNKNOWN, b"", length=1000)
    return save(folder, image)


@broken("extension-header-cut", "the backing name begins in the middle of an extension's header",
        r"header extension at byte 112 cut off, must end by byte 116", check=CHECK_FAILED)
def extension_header_cut(folder):
    image = Image()
    image.set_backing("base.raw", offset=116)
    return save(folder, image)


@broken("extensions-many", "a first cluster full of empty extensions",
        r"too many header extensions, must be at most 64", check=CHECK_FAILED)
def extensions_many(folder):
    count = (65536 - FIRST) // 8
    return save(folder, Image(extensions=[(0x70000000 + n, b"") for n in range(count)]))


@broken("feature-names-odd", "a feature name table that ends inside an entry",
        r"feature name table of 50 bytes not valid, must be a multiple of 48", check=CHECK_FAILED)
def feature_names_odd(folder):
    return save(folder, Image(extensions=[(EXT_FEATURE_NAMES, bytes(50))]))


@broken("crypto-extension", "an encryption extension in an image that is not encrypted",
        r"encryption header extension \(16 bytes\) in an image with method 0", check=CHECK_FAILED)
def crypto_extension(folder):
    return save(folder, Image(extensions=[(EXT_CRYPTO, bytes(16))]))


@broken("backing-format-long", "a backing format of 4 KiB",
        r"backing format name too long \(4096 bytes\), must be at most 15", check=CHECK_FAILED)
def backing_format_long(folder):
    return save(folder, Image(extensions=[(EXT_BACKING_FORMAT, b"q" * 4096)]))


@broken("backing-format-zero-byte", "a backing format that is raw only up to a zero byte",
        r"backing format name contains a zero byte \(position 3 of 9\)", check=CHECK_FAILED)
def backing_format_zero_byte(folder):
    return save(folder, Image(extensions=[(EXT_BACKING_FORMAT, b"raw\0qcow2")]))


def backing_image(folder, offset, length, name=b"n" * 2048):
    image = Image(extensions=[(EXT_BACKING_FORMAT, b"raw"), (EXT_END, b"")])
    image.put(BACKING_NAME_AT, name)
    image.put64(BACKING_OFFSET, offset)
    image.put32(BACKING_SIZE, length)
    return save(folder, image)


@broken("backing-name-bomb", "a backing name of 4 GiB",
        r"backing file name too long \(4294967295 bytes at 0x400\), must be at most 1023",
        check=CHECK_FAILED)
def backing_name_bomb(folder):
    return backing_image(folder, BACKING_NAME_AT, 0xFFFFFFFF)


@broken("backing-name-1024", "a backing name one byte too long",
        r"backing file name too long \(1024 bytes at 0x400\)", check=CHECK_FAILED)
def backing_name_1024(folder):
    return backing_image(folder, BACKING_NAME_AT, 1024)


@broken("backing-name-past-cluster", "a backing name that leaves the first cluster",
        r"backing file name too long \(17 bytes at 0xfff0\)", check=CHECK_FAILED)
def backing_name_past_cluster(folder):
    return backing_image(folder, 65536 - 16, 17)


@broken("backing-name-outside", "a backing name in another cluster",
        r"backing file name outside the first cluster \(offset 0x60000\)", check=CHECK_FAILED)
def backing_name_outside(folder):
    return backing_image(folder, 6 << 16, 8)


@broken("backing-name-offset-wraps", "a backing name at 2^64 - 8",
        r"backing file name outside the first cluster \(offset 0xfffffffffffffff8\)",
        check=CHECK_FAILED)
def backing_name_offset_wraps(folder):
    return backing_image(folder, (1 << 64) - 8, 16)


@broken("backing-name-in-header", "a backing name inside the header",
        r"backing file name outside the first cluster \(offset 0x48\), must be in 112\.\.65536",
        check=CHECK_FAILED)
def backing_name_in_header(folder):
    return backing_image(folder, 72, 8)


@broken("backing-name-zero-byte", "a backing name with a zero byte in the middle",
        r"backing file name contains a zero byte \(position 8 of 20\)", check=CHECK_FAILED)
def backing_name_zero_byte(folder):
    (folder / "base.raw").write_bytes(bytes(65536))
    return backing_image(folder, BACKING_NAME_AT, 20, b"base.raw\0/etc/passwd")
