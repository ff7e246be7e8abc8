# SPDX-License-Identifier: GPL-2.0-or-later
# All rules are here; a Kbuild file below only lists objects. See `make help`.

O ?= build
CC ?= cc
V ?= 0
SAN ?=
VERSION := 0.1.0

DESTDIR ?=
PREFIX ?= /usr
SBINDIR ?= $(PREFIX)/sbin
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/qchain
UDEVDIR ?= /usr/lib/udev/rules.d
UNITDIR ?= /usr/lib/systemd/system

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-7s %s\n'
endif

# Checksums of exports: qchainctl alone.
CTL_PKGS := nettle
PKGS := liburing liburcu json-c zlib libzstd devmapper libseccomp
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) $(CTL_PKGS) 2>/dev/null)
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lurcu-common
CTL_LIBS := $(shell pkg-config --libs $(CTL_PKGS) 2>/dev/null)

# -Wsign-compare is off on purpose: lengths are u32, counts that may be an
# errno are int, and every comparison of the two follows a check of the sign.
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wundef -Wvla -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-unknown-warning-option \
	-Wno-format-truncation
CFLAGS ?= -O2 -g
QCFLAGS := -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Iinclude \
	-DQCHAIN_VERSION='"$(VERSION)"' \
	-fno-strict-aliasing $(WARN) $(PKG_CFLAGS) -pthread
QLDFLAGS := -pthread
ifneq ($(SAN),)
QCFLAGS += -fsanitize=$(SAN) -fno-omit-frame-pointer
QLDFLAGS += -fsanitize=$(SAN)
ifneq ($(findstring undefined,$(SAN)),)
QCFLAGS += -fno-sanitize-recover=undefined
endif
endif

comma := ,

# ---- what there is: collected from the Kbuild files -------------------------
# collect(DIR, VAR): add DIR's objects to VAR, follow folders (names ending in /)
define collect
obj-y :=
include $(1)/Kbuild
$(2) += $$(addprefix $(1)/,$$(filter %.o,$$(obj-y)))
dirs-$(1) := $$(addprefix $(1)/,$$(patsubst %/,%,$$(filter %/,$$(obj-y))))
$$(foreach d,$$(dirs-$(1)),$$(eval $$(call collect,$$(d),$(2))))
endef

