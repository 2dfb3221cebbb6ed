# A thin front: the build is CMake's (CMakePresets.json), the work is in scripts/, which need no make.
# Benchmarks print JSON lines on stdout, so make adds nothing to them.
.PHONY: all setup demo check check-deep lint bench bench-training bench-inference bench-attention format install clean

all: setup
	cmake --preset release
	cmake --build --preset release

setup:
	scripts/setup

demo check lint:
	scripts/$@

# A million random trials of the certificate of attention in almost linear time, in as many parts as there are processors.
check-deep: all
	seq $$(nproc) | xargs -P $$(nproc) -I{} build/tests/fast_trials $$(( (1000000 + $$(nproc) - 1) / $$(nproc) )) {}

bench:
	@scripts/bench

bench-training bench-inference:
	@scripts/bench $(@:bench-%=%)

bench-attention:
	@bench/attention

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

install: all
	cmake --install build

clean:
	rm -rf build build-debug build-asan build-clang build-tsan
