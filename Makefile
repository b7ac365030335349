# The two commands: `make demo` and `make test`. Both start from a bare Debian 12 and install what is missing.
# Further: setup build check bench format coverage

PACKAGES = g++ cmake ninja-build ccache mold pkg-config git python3 \
  nlohmann-json3-dev libcli11-dev libfmt-dev libpcre2-dev libutf8proc-dev libgtest-dev
CHECK_PACKAGES = clang libclang-rt-14-dev llvm qemu-user clang-format

PRESET ?= release
JOBS ?= $(shell nproc)
MODEL ?= demo/model
TEXT ?= demo/data/heldout.txt
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test setup build check check-setup fuzz bench format coverage install clean

demo: build
	./demo/run.sh build/release/lowbit

test: build
	ctest --test-dir build/release --output-on-failure --no-tests=error -LE slow -j $(JOBS)

# Asks apt only when a package is missing, so that it also works without a network once set up.
setup:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; fi

check-setup: setup
	@missing=$$(for p in $(CHECK_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; fi

build: setup
	cmake --preset $(PRESET) -Wno-dev >/dev/null
	cmake --build build/$(PRESET) -j $(JOBS)

# The fast tests under address and undefined-behaviour sanitizers (clang's build, where a warning is an error), those with
# threads under the thread sanitizer, and 30 seconds of each fuzz target.
check: fuzz
	ctest --test-dir build/fuzz --output-on-failure --no-tests=error -LE 'slow|end_to_end' -j $(JOBS)
	cmake --preset tsan -Wno-dev >/dev/null
	cmake --build build/tsan -j $(JOBS)
	ctest --test-dir build/tsan --output-on-failure --no-tests=error -LE 'slow|end_to_end' -j $(JOBS)

fuzz: check-setup
	cmake --preset fuzz -Wno-dev >/dev/null
	cmake --build build/fuzz -j $(JOBS)
	./tests/fuzz/smoke.sh build/fuzz $(or $(SECONDS_EACH),30)

bench: setup
	cmake --preset release -DLOWBIT_BENCH=ON -Wno-dev >/dev/null
	cmake --build build/release -j $(JOBS)
	./build/release/op_bench
	./bench/end_to_end.py build/release/lowbit $(MODEL) $(TEXT)

coverage: check-setup
	cmake --preset coverage -Wno-dev >/dev/null
	cmake --build build/coverage -j $(JOBS)
	ctest --test-dir build/coverage --output-on-failure --no-tests=error -LE slow -j $(JOBS)
	tools/coverage build/coverage

format:
	git ls-files '*.cc' '*.h' '*.inc' | xargs clang-format -i --style=file

install: build
	cmake --install build/release

clean:
	rm -rf build
