# sd-tools: every rule, one file.  `make`, `make check`, `make demo`, `make install`; CC CFLAGS PREFIX DESTDIR are yours.
# `make V=1` shows commands; `make CUDA=` builds for the CPU; `make SAN=address,undefined` instruments; `make RACES=1 emulate` looks
# for data races of kernels (tests/emulate/races.cpp).

PREFIX  ?= /usr/local
DATADIR ?= $(PREFIX)/share/sd-tools
CFLAGS  ?= -O2 -g
BUILD   ?= build$(if $(SAN),-san)$(if $(RACES),-races)
VERSION := 0.1.0
V       ?= 0
PACKAGES := msgpack libjpeg libpng jansson libutf8proc libcrypto libxxhash
DEBIAN   := gcc g++ make pkg-config libdnnl-dev libmsgpack-dev libjpeg-dev libpng-dev libjansson-dev libutf8proc-dev libssl-dev \
            libxxhash-dev jq bats mandoc shellcheck strace clang libclang-rt-14-dev

say   = $(say_$(V))
say_0 = @printf '  %-4s %s\n' '$(1)' '$(2)';

# CUDA: with nvcc, unless `make CUDA=`.  CXX builds the emulator of the tests; it has to share OpenMP with CC
CUDA ?= yes
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
ifeq ($(origin CXX),default)
CXX  := $(if $(findstring clang,$(CC)),$(subst clang,clang++,$(CC)),g++)
endif
nvcc := $(and $(CUDA),$(wildcard libcommon/device_cuda.cu),$(NVCC))
cuda_home := $(if $(nvcc),$(abspath $(dir $(realpath $(nvcc)))..))

programs := $(patsubst tools/%.c,%,$(wildcard tools/*.c))
c_lib    := $(wildcard libcommon/*.c libcommon/*/*.c) $(filter-out %_simd.c,$(wildcard kernels/*.c))
cu       := $(wildcard kernels/*.cu)                    # kernels: nvcc builds them, and the emulator
cu_lib   := $(if $(nvcc),$(cu) $(wildcard libcommon/*.cu))
sees     := $(shell grep -lE 'SD_WITH_CUDA|SD_EMULATE' libcommon/*.c libcommon/*/*.c kernels/*.c)  # compiled for a build with CUDA, or without
device   := libcommon/device_none.c                     # the device of a build without
simd     := $(wildcard kernels/*_simd.c)                # one source, three instruction sets
isas     := sse4 avx2 avx512
c_all    := $(c_lib) $(wildcard tools/*.c tests/*.c tests/*/*.c)

isa_sse4   := -msse4.2
isa_avx2   := -mavx2 -mfma -mf16c
isa_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c

# -ffp-contract=off: the same bits from the same source, whatever the compiler would like to fuse
std      := -std=c11 -D_GNU_SOURCE -ffp-contract=off -fopenmp -fno-math-errno -fno-common
warn     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wno-unknown-pragmas -Wno-pass-failed \
            $(if $(or $(CI),$(WERROR)),-Werror)
# asked when first used, once: in `make deps check` pkg-config is there only after deps
pkg_cflags = $(eval pkg_cflags := $$(shell pkg-config --cflags $(PACKAGES)))$(pkg_cflags)
pkg_libs   = $(eval pkg_libs := $$(shell pkg-config --libs $(PACKAGES)))$(pkg_libs)
cppflags := -Ilibcommon -Ikernels -Itests -I. -DSD_VERSION='"$(VERSION)"' -DSD_DATADIR='"$(DATADIR)"' $(CPPFLAGS)
cflags    = $(std) $(warn) $(pkg_cflags) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
ldflags  := -fopenmp $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)
libs      = $(pkg_libs) $(cuda_ld) -lm -ldl

nvflags   = -std=c++17 -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a \
            -gencode=arch=compute_90,code=compute_90 -Xcompiler -Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics \
            $(if $(or $(CI),$(WERROR)),-Werror all-warnings -Xcompiler -Werror)
NVCCFLAGS ?= -O2 --compress-mode=size
cxxflags  = -std=c++17 -D_GNU_SOURCE -ffp-contract=off -fopenmp -fno-math-errno -Wall -Wextra -Wno-unknown-pragmas -Wno-pass-failed \
            $(if $(or $(CI),$(WERROR)),-Werror) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
cuda_cpp := $(if $(nvcc),-DSD_WITH_CUDA=1 -isystem $(cuda_home)/include)
cuda_ld  := $(if $(nvcc),-L$(cuda_home)/lib64 -lcudart_static -lrt -lpthread)

lib_o    := $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(if $(nvcc),$(device)),$(c_lib))) \
            $(foreach i,$(isas),$(simd:%.c=$(BUILD)/%.$(i).o)) $(cu_lib:%=$(BUILD)/%.o)
