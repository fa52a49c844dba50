# ngx_moe: see `make help`.

BUILD        ?= build
PORT         ?= 8080
MODEL        ?= conf/demo/model
ENGINE_ARGS  ?=
FUZZ_SECONDS ?= 60
SAN          ?=
LONG         ?=

ifeq ($(origin CC),default)
CC        = gcc
endif
PROVE    ?= prove
O         = $(abspath $(BUILD))
comma    := ,

# The set of ring-and-security flags that gcc 12 has; warnings are errors.
WARN      = -Wall -Wextra -Wformat=2 -Wconversion -Wsign-conversion \
            -Wimplicit-fallthrough -Wvla -Walloca -Wno-format-truncation \
            -Wno-format-nonliteral -Wstrict-prototypes -Wmissing-prototypes \
            -Werror
HARDEN    = -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong \
            -fstack-clash-protection -fcf-protection=full \
            -fno-delete-null-pointer-checks -fno-strict-overflow \
            -fno-strict-aliasing
ifneq ($(SAN),)
HARDEN    = -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-strict-aliasing \
            $(if $(findstring undefined,$(SAN)),-fno-sanitize-recover=undefined)
LDSAN     = -fsanitize=$(SAN)
endif

# -ffp-contract=off: one order and one rounding in every build (D6).
CFLAGS   ?= -O2 -g
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE $(CFLAGS) -ffp-contract=off -fPIE \
            $(WARN) $(HARDEN) -iquote engine -MMD -MP
ALL_LDFLAGS = $(LDSAN) -pie -Wl,-z,relro,-z,now,-z,noexecstack $(LDFLAGS)
LIBS      = -ljansson -lpcre2-8 -lpthread -lm

# Files that need more than x86-64 say so by their name, and are reached only
# through the run-time choice in engine/cpu/cpu.c.
ISA_avx2   = -mavx2 -mfma -mf16c
ISA_avx512 = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 \
             -mavx512vnni -mfma -mf16c
ISA_amx    = -mamx-tile -mamx-bf16 -mamx-int8 -mfma
isa = $(foreach i,avx2 avx512 amx,$(if $(filter %_$i,$(basename $(1))),$(ISA_$i)))

# Kernels for Ampere, from which drivers make those of newer devices, and with
# what Hopper alone has.
NVCC      ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
NVCC_FLAGS = -std=c++17 -O3 -lineinfo -Icuda -Xcompiler -fPIE,-iquote,engine \
            -gencode arch=compute_80,code=sm_80 \
            -gencode arch=compute_80,code=compute_80 \
            -gencode arch=compute_90a,code=sm_90a -MMD -MP
cuda_top   = $(shell $(NVCC) --dryrun -c x.cu 2>&1 | sed -n 's/^.* TOP=//p')
CUDA_LIBS  = -L$(cuda_top)/lib64 -lcudart_static -ldl -lrt -lstdc++
# A machine with a GPU may have no more than a driver: what runs there is built
# elsewhere, and brings what it can.
GPU_LIBS   = -Wl,-Bstatic -ljansson -Wl,-Bdynamic -Wl,--as-needed $(LIBS) \
            $(CUDA_LIBS)
