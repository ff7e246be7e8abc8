#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints the events of a QMP socket, one JSON object a line, until the daemon ends: qmpwatch.py SOCKET"""
import socket
import sys

sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
lines = sock.makefile("rw")
lines.readline()
lines.write('{"execute": "qmp_capabilities"}\n')
lines.flush()
print(lines.readline().strip(), flush=True)
for line in lines:
    print(line.strip(), flush=True)