# kernels/*.cu as host C++, a device of the tests' own, and what tests of ops need of the library
emulate_own := $(sees:%.c=$(BUILD)/emulate/%.o) $(cu:%=$(BUILD)/emulate/%.o) \
               $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard tests/emulate/*.cpp))
models_o  := $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(sees),$(wildcard libcommon/*/*.c)))
emulate_o := $(filter-out $(patsubst %.c,$(BUILD)/%.o,$(sees) $(device)) $(models_o) %.cu.o,$(lib_o)) $(emulate_own)
lib_f64  := $(c_lib:%.c=$(BUILD)/f64/%.o)               # the same loops in double, for gradient checks
lib      := $(BUILD)/libsd.a
lib64    := $(BUILD)/f64/libsd.a
lib_emulate := $(BUILD)/emulate/libsd.a
bins     := $(programs:%=$(BUILD)/%)
unit     := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/*.c))
models   := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/models/*.c))
ops      := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/ops/*.c))
ops64    := $(patsubst %.c,$(BUILD)/f64/%,$(wildcard tests/ops/*.c))
emulated := $(patsubst %.c,$(BUILD)/emulate/%,$(wildcard tests/ops/*.c)) \
            $(patsubst %.cu,$(BUILD)/%,$(wildcard tests/emulate/*.cu)) $(BUILD)/emulate/tests/models/reference
# of these what runs on a card too, built by nvcc: all but the emulator's own tests
on_card  := $(if $(nvcc),$(patsubst %.cu,$(BUILD)/card/%,$(filter-out %/faults.cu %/streams.cu %/vendors.cu,$(wildcard tests/emulate/*.cu))))
on_card_o := $(on_card:$(BUILD)/card/%=$(BUILD)/%.cu.o)
benches  := $(patsubst %.c,$(BUILD)/%,$(filter-out $(if $(nvcc),,tests/bench/cuda.c),$(wildcard tests/bench/*.c)))
bench_cuda := $(patsubst %,$(BUILD)/tests/bench/%,cuda full_model table)  # these know no oneDNN
fuzzers  := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/*.c))
bats     := $(wildcard tests/tools/*.bats tests/pipelines/*.bats)
fuzz_o   := $(patsubst %.c,$(BUILD)/fuzz/%.o,$(filter-out %/graph.c %/plan.c %/run.c,$(wildcard libcommon/*.c libcommon/model/*.c))) \
            $(BUILD)/fuzz/kernels/projections_layout.o
first    := $(filter deps,$(MAKECMDGOALS))             # before anything is compiled, under -j too

.PHONY: all deps check check-cuda check-long check-full demo bench bench-cuda ledger device-bundle check-device-bundle emulate fuzz lint install uninstall clean clip-vocabulary tests
.DELETE_ON_ERROR:
.SECONDARY:
all: $(bins)

$(BUILD)/%.o: %.c | $(first)
	@mkdir -p $(@D)
	$(call say,CC,$<) $(CC) $(cppflags) $(cflags) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/f64/%.o: %.c | $(first)
	@mkdir -p $(@D)
	$(call say,CC64,$<) $(CC) $(cppflags) -DSD_REAL=double $(cflags) $(CFLAGS) -MMD -MP -c -o $@ $<
define isa_rule
$(BUILD)/%_simd.$(1).o: %_simd.c | $(first)
	@mkdir -p $$(@D)
	$$(call say,CC,$$< $(1)) $$(CC) $$(cppflags) -DSD_ISA=$(1) $$(cflags) $$(CFLAGS) $$(isa_$(1)) -O3 -MMD -MP -c -o $$@ $$<
endef
$(foreach i,$(isas),$(eval $(call isa_rule,$(i))))

# Written when it changes: what is compiled for a device, and by what
$(BUILD)/with_cuda: always
	@mkdir -p $(@D)
	@to='$(or $(nvcc),no CUDA)'; [ "$$(cat $@ 2> /dev/null)" = "$$to" ] || { echo "$$to" > $@; echo "  CUDA $$to"; }
.PHONY: always
$(sees:%.c=$(BUILD)/%.o): cppflags += $(cuda_cpp)
$(sees:%.c=$(BUILD)/%.o) $(cu_lib:%=$(BUILD)/%.o) $(on_card_o): $(BUILD)/with_cuda
$(BUILD)/%.cu.o: %.cu | $(first)
	@mkdir -p $(@D)
	$(call say,NVCC,$<) $(nvcc) $(cppflags) $(nvflags) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(BUILD)/emulate/%.o: %.c | $(first)
	@mkdir -p $(@D)
	$(call say,CC,$< emulated) $(CC) $(cppflags) -DSD_WITH_CUDA=1 -DSD_EMULATE $(cflags) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/emulate/%.cu.o: %.cu | $(first)
	@mkdir -p $(@D)
	$(call say,CXX,$<) $(CXX) -x c++ $(cppflags) -DSD_EMULATE $(cxxflags) $(if $(RACES),-fsanitize=thread) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/emulate/%.o: tests/emulate/%.cpp | $(first)
	@mkdir -p $(@D)
	$(call say,CXX,$<) $(CXX) $(cppflags) -DSD_EMULATE $(cxxflags) $(CFLAGS) -O3 -MMD -MP -c -o $@ $<

# DATADIR is compiled in: another one makes what holds it again
$(BUILD)/datadir: FORCE
	@mkdir -p $(@D)
	@echo '$(DATADIR)' | cmp -s - $@ || echo '$(DATADIR)' > $@
$(addsuffix libcommon/model/tokenizer_find.o,$(BUILD)/ $(BUILD)/f64/ $(BUILD)/fuzz/): $(BUILD)/datadir
.PHONY: FORCE
$(lib): $(lib_o) $(BUILD)/with_cuda
	@rm -f $@
	$(call say,AR,$@) $(AR) rcs $@ $(lib_o)
$(lib64): $(lib_f64)
	@rm -f $@
	$(call say,AR,$@) $(AR) rcs $@ $(lib_f64)
$(bins): $(BUILD)/%: $(BUILD)/tools/%.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(lib) $(libs)
$(unit) $(models): $(BUILD)/%: $(BUILD)/%.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(lib) $(libs)
# Only the benches know oneDNN: its matrix product is the base rate that ours are measured against
$(benches): $(BUILD)/%: $(BUILD)/%.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(lib) $(libs) -ldnnl
$(ops): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/tests/check_op.o $(lib)
	$(call say,LD,$@) $(CC) $(ldflags) -o $@ $< $(BUILD)/tests/check_op.o $(lib) $(libs)
$(ops64): $(BUILD)/f64/%: $(BUILD)/f64/%.o $(BUILD)/f64/tests/check_op.o $(lib64)
	$(call say,LD64,$@) $(CC) $(ldflags) -o $@ $< $(BUILD)/f64/tests/check_op.o $(lib64) $(libs)
$(lib_emulate): $(emulate_o)
	@rm -f $@
	$(call say,AR,$@) $(AR) rcs $@ $(emulate_o)
$(BUILD)/emulate/tests/ops/%: $(BUILD)/tests/ops/%.o $(BUILD)/emulate/tests/check_op.o $(lib_emulate)
	@mkdir -p $(@D)
	$(call say,LD,$@) $(CXX) $(ldflags) -o $@ $< $(BUILD)/emulate/tests/check_op.o $(lib_emulate) $(pkg_libs) -lm -ldl
$(BUILD)/emulate/tests/models/%: $(BUILD)/tests/models/%.o $(models_o) $(lib_emulate)
	@mkdir -p $(@D)
	$(call say,LD,$@) $(CXX) $(ldflags) -o $@ $< $(models_o) $(lib_emulate) $(pkg_libs) -lm -ldl
# what the libraries of tests/fake find in the program that opens them
for_fakes := -Wl,--export-dynamic-symbol=sd_emulate_library_work
$(BUILD)/emulate/tests/bench/%: $(BUILD)/tests/bench/%.o $(models_o) $(lib_emulate)
	@mkdir -p $(@D)
	$(call say,LD,$@) $(CXX) $(ldflags) $(for_fakes) -o $@ $< $(models_o) $(lib_emulate) $(pkg_libs) -lm -ldl
# programs whose --device cuda is the emulated one: whole models and training, through the same kernels
$(BUILD)/emulate/sd-%: $(BUILD)/tools/sd-%.o $(models_o) $(lib_emulate)
	$(call say,LD,$@) $(CXX) $(ldflags) $(for_fakes) -o $@ $< $(models_o) $(lib_emulate) $(pkg_libs) -lm -ldl
$(BUILD)/tests/emulate/%: $(BUILD)/emulate/tests/emulate/%.cu.o $(models_o) $(lib_emulate)
	@mkdir -p $(@D)
	$(call say,LD,$@) $(CXX) $(ldflags) -o $@ $< $(models_o) $(lib_emulate) $(pkg_libs) -lm -ldl
$(BUILD)/card/%: $(BUILD)/%.cu.o $(lib)
	@mkdir -p $(@D)
	$(call say,LD,$@) $(CXX) $(ldflags) -o $@ $< $(lib) $(libs)
# libraries that answer by the names of NVIDIA's, for the emulated device
fakes    := $(addprefix $(BUILD)/tests/fake/,libcublasLt.so.13 libcudnn.so.9 libnvrtc.so.13 libnvrtc-builtins.so.13.7 old/libcuda.so.1)
$(BUILD)/tests/fake/libcublasLt.so.13: $(BUILD)/tests/fake/cublasLt.o
$(BUILD)/tests/fake/libcudnn.so.9: $(BUILD)/tests/fake/cudnn.o
$(BUILD)/tests/fake/libnvrtc.so.13 $(BUILD)/tests/fake/libnvrtc-builtins.so.13.7: $(BUILD)/tests/fake/nvrtc.o
$(BUILD)/tests/fake/old/libcuda.so.1: $(BUILD)/tests/fake/driver.o
$(BUILD)/tests/fake/%.o: cflags += -fPIC
$(fakes):
	@mkdir -p $(@D)
	$(call say,LD,$@) $(CC) $(ldflags) -shared -Wl,-soname,$(@F) -o $@ $< -lm
$(BUILD)/tests/emulate/vendors: | $(fakes)
# libFuzzer needs clang; what it tests is built once more, with its coverage
$(BUILD)/fuzz/%.o: %.c | $(first)
	@mkdir -p $(@D)
	$(call say,FUZZ,$<) clang -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all $(cppflags) -DSD_FUZZ -std=c11 \
	  -D_GNU_SOURCE $(pkg_cflags) -g -O1 -w -MMD -MP -c -o $@ $<
$(BUILD)/fuzz/libsd.a: $(fuzz_o)
	@rm -f $@
	$(call say,AR,$@) $(AR) rcs $@ $(fuzz_o)
$(fuzzers): $(BUILD)/fuzz/%: $(BUILD)/fuzz/tests/fuzz/%.o $(BUILD)/fuzz/libsd.a
	$(call say,LD,$@) clang -fsanitize=fuzzer,address,undefined -o $@ $< $(BUILD)/fuzz/libsd.a $(libs)

emulated_bins := $(patsubst %,$(BUILD)/emulate/%,sd-encode-latents sd-sample sd-train-lora sd-train-ti)
tests: all $(unit) $(models) $(ops) $(ops64) $(emulated) $(emulated_bins) $(BUILD)/tests/bench/table $(BUILD)/emulate/tests/bench/cuda $(fakes)
check: tests $(fuzzers)
	@BUILD=$(abspath $(BUILD)) tests/run $(unit) $(ops64) $(ops) $(emulated) $(models) $(bats) tests/lint tests/fuzz/run
# The kernels of kernels/*.cu on the CPU: every op against the C loops, and the emulator's own tests
emulate: $(emulated)
	@BUILD=$(abspath $(BUILD)) tests/run $(emulated)
# The same tests on a card; needs nvcc and a driver.  Ops a second time without cuBLAS and cuDNN: our own products
check-cuda: all $(BUILD)/tests/unit/device $(on_card) $(ops) $(models)
	@$(if $(nvcc),,echo "check-cuda: this build has no CUDA: $$(cat $(BUILD)/with_cuda)" >&2; exit 1)
	@export BUILD=$(abspath $(BUILD)) SD_TEST_DEVICE=cuda; failed=0; \
	 tests/run $(BUILD)/tests/unit/device $(on_card) $(ops) $(models) || failed=1; \
	 echo 'without cuBLAS and cuDNN:'; SD_CUDA_LIBS= tests/run $(ops) || failed=1; exit $$failed
# Ours, the card's own rates and PyTorch in turn, in under ten minutes (tests/bench/on_card); PEERS=FOLDER has diffusers, where Python has not
bench-cuda: $(bench_cuda)
	@$(if $(nvcc),,echo "bench-cuda: this build has no CUDA: $$(cat $(BUILD)/with_cuda)" >&2; exit 1)
	@tests/bench/on_card $(abspath $(BUILD))/tests/bench/ $(if $(RESULT),tests/bench/results/$(RESULT),$(BUILD)/bench-cuda.md)
# What a step launches, counted without a card (tests/bench/ledger); to tests/bench/results/ when RESULT names a file
ledger: $(BUILD)/emulate/tests/bench/cuda $(BUILD)/tests/bench/full_model $(fakes)
	@to=$(if $(RESULT),tests/bench/results/$(RESULT),$(BUILD)/ledger.md); \
	 tests/bench/ledger $(abspath $(BUILD)) > $$to.part && mv $$to.part $$to && echo "  $$to"
# Programs and tests for a machine with a card and none of our libraries: two files that are many programs each, their
# libraries beside them, the data, and tests/device/run
boxed    := $(programs:%=$(BUILD)/tools/%.o) $(BUILD)/tests/unit/device.o $(ops:=.o) $(models:=.o) $(bench_cuda:=.o) $(on_card_o)
boxed_emulated := $(ops:=.o) $(patsubst %,$(BUILD)/emulate/%.o,$(filter-out %/vendors.cu,$(wildcard tests/emulate/*.cu)))
box       = $(1:$(BUILD)/%=$(BUILD)/box/%)
box_ld   := $(ldflags) -Wl,-rpath,'$$ORIGIN/../lib' -Wl,--disable-new-dtags
$(BUILD)/box/%.o: $(BUILD)/%.o
	@mkdir -p $(@D)
	@objcopy --redefine-sym main=main_$$(printf %s '$*' | tr -c A-Za-z0-9 _) $< $@
$(BUILD)/box/device: $(call box,$(boxed)) $(BUILD)/tests/check_op.o $(lib) tests/device/table
	@tests/device/table $(patsubst $(BUILD)/%.o,%,$(boxed)) > $@.c
	$(call say,LD,$@) $(CC) $(box_ld) -o $@ $@.c $(filter %.o,$^) $(lib) $(libs) $(if $(on_card_o),-lstdc++)
$(BUILD)/box/emulated: $(call box,$(boxed_emulated)) $(BUILD)/emulate/tests/check_op.o $(models_o) $(lib_emulate) tests/device/table
	@tests/device/table $(patsubst $(BUILD)/%.o,%,$(boxed_emulated)) > $@.c
	$(call say,LD,$@) $(CC) -c -o $@.c.o $@.c && $(CXX) $(box_ld) -o $@ $@.c.o $(filter %.o,$^) $(lib_emulate) $(pkg_libs) -lm -ldl
device-bundle: $(BUILD)/box/device $(BUILD)/box/emulated
	@tests/device/bundle $(BUILD)/device-bundle $^
check-device-bundle: device-bundle
	@BUILD=$(abspath $(BUILD)) BUNDLE=$(abspath $(BUILD))/device-bundle tests/run tests/device/check
fuzz: $(fuzzers)
	@tests/fuzz/run $(fuzzers)
check lint: export LINT_FLAGS = $(cppflags) $(filter-out -Werror,$(std) $(warn)) $(pkg_cflags)
check: export FUZZERS = $(fuzzers)
lint: | $(first)
	@tests/lint | { ! grep -vE '^(ok|1\.\.)'; } && echo '  LINT clean'

deps:
	@missing=; for p in $(DEBIAN); do \
	   dpkg-query -W -f='$${Status}' $$p 2> /dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	 if [ -z "$$missing" ]; then echo '  DEPS all there'; exit; fi; \
	 if [ "$$(id -u)" = 0 ]; then as=; elif command -v sudo > /dev/null; then as=sudo; \
	 else echo "deps: missing, and neither root nor sudo: apt-get install$$missing" >&2; exit 1; fi; \
	 echo "  DEPS installing$$missing"; \
	 $$as apt-get update -q && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing

bindir  := $(DESTDIR)$(PREFIX)/bin
mandir  := $(DESTDIR)$(PREFIX)/share/man
compdir := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
manuals := $(wildcard man/*.[1-9])
install: all
	install -d $(bindir) $(compdir) $(DESTDIR)$(DATADIR)/pipelines $(addprefix $(mandir)/man,1 5 7)
	install $(bins) $(bindir)
	for m in $(manuals); do install -m 644 $$m $(mandir)/man$${m##*.} || exit; done
	install -m 644 $(wildcard pipelines/*.mk) $(DESTDIR)$(DATADIR)/pipelines
	install -m 644 tools/completion.bash $(compdir)/sd-tools
	for p in $(programs); do ln -sf sd-tools $(compdir)/$$p || exit; done
uninstall:
	rm -f $(programs:%=$(bindir)/%) $(programs:%=$(compdir)/%) $(compdir)/sd-tools
	for m in $(notdir $(manuals)); do rm -f $(mandir)/man$${m##*.}/$$m; done
	rm -rf $(DESTDIR)$(DATADIR)/pipelines
	rmdir --ignore-fail-on-non-empty $(DESTDIR)$(DATADIR) 2> /dev/null || true
# CLIP's merge list, for single-file checkpoints, which have no tokenizer; needs pip once, and is not part of deps
clip-vocabulary:
	@pipelines/clip-vocabulary.sh '$(DESTDIR)$(DATADIR)/clip'
# The whole chain on the embedded miniature, photos to pictures; ends with where the sheet is.
demo: all
	+@PATH="$(abspath $(BUILD)):$$PATH" $(MAKE) --no-print-directory -f examples/creature/Makefile OUT=$(BUILD)/demo
	@echo "before and after: $(BUILD)/demo/sheet.png"
# Longer proofs; and the whole chain on a full-size model with random weights (10 GB of disk)
check-long: tests
	@BUILD=$(abspath $(BUILD)) tests/run $(wildcard tests/long/*.bats)
check-full: tests $(BUILD)/tests/bench/full_model
	@BUILD=$(abspath $(BUILD)) tests/run $(wildcard tests/full/*.bats)
# Ours beside the machine's own rates in the same run; the table goes to tests/bench/results/ when RESULT names a file
bench: all $(benches)
	@BUILD=$(abspath $(BUILD)) tests/bench/run $(if $(RESULT),| tee tests/bench/results/$(RESULT))
clean:
	rm -rf build build-san build-races $(BUILD)
-include $(cu_lib:%=$(BUILD)/%.d) $(on_card_o:.o=.d) $(emulate_own:.o=.d) $(BUILD)/emulate/tests/check_op.d $(patsubst %.cu,$(BUILD)/emulate/%.cu.d,$(wildcard tests/emulate/*.cu)) $(c_all:%.c=$(BUILD)/%.d) $(fuzz_o:.o=.d) $(fuzzers:$(BUILD)/fuzz/%=$(BUILD)/fuzz/tests/fuzz/%.d) $(c_all:%.c=$(BUILD)/f64/%.d) $(foreach i,$(isas),$(simd:%.c=$(BUILD)/%.$(i).d))
