#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Feature bits that are refused, always or for writing."""

from kinds import IO_ERROR, SERVED, broken
from qcow2image import (
    AUTOCLEAR, CLUSTER_BITS, COMPRESSION_TYPE, COPIED, EXT_DATA_FILE, EXT_FEATURE_NAMES,
    HEADER_LENGTH, INCOMPATIBLE, INCOMPAT_COMPRESSION, INCOMPAT_CORRUPT, INCOMPAT_DATA_FILE,
    INCOMPAT_DIRTY, INCOMPAT_EXTL2, Image, feature_names)

CHECK_FAILED = (1,)
GOOD = ((0, 65536, b"A" * 65536), (2 << 16, 65536, bytes(65536)),
        (3 << 16, 65536, b"C" * 65536))


def save(folder, image):
    return image.save(folder / "image.qcow2")


@broken("incompatible-unnamed", "an unknown incompatible bit without a name",
        r"incompatible features 'bit 5' not supported \(0x20\), known are bits 0\.\.4",
        check=CHECK_FAILED)
def incompatible_unnamed(folder):
    image = Image()
    image.put64(INCOMPATIBLE, 1 << 5)
    return save(folder, image)


@broken("incompatible-named", "unknown incompatible bits, one named by the image",
        r"incompatible features 'time travel', 'bit 41' not supported \(0x20000000040\)",
        check=CHECK_FAILED)
def incompatible_named(folder):
    names = feature_names((1, 6, b"a compatible one"), (0, 6, b"time travel"))
    image = Image(extensions=[(EXT_FEATURE_NAMES, names)])
    image.put64(INCOMPATIBLE, 1 << 6 | 1 << 41)
    return save(folder, image)


@broken("incompatible-hostile-name", "a feature name with line breaks and terminal escapes",
        r"incompatible features 'a\?b\?\[31mc\?d' not supported \(0x80\)", check=CHECK_FAILED)
def incompatible_hostile_name(folder):
    image = Image(extensions=[(EXT_FEATURE_NAMES, feature_names((0, 7, b"a\nb\x1b[31mc'd")))])
    image.put64(INCOMPATIBLE, 1 << 7)
    return save(folder, image)


@broken("incompatible-all", "all 64 incompatible bits",
        r"incompatible features 'bit 5', 'bit 6'.* not supported \(0xffffffffffffffe0\)",
        check=CHECK_FAILED)
def incompatible_all(folder):
    image = Image()
    image.put64(INCOMPATIBLE, (1 << 64) - 1)
    return save(folder, image)


@broken("compression-bit-alone", "compression type bit set, but the type is deflate",
        r"compression type 0 does not match incompatible feature bit 3 \(1\)", check=CHECK_FAILED)
def compression_bit_alone(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_COMPRESSION)
    return save(folder, image)


@broken("compression-bit-short-header", "compression type bit set, but no room for the type",
        r"compression type 0 does not match incompatible feature bit 3 \(1\)", check=CHECK_FAILED)
def compression_bit_short_header(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_COMPRESSION)
    image.put32(HEADER_LENGTH, 104)
    image.put64(104, 0)
    return save(folder, image)


@broken("compression-type-alone", "type zstd, but its bit is not set",
        r"compression type 1 does not match incompatible feature bit 3 \(0\)", check=CHECK_FAILED)
def compression_type_alone(folder):
    image = Image()
    image.put8(COMPRESSION_TYPE, 1)
    return save(folder, image)


@broken("compression-type-2", "a compression type that nobody knows",
        r"compression type 2 not supported, must be 0 \(deflate\) or 1 \(zstd\)",
        check=CHECK_FAILED)
def compression_type_2(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_COMPRESSION)
    image.put8(COMPRESSION_TYPE, 2)
    return save(folder, image)


@broken("extl2-small-clusters", "extended L2 entries with subclusters below a sector",
        r"extended L2 entries with cluster size 2\^13 not supported, must be 2\^14\.\.2\^21",
        check=CHECK_FAILED)
