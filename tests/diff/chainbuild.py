#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the chain that chainspec.py drew, with QEMU's tools only."""

import array
import itertools
import os

import mapimage
from content import SECTOR, make_data
from qemutools import ToolError

QEMU_IO_VERBS = {
    "write": "write -q -s {source} {offset} {length}",
    "compressed": "write -q -c -s {source} {offset} {length}",
    "zero": "write -q -z {offset} {length}",
    "zero-unmap": "write -q -z -u {offset} {length}",
    "discard": "discard -q {offset} {length}",
}


class SkipCase(Exception):
    """QEMU's tools here cannot make what this case needs."""


class ChainBuilder:
    """Makes the images of a chain below one folder."""

    def __init__(self, chain, folder, scratch, tools):
        self._chain = chain
        self._folder = folder
        self._scratch = scratch
        self._tools = tools
        self._writes = 0
        # What the direct layers show: content, and the layer of each sector (0: none).
        self._content = bytearray(chain.top().size)
        self._owners = array.array("H", bytes(2 * -(-chain.top().size // SECTOR)))

    def build(self):
        """Make all images; afterwards top_path() can be served."""
        os.makedirs(os.path.join(self._folder, "sub"))
        below = None
        for layer in self._chain.layers:
            if layer.fmt == "raw":
                self._build_raw(layer)
            elif layer.is_direct():
                self._build_direct(layer, below)
            else:
                self._build_qcow2(layer, below)
            below = layer

    def path(self, layer):
        return os.path.join(self._folder, layer.path)

    def top_path(self):
        return self.path(self._chain.top())

    def backing_paths(self):
        return [self.path(layer) for layer in self._chain.layers[:-1]]

    def _build_raw(self, layer):
        with open(self.path(layer), "wb") as image:
            image.truncate(layer.size)
            for command in layer.steps[0].commands:
                if command.verb == "write":
                    image.seek(command.offset)
                    image.write(self._data(layer, command))

    def _build_direct(self, layer, below):
        """Without QEMU, which is too slow for deep chains."""
        writes = {command.offset // layer.cluster_size: command
                  for command in layer.steps[0].commands}
        mapimage.write_image(self.path(layer), layer.size, mapimage.runs_of(writes),
                             below and os.path.basename(below.path),
                             layer.cluster_size.bit_length() - 1,
                             lambda cluster: self._direct_data(layer, writes[cluster]))

    def _direct_data(self, layer, command):
        data = self._data(layer, command)
        start, end = command.offset, min(command.offset + len(data), len(self._content))
        if start < end:
            self._content[start:end] = data[:end - start]
            for sector in range(start // SECTOR, -(-end // SECTOR)):
                self._owners[sector] = layer.index + 1
        return data

    def direct_content(self):
        """What the guest sees of the direct layers."""
        return self._content

    def direct_map(self):
        """The data of the direct layers, as qemu-img map says it."""
        entries, start = [], 0
        for owner, sectors in itertools.groupby(self._owners):
            length = min(len(list(sectors)) * SECTOR, len(self._content) - start)
            if owner:
                entries.append({"start": start, "length": length, "data": True, "zero": False,
                                "depth": self._chain.top().index - (owner - 1)})
            start += length
        return entries

    def _build_qcow2(self, layer, below):
        path = self.path(layer)
        backing = self._backing_arguments(layer, below)
        options = ",".join(f"{key}={value}" for key, value in layer.options.items())
        try:
            self._tools.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing,
                             "-o", options, path, layer.size])
        except ToolError as error:
            if "does not accept value 'zstd'" in str(error):
                raise SkipCase("qemu-img was built without zstd") from error
            raise
        for step in layer.steps:
            self._run_step(layer, step, path, below)

    def _backing_arguments(self, layer, below, flag="-b"):
        if below is None:
            return []
        # Opening the backing images of a deep chain takes QEMU too long.
        unsafe = ["-u"] if below.is_direct() else []
        return [*unsafe, flag, self._backing_name(layer, below), "-F", below.fmt]

    def _backing_name(self, layer, below):
        """The name as this layer's style writes it: always the same file."""
        own_folder = os.path.dirname(self.path(layer))
        relative = os.path.relpath(self.path(below), own_folder)
        if layer.name_style == "absolute":
            return os.path.abspath(self.path(below))
        if layer.name_style == "dot":
            return "./" + relative
        if layer.name_style == "dotdot" and own_folder == self._folder:
            return "sub/../" + relative
        return relative

    def _run_step(self, layer, step, path, below):
        if step.kind == "io":
            self._run_io(layer, step, path)
        elif step.kind == "snapshot":
            self._tools.run(["qemu-img", "snapshot", "-q", "-c", step.name, path])
        elif step.kind == "forget":
            self._tools.run(["qemu-img", "snapshot", "-q", "-d", step.name, path])
        elif step.kind == "bitmap":
            self._tools.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", "-g", "64k",
                             path, step.name])
        else:
            self._recompress(layer, path, below)

    def _run_io(self, layer, step, path):
        lines = []
        for command in step.commands:
            source = ""
            if command.verb in ("write", "compressed"):
                source = self._source_file(layer, command)
            lines.append(QEMU_IO_VERBS[command.verb].format(
                source=source, offset=command.offset, length=command.length))
        self._tools.qemu_io(path, lines)

    def _source_file(self, layer, command):
        data = self._data(layer, command)
        path = os.path.join(self._scratch, f"write-{self._writes}.bin")
        with open(path, "wb") as source:
            source.write(data)
        return path

    def _data(self, layer, command):
        self._writes += 1
        return make_data(f"layer{layer.index}", self._writes,
                         command.offset, command.length, command.fill)

    def _recompress(self, layer, path, below):
        """Replace the image by a compressed copy of itself, same backing."""
        copy = path + ".tmp"
        backing = self._backing_arguments(layer, below, "-B")
        options = ",".join(f"{key}={value}" for key, value in layer.options.items())
        self._tools.run(["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", *backing,
                         "-o", options, path, copy])
        os.rename(copy, path)
