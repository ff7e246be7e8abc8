# SPDX-License-Identifier: GPL-2.0-or-later
# All rules are here; a Kbuild file below only lists objects. See `make help`.

O ?= build
CC ?= cc
V ?= 0
SAN ?=

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-7s %s\n'
endif

PKGS := liburing liburcu json-c zlib libzstd devmapper
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lurcu-common

WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wundef -Wvla -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-unknown-warning-option -Wno-format-truncation
CFLAGS ?= -O2 -g
QCFLAGS := -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Iinclude \
	-fno-strict-aliasing $(WARN) $(PKG_CFLAGS) -pthread
ifneq ($(SAN),)
QCFLAGS += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=undefined
QLDFLAGS += -fsanitize=$(SAN)
endif
QLDFLAGS += -pthread

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

LIB := $(O)/libqchain.a
BINS := $(O)/qchaind $(O)/qchainctl
UNITS := $(patsubst tests/unit/%.c,$(O)/tests/%,$(unit-srcs))

all: $(BINS)

$(O)/%.o: %.c
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
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(O)/tests/%: $(O)/tests/unit/%.o $(O)/tests/unit/unit.o $(LIB)
	$(say) LINK $@
	$(Q)$(CC) $(QLDFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lcunit

units: $(UNITS)

check-unit: units
	$(Q)set -e; for t in $(UNITS); do $$t; done

clean:
	rm -rf $(O)

-include $(shell find $(O) -name '*.d' 2>/dev/null)

.PHONY: all units check-unit clean
.SECONDARY:
