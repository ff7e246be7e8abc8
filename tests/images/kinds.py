#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kind of broken image is: how it is made and what must be said about it."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Callable, Optional

import generators

REFUSED = "refused"
SERVED = "served"

# What reading a guest range must give: these, or the expected bytes themselves.
IO_ERROR = "an I/O error"
ANYTHING = "anything"


@dataclass
class Kind:
    """
    One kind. @make(folder) writes the image, and what belongs to it, and returns its path.

    @message: regular expression that the one line on standard error must match.
    @rw, @ro: what happens without and with --read-only.
    @reads: (guest offset, length, IO_ERROR, ANYTHING or the bytes), where it is served.
    @writes: (guest offset, length): each must fail, where it is served read-write.
    @may_write: the same, but each may succeed; then only @protect is compared.
    @protect: (host offset, length) that nobody may change without --read-only; default: all,
    and where it is served all but the feature bits.
    @names: the file whose name is in the message, when it is not the image itself.
    @on_device: serve a block device (a loop device) that holds the image, not the file.
    @check: exit statuses that `qchainctl check` may have; None: it is not run.
    """

    name: str
    summary: str
    make: Callable
    message: str = ""
    rw: str = REFUSED
    ro: str = REFUSED
    reads: tuple = ()
    writes: tuple = ()
    may_write: tuple = ()
    protect: tuple = ()
    names: str = ""
    args: tuple = ()
    on_device: bool = False
    check: Optional[tuple] = None
    info: bool = True


_kinds = {}


def add(kind):
    """Register one kind; names are unique."""
    if kind.name in _kinds:
        raise ValueError(f"kind {kind.name} twice")
    _kinds[kind.name] = kind


def broken(name, summary, message="", **options):
    """Decorate a generator: register it as a kind."""
    def register(make):
        add(Kind(name, summary, make, message, **options))
        return make
    return register


def load():
    """Import all families below generators/ and return the kinds in their order."""
    for module in pkgutil.iter_modules(generators.__path__):
        importlib.import_module(f"generators.{module.name}")
    return list(_kinds.values())
