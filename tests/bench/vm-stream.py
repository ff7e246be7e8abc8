#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams all layers into the active one by QMP; prints how many seconds it took.

usage: vm-stream.py SOCKET NODE    NODE of qemu-storage-daemon; qchaind is asked for its own
"""

import json
import socket
import sys
import time


class Qmp:
    """One connection; what comes is one JSON value a line."""

    def __init__(self, path):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        self.file = sock.makefile("rw")
        self.line()  # the greeting
        self.command("qmp_capabilities")

    def line(self):
        return json.loads(self.file.readline())

    def command(self, name, **arguments):
        self.file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = self.line()
            if "error" in answer:
                sys.exit(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def wait_concluded(self):
        while True:
            event = self.line()
            if event.get("event") == "JOB_STATUS_CHANGE" and event["data"]["status"] == "concluded":
                return


def main():
    qmp = Qmp(sys.argv[1])
    names = [node["node-name"] for node in qmp.command("query-named-block-nodes")]
    node = sys.argv[2] if sys.argv[2] in names else names[0]
    start = time.monotonic()
    qmp.command("block-stream", **{"job-id": "j", "device": node, "auto-dismiss": False})
    qmp.wait_concluded()
    spent = time.monotonic() - start
    job = qmp.command("query-jobs")[0]
    if "error" in job:
        sys.exit(job["error"])
    print(f"{spent:.6f}")


if __name__ == "__main__":
    main()