CUDA_SRC  := $(wildcard cuda/*.cu)
CUDA_OBJ  := $(CUDA_SRC:%.cu=$(O)/%.o)
WITH_CUDA  = $(if $(NVCC),$(if $(SAN),,$(CUDA_OBJ)))

# The same files for the host, see t/emu/emu.h; ThreadSanitizer takes fibres
# for threads gone wrong.
EMU_FLAGS  = -std=c++17 $(CFLAGS) -ffp-contract=off -fPIE -Wall -Wextra \
            -Werror -Wno-unknown-pragmas $(HARDEN) -It/emu -Icuda -iquote engine \
            -MMD -MP
# Kernels' loads and stores are looked at, see t/emu/access.cc.
EMU_SEEN   = $(if $(SAN),,-fsanitize=thread)
EMU_OBJ   := $(CUDA_SRC:cuda/%.cu=$(O)/t/emu/cuda/%.o) \
            $(patsubst %.cc,$(O)/%.o,$(wildcard t/emu/*.cc))
CUDA_TEST := $(wildcard t/cuda/*.c)
EMU_TEST  := $(if $(findstring thread,$(SAN)),,$(CUDA_TEST:%.c=$(O)/%.emu) \
            $(patsubst %.cu,$(O)/%,$(wildcard t/emu/*.cu)))

SRC  := $(filter-out engine/main/main.c,$(wildcard engine/*.c engine/*/*.c))
OBJ  := $(SRC:%.c=$(O)/%.o)
UNIT := $(patsubst %.c,$(O)/%,$(wildcard t/unit/*.c t/unit/*/*.c t/kernel/*.c))
BENCH := $(patsubst %.c,$(O)/%,$(wildcard t/bench/*.c))
GATEWAY := $(patsubst %.c,$(O)/%,$(wildcard t/bench/gateway/*.c))
TOOLS := $(patsubst %.c,$(O)/%,$(wildcard t/tools/*.c))
FUZZ  := $(patsubst %.c,$(O)/%,$(wildcard t/fuzz/*.c))

MODULE = $(O)/ngx_http_moe_module.so
ENGINE = $(O)/moe-engine


.SECONDARY: $(EMU_OBJ) $(CUDA_OBJ)
.PHONY: all engine module tests tools cuda no-cuda
all: engine module

engine: $(ENGINE) $(if $(NVCC),,no-cuda)
module: $(MODULE)

# The engine has CUDA in it wherever there is a compiler for it.
cuda: engine
no-cuda:
	@echo "no nvcc: moe-engine is built without CUDA"
tests: $(UNIT) $(BENCH) $(GATEWAY) $(EMU_TEST) tools
tools: $(TOOLS)

$(O)/%.o: %.c | build-deps
	@mkdir -p $(@D)
	@echo $(CC) -c $< -o $@
	@$(CC) $(ALL_CFLAGS) $(call isa,$<) -c $< -o $@

$(O)/libmoe.a: $(OBJ)
	@rm -f $@
	ar qcs $@ $^

$(ENGINE): $(O)/engine/main/main.o $(WITH_CUDA) $(O)/libmoe.a
	$(CC) $(ALL_LDFLAGS) $^ $(LIBS) $(if $(WITH_CUDA),$(CUDA_LIBS)) -o $@

# A unit test includes the .c file that it tests, and so hides the one in the
# library; cmocka prints TAP for prove.
link = @mkdir -p $(@D); echo $(1) $< -o $@; $(1) $(ALL_CFLAGS) -Wno-missing-prototypes \
       -MF $@.d -MT $@ -I. -It $(call isa,$<) $< $(O)/libmoe.a $(ALL_LDFLAGS) $(2) $(LIBS) -o $@

$(O)/t/unit/%: t/unit/%.c $(O)/libmoe.a
	$(call link,$(CC),-lcmocka)

# Its allocations, and those of all that it is linked with, go through it.
$(O)/t/unit/nomem: LDFLAGS += $(foreach f,malloc calloc realloc free, \
                                -Wl,--wrap=$(f))

$(O)/t/kernel/%: t/kernel/%.c $(O)/libmoe.a
	$(call link,$(CC),-lcmocka)

$(O)/t/%: t/%.c $(O)/libmoe.a
	$(call link,$(CC),)

# libFuzzer comes with clang, and wants the whole program built by it.
$(O)/t/fuzz/%: t/fuzz/%.c $(O)/libmoe.a
	$(call link,$(CC),-fsanitize=fuzzer)

# What ptxas tells of registers, and who it is, is t/cuda_code.t's.
$(O)/cuda/%.o: cuda/%.cu
	@mkdir -p $(@D)
	@echo nvcc -c $< -o $@
	@$(NVCC) $(NVCC_FLAGS) -Xptxas -v -c $< -o $@ 2> $(@:.o=.ptxas); e=$$?; \
	    grep -vE '^ptxas info|^ +[0-9]+ bytes' $(@:.o=.ptxas) >&2; \
	    $(NVCC) --version >> $(@:.o=.ptxas); exit $$e

$(O)/t/emu/cuda/%.o: cuda/%.cu | build-deps
	@mkdir -p $(@D)
	@echo $(CXX) -c $< -o $@
	@$(CXX) $(EMU_FLAGS) $(EMU_SEEN) -x c++ -c $< -o $@

$(O)/t/emu/%.o: t/emu/%.cc | build-deps
	@mkdir -p $(@D)
	@echo $(CXX) -c $< -o $@
	@$(CXX) $(EMU_FLAGS) -c $< -o $@

$(O)/t/emu/%: t/emu/%.cu $(EMU_OBJ) $(O)/libmoe.a
	@echo $(CXX) $< -o $@
	@$(CXX) $(EMU_FLAGS) $(EMU_SEEN) -MF $@.d -MT $@ -I. -x c++ -c $< \
	    -o $@.o
	@$(CXX) $(EMU_FLAGS) $@.o $(EMU_OBJ) $(O)/libmoe.a $(ALL_LDFLAGS) \
	    -lcmocka $(LIBS) -o $@

$(O)/t/bench/cuda/%: t/bench/cuda/%.c $(CUDA_OBJ) $(O)/libmoe.a
	$(call link,$(CC),$(CUDA_OBJ) $(GPU_LIBS))

$(O)/t/bench/cuda/%: t/bench/cuda/%.cu $(CUDA_OBJ) $(O)/libmoe.a
	@mkdir -p $(@D)
	@echo nvcc $< -o $@
	@$(NVCC) $(NVCC_FLAGS) -MF $@.d $< $(CUDA_OBJ) $(O)/libmoe.a \
	    -Xcompiler -pie $(subst -Wl$(comma),-Xlinker ,$(GPU_LIBS)) -o $@

$(O)/t/cuda/%.emu: t/cuda/%.c $(EMU_OBJ) $(O)/libmoe.a
	$(call link,$(CC),$(EMU_OBJ) -lcmocka -lstdc++)

$(O)/t/cuda/%.gpu: t/cuda/%.c $(CUDA_OBJ) $(O)/libmoe.a
	$(call link,$(CC),$(CUDA_OBJ) -Wl$(comma)-rpath$(comma)'$$ORIGIN' \
	    -lcmocka $(GPU_LIBS))
	@cp -u $$($(CC) -print-file-name=libcmocka.so) $(@D)/libcmocka.so.0

-include $(OBJ:.o=.d) $(O)/engine/main/main.d \
         $(addsuffix .d,$(UNIT) $(BENCH) $(GATEWAY) $(TOOLS) $(FUZZ) $(EMU_TEST)) \
         $(CUDA_OBJ:.o=.d) $(EMU_OBJ:.o=.d)


# The module, against Debian's nginx-dev, or NGINX_SRC=a configured-able tree.
NGINX_SRC ?= /usr/share/nginx/src
MODULE_SRC := config $(wildcard ngx_module/*.c ngx_module/*.h) \
              engine/abi.h engine/ring.h engine/ring.c \
              engine/ring_peer.c t/tools/build-module.sh

$(MODULE): $(MODULE_SRC) | build-deps
	bash t/tools/build-module.sh $(NGINX_SRC) $(O)/nginx $@


# What Debian has to bring; installed when something is missing.
BUILD_PKGS = gcc libc6-dev curl libjansson-dev libpcre2-dev nginx nginx-dev dpkg-dev
# Node.js from elsewhere conflicts with Debian's npm: taken as it is.
TEST_PKGS  = g++ libcmocka-dev perl spin python3-venv chromium chromium-driver \
             procps $(if $(shell command -v npm),,nodejs npm)
missing = $(shell for p in $(1); do \
            dpkg-query -W -f='$${Status}' $$p 2>/dev/null \
            | grep -q 'ok installed' || echo $$p; done)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
apt = @m="$(call missing,$(1))"; [ -z "$$m" ] || \
      { $(SUDO) apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        $(SUDO) apt-get install -q -y --no-install-recommends $$m; }

.PHONY: build-deps test-deps
build-deps:
	$(call apt,$(BUILD_PKGS))

test-deps: build-deps
	$(call apt,$(TEST_PKGS))


.PHONY: run start stop
run: all
	@t/tools/serve.sh run $(O) $(PORT) $(MODEL) $(ENGINE_ARGS)

start: all
	@t/tools/serve.sh start $(O) $(PORT) $(MODEL) $(ENGINE_ARGS)

stop:
	@t/tools/serve.sh stop $(O)


.PHONY: test test-cuda bench bench-cuda bench-cuda-pack asan tsan clean help
test: test-deps all tests
	BUILD=$(O) LONG=$(LONG) $(PROVE) --timer -Ilib -It/lib \
	    $(sort $(wildcard t/*.t)) $(UNIT) $(EMU_TEST)

bench: all tests
	BUILD=$(O) MODEL=$(MODEL) PEER=$(PEER) perl -It/lib t/bench/run.pl

# NGINX with the module beside NGINX before a server in C and one in Python.
GATEWAY_VENV = $(O)/gateway-venv
.PHONY: bench-gateway
bench-gateway: all tools $(GATEWAY) $(GATEWAY_VENV)
	BUILD=$(O) perl -It/lib t/bench/gateway.pl $(SETTINGS)

$(GATEWAY_VENV):
	python3 -m venv $@
	$@/bin/pip install -q uvicorn uvloop httptools || rm -rf $@

# The tests of t/cuda/ on a GPU; they say SKIP and why where there is none.
test-cuda:
	@if [ -n "$(NVCC)" ]; then \
	    $(MAKE) --no-print-directory $(CUDA_TEST:%.c=$(O)/%.gpu) && \
	    $(PROVE) --timer $(CUDA_TEST:%.c=$(O)/%.gpu); \
	else echo "SKIP: no nvcc to build CUDA's tests with"; fi

# One call that says all a machine with a GPU can say; see the script.
GPU_BENCH = $(CUDA_TEST:%.c=$(O)/%.gpu) $(O)/t/bench/cuda/kernels \
            $(O)/t/bench/cuda/model $(O)/t/tools/gguf
bench-cuda:
	@if [ -n "$(NVCC)" ]; then \
	    $(MAKE) --no-print-directory $(GPU_BENCH) && \
	    PEER=$(PEER) t/bench/cuda/run.sh $(O) $(PHASES); \
	else echo "SKIP: no nvcc to build CUDA's benchmarks with"; fi

# What another machine, which has a GPU, wants beside the tree.  The programs are
# alike but for a little, which xz sees where its window holds one of them.
bench-cuda-pack: $(GPU_BENCH)
	XZ_OPT=-9 tar -cJf $(O)/gpu.txz -C $(O) $(GPU_BENCH:$(O)/%=%) \
	    t/cuda/libcmocka.so.0
	@echo "there: mkdir -p build && tar -xJf gpu.txz -C build &&" \
	    "t/bench/cuda/run.sh build"

asan:
	$(MAKE) test BUILD=$(BUILD)/asan SAN=address,undefined CFLAGS="-O1 -g"

# One fuzzer after the other, FUZZ_SECONDS each; real templates to begin with.
SEEDS_template = -max_len=20000 t/data/template/models
.PHONY: fuzz fuzz-run
fuzz:
	$(call apt,clang libclang-rt-14-dev)
	$(MAKE) fuzz-run BUILD=$(BUILD)/fuzz CC=clang CFLAGS="-O1 -g" WARN=-w \
	    SAN=address,undefined,fuzzer-no-link

fuzz-run: $(FUZZ)
	@set -e; $(foreach f,$(FUZZ),echo "== $(notdir $f)"; \
	    mkdir -p $f.corpus; \
	    $f -max_total_time=$(FUZZ_SECONDS) -timeout=20 \
	        -print_final_stats=1 -artifact_prefix=$f- $f.corpus \
	        $(SEEDS_$(notdir $f));)

tsan:
	$(MAKE) test BUILD=$(BUILD)/tsan SAN=thread CFLAGS="-O1 -g"

# DESTDIR and PREFIX are honoured; units and example go beside the programs.
PREFIX ?= /usr
.PHONY: install deb
install: all
	install -D -m 755 $(ENGINE) $(DESTDIR)$(PREFIX)/sbin/moe-engine
	install -D -m 644 $(MODULE) \
	    $(DESTDIR)$(PREFIX)/lib/nginx/modules/ngx_http_moe_module.so
	install -d $(DESTDIR)/etc/moe $(DESTDIR)/lib/systemd/system \
	    $(DESTDIR)$(PREFIX)/share/doc/moe $(DESTDIR)$(PREFIX)/share/moe/www
	install -m 644 conf/systemd/* $(DESTDIR)/lib/systemd/system
	install -m 644 conf/*.conf conf/directives.md conf/grafana.json \
	    $(DESTDIR)$(PREFIX)/share/doc/moe
	install -m 644 conf/demo/www/* $(DESTDIR)$(PREFIX)/share/moe/www
	sed -i -e 's,/usr/sbin,$(PREFIX)/sbin,' \
	    -e 's,/usr/share/moe,$(PREFIX)/share/moe,' \
	    $(DESTDIR)/lib/systemd/system/moe-engine@.service \
	    $(DESTDIR)$(PREFIX)/share/doc/moe/nginx-production.conf

# Debian packages of what is committed, in $(BUILD)/deb.
deb: build-deps
	$(call apt,debhelper)
	rm -rf $(O)/deb && mkdir -p $(O)/deb/ngx-moe
	git archive HEAD | tar -x -C $(O)/deb/ngx-moe \
	    --exclude='conf/demo/model' --exclude='t/data'
	cp -r conf/debian $(O)/deb/ngx-moe/debian
	cd $(O)/deb/ngx-moe && dpkg-buildpackage -b -us -uc
	@ls -l $(O)/deb/*.deb

clean:
	rm -rf $(BUILD)

help:
	@echo "make run [PORT=8080]      build, start engine and NGINX with the demo model; Ctrl-C stops"
	@echo "make start | stop         the same in the background"
	@echo "make test [LONG=1]        everything that needs no GPU"
	@echo "make cuda | test-cuda     the engine with CUDA; its tests on a GPU"
	@echo "make bench-cuda [PEER=..] kernels and models on a GPU, beside its ceilings;"
	@echo "                          bench-cuda-pack: for a GPU on another machine"
	@echo "make bench [PEER=...]     every benchmark that this machine can run; PEER is"
	@echo "                          a llama-bench, perhaps beside a llama-server, to run on"
	@echo "                          the same weights, in turn"
	@echo "make bench-gateway        cost of a token beside NGINX's proxy_pass; perf, python3-venv"
	@echo "make asan | tsan          the tests under sanitizers"
	@echo "make fuzz [FUZZ_SECONDS=] the fuzzers, one after the other (clang)"
	@echo "make engine | module      one half of the build"
	@echo "make install | deb        DESTDIR and PREFIX are honoured; Debian packages"
	@echo "MODEL=DIR ENGINE_ARGS='...' BUILD=dir are honoured by run, start and bench"