def extl2_small_clusters(folder):
    image = Image(cluster_bits=13)
    image.put64(INCOMPATIBLE, INCOMPAT_EXTL2)
    return save(folder, image)


@broken("extl2-l1-too-small", "extended L2 entries halve what the L1 table covers",
        r"L1 table too small \(2 entries\), 4 needed for virtual size 1073741824",
        check=CHECK_FAILED)
def extl2_l1_too_small(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_EXTL2)
    return save(folder, image)


@broken("extl2-cluster-bits-mismatch", "cluster size changed under tables made for another",
        r"refcount table not aligned|L1 table not aligned", check=CHECK_FAILED)
def cluster_bits_mismatch(folder):
    image = Image(cluster_bits=14)
    image.put32(CLUSTER_BITS, 16)
    return save(folder, image)


@broken("corrupt-bit", "marked corrupt: refused read-write, served read-only",
        r"marked corrupt \(incompatible bit 1\), must be repaired or served read-only",
        ro=SERVED, reads=GOOD)
def corrupt_bit(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_CORRUPT)
    return save(folder, image)


@broken("dirty-bit-unrepairable", "marked dirty, with an L2 entry that no repair can explain",
        r"dirty|repair|corrupt", ro=SERVED,
        reads=(GOOD[0], GOOD[2], (2 << 16, 65536, IO_ERROR)),
        protect=((0, 72), (6 << 16, 4 << 16)))
def dirty_unrepairable(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_DIRTY)
    image.set_entry(2, 7 * image.cluster + 512 | COPIED)
    return save(folder, image)


@broken("autoclear-unknown", "an unknown autoclear bit: refused read-write, served read-only",
        r"autoclear features 'bit 9' not supported \(0x200\), must be served read-only",
        ro=SERVED, reads=GOOD)
def autoclear_unknown(folder):
    image = Image()
    image.put64(AUTOCLEAR, 1 << 9)
    return save(folder, image)


@broken("autoclear-named", "an unknown autoclear bit that the image names",
        r"autoclear features 'weather record' not supported \(0x400\)", ro=SERVED, reads=GOOD)
def autoclear_named(folder):
    names = feature_names((0, 10, b"not this"), (2, 10, b"weather record"))
    image = Image(extensions=[(EXT_FEATURE_NAMES, names)])
    image.put64(AUTOCLEAR, 1 << 10)
    return save(folder, image)


def data_file_image(folder, name):
    image = Image(extensions=[(EXT_DATA_FILE, name)])
    image.put64(INCOMPATIBLE, INCOMPAT_DATA_FILE)
    return save(folder, image)


@broken("data-file", "guest data in another file, which is there",
        r"external data file .*\b(data\.raw|bit 2)\b")
def data_file(folder):
    (folder / "data.raw").write_bytes(b"X" * (1 << 20))
    return data_file_image(folder, b"data.raw")


@broken("data-file-passwd", "a data file that the host would not like to show",
        r"external data file .*(/etc/passwd|bit 2)")
def data_file_passwd(folder):
    return data_file_image(folder, b"/etc/passwd")


@broken("data-file-json", "a data file given as a json: description",
        r"external data file .*(json:|bit 2)")
def data_file_json(folder):
    return data_file_image(folder, b'json:{"driver": "file", "filename": "/etc/passwd"}')


@broken("data-file-unnamed", "the data file bit without the extension that names one",
        r"external data file without a name \(incompatible bit 2\)", check=CHECK_FAILED)
def data_file_unnamed(folder):
    image = Image()
    image.put64(INCOMPATIBLE, INCOMPAT_DATA_FILE)
    return save(folder, image)


@broken("data-file-empty-name", "a data file with a name of no bytes",
        r"data file name of 0 bytes not valid, must be 1\.\.1023", check=CHECK_FAILED)
def data_file_empty_name(folder):
    return data_file_image(folder, b"")