lib-objs :=
ctl-objs :=
$(eval $(call collect,ublk-target,lib-objs))
$(eval $(call collect,ctl,ctl-objs))
unit-srcs := $(wildcard tests/unit/*-test.c)
# What several unit tests share: everything there that is no test and no program.
unit-help := $(filter-out $(unit-srcs) %-probe.c,$(wildcard tests/unit/*.c))
probe-srcs := $(wildcard tests/unit/*-probe.c)

LIB := $(O)/libqchain.a
BINS := $(O)/qchaind $(O)/qchainctl
UNITS := $(patsubst tests/unit/%.c,$(O)/tests/%,$(unit-srcs))
PROBES := $(patsubst tests/unit/%.c,$(O)/tests/%,$(probe-srcs))

all: $(BINS)

$(O)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(say) CC $<
	$(Q)$(CC) $(QCFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(LIB): $(addprefix $(O)/,$(lib-objs))
	$(say) AR $@
	$(Q)rm -f $@ && ar rcs $@ $^

$(O)/qchaind: $(O)/ublk-target/main.o $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(O)/qchainctl: $(addprefix $(O)/,$(ctl-objs)) $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) $(CTL_LIBS)

$(O)/tests/%: $(O)/tests/unit/%.o $(patsubst %.c,$(O)/%.o,$(unit-help)) $(LIB)
	@mkdir -p $(@D)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lcunit

$(O)/tests/switch-test: QLDFLAGS += -Wl,--wrap=loop_call

# Programs of the system tests and the simulator.
$(O)/ublk-bringup: $(O)/tests/vm/ublk-bringup.o $(O)/tests/vm/ublk-mixed.o $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) -Wl,--wrap=ublk_control_open \
		-Wl,--wrap=io_uring_register_buffers_sparse -o $@ $^ $(PKG_LIBS)

# What the simulator puts in the place of the daemon's loops, engine, disks and waiting.
SIM_OBJS := $(patsubst %.c,$(O)/%.o,$(wildcard tests/sim/*.c))
SIM_WRAPS := loop_create loop_start loop_stop loop_destroy io_uring_engine_create io_submit \
	io_dev_open io_dev_begin_writing io_dev_end_writing sem_wait sem_timedwait sem_trywait \
	nanosleep

$(SIM_OBJS): QCFLAGS += -Iublk-target/target

$(O)/chain-sim: $(SIM_OBJS) $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) $(addprefix -Wl$(comma)--wrap=,$(SIM_WRAPS)) -o $@ $^ \
		$(PKG_LIBS)

# Programs on devices that take a millisecond of a clock of their own.
SLOW_WRAPS := loop_create loop_start loop_stop loop_destroy loop_run io_uring_engine_create \
	io_submit sem_wait sem_trywait pread64 pwrite64 fdatasync fstatfs64
SLOW_OBJS := $(O)/tests/slow/slow.o $(O)/tests/sim/wrapped-loops.o

$(O)/tests/slow/slow-merge.o: QCFLAGS += -Iublk-target/target
$(O)/slow-merge: $(O)/tests/slow/slow-merge.o
$(O)/slow-qchainctl: $(addprefix $(O)/,$(ctl-objs))
$(O)/slow-qchainctl: PKG_LIBS += $(CTL_LIBS)
$(O)/slow-%: $(SLOW_OBJS) $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) $(addprefix -Wl$(comma)--wrap=,$(SLOW_WRAPS)) -o $@ \
		$(filter %.o,$^) $(LIB) $(PKG_LIBS)

# libFuzzer programs; `make fuzz` builds them in a tree of their own.
FUZZERS := $(addprefix $(O)/fuzz-,header image chain nbd qmp text)

# As the simulator; and a fuzzed "quit" does not end the program.
FUZZ_WRAPS := daemon_stop
$(O)/fuzz-chain: $(O)/tests/sim/wrapped-loops.o
$(O)/fuzz-chain: FUZZ_WRAPS += loop_create loop_start loop_stop loop_destroy \
	io_uring_engine_create io_submit sem_wait sem_trywait

$(O)/fuzz-image $(O)/fuzz-chain: $(O)/tests/fuzz/fuzz-mutate.o

$(O)/fuzz-%: $(O)/tests/fuzz/fuzz-%.o $(O)/tests/fuzz/fuzz-common.o $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) -fsanitize=fuzzer $(LDFLAGS) \
		$(addprefix -Wl$(comma)--wrap=,$(FUZZ_WRAPS)) -o $@ $(filter %.o,$^) $(LIB) \
		$(PKG_LIBS)

fuzzers: $(FUZZERS)

units: $(UNITS) $(PROBES) $(O)/ublk-bringup $(O)/chain-sim \
	$(O)/slow-merge $(O)/slow-qchainctl

-include $(shell find $(O) -name '*.d' 2>/dev/null)

# ---- tests: what runs in which tier is in tests/check.sh ----------------------
# These install what they need (Debian, as root), then build (check.sh does), then run.

deps:
	$(Q)tests/deps.sh

check check-fast check-full: deps
	$(Q)O=$(O) SAN=$(SAN) tests/check.sh $@

check-unit: units
	$(Q)set -e; for t in $(UNITS); do $$t; done

# What valgrind does not know about io_uring.
$(O)/valgrind-uring.so: tests/valgrind/valgrind-uring.c Makefile
	@mkdir -p $(@D)
	$(say) CC $<
	$(Q)$(CC) $(QCFLAGS) $(CFLAGS) -shared -fPIC -o $@ $< -ldl

valgrind:
	$(Q)tests/deps.sh valgrind
	$(Q)$(MAKE) --no-print-directory O=$(O) units $(O)/valgrind-uring.so
	$(Q)O=$(O) tests/valgrind/run.sh

# The simulator must find each rule that is broken on purpose.
mutants:
	$(Q)$(MAKE) --no-print-directory O=$(O)/mutants CFLAGS="$(CFLAGS) -DQCHAIN_MUTANTS" \
		$(O)/mutants/chain-sim

sim-mutants: mutants
	$(Q)tests/sim/mutants.sh $(O)/mutants/chain-sim

style:
	$(Q).ci/check-style.sh

demo: deps
	$(Q)$(MAKE) --no-print-directory O=$(O) all
	$(Q)QCHAIN_BUILD=$(abspath $(O)) tests/demo/demo.sh

# FUZZ_SECONDS each, beside the seeds; FUZZ="image nbd" chooses.
FUZZ_SECONDS ?= 60
fuzz: deps
	$(Q)$(MAKE) --no-print-directory O=$(O)/fuzz CC=clang \
		SAN=address,undefined,fuzzer-no-link fuzzers
	$(Q)O=$(O)/fuzz tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ)

bench: deps
	$(Q)$(MAKE) --no-print-directory O=$(O) all
	$(Q)O=$(O) tests/bench/bench.sh

install: all
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man8 \
		$(DESTDIR)$(UDEVDIR)
	install -m 755 $(BINS) $(DESTDIR)$(SBINDIR)
	install -m 644 docs/man/*.5 $(DESTDIR)$(MANDIR)/man5
	install -m 644 docs/man/*.8 $(DESTDIR)$(MANDIR)/man8
	install -m 644 debian/59-qchain.rules $(DESTDIR)$(UDEVDIR)
	install -d $(DESTDIR)$(UNITDIR)
	for unit in debian/*.service; do \
		sed 's|/usr/sbin/|$(SBINDIR)/|' $$unit >$(DESTDIR)$(UNITDIR)/$${unit##*/}; done
	install -d $(DESTDIR)$(DOCDIR)/LICENSES
	install -m 644 README.md LICENSE debian/qchain-lvm.conf docs/*.md docs/*.svg $(DESTDIR)$(DOCDIR)
	install -m 644 LICENSES/*.txt $(DESTDIR)$(DOCDIR)/LICENSES

clean:
	rm -rf $(O)

help:
	@echo 'make              build qchaind and qchainctl into $(O)/'
	@echo 'make demo         the main job on real input, explained step by step'
	@echo 'make check        all tests (as root; installs what it needs)'
	@echo 'make check-fast   the daily loop, under two minutes'
	@echo 'make check-full   all tests without sampling'
	@echo 'make check-unit   unit tests only'
	@echo 'make fuzz         feed hostile images and clients to the parsers; FUZZ_SECONDS=60'
	@echo 'make sim-mutants  break each rule of the write order, the simulator must see it'
	@echo 'make valgrind     unit tests under memcheck, leaks too'
	@echo 'make style        length, naming and include rules'
	@echo 'make bench        measure against the peers, write build/bench/'
	@echo 'make install      DESTDIR= PREFIX=/usr'
	@echo
	@echo 'V=1 shows commands, O=dir builds elsewhere, CC=clang,'
	@echo 'SAN=address,undefined or SAN=thread builds with sanitizers (`make check`: the native'
	@echo 'tests with them, in a folder of their own)'

.PHONY: all units fuzzers fuzz deps check check-fast check-full check-unit valgrind mutants sim-mutants \
	style demo bench install clean help
.SECONDARY:
