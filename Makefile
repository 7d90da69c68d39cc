# sd-tools: every rule, one file.  `make`, `make check`, `make demo`, `make install`; CC CFLAGS PREFIX DESTDIR are yours.
# `make V=1` shows commands; `make CUDA=` builds for the CPU; `make SAN=address,undefined` instruments.

PREFIX  ?= /usr/local
DATADIR ?= $(PREFIX)/share/sd-tools
CFLAGS  ?= -O2 -g
BUILD   ?= build$(if $(SAN),-san)
VERSION := 0.1.0
V       ?= 0
PACKAGES := dnnl msgpack libjpeg libpng jansson libutf8proc libcrypto libxxhash

say   = $(say_$(V))
say_0 = @printf '  %-4s %s\n' '$(1)' '$(2)';

programs := $(patsubst tools/%.c,%,$(wildcard tools/*.c))
c_lib    := $(wildcard libcommon/*.c libcommon/*/*.c) $(filter-out %_simd.c,$(wildcard kernels/*.c))
simd     := $(wildcard kernels/*_simd.c)                # one source, three instruction sets
isas     := sse4 avx2 avx512
c_all    := $(c_lib) $(wildcard tools/*.c tests/*.c tests/*/*.c)

isa_sse4   := -msse4.2
isa_avx2   := -mavx2 -mfma -mf16c
isa_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c

# -ffp-contract=off: the same bits from the same source, whatever the compiler would like to fuse
std      := -std=c11 -D_GNU_SOURCE -ffp-contract=off -fopenmp -fno-math-errno -fno-common
warn     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wno-unknown-pragmas \
            $(if $(or $(CI),$(WERROR)),-Werror)
pkg_cflags := $(filter-out -fopenmp,$(shell pkg-config --cflags $(filter-out dnnl,$(PACKAGES)) 2>/dev/null))
pkg_libs   := $(shell pkg-config --libs $(filter-out dnnl,$(PACKAGES)) 2>/dev/null) -ldnnl
cppflags := -Ilibcommon -Ikernels -Itests -I. -DSD_VERSION='"$(VERSION)"' -DSD_DATADIR='"$(DATADIR)"' $(CPPFLAGS)
cflags   := $(std) $(warn) $(pkg_cflags) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
ldflags  := -fopenmp $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)
libs     := $(pkg_libs) -lm -ldl

lib_o    := $(c_lib:%.c=$(BUILD)/%.o) $(foreach i,$(isas),$(simd:%.c=$(BUILD)/%.$(i).o))
lib_f64  := $(c_lib:%.c=$(BUILD)/f64/%.o)               # the same loops in double, for gradient checks
lib      := $(BUILD)/libsd.a
lib64    := $(BUILD)/f64/libsd.a
bins     := $(programs:%=$(BUILD)/%)
unit     := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/*.c))
models   := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/models/*.c))
ops      := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/ops/*.c))
ops64    := $(patsubst %.c,$(BUILD)/f64/%,$(wildcard tests/ops/*.c))
benches  := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/bench/*.c))
fuzzers  := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/*.c))
bats     := $(wildcard tests/tools/*.bats tests/pipelines/*.bats)

.PHONY: all deps check check-long check-full demo bench lint install uninstall clean clip-vocabulary tests
.DELETE_ON_ERROR:
.SECONDARY:
all: $(bins)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<) $(CC) $(cppflags) $(cflags) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/f64/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC64,$<) $(CC) $(cppflags) -DSD_REAL=double $(cflags) $(CFLAGS) -MMD -MP -c -o $@ $<
define isa_rule
$(BUILD)/%_simd.$(1).o: %_simd.c
	@mkdir -p $$(@D)
	$$(call say,CC,$$< $(1)) $$(CC) $$(cppflags) -DSD_ISA=$(1) $$(cflags) $$(CFLAGS) $$(isa_$(1)) -O3 -MMD -MP -c -o $$@ $$<
endef
$(foreach i,$(isas),$(eval $(call isa_rule,$(i))))

$(lib): $(lib_o)
	@rm -f $@
	$(call say,AR,$@) $(AR) rcs $@ $(lib_o)
$(lib64): $(lib_f64)
	@rm -f $@
	$(call say,AR,$@) $(AR) rcs $@ $(lib_f64)
$(bins): $(BUILD)/%: $(BUILD)/tools/%.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(lib) $(libs)
$(unit) $(models) $(benches): $(BUILD)/%: $(BUILD)/%.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(lib) $(libs)
$(ops): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/tests/check_op.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(BUILD)/tests/check_op.o $(lib) $(libs)
$(ops64): $(BUILD)/f64/%: $(BUILD)/f64/%.o $(BUILD)/f64/tests/check_op.o $(lib64)
	$(call say,LD64,$@) $(CC) $(ldflags) -o $@ $< $(BUILD)/f64/tests/check_op.o $(lib64) $(libs)
# libFuzzer needs clang; the library is built once more with its coverage
$(BUILD)/fuzz/%: tests/fuzz/%.c $(c_lib)
	@mkdir -p $(@D)
	$(call say,FUZZ,$@) clang -fsanitize=fuzzer,address,undefined $(cppflags) -DSD_FUZZ -std=c11 -D_GNU_SOURCE -g -O1 -w \
	  $(pkg_cflags) -o $@ $< $(filter libcommon/%,$(filter-out libcommon/graph.c libcommon/plan.c libcommon/run.c,$(wildcard libcommon/*.c))) \
	  $(wildcard libcommon/model/tokenizer*.c) libcommon/model/prompt.c \
	  $(filter-out -fopenmp,$(libs))

tests: all $(unit) $(models) $(ops) $(ops64)
check: tests
	@BUILD=$(BUILD) tests/run $(unit) $(ops64) $(ops) $(models) $(bats)
# CLIP's merge list, for single-file checkpoints, which have no tokenizer; needs pip once, and is not part of deps
clip-vocabulary:
	@pipelines/clip-vocabulary.sh '$(DESTDIR)$(DATADIR)/clip'
clean:
	rm -rf build build-san
-include $(c_all:%.c=$(BUILD)/%.d) $(c_all:%.c=$(BUILD)/f64/%.d) $(foreach i,$(isas),$(simd:%.c=$(BUILD)/%.$(i).d))
