#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Backing references that lead in circles, out of the allowed folders, or to no image."""

import os
import socket

from kinds import SERVED, broken
from qcow2image import EXT_BACKING_FORMAT, Image

REPEATED = r"is already in the chain"
NOT_ALLOWED = r"backing image not allowed \(%s\)"
NOT_FOLLOWED = r"backing name not followed \(%s"


def overlay(folder, name="top.qcow2", backing="base.raw", backing_format="raw"):
    """An image with a backing reference; good but for that."""
    return Image(backing=backing, backing_format=backing_format).save(folder / name)


def base(folder, name="base.raw"):
    (folder / name).write_bytes(b"Z" * (1 << 20))
    return folder / name


def about_backing(name, summary, message, **options):
    """A kind of which `info` and `check`, which open one image, know nothing."""
    return broken(name, summary, message, info=False, **options)


# ---- circles ----------------------------------------------------------------------


@about_backing("loop-self", "an image that is its own backing", REPEATED)
def loop_self(folder):
    return overlay(folder, backing="top.qcow2", backing_format="qcow2")


@about_backing("loop-of-2", "two images that are each other's backing",
               REPEATED + "|is the backing image of")
def loop_of_2(folder):
    overlay(folder, "base.qcow2", "top.qcow2", "qcow2")
    return overlay(folder, "top.qcow2", "base.qcow2", "qcow2")


@about_backing("loop-of-3-below", "a circle that does not contain the top", REPEATED)
def loop_of_3_below(folder):
    overlay(folder, "a.qcow2", "b.qcow2", "qcow2")
    overlay(folder, "b.qcow2", "c.qcow2", "qcow2")
    overlay(folder, "c.qcow2", "a.qcow2", "qcow2")
    return overlay(folder, "top.qcow2", "a.qcow2", "qcow2")


@about_backing("loop-symlink", "the same file again by a symbolic link", REPEATED)
def loop_symlink(folder):
    (folder / "other.qcow2").symlink_to("top.qcow2")
    return overlay(folder, "top.qcow2", "other.qcow2", "qcow2")


@about_backing("loop-hard-link", "the same file again by a hard link", REPEATED)
def loop_hard_link(folder):
    path = overlay(folder, "top.qcow2", "other.qcow2", "qcow2")
    os.link(path, folder / "other.qcow2")
    return path


@about_backing("loop-as-raw", "the same file again, as raw", REPEATED)
def loop_as_raw(folder):
    return overlay(folder, "top.qcow2", "top.qcow2", "raw")


@about_backing("deep-chain", "more layers than a chain may have",
               r"chain too deep|no descriptor left")
def deep_chain(folder):
    count = 4100
    for number in range(count):
        name = f"l{number}.qcow2"
        image = Image(cluster_bits=9, extensions=[(EXT_BACKING_FORMAT, b"qcow2")])
        image.set_backing(f"l{number + 1}.qcow2", offset=200)
        image.save(folder / name)
    return folder / "l0.qcow2"


# ---- formats and protocols ----------------------------------------------------------


@about_backing("format-missing", "no backing format: it is never guessed",
               r"backing format missing, must be in the header")
def format_missing(folder):
    base(folder)
    return overlay(folder, backing_format=None)


@about_backing("format-unknown", "a backing format that is not served",
               r"backing format not supported \(vmdk\), must be raw or qcow2")
def format_unknown(folder):
    base(folder)
    return overlay(folder, backing_format="vmdk")


@about_backing("format-empty", "a backing format of no bytes",
               r"backing format (missing|not supported)")
def format_empty(folder):
    base(folder)
    return overlay(folder, backing_format="")


@about_backing("format-wrong", "a raw backing that is said to be qcow2",
               r"not a qcow2 image \(magic 0x5a5a5a5a\)", names="base.raw")
def format_wrong(folder):
    base(folder)
    return overlay(folder, backing_format="qcow2")


@about_backing("backing-json", "a backing name that is a json: description",
               NOT_FOLLOWED % "json:")
def backing_json(folder):
    return overlay(folder, backing='json:{"driver":"raw","file.filename":"/etc/passwd"}')


@about_backing("backing-nbd-url", "a backing name that is an NBD address", NOT_FOLLOWED % "nbd:")
def backing_nbd_url(folder):
    return overlay(folder, backing="nbd://203.0.113.1/disk")


@about_backing("backing-nbd-unix", "an NBD server on a unix socket", NOT_FOLLOWED % "nbd\\+unix:")
def backing_nbd_unix(folder):
    return overlay(folder, backing="nbd+unix:///disk?socket=/run/nbd.sock")


@about_backing("backing-file-protocol", "a path written as file:", NOT_FOLLOWED % "file:")
def backing_file_protocol(folder):
    base(folder)
    return overlay(folder, backing="file:base.raw")


@about_backing("backing-fat", "a folder shown as a disk", NOT_FOLLOWED % "fat:")
def backing_fat(folder):
    return overlay(folder, backing="fat:/etc")


@about_backing("backing-control-characters", "a backing name with a line break",
               r"control character in the backing name")
def backing_control_characters(folder):
    return overlay(folder, backing="base.raw\nqchaind: all is well")


# ---- places ---------------------------------------------------------------------------


@about_backing("backing-passwd", "a file of the host as raw backing",
               NOT_ALLOWED % "/etc/passwd")
def backing_passwd(folder):
    return overlay(folder, backing="/etc/passwd")


@about_backing("backing-dotdot", "out of the folder by ..", NOT_ALLOWED % r"/.*/outside\.raw")
def backing_dotdot(folder):
    base(folder, "outside.raw")
    (folder / "inside").mkdir()
    return overlay(folder / "inside", backing="../outside.raw")


@about_backing("backing-dotdot-deep", "to the root by many ..", NOT_ALLOWED % "/etc/passwd")
def backing_dotdot_deep(folder):
    return overlay(folder, backing="../" * 40 + "etc/passwd")


@about_backing("backing-symlink-out", "a symbolic link that leaves the folder",
               NOT_ALLOWED % r".*")
def backing_symlink_out(folder):
    (folder / "base.raw").symlink_to("/etc/passwd")
    return overlay(folder)


@about_backing("backing-symlinked-folder-out", "a folder that is a symbolic link to elsewhere",
               NOT_ALLOWED % r".*")
def backing_symlinked_folder_out(folder):
    base(folder, "outside.raw")
    (folder / "inside").mkdir()
    (folder / "inside" / "link").symlink_to(folder)
    return overlay(folder / "inside", backing="link/outside.raw")


@about_backing("backing-sibling-prefix", "a folder whose name begins like the allowed one",
               NOT_ALLOWED % r".*/inside-not/base\.raw")
def backing_sibling_prefix(folder):
    (folder / "inside").mkdir()
    (folder / "inside-not").mkdir()
    base(folder / "inside-not")
    return overlay(folder / "inside", backing="../inside-not/base.raw")


@about_backing("backing-proc", "the image itself by /proc", r"not allowed|cannot be|already in")
def backing_proc(folder):
    return overlay(folder, backing="/proc/self/exe")


@about_backing("backing-missing", "a backing that is not there",
               r"backing image cannot be found \(.*base\.raw.*No such file")
def backing_missing(folder):
    return overlay(folder)


@about_backing("backing-symlink-dangling", "a symbolic link to nothing",
               r"backing image cannot be found")
def backing_symlink_dangling(folder):
    (folder / "base.raw").symlink_to("gone.raw")
    return overlay(folder)


@about_backing("backing-symlink-loop", "a symbolic link to itself",
               r"backing image cannot be found")
def backing_symlink_loop(folder):
    (folder / "base.raw").symlink_to("base.raw")
    return overlay(folder)


@about_backing("backing-folder", "a folder as backing",
               r"backing image cannot be used|must be a regular file or a block device")
def backing_folder(folder):
    (folder / "base.raw").mkdir()
    return overlay(folder)


@about_backing("backing-fifo", "a pipe as backing: opening it must not wait for a writer",
               r"backing image cannot be used|must be a regular file or a block device")
def backing_fifo(folder):
    os.mkfifo(folder / "base.raw")
    return overlay(folder)


@about_backing("backing-socket", "a socket as backing",
               r"backing image cannot be|must be a regular file or a block device")
def backing_socket(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "base.raw"))
    return overlay(folder)


@about_backing("backing-char-device", "/dev/zero as backing",
               r"not allowed|cannot be used|must be a regular file or a block device")
def backing_char_device(folder):
    return overlay(folder, backing="/dev/zero")


@about_backing("backing-broken", "the backing itself is broken: it is named",
               r"base\.qcow2: cluster size 2\^30 not supported", names="base.qcow2")
def backing_broken(folder):
    image = Image()
    image.put32(20, 30)
    image.save(folder / "base.qcow2")
    return overlay(folder, backing="base.qcow2", backing_format="qcow2")


@about_backing("backing-encrypted", "an encrypted backing", r"base\.qcow2: LUKS encryption",
               names="base.qcow2")
def backing_encrypted(folder):
    image = Image()
    image.put32(32, 2)
    image.save(folder / "base.qcow2")
    return overlay(folder, backing="base.qcow2", backing_format="qcow2")


@about_backing("backing-corrupt-bit", "a backing that is marked corrupt may be read",
               "", rw=SERVED, ro=SERVED,
               reads=((0, 65536, b"A" * 65536), (4 << 16, 65536, bytes(65536))))
def backing_corrupt_bit(folder):
    image = Image()
    image.put64(72, 2)
    image.save(folder / "base.qcow2")
    return overlay(folder, backing="base.qcow2", backing_format="qcow2")


# ---- the top itself ----------------------------------------------------------------------


@broken("top-missing", "the image to be served is not there", r"top\.qcow2: .*not found",
        check=(1,))
def top_missing(folder):
    return folder / "top.qcow2"


@broken("top-folder", "a folder instead of an image",
        r"must be a regular file or a block device|expected an image file", check=(1,))
def top_folder(folder):
    (folder / "top.qcow2").mkdir()
    return folder / "top.qcow2"


@broken("top-fifo", "a pipe instead of an image: opening it must not wait for a writer",
        r"must be a regular file or a block device|expected an image file", check=(1,))
def top_fifo(folder):
    os.mkfifo(folder / "top.qcow2")
    return folder / "top.qcow2"
