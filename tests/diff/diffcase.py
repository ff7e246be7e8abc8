#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""One differential case: build a chain, serve it, do I/O, stop, and ask QEMU about the result."""

import asyncio
import os
import shutil
import tempfile
import traceback
from dataclasses import dataclass, field

import chainspec
from chainbuild import ChainBuilder, SkipCase
from content import Mismatch, Model, first_difference
from guestio import WINDOW_MAX, GuestSession, draw_ops
from imagelocks import wait_unlocked
from qemutools import (AUTOCLEAR_BITMAPS, Deadline, DeadlineExceeded, ToolError, Tools,
                       autoclear_bits, clear_autoclear_bits, file_digest)
from serverproc import ServerError, ServerProcess


@dataclass
class Settings:
    """What the command line says about every case."""
    server: str = "qchaind"
    program: str = "qchaind"
    extra_args: list = field(default_factory=list)
    ops: int = 250
    kill: bool = False
    keep: bool = False
    timeout_s: float = 120
    deep: int = 0
    without: tuple = ()
    folder: str = "/tmp"


@dataclass
class Traits:
    """What a kind of server promises less than qchaind, and delays of this case."""
    # Zeroes and trims keep other requests out of whole units of this size.
    zero_unit: int = 1
    # A trim without FUA may be undone by a kill.
    trim_needs_fua: bool = False
    # QEMU 7.2 ends with a failed assertion when a cache request touches the last
    # cluster of a size that is no multiple of the cluster.
    cache_works: bool = True
    kill_delay: float = 0


@dataclass
class Result:
    """How one case ended: status is passed, failed or skipped."""
    seed: int
    status: str
    reason: str = ""
    kept: str = ""
    notes: set = field(default_factory=set)


def run_case(seed, settings):
    """Run one case in a folder of its own; the folder goes away unless it failed."""
    folder = tempfile.mkdtemp(prefix="qdiff-", dir=settings.folder)
    case = Case(seed, settings, folder)
    try:
        case.run()
        result = Result(seed, "passed")
    except SkipCase as reason:
        result = Result(seed, "skipped", str(reason))
    except Exception as error:
        case.log(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        result = Result(seed, "failed", reason, folder)
    except BaseException:
        result = Result(seed, "interrupted")
        raise
    finally:
        case.finish(result)
        if result.status != "failed" and not settings.keep:
            shutil.rmtree(folder)
    result.notes = case.notes
    return result


class Case:
    """The steps of one case."""

    def __init__(self, seed, settings, folder):
        self._seed = seed
        self._settings = settings
        self._folder = folder
        self._deadline = Deadline(settings.timeout_s)
        self._tools = Tools(self._at("commands.log"), self._deadline)
        self._chain = (chainspec.draw_deep_chain(seed, settings.deep, settings.without)
                       if settings.deep else chainspec.draw_chain(seed, settings.without))
        scratch = self._at("scratch")
        os.mkdir(scratch)
        self._builder = ChainBuilder(self._chain, self._at("img"), scratch, self._tools)
        self._dice = chainspec.Dice(f"guest {seed}", settings.without)
        self._log_file = open(self._at("ops.log"), "w", encoding="utf-8")
        self._server = None
        self._number = 0
        self.notes = set()

    def _at(self, name):
        return os.path.join(self._folder, name)

    def log(self, line):
        self._log_file.write(line + "\n")

    def run(self):
        """Everything that a case does, in order."""
        self.log(chainspec.describe(self._chain))
        self._builder.build()
        self._note_start()
        sessions = self._draw_sessions()
        for number, count in enumerate(sessions):
            is_last = number == len(sessions) - 1
            self._session(first=number == 0, count=count, kill=self._settings.kill and not is_last)
        self._check_images()
        self._read_only_session()

    def finish(self, result):
        """End what still runs and close the log. Called once, always."""
        if self._server is not None:
            self._server.kill()
        self.log(f"{result.status} {result.reason}")
        self._log_file.close()

    # ---- before -----------------------------------------------------------

    def _note_start(self):
        """Content, checksums and check result, as they are before the server."""
        top = self._builder.top_path()
        if self._settings.deep:
            self._model = Model(bytearray(self._builder.direct_content()))
            self._map = self._builder.direct_map()
        else:
            self._model = Model(self._tools.content(top, self._at("scratch/content.raw")))
            self._map = self._tools.map(top)
        self._digests = self._backing_digests()
        self._snapshots = self._snapshot_contents()
        self._had_bitmaps = bool(autoclear_bits(top) & AUTOCLEAR_BITMAPS)
        errors, self._leaks = self._check(top)
        if errors:
            raise ToolError(f"{top}: qemu-img check finds {errors} errors before the start")
        self._leaks_without_bitmaps = self._leaks
        if self._had_bitmaps:
            self._leaks_without_bitmaps = self._count_bitmap_leaks(top)

    def _check(self, path):
        return self._tools.check(path, alone=self._settings.deep > 0)

    def _count_bitmap_leaks(self, top):
        """Leaks that a writer leaves which drops the bitmaps, as the format allows."""
        copy = self._at("img/without-bitmaps.qcow2")
        shutil.copyfile(top, copy)
        clear_autoclear_bits(copy)
        _, leaks = self._check(copy)
        os.unlink(copy)
        return leaks

    def _backing_digests(self):
        return {path: file_digest(path) for path in self._builder.backing_paths()}

    def _snapshot_contents(self):
        scratch = self._at("scratch/snapshot.raw")
        top = self._builder.top_path()
        return {name: self._tools.content(top, scratch, name)
                for name in self._chain.top().snapshots()}

    def _draw_sessions(self):
        """How many requests each start of the server gets."""
        parts = self._dice.random.choice((2, 3) if self._settings.kill else (1, 1, 2))
        each = self._settings.ops // parts
        return [each] * (parts - 1) + [self._settings.ops - each * (parts - 1)]

    # ---- one life of the server -------------------------------------------

    def _session(self, first, count, kill):
        """Start, connect, do I/O, and stop or kill."""
        traits = self._traits()
        self._start_server(read_only=False)
        session = GuestSession(self._server, self._model, traits, self.log)
        self._within_deadline(self._guest(session, first, count, kill))
        self.notes |= session.notes
        if kill:
            self._check_after_kill()
        else:
            self._stop_server()

    async def _guest(self, session, first, count, kill):
        await session.open(connections=self._dice.random.choice((1, 2, 4)))
        try:
            await self._compare_at_start(session, first)
            await self._do_requests(session, count, kill)
        except BaseException:
            await session.abandon()
            raise
        await self._leave(session, kill)

    async def _compare_at_start(self, session, first):
        if self._model.doubts:
            self._model.settle_doubts(await session.read_all())
        await session.compare_all("at start")
        if first:
            await session.check_depths(self._map)

    async def _do_requests(self, session, count, kill):
        rng = self._dice.random
        if kill:
            count = rng.randrange(count + 1)
        ops = draw_ops(self._dice, count, self._number, len(self._model), self._chain.hot,
                       self._chain.top().cluster_size, burst_at_end=kill)
        self._number += len(ops)
        window = WINDOW_MAX if kill else rng.choice((1, 4, WINDOW_MAX, WINDOW_MAX))
        await session.run(ops, window, kill_at_end=kill)
        if not kill:
            await session.compare_all("at end")

    async def _leave(self, session, killed):
        """Say goodbye, hang up, or let the server end with the connections open."""
        way = self._dice.random.choice(("goodbye", "hang up", "stay"))
        if way == "goodbye" and not killed:
            await session.close()
            return
        if way == "stay" and not killed:
            self._stop_server()
        await session.abandon()

    def _traits(self):
        traits = Traits(kill_delay=self._dice.random.choice((0, 0, 0.0005, 0.002)))
        if self._settings.server == "qemu-nbd":
            traits.cache_works = False
            traits.zero_unit = self._chain.top().cluster_size
            traits.trim_needs_fua = self._settings.kill
        return traits

    def _within_deadline(self, coroutine):
        """Run I/O; a hung server becomes a failure."""
        async def limited():
            await asyncio.wait_for(coroutine, self._deadline.left())
        try:
            asyncio.run(limited())
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise DeadlineExceeded("requests were not answered in time") from error
        except ConnectionError as error:
            state = "has ended" if self._server.has_ended() else "still runs"
            raise ServerError(f"{error}; the server {state}: {self._server.last_line()}") from error

    def _start_server(self, read_only):
        self._server = ServerProcess(self._server_command(read_only), self._at("nbd.sock"),
                                     self._at("server.log"), self._deadline)
        self._server.start()

    def _server_command(self, read_only):
        settings = self._settings
        socket = self._at("nbd.sock")
        top = self._builder.top_path()
        if settings.server == "qchaind":
            mode = ["--read-only"] if read_only else []
            # What is acknowledged survives a kill in the log alone.
            mode += ["--intent-log", self._at("intent.log")] if settings.kill else []
            return [settings.program, *mode, "--export", f"nbd,socket={socket}",
                    *settings.extra_args, top]
        # Only with writethrough does an acknowledged write survive a kill of qemu-nbd.
        cache = "writethrough" if settings.kill else "writeback"
        mode = ["-r"] if read_only else []
        return [settings.program, "-t", "-k", socket, "-f", "qcow2", "--discard=unmap",
                f"--cache={cache}", "-e", "8", "-A", *mode, *settings.extra_args, top]

    def _stop_server(self):
        if self._server is not None:
            self._server.stop()
            self._server = None

    # ---- after ------------------------------------------------------------

    def _check_after_kill(self):
        """Killed in the middle: leaks are allowed, errors are not."""
        self._server.check_sanitizers()
        self._server = None
        top = self._builder.top_path()
        wait_unlocked(top, self._deadline)
        errors, _ = self._check(top)
        if errors:
            raise Mismatch(f"qemu-img check finds {errors} errors after the kill")

    def _check_images(self):
        """QEMU's view after a clean stop: no errors, no leaks, the model's content."""
        top = self._builder.top_path()
        for layer in self._chain.layers:
            # Direct layers are too many to ask about; below, their bytes must not have changed.
            if layer.fmt == "qcow2" and not layer.is_direct():
                self._check_image(layer)
        content = self._tools.content(top, self._at("scratch/content.raw"))
        if content != self._model.content:
            self._fail_content(content)
        if self._snapshot_contents() != self._snapshots:
            raise Mismatch("the content of an internal snapshot of the active layer has changed")
        self._check_backings()

    def _check_backings(self):
        for path, digest in self._backing_digests().items():
            if digest != self._digests[path]:
                raise Mismatch(f"{path}: a backing image was changed")

    def _check_image(self, layer):
        path = self._builder.path(layer)
        errors, leaks = self._check(path)
        if errors:
            raise Mismatch(f"{layer.path}: qemu-img check finds {errors} errors")
        is_top = layer is self._chain.top()
        if is_top and self._settings.kill:
            return
        allowed = self._allowed_leaks(path) if is_top else 0
        if leaks > allowed:
            raise Mismatch(f"{layer.path}: qemu-img check finds {leaks} leaks, {allowed} expected")

    def _allowed_leaks(self, top):
        """Leaks of the start, plus the bitmaps if the server has dropped them."""
        dropped = self._had_bitmaps and not autoclear_bits(top) & AUTOCLEAR_BITMAPS
        return self._leaks_without_bitmaps if dropped else self._leaks

    def _fail_content(self, content):
        if len(content) != len(self._model):
            raise Mismatch(f"qemu-img converts {len(content)} bytes, expected {len(self._model)}")
        raise Mismatch(first_difference(0, self._model.content, content, "qemu-img convert"))

    def _read_only_session(self):
        """Served read-only the device reads the same, and no byte of any image changes."""
        before = file_digest(self._builder.top_path())
        self._start_server(read_only=True)
        session = GuestSession(self._server, self._model, Traits(), self.log)
        self._within_deadline(self._read_only_guest(session))
        self._stop_server()
        if file_digest(self._builder.top_path()) != before:
            raise Mismatch("the active layer was changed by a read-only server")
        self._check_backings()

    async def _read_only_guest(self, session):
        await session.open(connections=2, read_only=True)
        await session.compare_all("read-only")
        await session.check_refuses_writes()
        await session.close()
